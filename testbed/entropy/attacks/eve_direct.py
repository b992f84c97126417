"""Eve's own ranks, unchanged, at the right shift, sign and dimension: an attack that needs no learning."""

from __future__ import annotations

from testbed.core.types import F64
from testbed.entropy.courses import piecewise
from testbed.entropy.estimating import DirectAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import eves
from testbed.entropy.series import at_rounds, joined_of
from testbed.entropy.shifts import Match, agreement_of, constant


class EveDirect(DirectAttack):
    """Uses one of Eve's channels for each of Alice's columns: unshifted, with one shift, or several in turn."""

    knows = "the ranks of her own signals, at the shift, sign and dimension that fit Alice best"
    needs = ("heard",)

    def matches(self, facts: Facts, z: F64) -> list[Match]:
        now = at_rounds(*joined_of(facts), facts.rounds)
        found = [Match(now, agreement_of(z, now))]
        references = eves(facts)
        for reference, course in zip(references, piecewise(facts, references, z), strict=True):
            found += constant(facts, reference, z)
            found += [] if course is None else [course]
        return found
