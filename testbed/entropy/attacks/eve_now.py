"""All that Eve measured in the same round, jointly: any link, antenna, sign, order of dimensions."""

from __future__ import annotations

from typing import ClassVar

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.ridge import ridge
from testbed.entropy.series import aligned


class EveNow(Attack):
    """A ridge from all of Eve's channels to each of Alice's columns."""

    knows = "her own signals of the same round, all links, antennas and dimensions together"
    needs = ("heard",)
    folds: ClassVar = "probes"
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts.features)
        fit = ridge(aligned(facts), z)
        self._freedom = fit.freedom
        column = facts.main_column[facts.dimension]
        return read_off(facts, train, test, own_target(facts, z), fit.mean[facts.probe, column], fit.spread[column])

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
