"""Eve's signals in another order of rounds: packets that overtake one another."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack, Folds
from testbed.entropy.facts import Facts
from testbed.entropy.places import by_places
from testbed.entropy.read_off import frequencies, read_off_columns, scores
from testbed.entropy.references import eves, rounds_nearby

_ERROR = 0.25
_MOST_GROUPS = 4


class EveDisordered(Attack):
    """Uses her signals of those near rounds that are like Alice's first dimensions of this round."""

    knows = "her own signals in a wrong order of rounds, and the labels before in the same round"
    needs = ("heard",)
    folds: ClassVar[Folds] = "symbols"

    def applies(self, facts: Facts) -> bool:
        width = facts.features.shape[1]
        return facts.is_scalar and width > 1 and any(h.values.shape[1] == width for h in facts.heard)

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z, every = scores(facts), rounds_nearby(facts)
        alike = [g for g in eves(facts)[0].groups if g.stop - g.start == z.shape[1]]
        for group in alike[:_MOST_GROUPS]:
            near = every[:, :, group]
            there = np.asarray(np.isfinite(near).any(axis=2))
            found = by_places(facts, ("disordered", group.start), z, near, there, _ERROR)
            if found is not None:
                return read_off_columns(facts, train, test, z, *found)
        return np.asarray(frequencies(facts, train)[test])
