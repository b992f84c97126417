"""A reference series whose shift changes in the course of a block: the likeliest sequence of shifts (Viterbi).

Which of the reference's channels corresponds to which of Alice's columns is learnt in the same iterations. They start
from pieces of the block that agree at one shift, or from the assumption that column n corresponds to channel n.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.core.types import F32, F64, I64
from testbed.entropy.facts import Facts, Mask, zero_filled
from testbed.entropy.shifts import Anchor, Match, Reference, agreement_of, everywhere, known_candidates

_PIECE = 48
_PASSES = 2
_MOST_GROUPS = 4
"""Antennas and links with whose columns as they stand a course is begun."""
_STARTS = 2
"""Number of anchors from which a sequence of shifts is searched."""
_CLOSE = 0.3
"""Assumed standard deviation of a column from the reference's channel of the same number, at the start."""
_MOST_NATS, _UNKNOWN_NATS = 12.0, 6.0
_BY_EIGHTS = 8
"""Number of values from which on numpy adds eight sums in parallel."""
_CHANGE_NATS = 9.0
"""Penalty of a change of shift in nats: about the logarithm of the number of possible changes at each probe."""


_Search = Generator[F32, I64, "Match | None"]
"""Yields the log-likelihoods (start, probe, candidate) of which it needs the likeliest sequences, (start, probe)."""


def piecewise(facts: Facts, references: Sequence[Reference], z: F64) -> list[Match | None]:
    """Return each reference along the likeliest sequence of shifts; None for one with fewer than 2 candidates."""
    new = [r for r in references if ("piecewise", r.name) not in facts.view]
    for reference, found in zip(new, _in_step([_along_a_course(facts, r, z) for r in new]), strict=True):
        facts.view["piecewise", reference.name] = found
    return [facts.view["piecewise", r.name] for r in references]


def _in_step(searches: Sequence[_Search]) -> list[Match | None]:
    """Return what each search finds; the sequences that they need at a time are computed together."""
    out: list[Match | None] = [None] * len(searches)
    answers: dict[int, Any] = dict.fromkeys(range(len(searches)))
    while answers:
        asked = {}
        for i, answer in answers.items():
            try:
                asked[i] = searches[i].send(answer)
            except StopIteration as over:
                out[i] = over.value
        answers = dict(zip(asked, courses(list(asked.values())), strict=True))
    return out


def _along_a_course(facts: Facts, reference: Reference, z: F64) -> _Search:
    known = known_candidates(facts, reference, z)
    if not known.change:
        return None
    series = everywhere(facts, reference, z)
    narrow, there = series.narrow
    if not there.any():
        return None
    choice = _Choice(zero_filled(z).astype(np.float32), np.isfinite(z), narrow, there)
    groups = [g for g in reference.groups or (slice(0, narrow.shape[2]),) if g.stop - g.start == z.shape[1]]
    likely = [choice.as_they_stand(choice.series[:, :, group]) for group in groups[:_MOST_GROUPS]]
    likely += [choice.from_anchor(a, known.shifts) for a in known.anchors[:_STARTS]]
    starts = [choice.by_pieces(), *(yield np.stack(likely))]
    course = max(starts, key=choice.agreement)
    for _ in range(_PASSES):
        (course,) = yield choice.likely(course)[None]
    inputs = series.values[np.arange(course.size), course]
    return Match(inputs, agreement_of(z, inputs))


@dataclass(frozen=True, slots=True)
class _Choice:
    """Alice's values, and the reference's values at each candidate shift; 0 where one is missing."""

    z: F32
    """(probe, column)."""
    known: Mask
    """(probe, column)."""
    series: F32
    """(probe, candidate, channel)."""
    there: Mask
    """(probe, candidate)."""

    def at(self, course: I64) -> F32:
        return np.asarray(self.series[np.arange(course.size), course])

    def agreement(self, course: I64) -> float:
        return agreement_of(np.asarray(self.z, np.float64), np.asarray(self.at(course), np.float64))

    def by_pieces(self) -> I64:
        """Return (probe,) the candidate that agrees best in the piece of the block to which the probe belongs."""
        n, k, channels = self.series.shape
        course = np.zeros(n, np.int64)
        for start in range(0, n, _PIECE // 2):
            part = slice(max(0, start - _PIECE // 4), start + _PIECE * 3 // 4)
            products = self.z[part].T @ self.series[part].reshape(-1, k * channels)
            fit = (products.reshape(-1, k, channels) ** 2).sum(axis=(0, 2)) / np.maximum(
                self.there[part].sum(axis=0), 1
            )
            course[start : start + _PIECE // 2] = int(fit.argmax())
        return course

    def as_they_stand(self, guess: F32) -> F32:
        """Return (probe, candidate) log-likelihoods, assuming that `guess` (probe, candidate, column) is nearly right.

        This start needs no long pieces: it suits an Eve who receives well but loses packets often.
        """
        absent, errors = np.ones(guess.shape[:2], np.bool_), []
        for column in range(guess.shape[2]):
            absent &= guess[:, :, column] == 0
        for column in range(guess.shape[2]):
            error = self._error(guess, column, 2 * _CLOSE**2)
            error[absent] = _UNKNOWN_NATS
            errors.append(error)
        return self._against(errors)

    def _error(self, guess: F32, column: int, scale: float | np.float32) -> F32:
        """Return (probe, candidate) the squared error of one column of a guess, in nats, up to a limit."""
        error = self.z[:, column, None] - guess[:, :, column]
        error *= error
        error /= scale
        return np.minimum(error, _MOST_NATS, out=error)

    def _against(self, errors: list[F32]) -> F32:
        """Return (probe, candidate) the sum of the columns' errors where Alice's values are known, negative."""
        for column, error in enumerate(errors):
            error *= self.known[:, column, None]
        total = added(errors)
        return np.negative(total, out=total)

    def from_anchor(self, anchor: Anchor, shifts: I64) -> F32:
        """Return log-likelihoods by the linear map that is fitted in a piece that agrees at one shift."""
        if anchor.shift not in shifts:
            return np.zeros(self.there.shape, np.float32)
        here = self.series[:, :, anchor.columns]
        x = here[anchor.rows, int(np.searchsorted(shifts, anchor.shift))]
        gram = x.T @ x + 0.02 * len(x) * np.eye(x.shape[1], dtype=np.float32)
        return self.as_they_stand(here @ np.linalg.solve(gram, x.T @ self.z[anchor.rows]))

    def likely(self, course: I64) -> F32:
        """Return log-likelihoods by the linear map that is fitted along the present sequence of shifts."""
        x = self.at(course)
        gram = x.T @ x + 0.02 * len(x) * np.eye(x.shape[1], dtype=np.float32)
        coefficients = np.linalg.solve(gram, x.T @ self.z)
        error = np.where(self.known, self.z - x @ coefficients, 0.0)
        number = np.maximum(self.known.sum(axis=0) - x.shape[1], 1)
        spread = np.sqrt((error**2).sum(axis=0) / number).clip(0.05, 1.0).astype(np.float32)
        guess, logs = self.series @ coefficients, np.log(spread)
        errors = [self._error(guess, c, 2 * spread[c] ** 2) + logs[c] for c in range(spread.size)]
        return np.asarray(np.where(self.there, self._against(errors), -(self.z**2 / 2).sum(axis=1, keepdims=True)))


def added(parts: list[F32]) -> F32:
    """Return the sum of arrays of one shape, added in the order in which numpy adds along an array's last axis.

    To add whole arrays is several times as fast as to add along an axis of a few values. The first array is
    overwritten.
    """
    if len(parts) >= _BY_EIGHTS:
        return np.asarray(np.stack(parts, axis=-1).sum(axis=-1))
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def courses(likely: Sequence[F32]) -> list[I64]:
    """Return (start, probe) the most likely sequences of candidates; every change of candidate has the same penalty.

    likely: (start, probe, candidate) log-likelihoods; there may be several, of the same number of probes.
    """
    if not likely:
        return []
    starts, (n, most) = [len(x) for x in likely], (likely[0].shape[1], max(x.shape[2] for x in likely))
    ends = np.cumsum(starts).tolist()
    gains = np.full((n, ends[-1], most), -np.inf, likely[0].dtype)  # candidates that there are not are never chosen
    for x, end in zip(likely, ends, strict=True):
        gains[:, end - len(x) : end, : x.shape[2]] = x.swapaxes(0, 1)
    score, least = gains.copy(), np.empty((n, ends[-1], 1), gains.dtype)
    before, penalty = score[0], gains.dtype.type(_CHANGE_NATS)
    # With so few candidates the calls themselves take the time: four a probe, on rows that are addressed once.
    for now, low, gain in zip(score[1:], least[1:], gains[1:], strict=True):
        np.maximum.reduce(before, axis=1, keepdims=True, out=low)
        np.subtract(low, penalty, out=low)
        np.maximum(before, low, out=now)
        np.add(now, gain, out=now)
        before = now
    best, changes = score.argmax(axis=2), score[:-1] < least[1:]
    found = [_traced(best[:, s], changes[:, s]) for s in range(ends[-1])]
    return [np.stack(found[end - n_starts : end]) for n_starts, end in zip(starts, ends, strict=True)]


def _traced(best: I64, changes: Mask) -> I64:
    """Return (probe,) the candidates along the most likely sequence, from its end backwards.

    best: (probe,) the candidate with the highest score there. changes: (probe less 1, candidate) whether the candidate
    is reached at the next probe from that one.
    """
    course, end = np.empty(best.size, np.int64), best.size
    while end > 0:
        candidate = best[end - 1]
        start = changes[: end - 1, candidate].tobytes().rfind(1) + 1  # the latest change to it, or 0
        course[start:end] = candidate
        end = start
    return course
