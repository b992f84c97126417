"""Equal states of the surface: whoever knows what another round with the same state gave knows this one."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.gaussian_labels import normal_scores


class RecurrenceState(EstimatingAttack):
    """A ridge from the mean of what rounds of the same state gave, this block's and earlier ones."""

    knows = "in which rounds the surface had the same state, and Alice's values in the others of them"
    needs = ("states",)

    def applies(self, facts: Facts) -> bool:
        if facts.states is None:
            return False
        known = [e.states for e in facts.earlier if e.states is not None]
        every = np.concatenate([facts.states, *known])
        return np.unique(every).size < every.size

    def inputs(self, facts: Facts, z: F64) -> F64 | None:
        assert facts.states is not None
        parts = [(facts.states, z)]
        parts += [(e.states, normal_scores(e.features)) for e in facts.earlier if e.states is not None]
        state, number = np.unique(np.concatenate([s for s, _ in parts]), return_inverse=True)
        values = np.concatenate([v for _, v in parts])
        there = np.isfinite(values)
        total, count = np.zeros((state.size, z.shape[1])), np.zeros((state.size, z.shape[1]))
        np.add.at(total, number, np.where(there, values, 0.0))
        np.add.at(count, number, there)
        mine = number[: facts.rounds.size]
        # a probe's own value is no news of it
        others = count[mine] - np.isfinite(z)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(others > 0, (total[mine] - np.nan_to_num(z)) / others, np.nan))
