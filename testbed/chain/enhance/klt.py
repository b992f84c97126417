"""Karhunen–Loève transform along subcarriers: nearly independent dimensions in descending order of strength.

The basis is that of an exponential power delay profile, whose covariance between subcarriers at a distance Δf is
1/(1 + j2πΔf·τ): both ends, and Eve, know it from the experiment file. For a channel with another profile the dimensions
are still nearly independent (they are the delay domain, windowed to the band), and only their order may be wrong. That
does no harm, because the quantizer decides the number of bits of each dimension by its measured quality.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from testbed.chain.enhance._features import aligned
from testbed.core.options import StageOptions
from testbed.core.stages import Enhancer
from testbed.core.types import F64, CsiSeries, Features


def delay_basis(subcarrier_hz: F64, rms_delay_s: float) -> tuple[F64, NDArray[np.complex128]]:
    """Return descending eigenvalues, adding up to the number of subcarriers, and eigenvectors (subcarrier, dimension).

    Each vector is rotated so that its entry of largest modulus among the first half is real and positive, because a
    solver is free to choose the phase, and both ends must agree.
    """
    delta = subcarrier_hz[:, None] - subcarrier_hz[None, :]
    values, vectors = np.linalg.eigh(1.0 / (1.0 + 2j * np.pi * delta * rms_delay_s))
    values, vectors = values[::-1], vectors[:, ::-1]
    first = np.abs(vectors[: (len(vectors) + 1) // 2]).round(9).argmax(axis=0)
    vectors = vectors * np.exp(-1j * np.angle(vectors[first, np.arange(vectors.shape[1])]))
    return values, vectors


class KltOptions(StageOptions, frozen=True):
    rms_delay_s: Annotated[float, Meta(gt=0, lt=1)] = 50e-9
    """R.m.s. delay of the assumed profile."""
    dimensions: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """Components kept of each antenna pair; 0: those within 30 dB of the strongest."""
    phase: Literal["aligned", "coherent"] = "aligned"
    """aligned: each frame's mean delay and common phase are removed first, as is necessary for radios with separate
    oscillators; coherent: CSI as measured."""


class Klt(Enhancer):
    """Turns complex CSI into real and imaginary parts of its strongest delay components."""

    options_type = KltOptions
    options: KltOptions

    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return (probe, dimension): Re and Im in turn of each component, antenna pair after antenna pair."""
        h = aligned(csi) if self.options.phase == "aligned" else csi.h.astype(np.complex128)
        values, vectors = delay_basis(csi.subcarrier_hz.astype(np.float64), self.options.rms_delay_s)
        count = self.options.dimensions or int(np.count_nonzero(values > 1e-3 * values[0]))
        components = h @ vectors[:, :count].conj()
        both = np.stack([components.real, components.imag], axis=-1)
        if self.options.phase == "aligned" and csi.subcarrier_hz.size < 2:
            both = both[..., :1]  # the only value is real once its phase is removed
        return Features(values=both.reshape(both.shape[0], -1), rounds=csi.rounds)
