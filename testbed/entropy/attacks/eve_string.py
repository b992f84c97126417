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
from testbed.entropy.strings import around, label_scores, neighbours

CHANNELS = 64


class EveString(Attack):
    """Her estimate by all her channels, then a ridge from it and from labels around, less what she expected of them."""

    knows = "her own signals, and every other label of the string"
    needs = ("heard",)
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts.features)
        target = own_target(facts, z)
        shifted = [m for r in eves(facts)[:1] for m in constant(facts, r, z, 1)]
        x = reduced(np.concatenate([aligned(facts), *(m.inputs for m in shifted)], axis=1), CHANNELS)
        hers = ridge(x, z, fill=True)
        estimate = hers.mean[:, facts.main_column]
        near = around(3, 2)
        labels = neighbours(facts, label_scores(facts, train, target), near)
        surprise = labels - neighbours(facts, estimate, near)
        own = estimate[facts.probe, facts.dimension]
        fit = ridge(np.concatenate([own[:, None], labels, surprise], axis=1), target[:, None])
        self._freedom = hers.freedom + fit.freedom
        return read_off(facts, train, test, target, fit.mean[:, 0], np.full(target.size, fit.spread[0]))

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
