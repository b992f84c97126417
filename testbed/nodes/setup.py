"""The run that a node is part of, and what it was configured to do in it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from testbed.chain.pipeline import KeyChain
from testbed.core import seeds
from testbed.core.config import Floors
from testbed.core.errors import InputError
from testbed.core.outcomes import KeyReport
from testbed.core.stages import TrainableEnhancer
from testbed.core.types import Key
from testbed.net import messages as m
from testbed.nodes.events import OrderRefused


class Setup:
    """What a node knows of the run, its key chain, and the enhancer's model where one was trained.

    `secret_seed` feeds the node's own random choices outside of rehearsals: the experiment's seed, which everybody
    knows, must not foretell which bits are sacrificed or how the key is hashed.
    """

    def __init__(self, secret_seed: int, floors: Floors | None = None) -> None:
        self.secret_seed = secret_seed
        self.floors = floors if floors is not None else Floors(key_bits=1)
        self._secrets_drawn = 0
        self._decided: set[int] = set()
        """Blocks of this run that ε was spent on, however often the node was configured."""
        self._fixed: tuple[object, ...] | None = None
        """What this run was first configured with and must not change."""
        self.run = ""
        self.plan: m.Configure | None = None
        self.chain: KeyChain | None = None
        self.model: bytes | None = None
        """What the training of this run gave."""

    def join(self, run: str) -> None:
        """Become part of a run; nothing of an earlier one is left, of the same one what was promised and spent."""
        if run != self.run:
            self._decided, self._fixed = set(), None
        self.run = run
        self.plan = self.chain = self.model = None

    def configure(self, plan: m.Configure) -> None:
        """Take what the coordinator configures; raises OrderRefused."""
        fixed = (plan.experiment_mode, plan.rehearsal, plan.blocks, plan.accounting, plan.chain)
        if self._fixed is not None and self._fixed != fixed:
            raise OrderRefused(
                "the mode of a run, its chain, its accounting and its number of blocks cannot change within it"
            )
        if self.chain is not None:
            self.plan = plan  # the same chain goes on
            return
        self.plan = plan
        try:
            self.chain = KeyChain(plan.chain, plan.accounting, plan.blocks, self.floors.key_bits, self._decided)
            self._fixed = fixed
        except InputError as exc:  # a model file that this machine does not have
            raise OrderRefused(str(exc)) from exc
        if self.model is not None and isinstance(self.chain.enhance, TrainableEnhancer):
            try:
                self.chain.enhance.load(self.model)
            except ValueError as exc:
                raise OrderRefused(f"the model kept of this run: {exc}") from exc

    def has_spent(self, blocks: Iterable[int]) -> None:
        """Take note of blocks of this run that an earlier life of this node spent ε on."""
        self._decided.update(blocks)

    def configured(self) -> tuple[KeyChain, m.Configure]:
        """Return the key chain and the configuration; raises OrderRefused before there are any."""
        if self.chain is None or self.plan is None:
            raise OrderRefused("this node is not configured")
        return self.chain, self.plan

    @property
    def is_experiment(self) -> bool:
        """Whether bits and digests may be reported."""
        return self.plan is not None and self.plan.experiment_mode

    @property
    def is_rehearsal(self) -> bool:
        """Whether the run follows from its seed, so that its keys are nobody's secret."""
        return self.plan is not None and self.plan.rehearsal

    @property
    def seed(self) -> int:
        """What random choices come from: in a rehearsal the experiment's seed, else a secret that is never used again.

        A block that is begun twice, or a second welcome, must not repeat what was chosen before.
        """
        assert self.plan is not None
        if self.plan.rehearsal:
            return self.plan.seed
        self._secrets_drawn += 1
        return seeds.secret(self.secret_seed, self.run, self._secrets_drawn)

    def reportable(self, report: KeyReport) -> KeyReport:
        """Return what may be reported of a length: entropies follow from secret bits, so private nodes keep them."""
        return report if self.is_experiment else report.public()

    def digest(self, key: Key) -> str:
        """Return the SHA-256 of run, block and key: shows whether two nodes hold the same key."""
        text = f"{self.run}/{key.block}/".encode() + np.packbits(key.bits).tobytes() + str(key.bits.size).encode()
        return hashlib.sha256(text).hexdigest()

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        if self.chain is not None and self.plan is None:
            yield "there is a key chain without a configuration"
