"""Alice's string as numbers: what a label says of the value behind it, and the labels around a symbol."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.facts import Facts


def label_scores(facts: Facts, train: I64, target: F64) -> F64:
    """Return (probe, dimension) the mean target of each symbol's label, from training symbols; NaN where not known.

    `target` (symbol,). Dimensions learn apart where they have 8 training symbols a label, else with all of their depth.
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


def neighbours(facts: Facts, table: F64, steps: Sequence[tuple[int, int]]) -> F64:
    """Return (symbol, step) the entries of a (probe, dimension) table k probes and j dimensions further; NaN outside."""
    k, j = np.array(steps, np.int64).T
    probe, dimension = facts.probe[:, None] + k, facts.dimension[:, None] + j
    inside = (probe >= 0) & (probe < table.shape[0]) & (dimension >= 0) & (dimension < table.shape[1])
    return np.where(inside, table[np.where(inside, probe, 0), np.where(inside, dimension, 0)], np.nan)


def around(time: int, dimension: int) -> list[tuple[int, int]]:
    """Return steps (probes, dimensions) to the neighbours of a symbol: so far along each axis, corners next to it."""
    steps = [(k, j) for k in range(-time, time + 1) for j in range(-dimension, dimension + 1)]
    return [(k, j) for k, j in steps if (k, j) != (0, 0) and (j == 0 or abs(k) <= 1)]
