"""A track that is walked again at another pace: no shift fits for long, but the places come in the same order."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack, Folds
from testbed.entropy.estimating import scaled
from testbed.entropy.facts import Facts, Mask, zero_filled
from testbed.entropy.read_off import frequencies, read_off_columns, scores
from testbed.entropy.references import earlier_scores
from testbed.entropy.regimes import best_of

_FINER = 2
"""Number of places, found by linear interpolation, from one round of the earlier walk to the next."""
_STEPS = range(3 * _FINER + 1)
"""Steps in places from one probe to the next: from standing still to three times the earlier pace."""
_STEP_NATS, _JUMP_NATS, _WORST_NATS = 1.5, 12.0, -6.0
_PASSES = 3
_MOST_PLACES = 6000
_WINDOWS = ((-2, 2), (-6, 6), (-5, 0), (0, 5))
"""Windows of neighbouring probes, before and after, from whose places that of a probe is estimated: a walk may begin or
turn at any probe."""
_OFFSETS = np.linspace(-1.5, 1.5, 13)
_NEAR = 4


F32 = NDArray[np.float32]


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
        course = _course(z, walk)[0]
        known = np.asarray(np.isfinite(z).any(axis=1))
        places = [_place(course, known, window) for window in _WINDOWS]
        places += [_nearer(z, walk, place) for place in places[:2]]
        every = np.ones(z.shape[0])
        found = best_of(z, [scaled(z, _at(walk, place), every) for place in places])
        return read_off_columns(facts, train, test, z, found.mean, found.spread)

    @property
    def degrees_of_freedom(self) -> float:
        """Return the number of factors and spreads, one of each for every column."""
        return self._freedom

    @staticmethod
    def _walk(facts: Facts, z: F64) -> F64 | None:
        if "walked again" not in facts.scratch:  # the walk chosen at the first fold; all folds use it
            ways = [walk for values in _walks(facts) for walk in (values, values[::-1])]
            gains = [_course(z, walk)[1] for walk in ways]
            best = int(np.argmax(gains)) if gains else -1
            facts.scratch["walked again"] = ways[best] if gains and gains[best] > 0.0 else None
        walk: F64 | None = facts.scratch["walked again"]
        return walk


def _place(course: I64, known: Mask, window: tuple[int, int]) -> F64:
    """Return (probe,) each probe's place by a straight line through the places of the probes in the window."""
    n = course.size
    sums = np.zeros((5, n))
    for k in range(window[0], window[1] + 1):
        at = np.arange(n) + k
        inside = (at >= 0) & (at < n) & (k != 0)
        at = np.clip(at, 0, n - 1)
        w = (inside & known[at]).astype(float)
        sums += w * np.stack([np.ones(n), np.full(n, k), np.full(n, k * k), course[at], k * course[at]])
    number, first, second, places, product = sums
    spread = number * second - first**2
    slope = np.where(spread > 0, (number * product - first * places) / np.where(spread > 0, spread, 1.0), 0.0)
    place = (places - slope * first) / np.maximum(number, 1.0)
    return np.where(number > 0, place, course)


def _nearer(z: F64, walk: F64, place: F64) -> F64:
    """Return refined places: each is moved by the offset, smaller than the grid's step, at which its neighbours agree
    best."""
    known = np.isfinite(z)
    error = [np.where(known, zero_filled(z) - _at(walk, place + d), 0.0) ** 2 for d in _OFFSETS]
    total = np.stack([np.minimum(e, 4.0).sum(axis=1) for e in error], axis=1)
    around = np.stack([np.convolve(c, np.ones(2 * _NEAR + 1), "same") for c in total.T], axis=1)[: z.shape[0]]
    return np.asarray(place + _OFFSETS[(around - total).argmin(axis=1)])


def _at(walk: F64, place: F64) -> F64:
    """Return (probe, column) the walk at places between its rows."""
    place = np.clip(place, 0.0, len(walk) - 1.0)
    low = np.minimum(place.astype(np.int64), max(len(walk) - 2, 0))
    part = (place - low)[:, None]
    return np.asarray((1.0 - part) * walk[low] + part * walk[np.minimum(low + 1, len(walk) - 1)])


def _walks(facts: Facts) -> list[F64]:
    """Return (place, column) scores of the known part of this run in order, and of each earlier run."""
    if "walks" not in facts.scratch:
        scored = [(e, v) for e, v in earlier_scores(facts) if e.rounds.size]
        own = [v for e, v in sorted(scored, key=lambda s: int(s[0].rounds[0])) if e.same_run]
        walks = ([np.concatenate(own)] if own else []) + [v for e, v in scored if not e.same_run]
        facts.scratch["walks"] = [_finer(zero_filled(w[-_MOST_PLACES // _FINER :])) for w in walks if len(w) > 1]
    found: list[F64] = facts.scratch["walks"]
    return found


def _finer(values: F64) -> F64:
    at = np.arange((values.shape[0] - 1) * _FINER + 1) / _FINER
    rows = np.arange(values.shape[0])
    return np.stack([np.interp(at, rows, column) for column in values.T], axis=1)


def _course(z: F64, walk: F64) -> tuple[I64, float]:
    """Return (probe,) the most likely places, and by how much they raise the log-likelihood over no relation at all.

    Places by the Viterbi algorithm and the spread of the values are estimated in turn.
    """
    known = np.isfinite(z).astype(np.float32)
    mine, places = zero_filled(z).astype(np.float32), walk.astype(np.float32)
    alone = (mine**2).sum(axis=1)[:, None]
    apart = alone - 2.0 * mine @ places.T + known @ (places**2).T
    number = known.sum(axis=1)[:, None]
    variance, course, total = 0.3, np.zeros(z.shape[0], np.int64), 0.0
    for _ in range(_PASSES):
        gain = apart * np.float32(-0.5 / variance)
        gain += alone / 2.0 - number * np.float32(np.log(variance) / 2.0)
        course, total = _viterbi(np.maximum(gain, _WORST_NATS, out=gain))
        left = apart[np.arange(course.size), course]
        variance = float(np.clip(left.sum() / max(1.0, float(known.sum())), 0.02, 0.9))
    return course, total


def _viterbi(gain: F32) -> tuple[I64, float]:
    """Return (probe,) the most likely sequence of places for log-likelihoods (probe, place), and its total score.

    The score is the sum of the log-likelihoods, less a penalty for every step and every jump.
    """
    n = gain.shape[0]
    score = np.empty_like(gain)
    score[0] = gain[0]
    for i in range(1, n):
        before = score[i - 1]
        np.maximum(_highest_near(before) - _STEP_NATS, before.max() - _JUMP_NATS, out=score[i])
        score[i] += gain[i]
    top = score.argmax(axis=1).tolist()
    course = np.empty(n, np.int64)
    course[-1] = place = top[-1]
    for i in range(n - 1, 0, -1):
        near = score[i - 1, max(0, place - _STEPS[-1]) : place + 1][::-1]
        step, jump = int(near.argmax()), top[i - 1]
        place = place - step if near[step] - _STEP_NATS > score[i - 1, jump] - _JUMP_NATS else jump
        course[i - 1] = place
    return course, float(score[-1].max())


def _highest_near(score: F32) -> F32:
    """Return (place,) the highest score among the places from which one step leads to this place."""
    out, width = score.copy(), 1
    while width < len(_STEPS):
        shift = min(width, len(_STEPS) - width)
        out[shift:] = np.maximum(out[shift:], out[:-shift])
        width += shift
    return out
