"""Eve's signals in another order of rounds: packets that overtake one another."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack, Folds
from testbed.entropy.facts import Facts
from testbed.entropy.places import by_columns_before, tells
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
        alone = facts.columns is None or facts.columns.shape[1] == 1
        width = facts.features.shape[1]
        return alone and width > 1 and any(h.values.shape[1] == width for h in facts.heard)

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        for i, near in enumerate(_near(facts, z.shape[1])):
            key = ("disordered", i)
            if not facts.scratch.get(key, True):
                continue
            mean, spread = by_columns_before(z, near, np.asarray(np.isfinite(near).any(axis=2)), _ERROR)
            if facts.scratch.setdefault(key, tells(z, mean, spread)):  # decided at the first fold: it costs time
                return read_off_columns(facts, train, test, z, mean, spread)
        return np.asarray(frequencies(facts, train)[test])


def _near(facts: Facts, width: int) -> list[F64]:
    """Return for each antenna and link with as many channels as Alice (probe, round nearby, channel)."""
    if "near" not in facts.scratch:
        every = rounds_nearby(facts)
        groups = [g for g in eves(facts)[0].groups if g.stop - g.start == width]
        facts.scratch["near"] = [every[:, :, g] for g in groups[:_MOST_GROUPS]]
    found: list[F64] = facts.scratch["near"]
    return found
