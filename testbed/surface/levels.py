"""Phases that a real board can set: 2^bits levels, evenly spaced from 0."""

from __future__ import annotations

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64

MAX_BITS = 8


def levels_rad(bits: int) -> F64:
    """Return the (2^bits,) phases of a board; raises InputError for bits that no board has."""
    if bits not in range(1, MAX_BITS + 1):
        raise InputError(f"{bits} phase bits, accepted: 1 to {MAX_BITS}")
    return np.asarray(np.arange(1 << bits) * (2 * np.pi / (1 << bits)))


def project(phases_rad: F64, bits: int) -> F64:
    """Return the nearest level of every phase, in radians, same shape."""
    n = levels_rad(bits).size
    return np.asarray(np.rint(np.asarray(phases_rad) * (n / (2 * np.pi))) % n * (2 * np.pi / n))
