"""Neighbours in Alice's own string: earlier and later probes, lower and higher dimensions, at like distances."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.ridge import ridge
from testbed.entropy.strings import label_scores, neighbours

TIME, DIMENSION = 6, 3


class StringNear(Attack):
    """One ridge for all symbols from the labels around them."""

    knows = "every other label of the string: neighbours in time and frequency"
    folds: ClassVar = "symbols"
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts.features)
        target = own_target(facts, z)
        steps = [
            (k, j)
            for k in range(-TIME, TIME + 1)
            for j in range(-DIMENSION, DIMENSION + 1)
            if (k, j) != (0, 0) and (j == 0 or abs(k) <= 1)
        ]
        x = neighbours(facts, label_scores(facts, train, target), steps)
        fit = ridge(x, target[:, None])
        self._freedom = fit.freedom
        spread = np.full(target.size, fit.spread[0])
        return read_off(facts, train, test, target, fit.mean[:, 0], spread)

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
