"""A map of the room: Alice's values from rounds in which Eve measured the same as now."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack, Folds
from testbed.entropy.facts import Facts, Mask, zero_filled
from testbed.entropy.read_off import read_off_columns, scores
from testbed.entropy.references import earlier_scores
from testbed.entropy.series import at_rounds, joined_of, reduced

_NEIGHBOURS = 4
_DIRECTIONS = 24
_CANDIDATES = 48
"""Number of nearest rows that are found once for all folds; with so many, some of them are visible in every fold."""
_MOST_DISTANCES = 1 << 20
"""Largest number of distances that are in memory at once, because a run may have many earlier rounds."""


class EveFingerprint(Attack):
    """Predicts the mean of Alice's values in those rounds, also of earlier blocks, in which Eve's signals were most
    similar to the present ones."""

    knows = "her own signals in training and earlier blocks, and what Alice measured there"
    needs = ("heard",)
    folds: ClassVar[Folds] = "probes"

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        before = [(e.rounds, v) for e, v in earlier_scores(facts) if e.same_run and e.rounds.size]
        known = np.concatenate([z, *(v for _, v in before)])
        places, distance = self._nearest(facts, [r for r, _ in before], np.asarray(np.isfinite(z).any(axis=1)))
        weight = 1.0 / np.maximum(distance, 1e-6)
        values = known[places]
        there = np.isfinite(values) & np.isfinite(distance)[:, :, None]
        total = np.where(there, weight[:, :, None], 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (total * zero_filled(values)).sum(axis=1) / total.sum(axis=1)
            # Where similar signals do not mean a similar place, the mean is too large; this gain corrects it.
            gain = np.nansum(mean * z, axis=0) / np.nansum(mean**2 * np.isfinite(z), axis=0)
        mean = mean * np.clip(zero_filled(gain), -1.0, 1.0)
        left = np.where(np.isfinite(z), z - mean, np.nan)
        spread = np.sqrt(np.nanmean(left**2, axis=0))
        return read_off_columns(facts, train, test, z, mean, np.broadcast_to(spread, mean.shape))

    @property
    def degrees_of_freedom(self) -> float:
        """1, not the number of columns, because the gains of columns with unrelated neighbours are small."""
        return 1.0

    @staticmethod
    def _nearest(facts: Facts, before: list[I64], known: Mask) -> tuple[I64, F64]:
        """Return (probe, neighbour) rows, from earlier in this block and from earlier blocks, and their distances.

        `known`: (probe,) whether a row of this block may be used at all.
        """
        key = "fingerprints"
        if key not in facts.scratch:
            x = zero_filled(at_rounds(*joined_of(facts), np.concatenate([facts.rounds, *before])))
            facts.scratch[key] = _nearest_before(reduced(x, _DIRECTIONS), facts.rounds.size, np.unique(facts.probe))
        places, distance = facts.scratch[key]
        usable = (places >= known.size) | known[np.minimum(places, known.size - 1)]
        first = np.argsort(~usable, axis=1, kind="stable")[:, :_NEIGHBOURS]
        distance = np.where(usable, distance, np.inf)
        return np.take_along_axis(places, first, axis=1), np.take_along_axis(distance, first, axis=1)


def _nearest_before(x: F64, n: int, asked: I64) -> tuple[I64, F64]:
    """Return (row, neighbour) numbers of rows and their distances, nearest first, for each of the first n rows.

    Neighbours of a row are earlier rows and the rows from n on, but not rows in which Eve received nothing. They are
    computed for the rows `asked` only.
    """
    power = (x**2).sum(axis=1)
    count = min(_CANDIDATES, x.shape[0])
    places, distance = np.zeros((n, count), np.int64), np.full((n, count), np.inf)
    step = max(1, _MOST_DISTANCES // x.shape[0])
    for start in range(0, asked.size, step):
        rows = asked[start : start + step]
        far = power[rows, None] - 2.0 * x[rows] @ x.T + power
        far[:, :n][np.arange(n) >= rows[:, None]] = np.inf
        far[:, power == 0] = np.inf
        near = np.argpartition(far, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(far, near, axis=1), axis=1, kind="stable")
        places[rows] = np.take_along_axis(near, order, axis=1)
        distance[rows] = np.sqrt(np.maximum(np.take_along_axis(far, places[rows], axis=1), 0.0))
    return places, distance
