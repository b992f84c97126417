"""Low-density parity-check codes for syndromes, made on the fly: any length, any number of checks.

A code is irregular, with the degrees of `_degrees`. Its bits of degree 2 form one path through the checks, without a
cycle, so that the error floor is low. Its checks have two neighbouring degrees, and no two bits of low degree share two
checks. More of the syndrome can be published later: a check is split into two halves, one of whose parities is new (cf.
the accumulated syndromes of Varodayan, Aaron and Girod 2006). A split does not change the bits' degrees, so the code
stays near its optimum.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from testbed.chain.reconcile._degrees import LONG, SHORT
from testbed.core.seeds import derive
from testbed.core.types import F32, F64, I64, U8

_SHORT_UP_TO = 6000
_LOW_DEGREE = 4
_SWEEPS = 30
_SATURATED = 16.0
_STUCK_AFTER = 25
"""Number of iterations without progress (fewer violated checks) after which a decoder gives up."""


class Code:
    """n bits, m checks; the matrix for a given (n, m) is the same everywhere. Build it with `code`."""

    def __init__(self, n: int, m: int) -> None:
        self.n, self.m = n, m
        var, check = _edges(n, m)
        degree = np.bincount(check, minlength=m)
        # The bits at even places of a check are put first, so that a split is a boundary in the check's middle.
        first = np.cumsum(degree) - degree
        place = np.arange(check.size) - first[check]
        half = (degree + 1) // 2
        target = first[check] + np.where(place % 2 == 0, place // 2, half[check] + place // 2)
        self._var = np.empty_like(var)
        self._var[target] = var
        self._starts, self._middles = first, first + half
        self.n_splits = int(np.count_nonzero(degree >= 2)) if degree.min() >= 2 else 0
        """Number of checks that can be split: all, or none."""
        self._by_var = np.argsort(self._var, kind="stable")
        degrees = np.bincount(self._var, minlength=n)
        self._var_starts = np.cumsum(degrees) - degrees

    def syndrome(self, bits: U8, splits: int = 0) -> tuple[U8, U8]:
        """Return (check,) parities of (n,) bits, and (split,) parities of the first halves of the first checks."""
        told = bits[self._var]
        whole = np.bitwise_xor.reduceat(told, self._starts)
        if not splits:
            return whole, np.zeros(0, np.uint8)
        fine = np.bitwise_xor.reduceat(told, self._boundaries(splits))
        return whole, fine[: 2 * splits : 2]

    def decode(self, llr: F64, whole: U8, halves: U8, iterations: int = 100) -> U8 | None:
        """Return (n,) the bits with this syndrome that `llr` = ln P(0)/P(1), (n,), suggests; None if none is found.

        Sum-product, all checks at once; `halves` may be any number of split parities up to `n_splits`.
        """
        starts = self._boundaries(halves.size)
        syndrome = np.concatenate(
            [np.stack([halves, halves ^ whole[: halves.size]], axis=1).ravel(), whole[halves.size :]]
        )
        degree = np.diff(np.append(starts, self._var.size))
        sign = (1 - 2 * syndrome.astype(np.float32)).astype(np.float32)
        channel = np.clip(llr, -30.0, 30.0).astype(np.float32)
        told: F32 = np.zeros(self._var.size, np.float32)
        total = channel
        fewest, since = syndrome.size + 1, 0
        for _ in range(iterations):
            bits = (total < 0).astype(np.uint8)
            violated = int(np.count_nonzero(np.bitwise_xor.reduceat(bits[self._var], starts) != syndrome))
            if not violated:
                return bits
            since = 0 if violated < fewest else since + 1
            fewest = min(fewest, violated)
            if since > _STUCK_AFTER:
                return None
            soft = total[self._var] - told
            np.clip(soft, -_SATURATED, _SATURATED, out=soft)
            soft *= np.float32(0.5)
            np.tanh(soft, out=soft)
            soft[np.abs(soft) < 1e-6] = 1e-6
            product = np.multiply.reduceat(soft, starts) * sign
            others = np.repeat(product, degree) / soft
            np.clip(others, -0.9999998, 0.9999998, out=others)
            told = np.log((1 + others) / (1 - others))
            total = channel + np.add.reduceat(told[self._by_var], self._var_starts)
        return None

    def violated(self, bits: U8, whole: U8) -> int:
        """Return how many of the unsplit checks these bits violate."""
        return int(np.count_nonzero(self.syndrome(bits)[0] != whole))

    def odd_share(self, error_rate: float) -> float:
        """Return the share of checks that bits with this error rate are expected to violate."""
        degree = np.diff(np.append(self._starts, self._var.size))
        return float(np.mean((1 - (1 - 2 * error_rate) ** degree) / 2))

    def _boundaries(self, splits: int) -> I64:
        if not splits:
            return self._starts
        pairs = np.stack([self._starts[:splits], self._middles[:splits]], axis=1).ravel()
        return np.concatenate([pairs, self._starts[splits:]])


@lru_cache(maxsize=32)
def code(n: int, m: int) -> Code:
    """Return the code of n ≥ 16 bits and 4 ≤ m < n checks, built once; about 0.2 s for 65 536 bits."""
    return Code(n, m)


def _degrees(n: int, m: int) -> I64:
    """Return (n,) ascending degrees of the bits."""
    table = LONG if n > _SHORT_UP_TO else SHORT
    _, shares = min(table, key=lambda row: abs(np.log(row[0] * n / m)))
    degree = np.array(list(shares))
    ends = np.round(np.cumsum(list(shares.values())) / sum(shares.values()) * n).astype(np.int64)
    out = np.minimum(np.repeat(degree, np.diff(ends, prepend=0)), max(2, m // 3))
    twos = int(np.count_nonzero(out == 2))
    out[m - 1 : twos] = 3  # more bits of degree 2 would close cycles
    return np.asarray(out, dtype=np.int64)


def _edges(n: int, m: int) -> tuple[I64, I64]:
    """Return (edge,) bits and checks, ordered by check and bit, no edge twice."""
    bits = np.random.PCG64(derive(n, "ldpc", m))

    def below(limit: int, count: int) -> I64:
        # Only the raw stream is used, because the results of `Generator` may differ between numpy versions.
        return np.asarray(bits.random_raw(count) % np.uint64(limit), dtype=np.int64)

    def shuffled(x: I64) -> I64:
        return x[np.argsort(bits.random_raw(x.size), kind="stable")]

    degree = _degrees(n, m)
    n_twos = int(np.count_nonzero(degree == 2))
    path = shuffled(np.arange(m))
    path_var = np.repeat(np.arange(n_twos), 2)
    path_check = np.stack([path[:n_twos], path[1 : n_twos + 1]], axis=1).ravel()
    var = np.repeat(np.arange(n_twos, n), degree[n_twos:])
    n_edges = path_var.size + var.size
    sockets = np.full(m, n_edges // m)
    sockets[: n_edges % m] += 1
    sockets = np.maximum(sockets - np.bincount(path_check, minlength=m), 0)
    check = shuffled(np.repeat(np.arange(m), sockets))[: var.size]
    check = np.concatenate([check, below(m, var.size - check.size)])
    for _ in range(_SWEEPS):
        bad = np.flatnonzero(
            _conflicts(np.concatenate([path_var, var]), np.concatenate([path_check, check]), n, m, degree)[
                path_var.size :
            ]
        )
        if not bad.size:
            break
        moved = _distinct(np.concatenate([bad, below(var.size, bad.size + 8)]))
        check[moved] = check[shuffled(moved)]
    key = _distinct(np.concatenate([path_check * n + path_var, check * n + var]))
    # A check all of whose edges were removed as duplicates would have no parity.
    empty = np.flatnonzero(np.bincount(key // n, minlength=m) == 0)
    if empty.size:
        key = _distinct(np.concatenate([key, empty * n + n - 1]))
    return key % n, key // n


def _distinct(x: I64) -> I64:
    """Return the distinct values in ascending order; sorting is faster than `np.unique` for these arrays."""
    x = np.sort(x)
    return x[np.concatenate([[True], x[1:] != x[:-1]])]


def _conflicts(var: I64, check: I64, n: int, m: int, degree: I64) -> NDArray[np.bool_]:
    """Mark (edge,) those that occur twice or lie on a cycle of length 4 between bits of low degree."""
    from scipy.sparse import csr_array, triu

    key = check * n + var
    order = np.argsort(key, kind="stable")
    out = np.zeros(key.size, np.bool_)
    out[order[1:]] = key[order[1:]] == key[order[:-1]]
    low = degree[var] <= _LOW_DEGREE
    matrix = csr_array((np.ones(int(low.sum()), np.int32), (check[low], var[low])), shape=(m, n))
    common = triu(matrix @ matrix.T, 1).tocoo()
    twice = common.data >= 2
    if twice.any():
        first, second = common.row[twice], common.col[twice]
        shared = matrix[first].multiply(matrix[second]).tocoo()
        for ends in (first, second):
            out |= np.isin(key, ends[shared.row].astype(np.int64) * n + shared.col)
    return out
