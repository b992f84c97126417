"""Eve's own signals at any shift over her whole recording: she walks behind Bob, her packets are counted differently."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.ridge import ridge
from testbed.entropy.series import at_rounds, joined_of, reduced
from testbed.entropy.shifts import best_shifts

SHIFTS = 3


class EveShifted(Attack):
    """A ridge from all of Eve's channels at the few shifts that fit best, the rounds beside them included."""

    knows = "her own signals of any other round, the same shift for the whole block"
    needs = ("heard",)
    folds: ClassVar = "probes"
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts.features)
        rounds, values = joined_of(facts)
        shifts = best_shifts(facts, z, rounds, values, SHIFTS)
        x = np.concatenate([at_rounds(rounds, values, facts.rounds + s) for s in shifts], axis=1)
        fit = ridge(reduced(x), z)
        self._freedom = fit.freedom
        column = facts.main_column[facts.dimension]
        return read_off(facts, train, test, own_target(facts, z), fit.mean[facts.probe, column], fit.spread[column])

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom
