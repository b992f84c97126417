"""SP 800-22 rev. 1a, 2.14 and 2.15: how often a random walk visits a state between its zeros."""

from __future__ import annotations

from math import sqrt

import numpy as np

from testbed.assess.sp800_22._common import chi2_p, erfc
from testbed.core.types import F64, I64, U8

STATES = (-4, -3, -2, -1, 1, 2, 3, 4)
VARIANT_STATES = (*range(-9, 0), *range(1, 10))
LEAST_CYCLES = 500
_VISITS = 5
"""This many visits or more are counted in one class."""


def random_excursions(bits: U8, least_cycles: int = LEAST_CYCLES) -> F64:
    """Random excursions test, 2.14: (sequence, state) p-values; NaN for a walk with too few cycles."""
    out = np.full((bits.shape[0], len(STATES)), np.nan)
    for i, row in enumerate(bits):
        walk, cycle = _walk(row)
        n_cycles = int(cycle[-1]) + 1
        if n_cycles < least_cycles:
            continue
        for j, state in enumerate(STATES):
            visits = np.bincount(cycle[walk == state], minlength=n_cycles)
            seen = np.bincount(np.minimum(visits, _VISITS), minlength=_VISITS + 1)
            out[i, j] = chi2_p(seen, n_cycles * _visit_probabilities(state))
    return out


def random_excursions_variant(bits: U8, least_cycles: int = LEAST_CYCLES) -> F64:
    """Random excursions variant test, 2.15: (sequence, state) p-values; NaN for a walk with too few cycles."""
    out = np.full((bits.shape[0], len(VARIANT_STATES)), np.nan)
    states = np.array(VARIANT_STATES)
    for i, row in enumerate(bits):
        walk, cycle = _walk(row)
        n_cycles = int(cycle[-1]) + 1
        if n_cycles < least_cycles:
            continue
        visits = np.array([np.count_nonzero(walk == state) for state in VARIANT_STATES])
        out[i] = erfc(np.abs(visits - n_cycles) / np.sqrt(2.0 * n_cycles * (4.0 * np.abs(states) - 2.0)))
    return out


def enough_cycles(n_bits: int) -> int:
    """Return the least number of cycles at this length, 2.14.4: max(500, 0.005·√n)."""
    return max(LEAST_CYCLES, int(0.005 * sqrt(n_bits)))


def _walk(bits: U8) -> tuple[I64, I64]:
    """Return (step,) the walk's position, and (step,) which cycle it belongs to; the last may not return to zero."""
    walk = np.cumsum(bits.astype(np.int64) * 2 - 1)
    zeros = walk == 0
    return walk, np.cumsum(zeros) - zeros


def _visit_probabilities(state: int) -> F64:
    """Return the probabilities of 0, 1, … 4, 5 or more visits to a state in a cycle, 3.14."""
    back = 1.0 / (2.0 * abs(state))
    some = back**2 * (1.0 - back) ** np.arange(_VISITS - 1)
    return np.array([1.0 - back, *some, back * (1.0 - back) ** (_VISITS - 1)])
