"""Attack from neighbouring labels in Alice's own string: earlier and later probes, lower and higher dimensions."""

from __future__ import annotations

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.strings import before, between, label_scores


class StringNear(Attack):
    """One ridge regression predicts all symbols from earlier labels, a second one those whose next label is public."""

    knows = "every other label of the string: neighbours in time and frequency, with the same weights in all dimensions"
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        target = own_target(facts, scores(facts))
        table = label_scores(facts, train, target)
        mean, spread, self._freedom = between(facts, table, target, before(6, 3))
        return read_off(facts, train, test, target, mean, spread)

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
