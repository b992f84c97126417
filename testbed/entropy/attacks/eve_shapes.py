"""Non-linear functions of Eve's signals of the same round: ranks, squares, magnitudes, products."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.references import alike_in_size
from testbed.entropy.series import at_rounds, joined_of, standard

MOST_SERIES = 4


class EveShapes(EstimatingAttack):
    """A ridge regression from ranks of Eve's channels, their squares and magnitudes, and products of two links."""

    knows = "her own signals of the same round or with one shift, through any of several non-linear functions"
    needs = ("heard",)

    def inputs(self, facts: Facts, z: F64) -> F64:
        if "shapes" not in facts.scratch:
            x = at_rounds(*joined_of(facts), facts.rounds)
            facts.scratch["shapes"] = np.concatenate([*_shapes(x), _products(facts)], axis=1)
        return np.concatenate([facts.scratch["shapes"], *_shapes(alike_in_size(facts, z))], axis=1)


def _shapes(x: F64) -> list[F64]:
    return [x, x**2 - 1.0, np.abs(x)]


def _products(facts: Facts) -> F64:
    """Return (probe, product) of equal dimensions of different links, as in a cascade of two channels."""
    parts = [at_rounds(h.rounds, standard(h.values), facts.rounds) for h in facts.heard[:MOST_SERIES]]
    pairs = [(a, b) for i, a in enumerate(parts) for b in parts[:i] if a.shape == b.shape]
    return np.concatenate([np.zeros((facts.rounds.size, 0)), *(a * b for a, b in pairs)], axis=1)
