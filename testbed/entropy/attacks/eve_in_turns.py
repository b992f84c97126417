"""Eve's signals in another order of rounds that repeats: a buffer that hands out several at a time."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.estimating import DirectAttack
from testbed.entropy.facts import Facts, zero_filled
from testbed.entropy.references import rounds_nearby
from testbed.entropy.shifts import Match, agreement_of, squared_products

_PERIODS = range(2, 9)
_LEAST_ROWS = 24


class EveInTurns(DirectAttack):
    """Uses a shift of its own for each phase of a short period, the one at which her channels fit Alice best."""

    knows = "her own signals in an order of rounds that repeats after a few of them"
    needs = ("heard",)

    def matches(self, facts: Facts, z: F64) -> list[Match]:
        near = rounds_nearby(facts)
        periods = [p for p in _PERIODS if facts.rounds.size >= p * _LEAST_ROWS]
        found = [_by_phase(z, near, facts.rounds % period) for period in periods]
        return [Match(x, agreement_of(z, x)) for x in found]


def _by_phase(z: F64, near: F64, phase: I64) -> F64:
    """Return (probe, channel) the values of the nearby round (probe, round, channel) that fits each phase best."""
    out = np.full((near.shape[0], near.shape[2]), np.nan)
    filled, known = zero_filled(near), zero_filled(z)
    for p in np.unique(phase).tolist():
        rows = phase == p
        best = int(squared_products(known[rows], filled[rows]).argmax())
        out[rows] = near[rows, best]
    return out
