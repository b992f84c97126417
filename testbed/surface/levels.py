"""Phases that a real board can set: 2^bits levels, evenly spaced from 0."""

from __future__ import annotations

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64

MAX_BITS = 8


def levels_rad(bits: int) -> F64:
    """Return the (2^bits,) phases of a board in radians; raises InputError for a number of bits that no board has."""
    if isinstance(bits, bool) or bits not in range(1, MAX_BITS + 1):
        raise InputError(f"{bits} phase bits, accepted: 1 to {MAX_BITS}")
    n = 1 << int(bits)
    return np.asarray(np.arange(n) * (2 * np.pi / n))


def project(phases_rad: F64, bits: int) -> F64:
    """Return the nearest level of every phase, in radians, same shape; raises InputError for what is not finite."""
    n, phases = levels_rad(bits).size, np.asarray(phases_rad, dtype=float)
    if not np.isfinite(phases).all():
        raise InputError("phases are not finite; accepted: radians")
    return np.asarray(np.rint(phases * (n / (2 * np.pi))) % n * (2 * np.pi / n))
