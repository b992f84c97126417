"""Bit labels of regions in d dimensions: regions that are often confused get labels that differ in few bits.

For d = 1 this is the Gray code along the line. For d > 1 it is a quadratic assignment problem: with w_uv = how often a
sample of region u is taken for v, minimise Σ w_uv · (bits in which the labels of u and v differ). Up to 8 regions are
solved exactly, more by the best pairwise exchange from several starts. k regions get ⌈log2 k⌉ bits each; where k is no
power of two, some labels are not used.

The places of a label are then ordered: first the place at which an error reveals most about the rest of the label, as
in a Gray code along a line.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

from testbed.chain.quantize._gray import gray_table
from testbed.core.types import F64, I64, U8

_EXACT = 8
_DRAWS = 400
"""Number of simulated samples per region by which the confusion of regions is estimated."""
_NOISE = 0.25
"""Standard deviation of a simulated error, in units of half the distance to the nearest other centroid; it is so small
that errors lead to neighbouring regions only."""


def label_regions(centroids: F64, rng: np.random.Generator) -> U8:
    """Return (region, level_bit) distinct labels of regions from their (region, dimension) centroids alone."""
    k, d = centroids.shape
    bits = label_bits(k)
    if d == 1:
        table = np.empty((k, bits), np.uint8)
        table[np.argsort(centroids[:, 0], kind="stable")] = gray_table(bits)[:k]
        return table
    w = confusion(centroids, rng)
    whole = np.zeros((1 << bits, 1 << bits))  # unused labels count as regions that are never confused
    whole[:k, :k] = w
    code = (_exact(whole) if whole.shape[0] <= _EXACT else _exchange(whole, _bisection(centroids, bits), rng))[:k]
    table = ((code[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
    return table[:, np.argsort(-error_information(table, w), kind="stable")]


def label_bits(k: int) -> int:
    """Return how many bits name each of k regions."""
    return (k - 1).bit_length()


def confusion(centroids: F64, rng: np.random.Generator) -> F64:
    """Return (region, region) symmetric frequencies at which a small error moves a sample between two regions.

    They are simulated: samples are spread around each centroid by up to half the distance to the nearest other one, and
    moved by a quarter of that.
    """
    k, d = centroids.shape
    between = ((centroids[:, None] - centroids[None]) ** 2).sum(axis=2)
    np.fill_diagonal(between, np.inf)
    half = np.sqrt(between.min(axis=1)) / 2.0
    half[half == 0.0] = half.max()  # two equal centroids have no distance; any size will do
    spread = np.repeat(half, _DRAWS)[:, None]
    x = np.repeat(centroids, _DRAWS, axis=0) + spread * rng.normal(size=(k * _DRAWS, d))
    here, there = _nearest(x, centroids), _nearest(x + _NOISE * spread * rng.normal(size=x.shape), centroids)
    w = np.bincount(here * k + there, minlength=k * k).reshape(k, k).astype(np.float64)
    w += w.T
    np.fill_diagonal(w, 0.0)
    return w / max(w.sum(), 1.0)


def expected_errors(table: U8, w: F64) -> float:
    """Return the mean number of bits in which confused regions differ; 1 for a perfect Gray labelling."""
    differ = (table[:, None, :] != table[None, :, :]).sum(axis=2)
    return float((w * differ).sum() / w.sum()) if w.any() else 0.0


def error_information(table: U8, w: F64) -> F64:
    """Return (level_bit,) how many bits an error at that place reveals about the other bits of the label (Shannon).

    An error means that the sample lies beside a border of regions that differ at that place. `w` weighs the borders.
    """
    bits = table.shape[1]
    weight = 1 << np.arange(bits - 1)
    told = np.zeros(bits)
    for place in range(bits):
        across = w * (table[:, place, None] != table[None, :, place])
        rest = np.delete(table, place, axis=1).astype(np.int64) @ weight
        p = np.bincount(rest, weights=across.sum(axis=1), minlength=1 << (bits - 1))
        if p.any():
            p = p[p > 0] / p.sum()
            told[place] = bits - 1 + float((p * np.log2(p)).sum())
    return told


def _nearest(x: F64, centroids: F64) -> I64:
    return np.asarray(np.argmin((centroids**2).sum(axis=1) - 2.0 * (x @ centroids.T), axis=1), np.int64)


def _hamming(k: int) -> F64:
    return np.bitwise_count(np.arange(k)[:, None] ^ np.arange(k)[None, :]).astype(np.float64)


def _exact(w: F64) -> I64:
    """Try all codes with code 0 for region 0; that suffices, because flipping a place in all codes changes nothing."""
    k = w.shape[0]
    codes = np.array([(0, *rest) for rest in permutations(range(1, k))])
    cost = (_hamming(k)[codes[:, :, None], codes[:, None, :]] * w).sum(axis=(1, 2))
    return np.asarray(codes[np.argmin(cost)], np.int64)


def _exchange(w: F64, start: I64, rng: np.random.Generator) -> I64:
    """Return the best code found by exchanging pairs as long as that helps, from `start` and from random codes."""
    k, best, code = w.shape[0], np.inf, start
    for attempt in range(max(3, 1024 // k)):
        current, cost = _descend(w, start if attempt == 0 else rng.permutation(k))
        if cost < best:
            best, code = cost, current
    return code


def _descend(w: F64, code: I64) -> tuple[I64, float]:
    distance = _hamming(code.size)
    code = code.copy()
    while True:
        b = distance[code][:, code]
        m = w @ b
        own = np.diag(m)
        # change of the whole sum when u and v swap codes, for all pairs at once
        change = 2.0 * (m + m.T - own[:, None] - own[None, :] + 2.0 * w * b)
        u, v = np.unravel_index(np.argmin(change), change.shape)
        if change[u, v] > -1e-12:
            return code, float((w * b).sum())
        code[u], code[v] = code[v], code[u]


def _bisection(centroids: F64, bits: int) -> I64:
    """Return (code,) codes from halving the regions along the axis of largest spread, mirrored as in a Gray code.

    Codes that no region has come after those of the regions.
    """
    code = np.zeros(centroids.shape[0], np.int64)

    def halve(own: I64, span: int, flip: bool) -> None:
        if own.size == 1:
            return
        axis = np.argmax(np.ptp(centroids[own], axis=0))
        order = own[np.argsort(centroids[own, axis], kind="stable")]
        low, high = np.array_split(order[::-1] if flip else order, 2)
        code[high] += span // 2
        halve(low, span // 2, False)
        halve(high, span // 2, True)

    halve(np.arange(code.size), 1 << bits, False)
    return np.concatenate([code, np.setdiff1d(np.arange(1 << bits), code)])
