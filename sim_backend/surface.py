"""The reflecting surface: how strongly each element reflects."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64


def cascade_amplitude(d1_m: F64, d2_m: F64, gain_db: float, wavelength_m: float) -> F64:
    """Return (element,) amplitudes (λ/4πd₁)(λ/4πd₂)·10^(gain/20) of lossless isotropic elements."""
    spread = wavelength_m / (4 * np.pi)
    return np.asarray(spread**2 * 10 ** (gain_db / 20) / np.maximum(d1_m * d2_m, 1e-6))
