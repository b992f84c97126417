"""A track walked again at another pace: no shift fits for long, but places follow one another in the same order."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack, Folds
from testbed.entropy.estimating import scaled
from testbed.entropy.facts import Facts, zero_filled
from testbed.entropy.read_off import frequencies, read_off_columns, scores
from testbed.entropy.references import earlier_scores
from testbed.entropy.regimes import best_of
from testbed.entropy.walks import FINER, at_places, course_of, finer, nearer, place_of

_WINDOWS = ((-2, 2), (-6, 6), (-5, 0), (0, 5))
"""Windows of neighbouring probes, before and after, from whose places that of a probe is estimated: a walk may begin or
turn at any probe."""
_MOST_PLACES = 6000


class RecurrenceWarped(Attack):
    """Uses what Alice measured earlier at the likeliest sequence of places, in either direction (dynamic time warping).

    The place of a probe is estimated from its neighbours and never from its own value, which is to be guessed.
    """

    knows = "that the track of earlier blocks, training or runs is walked again, at any pace, either way"
    needs = ("earlier",)
    folds: ClassVar[Folds] = "probes"
    _freedom = 0.0

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        walk = self._walk(facts, z)
        self._freedom = 0.0 if walk is None else 2.0 * z.shape[1]
        if walk is None:
            return np.asarray(frequencies(facts, train)[test])
        course = course_of(z, walk)[0]
        known = np.asarray(np.isfinite(z).any(axis=1))
        places = [place_of(course, known, window) for window in _WINDOWS]
        places += [nearer(z, walk, place) for place in places[:2]]
        every = np.ones(z.shape[0])
        found = best_of(z, [scaled(z, at_places(walk, place), every) for place in places])
        return read_off_columns(facts, train, test, z, found.mean, found.spread)

    @property
    def degrees_of_freedom(self) -> float:
        """Return the number of factors and spreads, one of each for every column."""
        return self._freedom

    @staticmethod
    def _walk(facts: Facts, z: F64) -> F64 | None:
        if "walked again" not in facts.scratch:  # the walk chosen at the first fold; all folds use it
            ways = [walk for values in _walks(facts) for walk in (values, values[::-1])]
            gains = [course_of(z, walk)[1] for walk in ways]
            best = int(np.argmax(gains)) if gains else -1
            facts.scratch["walked again"] = ways[best] if gains and gains[best] > 0.0 else None
        walk: F64 | None = facts.scratch["walked again"]
        return walk


def _walks(facts: Facts) -> list[F64]:
    """Return (place, column) scores of the known part of this run in order, and of each earlier run."""
    if "walks" not in facts.scratch:
        scored = [(e, v) for e, v in earlier_scores(facts) if e.rounds.size]
        own = [v for e, v in sorted(scored, key=lambda s: int(s[0].rounds[0])) if e.same_run]
        walks = ([np.concatenate(own)] if own else []) + [v for e, v in scored if not e.same_run]
        facts.scratch["walks"] = [finer(zero_filled(w[-_MOST_PLACES // FINER :])) for w in walks if len(w) > 1]
    found: list[F64] = facts.scratch["walks"]
    return found
