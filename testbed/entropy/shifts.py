"""Finds the shift at which another series fits Alice's: for a whole block, or piece by piece where rounds were lost.

A reference is any series that may repeat Alice's: Eve's channels, forwards or backwards, by round number or by time, at
another rate; an earlier block; training; an earlier run; another part of Alice's own string. Which column of the
reference belongs to which of Alice's, and with which sign, is not assumed: agreement is the sum of squared correlations
over all pairs of columns.

A block's first question selects the candidate shifts. All later folds use the same candidates and choose among them by
their own training symbols. The selection reveals no test symbol's label: of thousands of shifts a few dozen remain, and
only those whose agreement is too large for chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy
from numpy.typing import NDArray

from testbed.core.types import F64, I64
from testbed.entropy.facts import Facts
from testbed.entropy.ridge import ridge
from testbed.entropy.series import at_rounds

_GLOBAL, _LOCAL = 5.5, 6.5
"""Standard deviations by which a shift has to stand out, over the whole block and over one piece of it."""
_PIECE, _FEW_PAIRS = 48, 300
_LEAST_OVERLAP = 24
_MOST = 28
_FILL = 24
_PASSES = 4
_BEYOND = 10
_CLOSE = 0.3
"""Standard deviation of a column about the reference's equal column, for an Eve whose columns are used unchanged."""
_OWN_NEAR = 8
"""Alice's own neighbours nearer than so many rounds are left to other attacks (`string_near`, `string_each`)."""
_CHANGE_NATS = 9.0
"""Penalty for a change of shift: about the logarithm of the number of possible changes at each probe."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A series that may repeat Alice's."""

    name: str
    rounds: I64
    """(round,) strictly ascending numbers; any origin will do, since the shift is searched for."""
    values: F64
    """(round, channel) normal scores, NaN where unknown."""
    public: F64 | None = None
    """(round, channel) for a series of Alice's own run: the values that are public or from before this block, NaN
    elsewhere. Of rounds from the one in question on only these may be used, because the chain rule takes the string in
    the order of time."""
    backwards: bool = False
    """The series is reversed in time: `rounds` are negative."""

    @property
    def own(self) -> bool:
        """Whether the series is from Alice's own run: then a probe and its near neighbours must not predict it."""
        return self.public is not None

    def beside(self, alice: I64, shift: I64 | int) -> F64:
        """Return (round, …, channel) the reference's values `shift` rounds after Alice's; NaN where it has none."""
        there = alice + shift
        out = at_rounds(self.rounds, self.values, there)
        if self.public is not None:
            known = at_rounds(self.rounds, self.public, there)
            ahead = (-there if self.backwards else there) >= alice
            out = np.where(ahead[..., None], known, out)
        return out

    def reversed(self) -> Reference:
        """Return the series reversed in time: round r becomes −r."""
        public = None if self.public is None else self.public[::-1]
        return Reference(f"{self.name}, backwards", -self.rounds[::-1], self.values[::-1], public, True)


def dense(rounds: I64, values: F64, first: int, size: int) -> NDArray[np.float32]:
    """Return (round, column) float32 on every round from `first` on; 0 where nothing is known."""
    out = np.zeros((size, values.shape[1]), np.float32)
    inside = (rounds >= first) & (rounds < first + size)
    out[rounds[inside] - first] = np.nan_to_num(values[inside])
    return out


def candidates(reference: Reference, alice: I64, z: F64) -> I64:
    """Return the shifts s at which reference round k + s is worth comparing with Alice's round k; may be none."""
    if not reference.rounds.size or not reference.values.shape[1]:
        return np.zeros(0, np.int64)
    search = _Search(reference, alice, z)
    found = search.outstanding(slice(0, alice.size), _GLOBAL, _MOST // 2)
    # over many pairs of columns, chance hides the agreement of a short piece
    piece = _PIECE if z.shape[1] * reference.values.shape[1] > _FEW_PAIRS else _PIECE * 2 // 3
    for start in range(0, max(1, alice.size - piece // 2), piece):
        found += search.outstanding(slice(start, start + piece), _LOCAL, 1)
    return _filled(np.unique(np.array(found, np.int64)))


def _filled(shifts: I64) -> I64:
    """Return the shifts and all shifts between near ones, which occur where packets are lost one at a time."""
    gaps = [np.arange(a, b) for a, b in pairwise(shifts.tolist()) if 1 < b - a <= _FILL]
    if shifts.size > 1:  # a shift may have begun earlier and ended later than where it was found
        gaps += [np.arange(shifts[0] - _BEYOND, shifts[0]), np.arange(shifts[-1] + 1, shifts[-1] + 1 + _BEYOND)]
    return np.unique(np.concatenate([shifts, *gaps]))[: 3 * _MOST]


class _Search:
    """Computes the agreement at all shifts at once, by Fourier transforms."""

    def __init__(self, reference: Reference, alice: I64, z: F64) -> None:
        self.alice, self.z, self.own = alice, z, reference.own
        first, last = int(reference.rounds[0]), int(reference.rounds[-1])
        self.first, self.span = first, last - first + 1
        length = int(alice[-1] - alice[0]) + 1
        self.n_fft = int(scipy.fft.next_fast_len(self.span + length, real=True))
        self.shifts = np.arange(first - int(alice[-1]), last - int(alice[0]) + 1)
        self.spectrum = scipy.fft.rfft(dense(reference.rounds, reference.values, first, self.span).T, self.n_fft)
        there = np.asarray(np.isfinite(reference.values).any(axis=1), np.float64)[:, None]
        self.there = scipy.fft.rfft(dense(reference.rounds, there, first, self.span).T, self.n_fft)

    def outstanding(self, part: slice, threshold: float, count: int) -> list[int]:
        """Return up to `count` shifts at which this part of Alice's probes agrees better than chance explains."""
        rounds, z = self.alice[part], self.z[part]
        if rounds.size < _LEAST_OVERLAP:
            return []
        begin = int(self.alice[0])
        heard = np.asarray(np.isfinite(z).any(axis=1), np.float64)[:, None]
        length = int(self.alice[-1]) - begin + 1
        mine = scipy.fft.rfft(dense(rounds, z, begin, length).T, self.n_fft)
        overlap = scipy.fft.irfft(
            np.conj(scipy.fft.rfft(dense(rounds, heard, begin, length).T, self.n_fft)) * self.there, self.n_fft
        )[0]
        fit = np.zeros(self.n_fft, np.float32)
        for column in mine:
            fit += (scipy.fft.irfft(np.conj(column) * self.spectrum, self.n_fft) ** 2).sum(axis=0)
        # dense() counts from the first round of each: lag l of the spectra is shift l + first − begin
        lag = (self.shifts - self.first + begin) % self.n_fft
        overlap, fit = np.rint(overlap[lag]), np.asarray(fit[lag], np.float64)
        enough = overlap >= min(_LEAST_OVERLAP, 0.6 * rounds.size)
        if self.own:
            enough &= np.abs(self.shifts) > _OWN_NEAR
        if np.count_nonzero(enough) < 8:
            return []
        fit = np.where(enough, fit / np.maximum(overlap, 1.0), 0.0)
        usual = np.median(fit[enough])
        pairs = z.shape[1] * self.spectrum.shape[0]
        spread = max(1.4826 * float(np.median(np.abs(fit[enough] - usual))), np.sqrt(2.0 * pairs))
        fit = (fit - usual) / spread
        return _peaks(self.shifts, np.where(enough, fit, -np.inf), threshold, count)


def _peaks(shifts: I64, fit: F64, threshold: float, count: int) -> list[int]:
    order = np.argsort(-fit, kind="stable")[:count]
    return [int(shifts[i]) for i in order if fit[i] >= threshold]


# ---------------------------------------------------------------- what fits one fold


@dataclass(frozen=True, slots=True)
class Match:
    """A reference at the shifts that fit Alice's training symbols."""

    inputs: F64
    """(probe, channel) the reference's values at each of Alice's probes; NaN where it has none."""
    agreement: float
    """Sum of n·r² over all pairs of columns; chance gives about 1 for each pair."""


def known_candidates(facts: Facts, reference: Reference, z: F64) -> I64:
    """Return `candidates`, computed once at a block's first question."""
    key = ("candidates", reference.name)
    if key not in facts.scratch:
        facts.scratch[key] = candidates(reference, facts.rounds, z)
    found: I64 = facts.scratch[key]
    return found


def _everywhere(facts: Facts, reference: Reference, z: F64) -> F64:
    """Return (probe, candidate, channel) the reference's values at each candidate shift."""
    kept = facts.view if reference.own else facts.scratch
    key = ("everywhere", reference.name)
    if key not in kept:
        shifts = known_candidates(facts, reference, z)
        kept[key] = reference.beside(facts.rounds[:, None], shifts[None, :])
    found: F64 = kept[key]
    return found


def constant(facts: Facts, reference: Reference, z: F64, count: int = 1) -> list[Match]:
    """Return the reference at up to `count` shifts of the whole block, best first."""
    key = ("constant", reference.name)
    if key not in facts.view:
        everywhere = _everywhere(facts, reference, z)
        matches = (everywhere[:, i] for i in range(everywhere.shape[1]))
        out = [Match(inputs, agreement_of(z, inputs)) for inputs in matches]
        facts.view[key] = sorted(out, key=lambda m: -m.agreement)
    found: list[Match] = facts.view[key]
    return found[:count]


def piecewise(facts: Facts, reference: Reference, z: F64) -> Match | None:
    """Return the reference along the likeliest sequence of shifts (Viterbi); None with fewer than 2 candidates."""
    key = ("piecewise", reference.name)
    if key not in facts.view:
        facts.view[key] = _along_a_course(facts, reference, z)
    found: Match | None = facts.view[key]
    return found


def _along_a_course(facts: Facts, reference: Reference, z: F64) -> Match | None:
    shifts = known_candidates(facts, reference, z)
    if shifts.size < 2:
        return None
    everywhere = _everywhere(facts, reference, z)
    starts = [_first_course(z, everywhere)]
    if everywhere.shape[2] >= z.shape[1]:
        starts.append(_viterbi(_as_it_stands(z, everywhere), shifts))
    ends = [_settled(z, everywhere, shifts, start) for start in starts]
    return max((m for m in ends if m is not None), key=lambda m: m.agreement, default=None)


def _settled(z: F64, everywhere: F64, shifts: I64, course: I64) -> Match | None:
    """Return the reference along a sequence of shifts, after several turns of fitting the map and the sequence."""
    rows = np.arange(z.shape[0])
    for _ in range(_PASSES):
        inputs = everywhere[rows, course]
        if not np.isfinite(inputs).any():
            return None
        course = _viterbi(_log_likelihood(z, inputs, everywhere), shifts)
    inputs = everywhere[rows, course]
    return Match(inputs, agreement_of(z, inputs))


def _as_it_stands(z: F64, everywhere: F64) -> F64:
    """Return (probe, shift) the log-likelihood of Alice's values if each of the reference's columns equals hers.

    This start needs no long pieces: it follows an Eve who receives well and only loses packets through short pieces.
    """
    error = (z[:, None] - everywhere[:, :, : z.shape[1]]) ** 2 / (2 * _CLOSE**2)
    with np.errstate(invalid="ignore"):
        return -np.where(np.isfinite(error), np.minimum(error, 12.0), 6.0).sum(axis=2)


def combined(z: F64, inputs: list[F64]) -> F64:
    """Return (probe, column) the mean of several shifts' predictions of each column, weighted by how well each fits."""
    total, weight = np.zeros(z.shape), np.zeros(z.shape)
    for x in inputs:
        x = x[:, : z.shape[1]]
        there = np.isfinite(x)
        both = there & np.isfinite(z)
        a, b = np.where(both, z, 0.0), np.where(both, x, 0.0)
        r = (a * b).sum(axis=0) / np.maximum(np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0)), 1e-9)
        w = r / np.maximum(1.0 - r**2, 0.02)
        total += np.where(there, w * np.nan_to_num(x), 0.0)
        weight += np.where(there, np.abs(w), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, total / weight, np.nan)


def agreement_of(z: F64, inputs: F64) -> float:
    """Return the sum of n·r² over all pairs of columns; chance gives about 1 for each pair."""
    a, b = np.nan_to_num(z), np.nan_to_num(inputs)
    n = max(1, int(np.count_nonzero(a.any(axis=1) & b.any(axis=1))))
    return float(((a.T @ b) ** 2).sum() / n)


def _first_course(z: F64, everywhere: F64) -> I64:
    """Return (probe,) the candidate that agrees best in the piece of the block to which the probe belongs."""
    course = np.zeros(z.shape[0], np.int64)
    for start in range(0, z.shape[0], _PIECE // 2):
        part = slice(max(0, start - _PIECE // 4), start + _PIECE * 3 // 4)
        fit = [agreement_of(z[part], everywhere[part, i]) for i in range(everywhere.shape[1])]
        course[start : start + _PIECE // 2] = int(np.argmax(fit))
    return course


def _log_likelihood(z: F64, inputs: F64, everywhere: F64) -> F64:
    """Return (probe, shift) the log-likelihood of Alice's values at each shift, by ridge regression on the present
    sequence of shifts."""
    fit = ridge(inputs, z)
    centre, coefficients = _coefficients(inputs, fit.mean)
    guess = np.nan_to_num(np.nan_to_num(everywhere - centre) @ coefficients)
    there = np.isfinite(everywhere).any(axis=2)
    left = np.where(np.isfinite(fit.spread) & (fit.spread > 0), fit.spread, 1.0).clip(0.05, 1.0)
    known = np.isfinite(z)
    error = np.where(known[:, None], (np.nan_to_num(z)[:, None] - guess) ** 2, 0.0)
    with_guess = -(np.minimum(error / (2 * left**2), 12.0) + np.log(left) * known[:, None]).sum(axis=2)
    alone = -(np.nan_to_num(z) ** 2 / 2).sum(axis=1)
    return np.where(there, with_guess, alone[:, None])


def _coefficients(inputs: F64, mean: F64) -> tuple[F64, F64]:
    """Return centre and linear map of a regression, recovered from its estimates."""
    centre = np.nan_to_num(np.nansum(inputs, axis=0) / np.maximum(np.isfinite(inputs).sum(axis=0), 1))
    x = np.nan_to_num(inputs - centre)
    y = np.nan_to_num(mean)
    scale = x.shape[0] * 1e-3
    return centre, np.linalg.solve(x.T @ x + scale * np.eye(x.shape[1]), x.T @ y)


def _viterbi(likely: F64, shifts: I64) -> I64:
    """Return (probe,) the likeliest sequence of candidates; every change has the same penalty."""
    n, k = likely.shape
    came = np.zeros((n, k), np.int64)
    score = likely[0].copy()
    for i in range(1, n):
        best = int(score.argmax())
        stay = score >= score[best] - _CHANGE_NATS
        came[i] = np.where(stay, np.arange(k), best)
        score = np.where(stay, score, score[best] - _CHANGE_NATS) + likely[i]
    course = np.empty(n, np.int64)
    course[-1] = int(score.argmax())
    for i in range(n - 1, 0, -1):
        course[i - 1] = came[i, course[i]]
    return course
