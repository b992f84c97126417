"""Neighbours in Alice's own string: earlier and later probes, lower and higher dimensions, at like distances."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.ridge import ridge
from testbed.entropy.strings import around, label_scores, neighbours


class StringNear(Attack):
    """One ridge for all symbols from the labels around them."""

    knows = "every other label of the string: neighbours in time and frequency, alike in all dimensions"
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        target = own_target(facts, scores(facts.features))
        x = neighbours(facts, label_scores(facts, train, target), around(6, 3))
        fit = ridge(x, target[:, None])
        self._freedom = fit.freedom
        return read_off(facts, train, test, target, fit.mean[:, 0], np.full(target.size, fit.spread[0]))

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
