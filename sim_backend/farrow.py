"""Delays by any fraction of a sample, as a polynomial in that fraction."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64

HALF = 12
"""Half the length of the interpolation kernel in samples."""
_KAISER_BETA = 6.8
DEGREE = 8


def _farrow() -> F64:
    """(power, tap): a Kaiser-windowed sinc, delayed by f in [0, 1], as a polynomial in 2f − 1.

    Flat to −60 dB for |frequency| ≤ 0.4 of the rate. With polynomials (C. W. Farrow, 1988), hundreds of paths share one
    small matrix: each path adds its moments, not a row of taps.
    """
    u = np.cos(np.pi * (np.arange(4 * DEGREE) + 0.5) / (4 * DEGREE))
    x = np.arange(1 - HALF, HALF + 1)[None, :] - (u[:, None] + 1) / 2
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (x / HALF) ** 2, 0, None))) / np.i0(_KAISER_BETA)
    return np.asarray(np.linalg.lstsq(np.vander(u, DEGREE + 1, increasing=True), np.sinc(x) * window, rcond=None)[0])


FARROW = _farrow()
