"""Equal states of the surface: Alice's value in another round of the same state predicts this one."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import HIDDEN_CONTEXT
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts, Mask
from testbed.entropy.references import earlier_scores, public_columns


class RecurrenceState(EstimatingAttack):
    """A ridge regression from the mean of earlier rounds of the same state, and of later ones that are public."""

    knows = "in which rounds the surface had the same state, and Alice's values in the other rounds of that state"
    needs = ("states",)
    hidden_context = HIDDEN_CONTEXT

    def applies(self, facts: Facts) -> bool:
        if facts.states is None:
            return False
        known = [e.states for e in facts.earlier if e.states is not None]
        every = np.concatenate([facts.states, *known])
        return np.unique(every).size < every.size

    def inputs(self, facts: Facts, z: F64) -> F64 | None:
        assert facts.states is not None
        known = [(e.states, e.rounds, v) for e, v in earlier_scores(facts) if e.states is not None]
        # Earlier runs count as before this one, even if their round numbers are larger.
        past = [(s, np.full(r.shape, np.iinfo(np.int64).min), v) for s, r, v in known]
        state = np.concatenate([facts.states, *(s for s, _, _ in past)])
        when = np.concatenate([facts.rounds, *(r for _, r, _ in past)])
        value = np.concatenate([z, *(v for _, _, v in past)])
        told = np.concatenate([public_columns(facts), *(np.zeros(v.shape, np.bool_) for _, _, v in past)])
        total, count = _of_others(state, when, value, told)
        n = facts.rounds.size
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.where(count[:n] > 0, total[:n] / count[:n], np.nan))


def _of_others(state: I64, when: I64, value: F64, told: Mask) -> tuple[F64, F64]:
    """Return (row, column) the sum and the number of the same state's values in earlier rounds, or where public."""
    order = np.lexsort((when, state))
    there = np.isfinite(value[order])
    filled, public = np.where(there, value[order], 0.0), there & told[order]
    new = np.ones(order.size, np.bool_)
    new[1:] = np.diff(state[order]) != 0
    group = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    out = []
    for amount in (filled, there.astype(np.float64)):
        upto = np.cumsum(amount, axis=0)
        begin = (upto - amount)[first][group]
        told_upto = np.cumsum(np.where(public, amount, 0.0), axis=0)
        told_all = told_upto[np.append(first[1:], order.size) - 1][group]
        sums = np.empty(value.shape)
        sums[order] = (upto - amount - begin) + (told_all - told_upto)
        out.append(sums)
    return out[0], out[1]
