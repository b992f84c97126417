"""Eve's signals of the same round through bends: ranks, squares, magnitudes, powers."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.series import at_rounds, joined_of, reduced


class EveShapes(EstimatingAttack):
    """A ridge from ranks of Eve's channels, their squares and magnitudes."""

    knows = "her own signals of the same round, bent in any of the usual ways"
    needs = ("heard",)

    def inputs(self, facts: Facts, z: F64) -> F64:
        if "shapes" not in facts.scratch:
            x = reduced(at_rounds(*joined_of(facts), facts.rounds), 50)
            facts.scratch["shapes"] = np.concatenate([x, x**2 - 1.0, np.abs(x)], axis=1)
        found: F64 = facts.scratch["shapes"]
        return found
