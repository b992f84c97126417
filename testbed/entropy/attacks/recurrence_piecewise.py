"""Channels that recur at uneven pace: a track walked again, slower in one place and faster in another."""

from __future__ import annotations

from testbed.core.types import F64
from testbed.entropy.attack import HIDDEN_CONTEXT
from testbed.entropy.courses import piecewise
from testbed.entropy.estimating import DirectAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import own
from testbed.entropy.shifts import Match, agreement_of, combined, constant

SHIFTS = 12


class RecurrencePiecewise(DirectAttack):
    """Alice's own values of other rounds, unchanged: at one shift of the whole block, or along a sequence of shifts."""

    knows = "that the channel repeats, after a number of rounds that may change within the block"
    hidden_context = HIDDEN_CONTEXT

    def matches(self, facts: Facts, z: F64) -> list[Match]:
        references = own(facts, z)
        found = sorted((m for r in references for m in constant(facts, r, z, SHIFTS)), key=lambda m: -m.agreement)
        out = [m for r in references if (m := piecewise(facts, r, z)) is not None]
        if found:
            together = combined(z, [m.inputs for m in found[:SHIFTS]])
            out.append(Match(together, agreement_of(z, together)))
        return out
