"""Turns an estimate of Alice's analogue value, and its error, into a distribution over labels.

A target is what an attack can estimate of a symbol: the normal score of Alice's feature, its magnitude, or any other
number; or the scores of all features of a vector label. The relation of labels to targets is learnt from training
symbols; it may be any code with any thresholds and guard bands, and several labels may have the same targets:

    P(label | mean μ, spread σ) = ∫ N(t; μ, σ²) · share of the label among training symbols near t dt.

Two numbers are then calibrated on the training symbols' own out-of-sample estimates: a factor on σ, and the doubt, the
weight of the labels' frequencies. An attack that has learnt nothing thus returns the frequencies and is no worse than
these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.facts import HIDDEN, Facts, Mask
from testbed.entropy.gaussian_labels import normal_scores

_REACH = 3.4
"""Largest target of the grid; among some thousands of normal scores none is larger."""
_STEPS = {1: 0.04, 2: 0.03, 3: 0.03, 4: 0.015, 5: 0.015}
_FINEST = 0.0075
"""Number of grid points of targets, by the bits of a label: about ten in each cell, fewer for the deepest labels."""
_SPREADS = np.geomspace(0.012, 1.6, 16)
_FACTORS = (-2, -1, 0, 1)
"""Steps on `_SPREADS`, each 1.39 times the one before."""
_DOUBTS = np.array([1e-4, 5e-3, 0.03, 0.12, 0.35, 0.75, 1.0])
_SAME_CELLS = 0.97
_MOST_JUDGES = 1500
"""Largest number of training symbols, evenly spread, by which the two numbers are calibrated."""
_CLOUD_JUDGES = 150
_GAIN_NATS = 20.0
"""Least gain in log-likelihood, in nats, for which a spread by surroundings replaces a single one."""
_USUAL = (2.0, 0.1)


def scores(facts: Facts) -> F64:
    """Return (probe, column) normal scores of Alice's features; NaN where hidden or where a column does not vary."""
    if "scores" not in facts.view:
        facts.view["scores"] = normal_scores(facts.features)
    found: F64 = facts.view["scores"]
    return found


def own_target(facts: Facts, z: F64) -> F64:
    """Return (symbol,) the value of `z` (probe, column) in each symbol's first column."""
    return np.asarray(z[facts.probe, facts.main_column[facts.dimension]], np.float64)


def frequencies(facts: Facts, train: I64) -> F64:
    """Return (symbol, label) the frequency of each label among training symbols of the same depth."""
    if "frequencies" in facts.view:
        known: F64 = facts.view["frequencies"]
        return known
    out = facts.view["frequencies"] = np.zeros((facts.value.size, facts.n_labels))
    for bits in np.unique(facts.bits).tolist():
        count = np.bincount(facts.value[train[facts.bits[train] == bits]], minlength=1 << bits)[: 1 << bits] + 0.5
        out[facts.bits == bits, : 1 << bits] = count / count.sum()
    return out


def read_off_columns(facts: Facts, train: I64, test: I64, z: F64, mean: F64, spread: F64) -> F64:
    """As `read_off` from estimates and spreads (probe, column) of z: each symbol by all of its columns."""
    if facts.is_scalar:
        column = facts.main_column[facts.dimension]
        return read_off(
            facts, train, test, own_target(facts, z), mean[facts.probe, column], spread[facts.probe, column]
        )
    assert facts.columns is not None
    column = facts.columns[facts.dimension]
    probe = facts.probe[:, None]
    return _read_off(facts, train, test, z[probe, column], mean[probe, column], spread[probe, column].max(axis=1))


def read_off(facts: Facts, train: I64, test: I64, target: F64, mean: F64, spread: F64) -> F64:
    """Return P (test symbol, label).

    `target` (symbol,) is NaN where hidden or not known. `mean`, `spread` (symbol,) are estimates of it, at training
    symbols without their own influence; NaN in `mean` where there is no estimate.
    """
    return _read_off(facts, train, test, target[:, None], mean[:, None], spread)


def _read_off(facts: Facts, train: I64, test: I64, target: F64, mean: F64, spread: F64) -> F64:
    prior = frequencies(facts, train)
    p = prior[test]
    known = np.asarray(np.isfinite(target).all(axis=1))
    estimated = np.asarray(np.isfinite(mean).all(axis=1) & np.isfinite(spread))
    spread = spread * here_and_now(facts, target[:, 0] - mean[:, 0], spread)
    for own in _known_alike(facts, train, target, known):
        teach = train[own[facts.dimension[train]] & known[train]]
        judge = teach[estimated[teach]]
        ask = np.flatnonzero(own[facts.dimension[test]] & estimated[test])
        if judge.size < 2 or not ask.size:
            continue
        bits = int(facts.bits[teach[0]])
        cells = _learnt(facts, target, teach, bits)
        judge = judge[:: 1 + judge.size // cells.most_judges]
        factor, doubt = cells.calibrate(mean[judge], spread[judge], facts.value[judge], prior[judge])
        rows = test[ask]
        k = 1 << bits
        p[ask, :k] = (1 - doubt) * cells.posterior(mean[rows], spread[rows], factor) + doubt * prior[rows, :k]
    return p


def here_and_now(facts: Facts, error: F64, spread: F64) -> F64:
    """Return (symbol,) a factor on the spread: the size of the errors around this symbol relative to the usual size.

    An Eve who receives well only at times knows when. The surroundings of a symbol are its probe, the probes around it,
    or the rounds at the same phase of a short period; those are used that make the errors of training symbols
    likeliest, if they do so by a large margin. A symbol's own error does not count. `error` (symbol,) is NaN where not
    known.
    """
    known = np.isfinite(error) & np.isfinite(spread)
    square = np.where(known, error / np.where(known, spread, 1.0), 0.0) ** 2
    n = facts.rounds.size
    power = np.asarray(np.bincount(facts.probe, square, n), np.float64)
    count = np.asarray(np.bincount(facts.probe, known, n), np.float64)
    best, out = _GAIN_NATS, np.ones(error.size)
    # Where whole probes are hidden, a training probe must not use its own errors either.
    hidden = np.unique(facts.probe[facts.value == HIDDEN])
    apart = bool(count[hidden].sum() < 0.5 * np.bincount(facts.probe, minlength=n)[hidden].sum())
    own, mine = (power[facts.probe], count[facts.probe]) if apart else (square, known)
    for sums, numbers, usual in _surroundings(facts.rounds, power, count, 1 if apart else 0):
        others, number = sums[facts.probe] - own, numbers[facts.probe] - mine
        factor = np.clip((others + usual) / (number + usual), 1e-4, 1e2)
        gain = -0.5 * float((np.log(factor) + square / factor - square)[known].sum())
        if gain > best:
            best, out = gain, np.sqrt(factor)
    return out


def _surroundings(rounds: I64, power: F64, count: F64, least: int) -> Iterator[tuple[F64, F64, float]]:
    """Yield (probe,) sums and numbers of squared errors around each probe, and how many errors of the usual size are
    added to them.
    """
    for reach in (least, 2 + least, 8):
        window = np.ones(2 * reach + 1)
        if rounds.size >= window.size:
            sums = np.asarray(np.convolve(power, window, "same"), np.float64)
            numbers = np.asarray(np.convolve(count, window, "same"), np.float64)
            for usual in _USUAL:
                yield sums, numbers, usual
    for period in range(2, 9):
        phase = rounds % period
        sums = np.asarray(np.bincount(phase, power, period)[phase], np.float64)
        yield sums, np.asarray(np.bincount(phase, count, period)[phase], np.float64), 1e-3


def _known_alike(facts: Facts, train: I64, target: F64, known: Mask) -> list[Mask]:
    """Return the result of `_alike`, which is computed once for all attacks that have this target in this fold."""
    key = ("alike", target.tobytes())
    if key not in facts.view:
        facts.view[key] = _alike(facts, train, target, known)
    found: list[Mask] = facts.view[key]
    return found


def _alike(facts: Facts, train: I64, target: F64, known: Mask) -> list[Mask]:
    """Return sets of dimensions, as (dimension,) masks, whose labels have the same relation to the target; it is then
    learnt from all of them together."""
    depth, out = facts.depths, []
    for bits in np.unique(depth[depth > 0]).tolist():
        own = depth == bits
        rows = train[own[facts.dimension[train]] & known[train]]
        if (
            target.shape[1] == 1
            and rows.size
            and _one_code(target[rows], facts.value[rows], facts.dimension[rows], bits)
        ):
            out.append(own)
        else:
            out += [np.arange(depth.size) == d for d in np.flatnonzero(own)]
    return out


def _one_code(target: F64, value: I64, dimension: I64, bits: int) -> bool:
    """Return whether nearly every symbol's label, in each dimension, is the majority label near it in any dimension."""
    if np.unique(dimension).size == 1:
        return True
    cells = _Cells(target, value, bits)
    usual = cells.share.argmax(axis=1)[cells.bins(target[:, 0], cells.step)]
    right = np.bincount(dimension, usual == value)
    return bool((right >= _SAME_CELLS * np.bincount(dimension) - 3).all())


def _learnt(facts: Facts, target: F64, teach: I64, bits: int) -> _Learnt:
    """Return the relation learnt from the training symbols `teach`; computed once for all attacks that have the same
    symbols and targets in this fold."""
    own = target[teach]
    key = ("learnt", bits, teach.tobytes(), own.tobytes())
    if key not in facts.view:
        facts.view[key] = (_Cells if target.shape[1] == 1 else _Cloud)(own, facts.value[teach], bits)
    found: _Learnt = facts.view[key]
    return found


class _Learnt(ABC):
    """The learnt relation of labels to targets."""

    most_judges: int

    @abstractmethod
    def posterior(self, mean: F64, spread: F64, factor: int) -> F64:
        """Return (estimate, label) for means (estimate, column) and spreads (estimate,), `factor` steps wider."""

    @abstractmethod
    def likely(self, mean: F64, spread: F64, value: I64) -> F64:
        """Return (factor, estimate) the probabilities of the labels `value`, with each of `_FACTORS` as the width."""

    def calibrate(self, mean: F64, spread: F64, value: I64, prior: F64) -> tuple[int, float]:
        """Return the factor on the spread, in steps, and the doubt under which `value` is likeliest."""
        base = prior[np.arange(value.size), value]
        p = self.likely(mean, spread, value)
        total = np.log(p[:, :, None] * (1 - _DOUBTS) + (base[:, None] * _DOUBTS)[None]).sum(axis=1)
        factor, doubt = divmod(int(total.argmax()), _DOUBTS.size)
        return (_FACTORS[factor], float(_DOUBTS[doubt])) if value.size else (0, 1.0)


def _spread_index(spread: F64, factor: int | I64) -> I64:
    step = np.log(_SPREADS[1] / _SPREADS[0])
    index = np.rint(np.log(np.maximum(spread, 1e-9) / _SPREADS[0]) / step) + factor
    return np.clip(index, 0, _SPREADS.size - 1).astype(np.int64)


class _Cells(_Learnt):
    """Labels along one target, on a grid as fine as the labels and as coarse as the spread allows."""

    most_judges = _MOST_JUDGES

    def __init__(self, target: F64, value: I64, bits: int) -> None:
        self.step = _STEPS.get(bits, _FINEST)
        size, k = _size(self.step), 1 << bits
        count = np.bincount(self.bins(target[:, 0], self.step) * k + value, minlength=size * k)
        count = count.reshape(size, k).astype(np.float64)
        seen = np.flatnonzero(count.any(axis=1))
        # In a bin without training symbols the nearest one's label counts, which is right unless a threshold is between
        # them.
        between = np.searchsorted(seen, np.arange(size))
        left, right = seen[np.maximum(between - 1, 0)], seen[np.minimum(between, seen.size - 1)]
        nearest = np.where(np.abs(np.arange(size) - left) < np.abs(right - np.arange(size)), left, right)
        self.share = count[nearest] / count[nearest].sum(axis=1, keepdims=True)
        self._tables: dict[int, F64] = {}

    @staticmethod
    def bins(target: F64, step: float) -> I64:
        return np.clip(((target + _REACH) / step).astype(np.int64), 0, _size(step) - 1)

    def posterior(self, mean: F64, spread: F64, factor: int) -> F64:
        which = _spread_index(spread, factor)
        out = np.empty((mean.shape[0], self.share.shape[1]))
        for s in np.unique(which).tolist():
            rows = which == s
            out[rows] = self._table(s)[self._row(mean[rows, 0], s)]
        return out

    def likely(self, mean: F64, spread: F64, value: I64) -> F64:
        which = _spread_index(spread, np.array(_FACTORS)[:, None])
        out = np.empty(which.shape)
        for s in np.unique(which).tolist():
            factor, row = np.nonzero(which == s)
            out[factor, row] = self._table(s)[self._row(mean[row, 0], s), value[row]]
        return out

    def _row(self, mean: F64, s: int) -> I64:
        return self.bins(mean, self.step * self._coarser(s))

    def _coarser(self, s: int) -> int:
        return max(1, int(_SPREADS[s] / 5.0 / self.step))

    def _table(self, s: int) -> F64:
        """Return (mean, label) for a spread."""
        if s not in self._tables:
            q = self._coarser(s)
            size = _size(self.step * q)
            starts = np.arange(0, self.share.shape[0], q)[:size]
            sums = np.add.reduceat(self.share, starts, axis=0)
            share = sums / sums.sum(axis=1, keepdims=True)
            self._tables[s] = _kernel(s, self.step * q)[:, : share.shape[0]] @ share
            self._tables[s] /= self._tables[s].sum(axis=1, keepdims=True)
        return self._tables[s]


def _size(step: float) -> int:
    return int(np.ceil(2 * _REACH / step))


@lru_cache(maxsize=128)
def _kernel(s: int, step: float) -> F64:
    """Return (mean, target) the weights of targets around each mean, both in the middles of bins."""
    at = (np.arange(_size(step)) + 0.5) * step - _REACH
    k = np.exp(-(((at[:, None] - at[None, :]) / _SPREADS[s]) ** 2) / 2)
    return np.asarray(k / k.sum(axis=1, keepdims=True))


class _Cloud(_Learnt):
    """Labels of several columns: a label's probability is its share among the training symbols near the estimate,
    weighted by nearness."""

    most_judges = _CLOUD_JUDGES

    def __init__(self, target: F64, value: I64, bits: int) -> None:
        self._target, self._power = target, (target**2).sum(axis=1)
        self._label = np.zeros((value.size, 1 << bits))
        self._label[np.arange(value.size), value] = 1.0

    def likely(self, mean: F64, spread: F64, value: I64) -> F64:
        rows = np.arange(value.size)
        return np.stack([self.posterior(mean, spread, factor)[rows, value] for factor in _FACTORS])

    def posterior(self, mean: F64, spread: F64, factor: int) -> F64:
        distance = np.maximum((mean**2).sum(axis=1)[:, None] - 2.0 * mean @ self._target.T + self._power, 0.0)
        width = _SPREADS[_spread_index(spread, factor)][:, None]
        nearest = distance.min(axis=1, keepdims=True)
        weight = np.exp(-(distance - nearest) / (2 * width**2))
        votes = weight @ self._label
        return np.asarray(votes / votes.sum(axis=1, keepdims=True))
