"""Karhunen–Loève transform along subcarriers: nearly independent dimensions in descending order of strength.

The basis is that of an exponential power delay profile, whose covariance between subcarriers at a distance Δf is
1/(1 + j2πΔf·τ): both ends, and Eve, know it from the experiment file. Of a channel with another profile the dimensions
are still nearly independent (they are the delay domain, windowed to the band), only the order may be off; the quantizer
gives each the bits that it deserves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from testbed.chain.enhance._features import aligned, whole
from testbed.core.stages import Enhancer
from testbed.core.types import F64, CsiSeries, Features

PHASES = ("aligned", "coherent")


def delay_basis(subcarrier_hz: F64, rms_delay_s: float) -> tuple[F64, NDArray[np.complex128]]:
    """Return descending eigenvalues, adding up to the number of subcarriers, and eigenvectors (subcarrier, dimension).

    Each vector is turned so that its entry of largest modulus among the first half is real and positive: a solver is
    free to choose the phase, and both ends must agree.
    """
    delta = subcarrier_hz[:, None] - subcarrier_hz[None, :]
    values, vectors = np.linalg.eigh(1.0 / (1.0 + 2j * np.pi * delta * rms_delay_s))
    values, vectors = values[::-1], vectors[:, ::-1]
    first = np.abs(vectors[: (len(vectors) + 1) // 2]).round(9).argmax(axis=0)
    vectors = vectors * np.exp(-1j * np.angle(vectors[first, np.arange(vectors.shape[1])]))
    return values, vectors


class Klt(Enhancer):
    """Turns complex CSI into real and imaginary parts of its strongest delay components.

    rms_delay_s: of the assumed profile, above 0. dimensions: components kept of each antenna pair, 0: those within
    30 dB of the strongest. phase: 'aligned' (each frame's mean delay and common phase are taken off first: radios whose
    oscillators are not locked to each other) or 'coherent' (CSI as measured).
    """

    def __init__(self, rms_delay_s: float = 50e-9, dimensions: int = 0, phase: str = "aligned") -> None:
        whole("dimensions", dimensions, 0)
        if isinstance(rms_delay_s, bool) or not 0.0 < rms_delay_s < 1.0:
            raise ValueError(f"rms_delay_s = {rms_delay_s!r}, accepted: above 0, below 1")
        if phase not in PHASES:
            raise ValueError(f"phase = {phase!r}, accepted: {', '.join(PHASES)}")
        self._delay_s, self._dimensions, self._phase = float(rms_delay_s), dimensions, phase

    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return (probe, dimension): Re and Im in turn of each component, antenna pair after antenna pair."""
        h = aligned(csi) if self._phase == "aligned" else csi.h.astype(np.complex128)
        values, vectors = delay_basis(csi.subcarrier_hz.astype(np.float64), self._delay_s)
        count = self._dimensions or int(np.count_nonzero(values > 1e-3 * values[0]))
        components = h @ vectors[:, :count].conj()
        both = np.stack([components.real, components.imag], axis=-1)
        if self._phase == "aligned" and csi.subcarrier_hz.size < 2:
            both = both[..., :1]  # without its phase a single value is real
        return Features(values=both.reshape(both.shape[0], -1), rounds=csi.rounds)
