"""The run that a node is part of, and its configuration in that run. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from testbed.chain.pipeline import KeyChain
from testbed.chain.wegman_carter import Pool
from testbed.core import registry, seeds
from testbed.core.config import Floors, SurfacePlan
from testbed.core.errors import InputError
from testbed.core.gate import printable
from testbed.core.outcomes import KeyReport
from testbed.core.stages import TrainableEnhancer
from testbed.core.types import Key
from testbed.net import messages as m
from testbed.nodes.events import OrderRefused

NO_POOL = (
    "wegman_carter: the pool of one-time authentication is used up or missing; accepted: a new secret for both "
    "ends, see `testbed keys pool`"
)


class Setup:
    """A node's data of the run, its key chain, and the enhancer's model where one was trained.

    `secret_seed` feeds the node's own random choices outside of rehearsals: the experiment's seed is known to
    all parties, and must not determine which bits are sacrificed or how the key is hashed. `wegman_carter`: the node's
    own lab file demands one-time authentication of the discussion; `pool` contains the pads for that, None if there is
    none.
    """

    def __init__(
        self, secret_seed: int, floors: Floors | None = None, wegman_carter: bool = False, pool: Pool | None = None
    ) -> None:
        self.secret_seed = secret_seed
        self._wegman_carter, self._own_pool = wegman_carter, pool
        self.pool: Pool | None = None
        """The pads that authenticate this run's discussion; None if only the links are authenticated."""
        self.floors = floors if floors is not None else Floors(key_bits=1)
        self._secrets_drawn = 0
        self._decided: set[int] = set()
        """Blocks of this run that have used their share of ε, however often the node was configured."""
        self._fixed: tuple[object, ...] | None = None
        """The first configuration of this run, which must not change."""
        self.run = ""
        self.plan: m.Configure | None = None
        self.chain: KeyChain | None = None
        self.model: bytes | None = None
        """The model from this run's training."""

    def join(self, run: str) -> None:
        """Become part of a run. A new run clears everything; if it is the same run again, the fixed settings and the
        number of blocks that have spent their share of ε are kept."""
        if run != self.run:
            self._decided, self._fixed = set(), None
        self.run = run
        self.plan = self.chain = self.model = None

    def configure(self, plan: m.Configure) -> None:
        """Take the coordinator's configuration; raises OrderRefused."""
        fixed = (plan.experiment_mode, plan.rehearsal, plan.blocks, plan.accounting, plan.chain, plan.surface)
        if self._fixed is not None and self._fixed != fixed:
            raise OrderRefused(
                "the mode of a run, its chain, its accounting, its surface and its number of blocks cannot change "
                "within it"
            )
        if (why := _no_secret(plan.surface)) is not None:
            raise OrderRefused(why)
        if self.chain is not None:
            self.plan = plan  # the chain is the same and stays in use
            return
        self.pool = self._pool_for(plan)
        self.plan = plan
        try:
            self.chain = KeyChain(
                plan.chain, plan.accounting, plan.blocks, self.floors.key_bits, self._decided, self.pool
            )
            self._fixed = fixed
        except InputError as exc:  # a model file that this machine does not have
            raise OrderRefused(str(exc)) from exc
        # With a pool, a model from before a restart is not used: the tags must cover the messages of its training.
        if self.model is not None and self.pool is None and isinstance(self.chain.enhance, TrainableEnhancer):
            try:
                self.chain.enhance.load(self.model)
            except ValueError as exc:
                raise OrderRefused(f"the stored model of this run cannot be used: {exc}") from exc

    def has_spent(self, blocks: Iterable[int]) -> None:
        """Take note of blocks of this run on which an earlier process of this node spent a share of ε."""
        self._decided.update(blocks)

    def _pool_for(self, plan: m.Configure) -> Pool | None:
        """Return the run's pool; raises OrderRefused if one is demanded and no pad is left."""
        if not self._wegman_carter:
            return None
        if plan.rehearsal:
            return Pool.of_rehearsal(plan.seed)
        if self._own_pool is None or not self._own_pool.pairs:
            raise OrderRefused(NO_POOL)
        return self._own_pool

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
        """Whether the run follows from its seed, so that its keys are not secret."""
        return self.plan is not None and self.plan.rehearsal

    @property
    def seed(self) -> int:
        """Seed of all random choices: in a rehearsal the experiment's, else a secret that is used for one block only.

        A block that is begun twice, or a second welcome, must not repeat earlier choices.
        """
        assert self.plan is not None
        if self.plan.rehearsal:
            return self.plan.seed
        self._secrets_drawn += 1
        return seeds.secret(self.secret_seed, self.run, self._secrets_drawn)

    def reportable(self, report: KeyReport) -> KeyReport:
        """Return the part of a key's report that may be sent: entropies follow from secret bits and stay in private
        nodes.
        """
        return report if self.is_experiment else report.public()

    def digest(self, key: Key) -> str:
        """Return the SHA-256 of run, block and key: shows whether two nodes hold the same key."""
        text = f"{self.run}/{key.block}/".encode() + np.packbits(key.bits).tobytes() + str(key.bits.size).encode()
        return hashlib.sha256(text).hexdigest()

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        if self.chain is not None and self.plan is None:
            yield "there is a key chain without a configuration"


def _no_secret(plan: SurfacePlan) -> str | None:
    """Return in one line why a surface that is said to be secret is none; None where it may be, or is said to be
    public.

    Patterns that follow from the experiment are known to everybody, whatever the coordinator calls them.
    """
    if not plan.is_secret or plan.policy == "none":
        return None
    try:
        policy = registry.make_stage("policy", plan.policy, plan.options)
    except InputError as exc:
        return f"table [surface]: {exc}"
    if policy.can_be_secret:
        return None
    return f"table [surface]: the patterns of policy {printable(plan.policy, 60)!r} are no secret; accepted: 'random'"
