"""Each of Eve's channels has a delay of its own: filters and receivers that treat parts of the band apart."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import DirectAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import eves
from testbed.entropy.series import at_rounds, joined_of
from testbed.entropy.shifts import Match, agreement_of, everywhere

_MOST_INPUTS = 4096


class EveLags(DirectAttack):
    """For each of Alice's columns the channel and the shift that fit it best, whatever fits the others."""

    knows = "her own signals, each of them at a shift of its own"
    needs = ("heard",)

    def matches(self, facts: Facts, z: F64) -> list[Match]:
        now = at_rounds(*joined_of(facts), facts.rounds)
        series = everywhere(facts, eves(facts)[0], z).values
        shifted = series.reshape(facts.rounds.size, series.shape[1] * series.shape[2])
        every = np.concatenate([now, shifted[:, :_MOST_INPUTS]], axis=1)
        return [Match(every, agreement_of(z, every))]
