"""A track walked again at another pace: no shift fits for long, but places follow one another in the same order."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.estimating import EstimatingAttack
from testbed.entropy.facts import Facts
from testbed.entropy.gaussian_labels import normal_scores

_FINER = 2
"""Number of places between two rounds of the earlier walk, by linear interpolation."""
_STEPS = range(3 * _FINER + 1)
"""Steps from one probe to the next: from a halt to three times the pace."""
_STEP_NATS, _JUMP_NATS, _WORST_NATS = 1.5, 12.0, -6.0
_PASSES = 3
_MOST_PLACES = 6000


class RecurrenceWarped(EstimatingAttack):
    """Alice's earlier values along the likeliest sequence of places, in both directions (dynamic time warping)."""

    knows = "that the track of earlier blocks, training or runs is walked again, at any pace, either way"
    needs = ("earlier",)

    def inputs(self, facts: Facts, z: F64) -> F64 | None:
        if "walked again" not in facts.scratch:  # the choice of a walk takes time and serves all later folds
            ways = [walk for values in _walks(facts) for walk in (values, values[::-1])]
            gains = [_course(z, walk)[1] for walk in ways]
            best = int(np.argmax(gains)) if gains else -1
            facts.scratch["walked again"] = ways[best] if gains and gains[best] > 0.0 else None
        walk: F64 | None = facts.scratch["walked again"]
        if walk is None:
            return None
        course = _course(z, walk)[0]
        return np.concatenate([walk[np.clip(course + k * _FINER, 0, len(walk) - 1)] for k in (-1, 0, 1)], axis=1)


def _walks(facts: Facts) -> list[F64]:
    """Return (place, column) scores of the known part of this run in order, and of each earlier run."""
    if "walks" not in facts.scratch:
        own = sorted((e for e in facts.earlier if e.same_run and e.rounds.size), key=lambda e: int(e.rounds[0]))
        others = [normal_scores(e.features) for e in facts.earlier if not e.same_run and e.rounds.size]
        walks = ([np.concatenate([normal_scores(e.features) for e in own])] if own else []) + others
        facts.scratch["walks"] = [_finer(np.nan_to_num(w[-_MOST_PLACES // _FINER :])) for w in walks if len(w) > 1]
    found: list[F64] = facts.scratch["walks"]
    return found


def _finer(values: F64) -> F64:
    at = np.arange((values.shape[0] - 1) * _FINER + 1) / _FINER
    rows = np.arange(values.shape[0])
    return np.stack([np.interp(at, rows, column) for column in values.T], axis=1)


def _course(z: F64, walk: F64) -> tuple[I64, float]:
    """Return (probe,) the likeliest places, by Viterbi, and their gain over none; the spread of values is estimated on
    the way.
    """
    known = np.isfinite(z)
    mine = np.nan_to_num(z)
    apart = (mine**2).sum(axis=1)[:, None] - 2.0 * mine @ walk.T + known.astype(np.float64) @ (walk**2).T
    alone = (mine**2).sum(axis=1)[:, None] / 2.0
    number = known.sum(axis=1)[:, None]
    variance, course, total = 0.3, np.zeros(z.shape[0], np.int64), 0.0
    for _ in range(_PASSES):
        gain = np.maximum(alone - apart / (2.0 * variance) - number * np.log(variance) / 2.0, _WORST_NATS)
        course, total = _viterbi(gain)
        left = apart[np.arange(course.size), course]
        variance = float(np.clip(left.sum() / max(1, int(known.sum())), 0.02, 0.9))
    return course, total


def _viterbi(gain: F64) -> tuple[I64, float]:
    n, m = gain.shape
    came = np.empty((n, m), np.int64)
    place = np.arange(m)
    score = gain[0]
    for i in range(1, n):
        jump = int(score.argmax())
        best, best_from = np.full(m, score[jump] - _JUMP_NATS), np.full(m, jump)
        for step in _STEPS:
            reached = score[: m - step] - _STEP_NATS
            better = reached > best[step:]
            best[step:] = np.where(better, reached, best[step:])
            best_from[step:] = np.where(better, place[: m - step], best_from[step:])
        came[i], score = best_from, best + gain[i]
    course = np.empty(n, np.int64)
    course[-1] = int(score.argmax())
    for i in range(n - 1, 0, -1):
        course[i - 1] = came[i, course[i]]
    return course, float(score.max())
