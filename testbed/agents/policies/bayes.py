"""Gain against a null towards Eve as Fred tells of her: the best that two ends can do that tell each other nothing.

Closed form but for one number that is searched (`testbed.agents.beams.bayes_alone`). Fred is the friendly node beside
Eve; `fred` is the role whose transmissions stand for his. Bob, who does not measure what is between Alice and Eve, and
Alice until she has heard Fred, use the beam of `svd`. Narrow-band: the subcarrier in the middle of the band counts.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from testbed.agents.policies.svd import Svd
from testbed.core.stages import BeamPolicy, first_antenna
from testbed.core.types import C64


class Bayes(BeamPolicy):
    """Trades by the latest sounding.

    Options
      fred: role of the transmitter that stands for Fred.
      kappa_fred: correlation of his channel with Eve's; kappa_eve: of Eve's channel with the legitimate one.
      fred_noise: error variance of a coefficient of his channel, of unit variance itself.
      snr: P/σ² at one antenna; mu: weight of the key rate, 1 − mu of the data rate.
      rho: AR(1) coefficient from one probe to the other.
    """

    def __init__(
        self,
        fred: str = "eve",
        kappa_fred: float = 0.995,
        kappa_eve: float = 0.9,
        fred_noise: float = 1e-3,
        snr: float = 10.0,
        mu: float = 1.0,
        rho: float = 0.95,
    ) -> None:
        self._fred = fred
        self._numbers = {"kappa_fred": kappa_fred, "kappa_eve": kappa_eve, "fred_noise": fred_noise, "mu": mu}
        self._numbers |= {"rho": rho, "power": snr, "noise_power": 1.0}
        for name, value in self._numbers.items():
            most = 1 if name in ("kappa_fred", "kappa_eve", "mu", "rho") else 1e9
            if not 0 <= value <= most:
                raise ValueError(f"{'snr' if name == 'power' else name} = {value}, accepted: 0 to {most:g}")
        if snr <= 0:
            raise ValueError(f"snr = {snr}, accepted: above 0")

    def begin(self, n_own: int, n_peer: int, peer: str, seed: int) -> None:
        self._peer, self._is_alice = peer, peer == "bob"
        self._svd = Svd()
        self._svd.begin(n_own, n_peer, peer, seed)
        self._beam = first_antenna(n_own)
        self._powers: dict[str, list[float]] = {}
        if self._is_alice and n_own > 1:
            # torch, which other policies do without; loading it and the first use take seconds, for which the others
            # on a simulated air would not wait once the rounds have begun
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
        """Return (own antenna, transmitter's antenna) of mean power 1, by all that was heard of the link so far."""
        middle = h[:, :, h.shape[-1] // 2].astype(np.complex128)
        heard = self._powers.setdefault(role, [])
        heard.append(float(np.mean(np.abs(middle) ** 2)))
        return middle / np.sqrt(max(float(np.mean(heard)), 1e-30))
