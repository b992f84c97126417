"""Eve's signals and Alice's string together."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.references import eves
from testbed.entropy.ridge import ridge
from testbed.entropy.series import aligned, reduced
from testbed.entropy.shifts import constant
from testbed.entropy.strings import before, between, label_scores, neighbours

CHANNELS = 64


class EveString(Attack):
    """A ridge regression from her estimate by all channels, the earlier labels, and her errors in estimating these."""

    knows = "her own signals, and every other label of the string"
    needs = ("heard",)
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        target = own_target(facts, z)
        shifted = [m for r in eves(facts)[:1] for m in constant(facts, r, z, 1)]
        x = np.concatenate([aligned(facts), *(m.inputs for m in shifted)], axis=1)
        hers = ridge(reduced(x, CHANNELS), z, fill=True)
        estimate = hers.mean[:, facts.main_column]
        near, table = before(3, 2), label_scores(facts, train, target)
        surprise = neighbours(facts, table - estimate, near)
        own = estimate[facts.probe, facts.dimension][:, None]
        mean, spread, freedom = between(facts, table, target, near, np.concatenate([own, surprise], axis=1))
        self._freedom = hers.freedom + freedom
        return read_off(facts, train, test, target, mean, spread)

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
