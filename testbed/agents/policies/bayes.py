"""Gain against a null towards Eve, predicted from Fred: the optimum for two ends that exchange no information.

It is a closed form except for one number, which is searched (`testbed.agents.beams.bayes_alone`). Fred is the friendly
node beside Eve; option `fred` names the role whose transmissions are used as his. Bob, who does not measure the channel
from Alice to Eve, and Alice until she has received Fred, use the beam of `svd`. Only the middle subcarrier is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.agents.policies.svd import Svd
from testbed.core.options import StageOptions
from testbed.core.stages import BeamPolicy, first_antenna
from testbed.core.types import C64

Share = Annotated[float, Meta(ge=0, le=1)]


class BayesOptions(StageOptions, frozen=True):
    fred: str = "eve"
    """Role of the transmitter that stands for Fred."""
    kappa_fred: Share = 0.995
    """Correlation of his channel with Eve's."""
    kappa_eve: Share = 0.9
    """Correlation of Eve's channel with the legitimate one."""
    fred_noise: Annotated[float, Meta(ge=0, le=1e9)] = 1e-3
    """Error variance of a coefficient of his channel, which has variance 1."""
    snr: Annotated[float, Meta(gt=0, le=1e9)] = 10.0
    """P/σ² at one antenna."""
    mu: Share = 1.0
    """Weight of the key rate; 1 − mu of the data rate."""
    rho: Share = 0.95
    """AR(1) coefficient from one probe to the next."""


class Bayes(BeamPolicy):
    """Computes the beam from the latest sounding."""

    options_type = BayesOptions
    options: BayesOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        self._fred = o.fred
        self._numbers = {
            "kappa_fred": o.kappa_fred, "kappa_eve": o.kappa_eve, "fred_noise": o.fred_noise, "mu": o.mu, "rho": o.rho,
            "power": o.snr, "noise_power": 1.0,
        }  # fmt: skip

    def begin(self, n_own: int, n_peer: int, peer: str, seed: int) -> None:
        self._peer, self._is_alice = peer, peer == "bob"
        self._svd = Svd()
        self._svd.begin(n_own, n_peer, peer, seed)
        self._beam = first_antenna(n_own)
        self._powers: dict[str, list[float]] = {}
        if self._is_alice and n_own > 1:
            # torch is imported here, because other policies do not need it. It is done before the first round, because
            # import and first use take seconds, and the other nodes on a simulated air would not wait for that.
            self._deploy = importlib.import_module("testbed.agents.policy")
            self._deploy.bayes_alone(np.eye(n_peer, n_own), np.ones(n_own), self._numbers)

    def hear(self, round: int, links: Mapping[str, C64]) -> None:
        self._svd.hear(round, links)
        self._beam = self._svd.beam(round)
        scaled = {role: self._scaled(role, h) for role, h in links.items() if role in (self._peer, self._fred)}
        if self._is_alice and len(self._beam) > 1 and {self._peer, self._fred} <= scaled.keys():
            self._beam = self._deploy.bayes_alone(scaled[self._peer].T, scaled[self._fred][:, 0], self._numbers)

    def beam(self, round: int) -> C64:
        return self._beam

    def _scaled(self, role: str, h: C64) -> Any:
        """Return (own antenna, transmitter's antenna) of mean power 1, by the mean over all receptions of the link."""
        middle = h[:, :, h.shape[-1] // 2].astype(np.complex128)
        heard = self._powers.setdefault(role, [])
        heard.append(float(np.mean(np.abs(middle) ** 2)))
        return middle / np.sqrt(max(float(np.mean(heard)), 1e-30))
