"""A track walked to and fro within one block, each time at another pace."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import HIDDEN_CONTEXT, Attack, Folds
from testbed.entropy.estimating import scaled
from testbed.entropy.facts import Facts, Mask
from testbed.entropy.read_off import frequencies, read_off_columns, scores
from testbed.entropy.regimes import best_of
from testbed.entropy.walks import FINER, at_places, course_of, finer, place_of

_WINDOWS = ((-2, 2), (-4, 0), (0, 4))
_NEAR = 8
"""Least number of probes that lie between a probe and an earlier one at the same place."""
_MOST_PROBES = 1500


class RecurrencePaced(Attack):
    """Uses what Alice measured earlier in the block at the likeliest sequence of places, whichever way and how fast.

    The place of a probe is estimated from its neighbours and never from its own value, which is to be guessed.
    """

    knows = "that the track of this block is walked again within it, at any pace, either way"
    folds: ClassVar[Folds] = "probes"
    hidden_context = HIDDEN_CONTEXT
    _freedom = 0.0

    def applies(self, facts: Facts) -> bool:
        return 4 * _NEAR < facts.rounds.size <= _MOST_PROBES

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        # Whether it is worth its time is decided at the first fold.
        course = self._course(facts, z) if facts.scratch.get("walked to and fro", True) else None
        self._freedom = 0.0 if course is None else 2.0 * z.shape[1]
        if course is None:
            return np.asarray(frequencies(facts, train)[test])
        walk, probe = _both_ways(z)
        known = np.asarray(np.isfinite(z).any(axis=1))
        tried = [_earlier(walk, probe, place_of(course, known, window)) for window in _WINDOWS]
        found = best_of(z, [scaled(z, x, np.ones(z.shape[0])) for x in tried])
        return read_off_columns(facts, train, test, z, found.mean, found.spread)

    @property
    def degrees_of_freedom(self) -> float:
        """Return the number of factors and spreads, one of each for every column."""
        return self._freedom

    @staticmethod
    def _course(facts: Facts, z: F64) -> I64 | None:
        """Return (probe,) the likeliest place of each probe; None if at the first fold they explained nothing."""
        walk, probe = _both_ways(z)
        course, gain = course_of(z, walk, probe <= np.arange(z.shape[0])[:, None] - _NEAR)
        return course if facts.scratch.setdefault("walked to and fro", gain > 0.0) else None


def _both_ways(z: F64) -> tuple[F64, F64]:
    """Return (place, column) the block's scores forwards and then backwards, and (place,) the probe of each place."""
    walk = finer(z)
    probe = np.arange(len(walk)) / FINER
    return np.concatenate([walk, walk[::-1]]), np.concatenate([probe, probe[::-1]])


def _earlier(walk: F64, probe: F64, place: F64) -> F64:
    """Return (probe, column) the walk at these places, to the nearest one, NaN where that is not long before."""
    nearest = np.clip(np.rint(place), 0, len(walk) - 1).astype(np.int64)
    before: Mask = probe[nearest] <= np.arange(place.size) - _NEAR
    return np.where(before[:, None], at_places(walk, nearest.astype(np.float64)), np.nan)
