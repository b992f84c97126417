"""A few places in any order: a door that is open or shut, a person who goes to and fro between chairs."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import HIDDEN_CONTEXT, Attack, Folds
from testbed.entropy.facts import Facts
from testbed.entropy.places import by_places
from testbed.entropy.read_off import frequencies, read_off_columns, scores

_ERROR = 0.2
_MOST_PROBES = 1500


class StringPlaces(Attack):
    """Uses Alice's values of those earlier probes whose first dimensions were like those of this probe."""

    knows = "which places there are, and the labels of the same round before, which tell them apart"
    folds: ClassVar[Folds] = "symbols"
    hidden_context = HIDDEN_CONTEXT

    def applies(self, facts: Facts) -> bool:
        return facts.is_scalar and facts.features.shape[1] > 1 and facts.rounds.size <= _MOST_PROBES

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z, probe = scores(facts), np.arange(facts.rounds.size)
        found = by_places(facts, "places", z, z, probe[None, :] < probe[:, None], _ERROR)
        if found is None:
            return np.asarray(frequencies(facts, train)[test])
        return read_off_columns(facts, train, test, z, *found)
