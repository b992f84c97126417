"""Eve knows how far Alice's values are from the middle, not on which side."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import alike_in_size, sizes
from testbed.entropy.series import at_rounds, joined_of


class EveMagnitude(EstimatingAttack):
    """A ridge regression to the magnitude of Alice's scores: labels of equal magnitude share the probability."""

    knows = (
        "how far Alice's values are from their median, but not on which side, "
        "from her own signals of the same round or at one shift"
    )
    needs = ("heard",)

    def inputs(self, facts: Facts, z: F64) -> F64:
        if "magnitude" not in facts.scratch:
            x = at_rounds(*joined_of(facts), facts.rounds)
            facts.scratch["magnitude"] = np.concatenate([x, np.abs(x)], axis=1)
        shifted = alike_in_size(facts, z)
        return np.concatenate([facts.scratch["magnitude"], shifted, np.abs(shifted)], axis=1)

    def targets(self, z: F64) -> F64:
        return sizes(z)
