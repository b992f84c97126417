"""Alice's own analogue values at neighbouring probes: the most that a channel's memory can reveal."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import own


class OwnFeatures(EstimatingAttack):
    """A ridge regression from all columns of earlier neighbouring rounds, and of later ones that are public."""

    knows = "Alice's analogue values in neighbouring rounds, which say more than their labels"
    folds = "probes"

    def inputs(self, facts: Facts, z: F64) -> F64:
        run = own(facts, z)[0]
        steps = [-1, -2, -3, -4, -5, 1] if z.shape[1] <= 12 else [-1, -2, 1]
        return np.concatenate([run.beside(facts.rounds, s) for s in steps], axis=1)
