"""The likeliest sequence of places along a walk that Alice measured before, at any pace (dynamic time warping)."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F32, F64, I64
from testbed.entropy.facts import Mask, zero_filled

FINER = 2
"""Number of places, found by linear interpolation, from one round of the earlier walk to the next."""
_STEPS = range(3 * FINER + 1)
"""Steps in places from one probe to the next: from standing still to three times the earlier pace."""
_STEP_NATS, _JUMP_NATS, _WORST_NATS, _NOWHERE_NATS = 1.5, 12.0, -6.0, -60.0
_PASSES = 3
_OFFSETS = np.linspace(-1.5, 1.5, 13)
_NEAR = 4


def finer(values: F64) -> F64:
    """Return (place, column) the values with places in between, NaN beside an unknown value."""
    at = np.arange((values.shape[0] - 1) * FINER + 1) / FINER
    rows = np.arange(values.shape[0])
    return np.stack([np.interp(at, rows, column) for column in values.T], axis=1)


def course_of(z: F64, walk: F64, allowed: Mask | None = None) -> tuple[I64, float]:
    """Return (probe,) the most likely places, and by how much they raise the log-likelihood over no relation at all.

    Places by the Viterbi algorithm and the spread of the values are estimated in turn. walk: NaN where unknown.
    allowed: (probe, place) where a probe may be; None: anywhere.
    """
    known = np.isfinite(z).astype(np.float32)
    mine, places = zero_filled(z).astype(np.float32), zero_filled(walk).astype(np.float32)
    alone = (mine**2).sum(axis=1)[:, None]
    apart = alone - 2.0 * mine @ places.T + known @ (places**2).T
    number = known.sum(axis=1)[:, None]
    variance, course, total = 0.3, np.zeros(z.shape[0], np.int64), 0.0
    for _ in range(_PASSES):
        gain = apart * np.float32(-0.5 / variance)
        gain += alone / 2.0 - number * np.float32(np.log(variance) / 2.0)
        np.maximum(gain, _WORST_NATS, out=gain)
        if allowed is not None:
            gain[~allowed] = _NOWHERE_NATS
            gain[~allowed.any(axis=1)] = 0.0
        course, total = _viterbi(gain)
        left = apart[np.arange(course.size), course]
        variance = float(np.clip(left.sum() / max(1.0, float(known.sum())), 0.02, 0.9))
    return course, total


def _viterbi(gain: F32) -> tuple[I64, float]:
    """Return (probe,) the most likely sequence of places for log-likelihoods (probe, place), and its total score.

    The score is the sum of the log-likelihoods, less a penalty for every step and every jump.
    """
    n, size = gain.shape
    margin = len(_STEPS) - 1
    padded = np.full((n, margin + size), -np.inf, gain.dtype)  # no step leads from in front of the first place
    score = padded[:, margin:]
    score[:] = gain
    two, four, near = (np.empty(margin + size - less, gain.dtype) for less in (1, 3, 6))
    step, jump = gain.dtype.type(_STEP_NATS), gain.dtype.type(_JUMP_NATS)
    # Three maxima of neighbours, of 2, 4 and then 7 steps, on buffers that are made once: the calls take the time.
    for before, later, earlier, own, now in zip(
        score, padded[:, 1:], padded[:, :-1], gain[1:], score[1:], strict=False
    ):
        np.maximum(later, earlier, out=two)
        np.maximum(two[2:], two[:-2], out=four)
        np.maximum(four[3:], four[:-3], out=near)
        np.subtract(near, step, out=near)
        np.maximum(near, np.maximum.reduce(before) - jump, out=now)
        np.add(now, own, out=now)
    top = score.argmax(axis=1).tolist()
    course = np.empty(n, np.int64)
    course[-1] = place = top[-1]
    for i in range(n - 1, 0, -1):
        near = score[i - 1, max(0, place - _STEPS[-1]) : place + 1][::-1]
        back, far = int(near.argmax()), top[i - 1]
        place = place - back if near[back] - _STEP_NATS > score[i - 1, far] - _JUMP_NATS else far
        course[i - 1] = place
    return course, float(score[-1].max())


def place_of(course: I64, known: Mask, window: tuple[int, int]) -> F64:
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


def nearer(z: F64, walk: F64, place: F64) -> F64:
    """Return refined places: each is moved by the offset, smaller than the grid's step, at which its neighbours agree
    best."""
    known = np.isfinite(z)
    error = [np.where(known, zero_filled(z) - at_places(walk, place + d), 0.0) ** 2 for d in _OFFSETS]
    total = np.stack([np.minimum(e, 4.0).sum(axis=1) for e in error], axis=1)
    around = np.stack([np.convolve(c, np.ones(2 * _NEAR + 1), "same") for c in total.T], axis=1)[: z.shape[0]]
    return np.asarray(place + _OFFSETS[(around - total).argmin(axis=1)])


def at_places(walk: F64, place: F64) -> F64:
    """Return (…, column) the walk at places (…) between its rows; NaN beside an unknown value."""
    place = np.clip(place, 0.0, len(walk) - 1.0)
    low = np.minimum(place.astype(np.int64), max(len(walk) - 2, 0))
    part = (place - low)[..., None]
    high = np.where(part > 0.0, walk[np.minimum(low + 1, len(walk) - 1)], 0.0)
    return np.asarray((1.0 - part) * walk[low] + part * high)
