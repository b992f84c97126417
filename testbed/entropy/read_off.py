"""From "her estimate of Alice's analogue value, and how far off it is" to a distribution over labels.

A target is one number a symbol that an attack can estimate: the normal score of Alice's feature, its magnitude, or any
other. How labels lie along the target is learnt from training symbols, so that any code, any thresholds, guard bands and
targets that several labels share are served alike:

    P(label | mean μ, spread σ) = ∫ N(t; μ, σ²) · share of the label among training symbols near t dt.

Two numbers are then calibrated on the training symbols' own out-of-sample estimates: a factor on σ, and the doubt with
which nothing but the labels' frequencies is believed. An attack that found nothing so says nothing, and loses nothing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.facts import Facts
from testbed.entropy.gaussian_labels import normal_scores

_REACH = 3.4
"""Targets are normal scores: of some thousands none lies further out."""
_STEP = 0.03
_GRID: F64 = np.arange(-_REACH, _REACH + _STEP / 2, _STEP)
_SPREADS = np.geomspace(0.012, 1.6, 22)
_FACTORS = (-3, -2, -1, 0, 1, 2)
"""Steps on `_SPREADS`, each 1.26 times the one before."""
_DOUBTS = np.array([1e-4, 2e-3, 1e-2, 0.04, 0.12, 0.3, 0.6, 0.85, 1.0])
_SAME_CELLS = 0.97


def scores(features: F64) -> F64:
    """Return (probe, column) normal scores of Alice's features; NaN where hidden or where a column does not vary."""
    return normal_scores(features)


def own_target(facts: Facts, z: F64) -> F64:
    """Return (symbol,) what `z` (probe, column) says of each symbol's first column."""
    return np.asarray(z[facts.probe, facts.main_column[facts.dimension]], np.float64)


def frequencies(facts: Facts, train: I64) -> F64:
    """Return (symbol, label) how frequent each label is among training symbols of the same depth."""
    out = np.zeros((facts.value.size, facts.n_labels))
    for bits in np.unique(facts.bits).tolist():
        count = np.bincount(facts.value[train[facts.bits[train] == bits]], minlength=1 << bits)[: 1 << bits] + 0.5
        out[facts.bits == bits, : 1 << bits] = count / count.sum()
    return out


def read_off(facts: Facts, train: I64, test: I64, target: F64, mean: F64, spread: F64) -> F64:
    """Return P (test symbol, label).

    `target` (symbol,) is NaN where hidden or not known. `mean`, `spread` (symbol,) are estimates of it, at training
    symbols without their own help; NaN in `mean` where there is no estimate.
    """
    prior = frequencies(facts, train)
    p = prior[test]
    for own in _alike(facts, train, target):
        teach = train[own[facts.dimension[train]] & np.isfinite(target[train])]
        judge = teach[np.isfinite(mean[teach])]
        ask = np.flatnonzero(own[facts.dimension[test]] & np.isfinite(mean[test]))
        if judge.size < 2 or not ask.size:
            continue
        cells = _Cells(target[teach], facts.value[teach], 1 << int(facts.bits[teach[0]]))
        factor, doubt = cells.calibrate(mean[judge], spread[judge], facts.value[judge], prior[judge])
        rows = test[ask]
        k = cells.n_labels
        p[ask, :k] = (1 - doubt) * cells.posterior(mean[rows], spread[rows], factor) + doubt * prior[rows, :k]
    return p


def _alike(facts: Facts, train: I64, target: F64) -> list[np.ndarray]:
    """Return sets of dimensions, (dimension,) masks, whose labels lie alike along the target: they learn together."""
    depth = facts.depths
    out = []
    for bits in np.unique(depth[depth > 0]).tolist():
        own = depth == bits
        known = train[own[facts.dimension[train]] & np.isfinite(target[train])]
        if known.size and _one_code(target[known], facts.value[known], facts.dimension[known], 1 << bits):
            out.append(own)
        else:
            out += [np.arange(depth.size) == d for d in np.flatnonzero(own)]
    return out


def _one_code(target: F64, value: I64, dimension: I64, n_labels: int) -> bool:
    """Return whether in each dimension nearly every symbol's label is that of most symbols near it in any dimension."""
    if np.unique(dimension).size == 1:
        return True
    usual = _Cells(target, value, n_labels).share.argmax(axis=1)[_bins(target)]
    right = np.bincount(dimension, usual == value)
    return bool((right >= _SAME_CELLS * np.bincount(dimension) - 3).all())


def _bins(target: F64) -> I64:
    return np.clip(np.rint((target + _REACH) / _STEP), 0, _GRID.size - 1).astype(np.int64)


@lru_cache(maxsize=64)
def _kernel(spread: int) -> F64:
    """Return (mean, target) the weights of targets around each mean on the grid."""
    k = np.exp(-(((_GRID[:, None] - _GRID[None, :]) / _SPREADS[spread]) ** 2) / 2)
    return np.asarray(k / k.sum(axis=1, keepdims=True))


class _Cells:
    """How labels lie along a target."""

    def __init__(self, target: F64, value: I64, n_labels: int) -> None:
        self.n_labels = n_labels
        count = np.bincount(_bins(target) * n_labels + value, minlength=_GRID.size * n_labels)
        count = count.reshape(_GRID.size, n_labels).astype(np.float64)
        seen = np.flatnonzero(count.any(axis=1))
        nearest = seen[np.abs(np.arange(_GRID.size)[:, None] - seen[None, :]).argmin(axis=1)]
        self.share = count[nearest] / count[nearest].sum(axis=1, keepdims=True)
        self._tables: dict[int, F64] = {}

    def posterior(self, mean: F64, spread: F64, factor: int) -> F64:
        """Return (estimate, label)."""
        which, at = self._spreads(spread, factor), _bins(mean)
        out = np.empty((mean.size, self.n_labels))
        for s in np.unique(which).tolist():
            rows = which == s
            out[rows] = self._table(s)[at[rows]]
        return out

    def calibrate(self, mean: F64, spread: F64, value: I64, prior: F64) -> tuple[int, float]:
        """Return the factor on the spread, in steps, and the doubt under which `value` is likeliest."""
        at, base = _bins(mean), prior[np.arange(value.size), value]
        best, found = -np.inf, (0, 1.0)
        for factor in _FACTORS:
            which = self._spreads(spread, factor)
            p = np.empty(mean.size)
            for s in np.unique(which).tolist():
                rows = which == s
                p[rows] = self._table(s)[at[rows], value[rows]]
            likely = np.log(p[:, None] * (1 - _DOUBTS) + base[:, None] * _DOUBTS).sum(axis=0)
            i = int(likely.argmax())
            if likely[i] > best:
                best, found = float(likely[i]), (factor, float(_DOUBTS[i]))
        return found

    def _spreads(self, spread: F64, factor: int) -> I64:
        step = np.log(_SPREADS[1] / _SPREADS[0])
        index = np.rint(np.log(np.maximum(spread, 1e-9) / _SPREADS[0]) / step) + factor
        return np.clip(index, 0, _SPREADS.size - 1).astype(np.int64)

    def _table(self, spread: int) -> F64:
        if spread not in self._tables:
            self._tables[spread] = _kernel(spread) @ self.share
        return self._tables[spread]
