"""Path loss and correlation matrices from where things are."""

from __future__ import annotations

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64


def path_gain(a_m: F64, b_m: F64, exponent: float, reference_db: float = -30.0) -> F64:
    """Return (…) gains β₀·(d/1 m)^−α of links between points (…, 3); raises InputError where two coincide."""
    distance_m = np.linalg.norm(np.asarray(a_m, float) - np.asarray(b_m, float), axis=-1)
    if np.any(distance_m <= 0):
        raise InputError("two ends of a link are at the same point: accepted: a distance above 0 m")
    return np.asarray(10 ** (reference_db / 10) * distance_m**-exponent)


def exponential_correlation(n: int, eta: float) -> F64:
    """Return (n, n) correlation η^|m−n| of a line of antennas (paper A eq. 2)."""
    if not 0 <= eta < 1:
        raise InputError(f"correlation η = {eta:g} between neighbouring antennas, accepted: 0 to below 1")
    i = np.arange(n)
    return np.asarray(float(eta) ** np.abs(i[:, None] - i[None, :]))


def isotropic_correlation(rows: int, columns: int, spacing_wavelengths: float = 0.5) -> F64:
    """Return (element, element) correlation sinc(2d/λ) of a grid in isotropic scattering (paper A eq. 1)."""
    r, c = np.divmod(np.arange(rows * columns), columns)
    distance = np.hypot(r[:, None] - r[None, :], c[:, None] - c[None, :]) * spacing_wavelengths
    return np.asarray(np.sinc(2 * distance))
