"""Beams of a trained policy (paper E): a checkpoint of `testbed.agents`, applied to the soundings that this end
received.

The policies are narrow-band: they use the subcarrier in the middle of the band. Trained with the view `none`, they need
the legitimate channel only, and each end acts by itself. Those that predict Eve's channel (`lstm`, `kalman`, `last`)
need Fred, the friendly node beside her. `fred` is the role that transmits in his place: with a schedule such as
"A>BE B>AE E>AB" the lab's Eve does. Then only Alice's beam weighs her gain to Bob against that to Eve. The beam is that
of `svd` until Alice has received Fred often enough, and always at Bob, who does not have Alice's prediction.

Every sounding has a phase of its own, because oscillators run freely. Each end turns H so that the coefficient of the
first pair of antennas is real, and turns Fred's earlier channels so that they agree best with his latest one.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.agents.policies.svd import Svd
from testbed.core.errors import InputError
from testbed.core.options import StageOptions
from testbed.core.stages import BeamPolicy
from testbed.core.types import C64

_PREDICTING = ("lstm", "kalman", "last")


class AgentOptions(StageOptions, frozen=True):
    checkpoint: str
    """File that a learner saved, its card (.json) beside it; on every node's own machine."""
    run: Annotated[int, Meta(ge=0)] = 0
    """Number of the run to use, of those that the checkpoint trained side by side."""
    fred: str = "eve"
    """Role of the transmitter that stands for Fred."""


class Agent(BeamPolicy):
    """Computes the beam by the checkpoint's policy after every sounding."""

    options_type = AgentOptions
    options: AgentOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._path = Path(self.options.checkpoint)
        if not self._path.is_file():
            raise InputError(f"checkpoint: {self._path} does not exist, accepted: the file that a learner saved")
        card = self._path.with_suffix(".json")
        if not card.is_file():
            raise InputError(f"checkpoint: {self._path} has no card beside it ({card.name}), which a learner saves too")
        self._run, self._fred = self.options.run, self.options.fred

    def begin(self, n_own: int, n_peer: int, peer: str, seed: int) -> None:
        # by name: it needs torch, which nodes with other policies never load
        self._learned = importlib.import_module("testbed.agents.policy").load_policy(self._path, self._run)
        n, view = self._learned.n_antennas, self._learned.view
        if (n_own, n_peer) != (n, n):
            raise InputError(f"{self._path}: trained for {n} antennas at both ends, these have {n_own} and {n_peer}")
        if view not in ("none", *_PREDICTING):
            raise InputError(
                f"{self._path}: trained with the view {view!r}, which no node can have; accepted: none, "
                + ", ".join(_PREDICTING)
            )
        self._peer, self._role = peer, "alice" if peer == "bob" else "bob"
        self._svd = Svd()
        self._svd.begin(n_own, n_peer, peer, seed)
        self._beam = self._svd.beam(0)
        self._of_h, self._of_fred = _Scale(), _Scale()
        self._past: deque[Any] = deque(maxlen=self._learned.learner.stack.history if view in _PREDICTING else 1)

    def hear(self, round: int, links: Mapping[str, C64]) -> None:
        self._svd.hear(round, links)
        self._beam = self._svd.beam(round)
        friend = links.get(self._fred)
        if friend is not None:
            self._past.append(self._of_fred(_middle(friend)[:, 0]))
        if self._peer not in links:
            return
        own = self._of_h(_middle(links[self._peer]))  # (own antenna, peer's antenna)
        h = own.T if self._role == "alice" else own
        h = h * np.exp(-1j * np.angle(h[0, 0]))
        if self._learned.view == "none":
            self._beam = self._learned.act(self._role, h)
        elif self._role == "alice" and len(self._past) == self._past.maxlen:
            now = self._past[-1]
            turned = [f * np.exp(1j * np.angle(np.vdot(f, now))) for f in self._past]
            self._beam = self._learned.act(self._role, h, fred=np.stack(turned))

    def beam(self, round: int) -> C64:
        return self._beam


def _middle(h: C64) -> Any:
    """Return (rx antenna, tx antenna) in the middle of the band."""
    return h[:, :, h.shape[-1] // 2].astype(np.complex128)


class _Scale:
    """Scales channels to coefficients of mean power 1, by the mean over all that were received so far."""

    def __init__(self) -> None:
        self._power, self._n = 0.0, 0

    def __call__(self, h: Any) -> Any:
        self._power += float(np.mean(np.abs(h) ** 2))
        self._n += 1
        return h / np.sqrt(max(self._power / self._n, 1e-30))
