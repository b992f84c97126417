"""Alice's string as numbers: the value that a label implies, and the labels around a symbol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64
from testbed.entropy.facts import Facts
from testbed.entropy.ridge import ridge, spread_where_missing

Step = tuple[int, int]
"""Numbers of probes and dimensions from one symbol to another."""
Estimate = tuple[F64, F64, float]


def label_scores(facts: Facts, train: I64, target: F64) -> F64:
    """Return (probe, dimension) the mean target of each symbol's label, from training symbols; NaN where not known.

    `target` (symbol,). A dimension's means are its own where it has 8 training symbols for each label; otherwise they
    are the means over all dimensions with labels of the same number of bits.
    """
    known = train[np.isfinite(target[train])]
    out = np.full((facts.rounds.size, facts.n_dimensions), np.nan)
    k = facts.n_labels
    code = facts.dimension * k + facts.value
    means = _means(code[known], target[known], facts.n_dimensions * k).reshape(facts.n_dimensions, k)
    depth = facts.depths
    for bits in np.unique(depth[depth > 0]).tolist():
        own = np.flatnonzero(depth == bits)
        rows = known[depth[facts.dimension[known]] == bits]
        if rows.size < 8 * own.size << bits:
            means[own] = _means(facts.value[rows], target[rows], k)
    out[facts.probe[train], facts.dimension[train]] = means[facts.dimension[train], facts.value[train]]
    return out


def _means(code: I64, target: F64, n: int) -> F64:
    count = np.bincount(code, minlength=n)
    return np.asarray(np.bincount(code, target, n) / np.maximum(count, 1))


def neighbours(facts: Facts, table: F64, steps: Sequence[Step], rows: NDArray[Any] | slice = slice(None)) -> F64:
    """Return (symbol, step), of all symbols or some `rows`: the table's entries k probes and j dimensions further.

    `table` is (probe, dimension). NaN outside, and for symbols that come later in that order and were not published:
    the chain rule takes the published labels first and then the string.
    """
    k, j = np.array(steps, np.int64).T
    probe, dimension = facts.probe[rows][:, None] + k, facts.dimension[rows][:, None] + j
    inside = (probe >= 0) & (probe < table.shape[0]) & (dimension >= 0) & (dimension < table.shape[1])
    probe, dimension = np.where(inside, probe, 0), np.where(inside, dimension, 0)
    told = np.zeros(table.shape, np.bool_)
    told[facts.probe[facts.published], facts.dimension[facts.published]] = True
    later = (k > 0) | ((k == 0) & (j > 0))
    return np.where(inside & (~later | told[probe, dimension]), table[probe, dimension], np.nan)


def around(time: int, dimension: int) -> list[Step]:
    """Return steps to the neighbours of a symbol: up to these distances along each axis, and the adjacent corners."""
    steps = [(k, j) for k in range(-time, time + 1) for j in range(-dimension, dimension + 1)]
    return [(k, j) for k, j in steps if (k, j) != (0, 0) and (j == 0 or abs(k) <= 1)]


def before(time: int, dimension: int) -> list[Step]:
    """Return those of `around` that come earlier in the order (probe, dimension)."""
    return [(k, j) for k, j in around(time, dimension) if k < 0 or (k == 0 and j < 0)]


def between(facts: Facts, table: F64, target: F64, steps: Sequence[Step], more: F64 | None = None) -> Estimate:
    """Estimate (symbol,) targets from earlier labels, and from the next probe's label where that is public.

    The weights are learnt from all training symbols that have both neighbours: later labels may be used in learning,
    but not in guessing. `more`: further inputs (symbol, input). Returns mean, spread, degrees of freedom.
    """
    extra = np.zeros((target.size, 0)) if more is None else more
    past = np.concatenate([neighbours(facts, table, steps), extra], axis=1)
    fit = ridge(past, target[:, None])
    mean, freedom = fit.mean[:, 0], fit.freedom
    spread = spread_where_missing(past, target[:, None], fit)[:, 0]
    told = neighbours(facts, table, [(1, 0)])
    if np.isfinite(told).any():
        inside = facts.probe + 1 < table.shape[0]
        learnt = np.where(inside, table[np.where(inside, facts.probe + 1, 0), facts.dimension], np.nan)[:, None]
        rows = np.isfinite(learnt[:, 0])
        both = np.concatenate([past, learnt], axis=1)[rows]
        fit = ridge(both, target[rows][:, None])
        off = spread_where_missing(both, target[rows][:, None], fit)[:, 0]
        where = np.flatnonzero(rows)
        use = np.isfinite(told[where, 0])
        mean[where[use]], spread[where[use]] = fit.mean[use, 0], off[use]
        freedom += 1.0
    return mean, spread, freedom
