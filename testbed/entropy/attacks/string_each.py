"""Attack from other labels of Alice's string where the dimensions have no order, such as those of antenna pairs."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.ridge import ridge, spread_where_missing
from testbed.entropy.strings import label_scores, neighbours

MOST_INPUTS = 64


class StringEach(Attack):
    """A ridge regression for each dimension from all other labels of the same probe, and of the two probes before."""

    knows = (
        "every other label of the string: all dimensions of the same and of earlier "
        "probes, with weights for each dimension"
    )
    _freedom = 0.0

    def applies(self, facts: Facts) -> bool:
        return facts.n_dimensions > 1

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        target = own_target(facts, z)
        table = label_scores(facts, train, target)
        n = table.shape[1]
        mean, spread, self._freedom = np.full(target.size, np.nan), np.full(target.size, np.inf), 0.0
        for d in np.unique(facts.dimension).tolist():
            rows = facts.dimension == d
            steps = [(k, j - d) for k in (0, -1, -2) for j in range(n) if (k, j) != (0, d)][:MOST_INPUTS]
            x, y = neighbours(facts, table, steps, rows), target[rows][:, None]
            fit = ridge(x, y)
            mean[rows], spread[rows] = fit.mean[:, 0], spread_where_missing(x, y, fit)[:, 0]
            self._freedom += fit.freedom
        return read_off(facts, train, test, target, mean, spread)

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
