"""Path loss and correlation matrices from positions, with checks of positions and matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.errors import InputError
from testbed.core.types import F64


def points(name: str, places_m: Any, batch: tuple[int, ...] | None = None) -> F64:
    """Return places (…, 3) in metres as an array; `batch`: the leading axes that they must have.

    Raises InputError where they are not finite coordinates in threes.
    """
    try:
        found = np.asarray(places_m, dtype=float)
    except (TypeError, ValueError):
        found = np.empty(0)
    fits = found.shape[-1:] == (3,) and 0 not in found.shape and batch in (None, found.shape[:-1])
    if not fits or not np.isfinite(found).all():
        many = "" if not batch else f"{' × '.join(map(str, batch))} times "
        told = f"{name} of shape {found.shape}" if found.ndim > 1 else f"{name} = {places_m}"
        raise InputError(f"{told}, accepted: {many}three finite coordinates in metres")
    return found


def check_batch(what: str, given: tuple[int, ...], batch: tuple[int, ...]) -> None:
    """Raise InputError where leading axes `given` do not broadcast with a model's."""
    try:
        np.broadcast_shapes(given, batch)
    except ValueError as exc:
        raise InputError(f"{what} for a batch {given} on a model of {batch}") from exc


def path_gain(a_m: F64, b_m: F64, exponent: float, reference_db: float = -30.0) -> F64:
    """Return (…) gains β₀·(d/1 m)^−α of links between points (…, 3); raises InputError where two coincide."""
    distance_m = np.linalg.norm(points("place", a_m) - points("place", b_m), axis=-1)
    if np.any(distance_m <= 0):
        raise InputError("two ends of a link are at the same point: accepted: a distance above 0 m")
    return np.asarray(10 ** (reference_db / 10) * distance_m**-exponent)


def exponential_correlation(n: int, eta: float) -> F64:
    """Return (n, n) correlation η^|m−n| of a line of antennas (paper A eq. 2)."""
    if n < 1:
        raise InputError(f"{n} antennas, accepted: 1 or more")
    if not 0 <= eta < 1:
        raise InputError(f"correlation η = {eta:g} between neighbouring antennas, accepted: 0 to below 1")
    i = np.arange(n)
    return np.asarray(float(eta) ** np.abs(i[:, None] - i[None, :]))


def isotropic_correlation(rows: int, columns: int, spacing_wavelengths: float = 0.5) -> F64:
    """Return (element, element) correlation sinc(2d/λ) of a grid in isotropic scattering (paper A eq. 1)."""
    if rows < 1 or columns < 1:
        raise InputError(f"a grid of {rows} × {columns} elements, accepted: 1 or more of each")
    r, c = np.divmod(np.arange(rows * columns), columns)
    distance = np.hypot(r[:, None] - r[None, :], c[:, None] - c[None, :]) * spacing_wavelengths
    return np.asarray(np.sinc(2 * distance))


def check_covariance(name: str, matrix: NDArray[Any]) -> None:
    """Raise InputError where a matrix is not square, finite, Hermitian and ≥ 0 (to 1e-9 of its size)."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise InputError(f"{name} of shape {matrix.shape}, accepted: (n, n)")
    if not np.isfinite(matrix).all():
        raise InputError(f"{name}: not all entries are finite")
    size = max(float(abs(matrix).max()), 1e-300)
    if not np.allclose(matrix, matrix.conj().T, atol=1e-9 * size, rtol=0):
        raise InputError(f"{name} is no covariance (not Hermitian); accepted: Hermitian and ≥ 0")
    lowest = float(np.linalg.eigvalsh(matrix)[0])
    if lowest < -1e-9 * size * len(matrix):
        raise InputError(f"{name} is no covariance (smallest eigenvalue {lowest:.3g}); accepted: Hermitian and ≥ 0")
