"""Finds the shift at which another series fits Alice's: for a whole block, or piece by piece where rounds were lost.

A reference is any series that may repeat Alice's: Eve's channels, forwards or backwards, by round number or by time, at
another rate; an earlier block; training; an earlier run; another part of Alice's own string. Which column of the
reference belongs to which of Alice's, and with which sign, is not assumed: agreement is the sum of squared correlations
over all pairs of columns.

The first fold of a block selects the candidate shifts. All folds choose among these candidates by their own training
symbols. The selection practically does not reveal labels of test symbols: it only reduces thousands of shifts to a few
dozen, whose agreement is too large for chance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import scipy
from numpy.typing import NDArray

from testbed.core.types import F32, F64, I64
from testbed.entropy.facts import Facts, zero_filled
from testbed.entropy.series import at_rounds

_GLOBAL, _LOCAL, _SHORTS, _SHORTESTS = 5.5, 6.5, 8.0, 6.6
"""Number of standard deviations by which a shift's agreement must exceed the usual one: over the whole block, and over
shorter and shorter pieces."""
_MORE_SETS = 0.5
"""How much more it must be for each doubling of the sets of channels that are searched one by one."""
_PIECE, _FEW_PAIRS = 48, 300
_LEAST_OVERLAP = 24
_MOST = 28
_MOST_TYPICAL = 600
"""Number of shifts, evenly spread, by which the usual agreement is estimated."""
_FILL = 24
_BEYOND = 16
_SHORT, _SHORTEST, _MOST_SHORT = 16, 10, 64
_STRIP, _FAR = 512, 1024
"""Number of Alice's probes that are compared at a time with the reference, and the largest shift of that comparison."""
_OWN_NEAR = 8
"""Least shift, in rounds, of a series of Alice's own: nearer rounds are used by `string_near` and `string_each`."""


Search = Literal["whole", "pieces", "close"]
"""Where a shift may hold: in the whole block; also in pieces of it; also in pieces as short as frequent losses of
packets leave them."""


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
    elsewhere. From the guessed round on, only these values may be used, because the chain rule conditions on earlier
    rounds only."""
    backwards: bool = False
    """Whether the series is reversed in time; `rounds` are then negative."""
    search: Search = "pieces"
    groups: tuple[slice, ...] = ()
    """The channels of each antenna and link, which are searched one by one as well; none: all are of one."""
    by_probe: bool = False
    """Whether `rounds` count Alice's kept probes and not her rounds."""

    def axis(self, facts: Facts) -> I64:
        """Return (probe,) the numbers of Alice's probes with which `rounds` are compared."""
        return np.arange(facts.rounds.size) if self.by_probe else facts.rounds

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
        return replace(
            self, name=f"{self.name}, backwards", rounds=-self.rounds[::-1], values=self.values[::-1], public=public,
            backwards=True, search="pieces",
        )  # fmt: skip


def dense(rounds: I64, values: F64, first: int, size: int) -> NDArray[np.float32]:
    """Return (round, column) float32 on every round from `first` on; 0 where nothing is known."""
    out = np.zeros((size, values.shape[1]), np.float32)
    inside = (rounds >= first) & (rounds < first + size)
    out[rounds[inside] - first] = zero_filled(values[inside])
    return out


@dataclass(frozen=True, slots=True)
class Anchor:
    """A piece of the block that agrees with the reference at one shift far better than chance explains."""

    standing_out: float
    """Standard deviations."""
    shift: int
    rows: slice
    """The piece, as a slice of Alice's probes."""
    columns: slice
    """The channels of the reference that agree, as a slice."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Shifts s at which reference round k + s is worth comparing with Alice's round k."""

    shifts: I64
    """(candidate,) the shifts; there may be none."""
    anchors: tuple[Anchor, ...]
    """Pieces from which a sequence of shifts may be searched, the one with the largest agreement first."""

    @property
    def change(self) -> bool:
        """Whether the shift may change: some piece agrees at a shift that is not the only one."""
        return self.shifts.size > 1 and bool(self.anchors)


def candidates(reference: Reference, alice: I64, z: F64) -> Candidates:
    """Search the block as a whole, its long pieces, and its short ones, as losses of packets leave them."""
    if not reference.rounds.size or not reference.values.shape[1]:
        return Candidates(np.zeros(0, np.int64), ())
    search = _Search(reference, alice, z)
    found = search.outstanding(slice(0, alice.size), _GLOBAL, _MOST // 2)
    pieces: list[Anchor] = []
    # With many pairs of columns, the agreement of a short piece does not exceed that of chance.
    piece = _PIECE if z.shape[1] * reference.values.shape[1] > _FEW_PAIRS else _PIECE * 2 // 3
    if reference.search != "whole":
        for start in range(0, max(1, alice.size - piece // 2), piece):
            pieces += search.outstanding(slice(start, start + piece), _LOCAL, 1)
    if reference.search == "close":
        for start in range(0, alice.size - _SHORT + 1, max(_SHORT, alice.size // _MOST_SHORT)):
            pieces += search.outstanding(slice(start, start + _SHORT), _SHORTS, 1)
        pieces += search.as_they_stand()
    anchors = sorted(pieces, key=lambda a: -a.standing_out)
    shifts = np.unique(np.array([a.shift for a in (*found, *anchors[: 2 * _MOST])], np.int64))
    return Candidates(_filled(shifts), tuple(anchors))


def _filled(shifts: I64) -> I64:
    """Return the shifts and those between near ones: if packets are lost one at a time, these occur as well."""
    gaps = [np.arange(a, b) for a, b in pairwise(shifts.tolist()) if 1 < b - a <= _FILL]
    if shifts.size > 1:  # the shifts just before the first and after the last may occur as well
        gaps += [np.arange(shifts[0] - _BEYOND, shifts[0]), np.arange(shifts[-1] + 1, shifts[-1] + 1 + _BEYOND)]
    return np.unique(np.concatenate([shifts, *gaps]))[: 4 * _MOST]


class _Search:
    """Computes the agreement at all shifts at once, by Fourier transforms."""

    def __init__(self, reference: Reference, alice: I64, z: F64) -> None:
        self.alice, self.z, self.own = alice, z, reference.own
        self.sets = [slice(0, reference.values.shape[1])]
        """Channels that are judged together: all, and those of each antenna and link by itself."""
        if len(reference.groups) > 1:
            self.sets += reference.groups
        self.rounds, self.values = reference.rounds, reference.values
        first, last = int(reference.rounds[0]), int(reference.rounds[-1])
        self.first, self.span = first, last - first + 1
        length = int(alice[-1] - alice[0]) + 1
        self.n_fft = int(scipy.fft.next_fast_len(self.span + length, real=True))
        self.shifts = np.arange(first - int(alice[-1]), last - int(alice[0]) + 1)
        self.spectrum = scipy.fft.rfft(dense(reference.rounds, reference.values, first, self.span).T, self.n_fft)
        there = np.asarray(np.isfinite(reference.values).any(axis=1), np.float64)[:, None]
        self.there = scipy.fft.rfft(dense(reference.rounds, there, first, self.span).T, self.n_fft)

    def outstanding(self, part: slice, threshold: float, count: int) -> list[Anchor]:
        """Return up to `count` shifts at which this part of Alice's probes agrees better than chance explains."""
        rounds, z = self.alice[part], self.z[part]
        if rounds.size < _SHORT:
            return []
        begin = int(self.alice[0])
        heard = np.asarray(np.isfinite(z).any(axis=1), np.float64)[:, None]
        length = int(self.alice[-1]) - begin + 1
        mine = scipy.fft.rfft(dense(rounds, z, begin, length).T, self.n_fft)
        overlap = scipy.fft.irfft(
            np.conj(scipy.fft.rfft(dense(rounds, heard, begin, length).T, self.n_fft)) * self.there, self.n_fft
        )[0]
        # dense() counts from the first round of each: lag l of the spectra is shift l + first − begin
        lag = (self.shifts - self.first + begin) % self.n_fft
        overlap = np.rint(overlap[lag])
        enough = overlap >= min(_LEAST_OVERLAP, 0.6 * rounds.size)
        if self.own:
            enough &= np.abs(self.shifts) > _OWN_NEAR
        if np.count_nonzero(enough) < 8:
            return []
        agreement = np.zeros((self.spectrum.shape[0], self.n_fft), np.float32)
        for column in mine:
            agreement += scipy.fft.irfft(np.conj(column) * self.spectrum, self.n_fft) ** 2
        agreement = agreement[:, lag]
        fits = np.stack([agreement[columns].sum(axis=0) for columns in self.sets])[:, enough] / overlap[enough]
        shifts, out = self.shifts[enough], []
        for i, columns, fit in self._standing_out(fits, threshold):
            least = threshold if i == 0 else threshold + _MORE_SETS * float(np.log2(len(self.sets) - 1))
            order = np.argsort(-fit, kind="stable")[:count].tolist()
            out += [Anchor(float(fit[k]), int(shifts[k]), part, columns) for k in order if fit[k] >= least]
        return sorted(out, key=lambda a: -a.standing_out)[:count]

    def as_they_stand(self) -> list[Anchor]:
        """Return pieces of a few probes in which each column of the reference, or its negative, equals Alice's.

        The products of all pairs of a probe and a round form a matrix; a shift is one of its diagonals.
        """
        width, out = self.z.shape[1], []
        for columns in self.sets[-1:] if len(self.sets) == 1 else self.sets[1:]:
            if columns.stop - columns.start == width:
                for start in range(0, self.alice.size - _SHORTEST, _STRIP - _SHORTEST):
                    out += self._in_strip(slice(start, start + _STRIP), columns)
        return sorted(out, key=lambda a: -a.standing_out)[:_MOST]

    def _in_strip(self, part: slice, columns: slice) -> list[Anchor]:
        """Return such pieces among some of Alice's probes, at shifts that are not very far."""
        rounds = self.alice[part]
        first, length = int(rounds[0]), int(rounds[-1] - rounds[0]) + 1
        begin = max(self.first, first - _FAR)
        span = min(self.first + self.span, first + length + _FAR) - begin
        if length <= _SHORTEST or length > 4 * _STRIP or span < _SHORTEST:
            return []
        mine = dense(rounds, self.z[part], first, length)
        theirs = dense(self.rounds, self.values[:, columns], begin, span)
        return self._on_diagonals(mine @ theirs.T, first, begin, columns)

    def _on_diagonals(self, products: NDArray[np.float32], first: int, begin: int, columns: slice) -> list[Anchor]:
        length, span = products.shape
        padded = np.zeros((length, span + 2 * length), np.float32)
        padded[:, length : length + span] = products
        step, item = padded.strides
        # row k, column j: the product of probe k and the round j − length after it
        along = np.lib.stride_tricks.as_strided(padded, (length, span + length), (step + item, item))
        upto = np.cumsum(along, axis=0)
        sums = np.abs(upto[_SHORTEST:] - upto[:-_SHORTEST]) / np.sqrt(_SHORTEST * self.z.shape[1])
        shift = np.arange(sums.shape[1]) - length + begin - first
        if self.own:
            sums[:, np.abs(shift) <= _OWN_NEAR] = 0.0
        best = sums.argmax(axis=1)
        high = sums[np.arange(best.size), best]
        out = []
        for start in range(0, high.size, _SHORTEST):
            row = start + int(high[start : start + _SHORTEST].argmax())
            if high[row] >= _SHORTESTS:
                rows = slice(*np.searchsorted(self.alice, [first + row + 1, first + row + 1 + _SHORTEST]).tolist())
                out.append(Anchor(float(high[row]), int(shift[best[row]]), rows, columns))
        return out

    def _standing_out(self, fits: F64, threshold: float) -> list[tuple[int, slice, F64]]:
        """Return the sets of channels that exceed the threshold at some shift, with (shift,) the excess in standard
        deviations."""
        some = fits[:, :: max(1, fits.shape[1] // _MOST_TYPICAL)]
        usual = np.median(some, axis=1, keepdims=True)
        pairs = np.array([self.z.shape[1] * (c.stop - c.start) for c in self.sets])[:, None]
        spread = np.maximum(1.4826 * np.median(np.abs(some - usual), axis=1, keepdims=True), np.sqrt(2.0 * pairs))
        fits = (fits - usual) / spread
        return [(i, self.sets[i], fits[i]) for i in np.flatnonzero(fits.max(axis=1) >= threshold).tolist()]


# ---------------------------------------------------------------- what fits one fold


@dataclass(frozen=True, slots=True)
class Match:
    """A reference at the shifts that fit Alice's training symbols."""

    inputs: F64
    """(probe, channel) the reference's values at each of Alice's probes; NaN where it has none."""
    agreement: float
    """Sum of n·r² over all pairs of columns; chance gives about 1 for each pair."""


def known_candidates(facts: Facts, reference: Reference, z: F64) -> Candidates:
    """Return `candidates`, computed once at a block's first question."""
    key = ("candidates", reference.name)
    if key not in facts.scratch:
        facts.scratch[key] = candidates(reference, reference.axis(facts), z)
    found: Candidates = facts.scratch[key]
    return found


@dataclass(frozen=True)
class Shifted:
    """A reference's values at each candidate shift, with what every attack computes of them in every fold."""

    values: F64
    """(probe, candidate, channel); NaN where it has none."""
    filled: F64
    """The same, 0 where it has none."""
    heard: NDArray[np.bool_]
    """(probe, candidate) whether a value differs from 0."""

    @classmethod
    def of(cls, values: F64) -> Shifted:
        filled = zero_filled(values)
        return cls(values, filled, np.asarray(filled.any(axis=2)))

    @cached_property
    def narrow(self) -> tuple[F32, NDArray[np.bool_]]:
        """(probe, candidate, channel) `filled` in single precision, and (probe, candidate) whether a value is there."""
        return self.filled.astype(np.float32), np.asarray(np.isfinite(self.values).any(axis=2))


def everywhere(facts: Facts, reference: Reference, z: F64) -> Shifted:
    """Return the reference at each candidate shift; computed once for all folds unless hidden values are in it."""
    kept = facts.view if reference.own else facts.scratch
    key = ("everywhere", reference.name)
    if key not in kept:
        shifts = known_candidates(facts, reference, z).shifts
        kept[key] = Shifted.of(reference.beside(reference.axis(facts)[:, None], shifts[None, :]))
    found: Shifted = kept[key]
    return found


def constant(facts: Facts, reference: Reference, z: F64, count: int = 1) -> list[Match]:
    """Return the reference at up to `count` shifts of the whole block, best first."""
    key = ("constant", reference.name)
    if key not in facts.view:
        series = everywhere(facts, reference, z)
        agreement = _agreements(zero_filled(z), series.filled, series.heard)
        best = np.argsort(-agreement, kind="stable").tolist()
        facts.view[key] = [Match(series.values[:, i], float(agreement[i])) for i in best]
    found: list[Match] = facts.view[key]
    return found[:count]


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
        total += np.where(there, w * zero_filled(x), 0.0)
        weight += np.where(there, np.abs(w), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, total / weight, np.nan)


def agreement_of(z: F64, inputs: F64) -> float:
    """Return the sum of n·r² over all pairs of columns; chance gives about 1 for each pair."""
    filled = zero_filled(inputs)
    return float(_agreements(zero_filled(z), filled[:, None], np.asarray(filled.any(axis=1))[:, None])[0])


def _agreements(a: F64, b: F64, heard: NDArray[np.bool_]) -> F64:
    """Return (candidate,) the result of `agreement_of` for a (probe, column) and each candidate of b (probe, candidate,
    channel), without NaN; heard (probe, candidate): whether any value of b differs from 0.
    """
    both = np.count_nonzero(np.asarray(a.any(axis=1))[:, None] & heard, axis=0)
    return np.asarray(squared_products(a, b) / np.maximum(both, 1))


def squared_products(a: F64, b: F64) -> F64:
    """Return (candidate,) the sum over all pairs of columns of (Σ a·b)², of a (probe, column) with each candidate of b
    (probe, candidate, channel); no NaN."""
    n, candidates, channels = b.shape
    products = (a.T @ b.reshape(n, candidates * channels)).reshape(a.shape[1], candidates, channels)
    return np.asarray((products**2).sum(axis=(0, 2)))
