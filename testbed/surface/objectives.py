"""Objectives that rate a surface pattern by probes; a larger worth is better, and independent contributions add up.

Every objective uses magnitudes and phase differences within one frame only, because the phases and arrival times of two
frames cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import C64

Links = Mapping[str, C64]
"""'tx>rx' → (rx antenna, tx antenna, subcarrier) of one round."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A way to judge one round; rounds under one pattern are averaged."""

    unit: str
    needs: tuple[str, ...]
    """Links without which a round cannot be judged."""
    worth: Callable[[Links], float]
    decibels: bool = False
    """The worth is a power and is shown in dB."""

    def text(self, worth: float) -> str:
        shown = 10 * np.log10(max(worth, 1e-30)) if self.decibels else worth
        return f"{shown:.3f} {self.unit}".strip()

    def shown(self, worth: float) -> float:
        """Return a worth in `unit`."""
        return float(10 * np.log10(max(worth, 1e-30))) if self.decibels else float(worth)

    def judge(self, rounds: list[Links]) -> tuple[float, float] | None:
        """Return mean and standard deviation (0 for one round) of the worths; None where no round has all links."""
        worths = [self.worth(links) for links in rounds if all(link in links for link in self.needs)]
        if not worths:
            return None
        return float(np.mean(worths)), float(np.std(worths, ddof=1)) if len(worths) > 1 else 0.0


def by_name(name: str) -> Objective:
    """Return an objective; raises InputError naming the accepted ones."""
    if name not in OBJECTIVES:
        raise InputError(f"no objective is called {name!r}; accepted: {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


def _power(links: Links) -> float:
    return float(np.mean(np.abs(links["alice>bob"].astype(np.complex128)) ** 2))


def _ends(links: Links) -> tuple[C64, C64]:
    """Return Alice's and Bob's measurements with the same order of axes."""
    return links["bob>alice"].swapaxes(0, 1), links["alice>bob"]


def _correlation(links: Links) -> float:
    """Pearson's r of the two ends' levels in dB over the subcarriers, averaged over antenna pairs."""
    a, b = (np.log10(np.maximum(np.abs(h), 1e-12)).reshape(-1, h.shape[-1]) for h in _ends(links))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return float(np.mean((a * b).sum(axis=1) / np.maximum(scale, 1e-12)))


def _snr(links: Links) -> float:
    """SNR of one estimate, assumed equal at both ends: the difference of their magnitudes is taken for noise.

    |h + n| differs from |h| by the noise's component along h, which has half of the noise's power. The difference of
    two such magnitudes therefore has the power of one end's noise.
    """
    a, b = (np.abs(h).ravel() / np.sqrt(np.mean(np.abs(h) ** 2)) for h in _ends(links))
    return float(1.0 / max(np.mean((a - b) ** 2), 1e-9))


def _coherence(x: C64, y: C64) -> float:
    """Return |coherence| of two frequency responses, at the delay between them that makes it largest (0 to 1)."""
    scale = np.sqrt(np.sum(np.abs(x) ** 2) * np.sum(np.abs(y) ** 2))
    product = np.fft.fft(x * y.conj(), 8 * x.size)
    return float(np.abs(product).max() / max(scale, 1e-30))


def _eve(links: Links) -> float:
    """Return the largest coherence of a channel at Eve (from Alice or from Bob) with that of Alice and Bob."""
    heard = [links[link][0, 0] for link in ("alice>eve", "bob>eve") if link in links]
    return max((_coherence(h, end[0, 0]) for h in heard for end in _ends(links)), default=0.0)


def _key_rate(links: Links) -> float:
    """I(A;B) − I(A;E) of jointly Gaussian measurements, −log₂(1 − ρ²) each, in bits per complex dimension."""
    snr = _snr(links)
    shared, leaked = snr / (1 + snr), min(_eve(links), 0.999)
    return float(np.log2((1 - leaked**2) / (1 - shared**2)))


def _leakage(links: Links) -> float:
    return -_eve(links)


_BOTH = ("alice>bob", "bob>alice")
OBJECTIVES = {
    "power": Objective("dB", ("alice>bob",), _power, decibels=True),
    "correlation": Objective("", _BOTH, _correlation),
    "key_rate": Objective("bit/dimension", _BOTH, _key_rate),
    "leakage": Objective("(−|coherence| of Eve)", (*_BOTH, "alice>eve"), _leakage),
}
