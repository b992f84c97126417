"""Channels that recur at another pace, for instance where a track is walked again, partly slower and partly faster."""

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
    """Uses Alice's own values of other rounds, unchanged, at one shift for the whole block or at a sequence of them."""

    knows = "that the channel repeats, after a number of rounds that may change within the block"
    hidden_context = HIDDEN_CONTEXT

    def matches(self, facts: Facts, z: F64) -> list[Match]:
        references = own(facts, z)
        found = sorted((m for r in references for m in constant(facts, r, z, SHIFTS)), key=lambda m: -m.agreement)
        out = [m for m in piecewise(facts, references, z) if m is not None]
        if found:
            together = combined(z, [m.inputs for m in found[:SHIFTS]])
            out.append(Match(together, agreement_of(z, together)))
        return out
