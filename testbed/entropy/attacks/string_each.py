"""Neighbours in Alice's own string where dimensions have no order: antenna pairs relate in any way."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.ridge import ridge
from testbed.entropy.series import at_rounds
from testbed.entropy.strings import label_scores

MOST_INPUTS = 64


class StringEach(Attack):
    """A ridge for each dimension from all other labels of the same probe, and all of the probes beside it."""

    knows = "every other label of the string: all dimensions of the same probe and its neighbours, each in its own way"
    _freedom = 0.0

    def applies(self, facts: Facts) -> bool:
        return facts.n_dimensions > 1

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts.features)
        target = own_target(facts, z)
        table = label_scores(facts, train, target)
        reach = 1 if 3 * table.shape[1] <= MOST_INPUTS else 0
        x = np.concatenate([at_rounds(facts.rounds, table, facts.rounds + s) for s in range(-reach, reach + 1)], axis=1)
        x = np.nan_to_num(x)
        mean, spread, self._freedom = np.full(target.size, np.nan), np.full(target.size, np.inf), 0.0
        for d in np.unique(facts.dimension).tolist():
            rows = facts.dimension == d
            probes = facts.probe[rows]
            own = x[probes].copy()
            own[:, reach * table.shape[1] + d] = 0.0
            fit = ridge(own, target[rows][:, None])
            mean[rows], spread[rows] = fit.mean[:, 0], fit.spread[0]
            self._freedom += fit.freedom
        return read_off(facts, train, test, target, mean, spread)

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
