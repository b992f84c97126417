"""Predicts a label from its neighbours by tables of counts, which represent any relation of a few labels, not only
linear ones.
"""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts
from testbed.entropy.read_off import frequencies
from testbed.entropy.strings import Step, neighbours

_CONTEXTS: tuple[tuple[Step, ...], ...] = (
    ((-1, 0),),
    ((-1, 0), (1, 0)),
    ((0, -1),),
    ((0, -1), (0, 1)),
    ((-1, 0), (0, -1)),
    ((-2, 0), (-1, 0)),
)
_MOST_CELLS = 1 << 16


class StringTable(Attack):
    """Tables of a label given its neighbours, for several sets of neighbours; the set that predicted best is used."""

    knows = "which labels stand beside the same neighbouring labels elsewhere in the string"
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        k = facts.n_labels
        table = np.full((facts.rounds.size, facts.n_dimensions), np.nan)
        table[facts.probe[train], facts.dimension[train]] = facts.value[train]
        base = frequencies(facts, train)
        best, p = -np.inf, base[test]
        self._freedom = 0.0
        for steps in _CONTEXTS:
            if facts.n_dimensions * (k + 1) ** len(steps) * k > _MOST_CELLS * 4:
                continue
            near = np.nan_to_num(neighbours(facts, table, steps), nan=k).astype(np.int64)
            context = np.zeros(facts.value.size, np.int64)
            for column in near.T:
                context = context * (k + 1) + column
            which, context = np.unique(context, return_inverse=True)
            count = np.zeros((which.size, k))
            np.add.at(count, (context[train], facts.value[train]), 1.0)
            own = count[context[train]]
            own[np.arange(train.size), facts.value[train]] -= 1.0  # a label must not count in its own prediction
            taught = own + 4.0 * base[train]
            taught /= taught.sum(axis=1, keepdims=True)
            likely = float(np.log(taught[np.arange(train.size), facts.value[train]]).sum())
            if likely > best:
                best = likely
                p = count[context[test]] + 4.0 * base[test]
                p /= p.sum(axis=1, keepdims=True)
        if best < float(np.log(base[train, facts.value[train]]).sum()):
            return np.asarray(base[test])
        return np.asarray(p)
