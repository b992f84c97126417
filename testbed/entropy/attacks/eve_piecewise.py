"""Eve's own signals at a shift that changes: packets are lost, clocks drift, or Eve follows at a changing distance."""

from __future__ import annotations

from testbed.core.types import F64
from testbed.entropy.courses import piecewise
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import eves


class EvePiecewise(EstimatingAttack):
    """A ridge regression from all of Eve's channels along the likeliest sequence of shifts."""

    knows = "her own signals of other rounds, at a shift that changes within the block"
    needs = ("heard",)

    def inputs(self, facts: Facts, z: F64) -> F64 | None:
        found = [m for m in piecewise(facts, eves(facts), z) if m is not None]
        return max(found, key=lambda m: m.agreement).inputs if found else None
