"""All of Eve's measurements of the same round together, whatever their links, antennas, signs and dimensions."""

from __future__ import annotations

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.series import aligned


class EveNow(EstimatingAttack):
    """A ridge regression from all of Eve's channels to each of Alice's columns."""

    knows = "her own signals of the same round, all links, antennas and dimensions together"
    needs = ("heard",)

    def inputs(self, facts: Facts, z: F64) -> F64:
        return aligned(facts)
