"""Probabilities of a label, the cell of a standard normal variable, given another, correlated normal variable.

A value's normal score z is Φ⁻¹ of its relative rank among the values of its dimension. Its label is the number of the
cell, one of 2**m equally likely ones, in which z lies, written in binary with the most significant bit first. The
scores of the two ends are assumed to be jointly normal with correlation ρ (a Gaussian copula, so the values themselves
may have any distribution). Then

    P(cell q | score y) = Φ((t[q+1] − ρ·y)/√(1−ρ²)) − Φ((t[q] − ρ·y)/√(1−ρ²)),   t[q] = Φ⁻¹(q / 2**m).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy

from testbed.core.types import F64, I64, Bits

_GRID = 512
"""Number of points at which integrals over a score are evaluated: the middles of this many equally likely cells."""
_CHUNK = 1 << 14
_NOISES = np.geomspace(1e-5, 0.9999, 400)
"""Values of 1 − ρ² that `fit_noise` tries, in steps of 3 %."""
DOUBTS = (1e-6, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
"""Shares of outliers (scores that are independent of the label) that `fit_noise` tries."""


@dataclass(frozen=True, slots=True)
class Symbols:
    """The labels of a string whose bits are in the order (probe, dimension, place within the label)."""

    first: I64
    """(symbol,) index of the label's most significant bit in the string."""
    bits: I64
    """(symbol,) number of bits of the label."""
    probe: I64
    dimension: I64
    value: I64
    """(symbol,) the number of the cell."""
    whole: bool
    """Whether every symbol has all its bits, in order; if not, the other fields are not meaningful."""

    @classmethod
    def of(cls, bits: Bits) -> Symbols:
        n = bits.values.size
        new = np.ones(n, np.bool_)
        new[1:] = (np.diff(bits.probe) != 0) | (np.diff(bits.dimension) != 0)
        first = np.flatnonzero(new)
        length = np.diff(np.append(first, n))
        place = np.arange(n) - np.repeat(first, length)
        dimension = bits.dimension[first]
        deepest = np.zeros(int(dimension.max(initial=-1)) + 1, np.int64)
        np.maximum.at(deepest, dimension, length)
        whole = bool((place == bits.level_bit).all() and (length == deepest[dimension]).all())
        shifted = bits.values.astype(np.int64) << np.maximum(np.repeat(length, length) - 1 - place, 0)
        value = np.add.reduceat(shifted, first) if n else np.zeros(0, np.int64)
        return cls(first, length, bits.probe[first], dimension, value, whole)


def normal_scores(values: F64) -> F64:
    """Return (probe, dimension) normal scores of each dimension's valid values; NaN where there is none.

    Equal values all get the mean of their ranks. A dimension without variation has no scores.
    """
    z = np.full(values.shape, np.nan)
    for d in range(values.shape[1]):
        valid = np.isfinite(values[:, d])
        column = values[valid, d]
        if column.size < 2 or column.min() == column.max():
            continue
        ordered = np.sort(column)
        places = np.searchsorted(ordered, column, "left") + np.searchsorted(ordered, column, "right")
        z[valid, d] = scipy.special.ndtri(places / (2.0 * column.size))
    return z


def edges(m: int) -> F64:
    """Return (2**m + 1,) the cells' limits t, −∞ and ∞ included."""
    return np.asarray(scipy.special.ndtri(np.arange((1 << m) + 1) / (1 << m)), np.float64)


def cell_scores(m: int) -> F64:
    """Return (2**m,) the mean score in each cell."""
    t = edges(m)
    density = np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(-np.diff(density) * (1 << m), np.float64)


def cell_probabilities(y: F64, rho: float, m: int, cells: I64) -> F64:
    """Return P(cell | score y): (sample, candidate) for `cells` of the same shape."""
    t, s = edges(m), np.sqrt(1 - rho**2)
    low, high = (t[cells] - rho * y[:, None]) / s, (t[cells + 1] - rho * y[:, None]) / s
    above = low > 0  # take the smaller tail: a difference of numbers near 1 loses digits
    return np.asarray(
        scipy.special.ndtr(np.where(above, -low, high)) - scipy.special.ndtr(np.where(above, -high, low)), np.float64
    )


def bit_llr(y: F64, rho: float, m: int, place: int, known: I64, doubt: float = 1e-6) -> F64:
    """Return (sample,) ln P(0)/P(1) of the bit worth 2**place, given the score y and the less significant bits `known`.

    `doubt`: probability that a score is an outlier, independent of the label; it bounds the certainty of every bit.
    """
    out = np.empty(y.size)
    step = (np.arange(1 << (m - place)) << place)[None, :]
    for start in range(0, y.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        p = cell_probabilities(y[part], rho, m, known[part, None] + step)
        p = (1 - doubt) * p + doubt / (1 << m)
        out[part] = np.log(p[:, ::2].sum(axis=1) / p[:, 1::2].sum(axis=1))
    return out


@lru_cache(maxsize=1024)
def level_entropies(rho: float, m: int, doubt: float = 0.0) -> tuple[float, ...]:
    """Return the entropy of each bit given the other end's score and the less significant bits, least first.

    They add up to H(label | score). In this order of decoding the first bits are nearly random and the last ones nearly
    certain, more so than in the opposite order or with a Gray code. Bits in between, for which codes are least
    efficient, are few.
    """
    p = (1 - doubt) * _conditional(rho, m) + doubt / (1 << m)
    out, before = [], 0.0
    for place in range(m):
        joint = p.reshape(_GRID, 1 << (m - place - 1), 1 << (place + 1)).sum(axis=1)
        total = float(-(joint * np.log2(np.maximum(joint, 1e-300))).sum() / _GRID)
        out.append(max(0.0, total - before))
        before = total
    return tuple(out)


def fit_noise(label: I64, m: int, y: F64) -> F64:
    """Return the log-likelihood in nats of labels of m bits given scores y, (doubt, candidate).

    The first axis follows the shares of outliers in `DOUBTS`, the second the values of 1 − ρ² of `noises`.
    """
    t = edges(m)
    out = np.empty((len(DOUBTS), _NOISES.size))
    for i, v in enumerate(_NOISES):
        mean, s = np.sqrt(1 - v) * y, np.sqrt(v)
        low, high = (t[label] - mean) / s, (t[label + 1] - mean) / s
        above = low > 0
        p = scipy.special.ndtr(np.where(above, -low, high)) - scipy.special.ndtr(np.where(above, -high, low))
        out[:, i] = [np.log((1 - doubt) * p + doubt / (1 << m)).sum() for doubt in DOUBTS]
    return out


def noises() -> F64:
    """Return (candidate,) the values of 1 − ρ² that `fit_noise` judges."""
    return _NOISES.copy()


@lru_cache(maxsize=4096)
def renyi_entropy(rho: float, m: int, order: float) -> float:
    """Return H_order(label | score) in bits, the order above 1: log2 Σ_y P(y) Σ_q P(q|y)^order / (1 − order).

    For independent samples these entropies add up. The sum, less −log2(ε)/(order − 1), is a lower bound of the ε-smooth
    min-entropy (Tomamichel, Colbeck and Renner 2009, classical case).
    """
    if m == 0 or rho == 0.0:
        return float(m)
    return float(min(float(m), np.log2(float((_conditional(rho, m) ** order).sum() / _GRID)) / (1.0 - order)))


@lru_cache(maxsize=64)
def _conditional(rho: float, m: int) -> F64:
    """Return P(cell | score) (score, cell) over equally likely scores."""
    y = np.asarray(scipy.special.ndtri((np.arange(_GRID) + 0.5) / _GRID))
    return cell_probabilities(y, rho, m, np.tile(np.arange(1 << m), (_GRID, 1)))
