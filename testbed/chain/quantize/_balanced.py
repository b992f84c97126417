"""Exact balanced assignment: n samples to k regions of ⌊n/k⌋ or ⌈n/k⌉ each, at the least total cost.

This is the integer program of paper B (eq. 6), a transportation problem: its linear relaxation is integral, and its
dual has one price p a region. With r = n mod k,

    max_p  Σ_i min_j (c_ij + p_j) − ⌊n/k⌋·Σ_j p_j − (sum of the r highest prices).

There are n samples, but only k prices: a general solver visits n·k arcs, whereas this one works in k dimensions.
1. Prices by Newton's method on the dual. Its gradient is the excess of each region; its second derivative is the
   density of samples on the boundary of two regions, counted in a thin layer.
2. A few regions still have some samples too many. These are moved along shortest augmenting paths in the graph of the
k regions, where the arc j → l has the cost of the cheapest move of one sample from j to l. A path over one further node
changes which regions are the r larger ones. Reduced costs stay ≥ 0, which proves optimality (complementary slackness).

`dual_bound` allows a check of the proof: no assignment costs less than it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from testbed.core.types import F64, I64

_NEWTON_STEPS = 30
_FEW = 256
"""Largest number of samples for which one array operation over all regions is faster than one for each region."""


def assign_balanced(costs: F64, prices: F64 | None = None) -> tuple[I64, F64]:
    """Return (sample,) regions and (region,) prices of a cheapest balanced assignment.

    costs: (region, sample), finite. prices: starting values, e.g. those of a similar problem. They affect the computing
    time; the result depends on them only where several assignments are equally cheap.
    """
    p = _approach(costs, prices)
    _, label = _cheapest(costs, p)
    return _augment(costs, label, p)


def dual_bound(costs: F64, prices: F64) -> float:
    """Return a cost that no balanced assignment of `costs` (region, sample) can go below, from any (region,) prices."""
    k, n = costs.shape
    each, larger = divmod(n, k)
    best, _ = _cheapest(costs, prices)
    return float(best.sum() - each * prices.sum() - np.sort(prices)[k - larger :].sum())


def prices_of(costs: F64, label: I64) -> F64:
    """Return (region,) prices that prove a (sample,) balanced assignment optimal, if it is.

    Prices are determined only within limits; these are halfway between the limits, so they depend on the assignment and
    not on the way in which it was found. `dual_bound` of them is the assignment's cost exactly where that is the least.
    """
    k, n = costs.shape
    arcs = np.full((k + 1, k + 1), np.inf)
    for j in range(k):
        _moves(costs, label, j, arcs)
    _passing_on(arcs, np.bincount(label, minlength=k), n)
    return _halfway(arcs)


def _cheapest(costs: F64, prices: F64) -> tuple[F64, I64]:
    """Return (sample,) the least of costs + prices, and where. Row by row: twice as fast as argmin along axis 0."""
    best = costs[0] + prices[0]
    label = np.zeros(best.size, np.int64)
    for j in range(1, prices.size):
        row = costs[j] + prices[j]
        label[row < best] = j
        np.minimum(best, row, out=best)
    return best, label


def _two_cheapest(costs: F64, prices: F64) -> tuple[F64, I64, I64]:
    """Return (sample,) the gap between least and second least of costs + prices, and the regions of both."""
    best, second = costs[0] + prices[0], np.full(costs.shape[1], np.inf)
    label, other = np.zeros(best.size, np.int64), np.zeros(best.size, np.int64)
    for j in range(1, prices.size):
        row = costs[j] + prices[j]
        first = row < best
        np.copyto(other, label, where=first)
        label[first] = j
        behind = ~first & (row < second)
        other[behind] = j
        np.minimum(second, np.maximum(best, row), out=second)
        np.minimum(best, row, out=best)
    return second - best, label, other


def _targets(prices: F64, n: int) -> I64:
    """Return (region,) the sizes that these prices imply: the r regions of highest price are the larger ones."""
    each, larger = divmod(n, prices.size)
    sizes = np.full(prices.size, each, np.int64)
    sizes[np.argsort(-prices, kind="stable")[:larger]] += 1
    return sizes


def _approach(costs: F64, prices: F64 | None) -> F64:
    """Return prices at which only a few samples are in the wrong region: damped Newton steps on the dual.

    Where that fails from `prices`, which may be those of another problem, it begins again without prices.
    """
    k, n = costs.shape
    none = np.zeros(k)
    if prices is None:
        return _newton(costs, none)[0]
    found, wrong = _newton(costs, prices)
    if wrong <= max(k, n // 50):
        return found
    other, fewer = _newton(costs, none)
    return other if fewer < wrong else found


def _newton(costs: F64, prices: F64) -> tuple[F64, int]:
    """Return prices, and the number of samples that are in the wrong region at them."""
    k, n = costs.shape
    good, best, step, share = prices, n + 1, np.zeros(k), 1.0
    for _ in range(_NEWTON_STEPS):
        p = good + share * step
        gap, label, other = _two_cheapest(costs, p)
        excess = np.bincount(label, minlength=k) - _targets(p, n)
        wrong = int(np.abs(excess).sum()) // 2
        if wrong >= best:
            share /= 4.0
            if share < 0.05:
                break
            continue
        good, best, share = p, wrong, 1.0
        if wrong <= k // 4:
            break
        # The layer contains a few times as many samples as have to move: enough to count them, and still a thin layer.
        m = min(n - 1, max(8 * k, 4 * wrong))
        layer = np.partition(gap, m)[m]
        if layer <= 0.0:
            break  # only ties are left, which `_augment` moves together
        near = gap <= layer
        density = np.bincount(label[near] * k + other[near], minlength=k * k).reshape(k, k) / (2.0 * layer)
        density += density.T
        laplacian = np.diag(density.sum(axis=1)) - density
        ridge = 1e-6 * max(float(np.trace(laplacian)) / k, 1e-300)
        step = np.linalg.solve(laplacian + ridge * np.eye(k), excess)
        # outside the layer the densities are not valid
        step *= min(1.0, 4.0 * layer / max(float(np.abs(step).max()), 1e-300))
    return good - good.mean(), best


def _augment(costs: F64, label: I64, prices: F64) -> tuple[I64, F64]:
    """Balance an assignment that is optimal for its present sizes at `prices`, along shortest augmenting paths."""
    k, n = costs.shape
    larger = n % k
    sizes, target = np.bincount(label, minlength=k), _targets(prices, n)
    # Paths over node k change which regions are larger; its price lies between those of larger and smaller regions.
    pi = np.append(prices, np.sort(prices)[k - larger] if larger else 0.0)
    arcs = np.full((k + 1, k + 1), np.inf)
    for j in range(k):
        _moves(costs, label, j, arcs)
    while (sizes > target).any():
        _passing_on(arcs, target, n)
        reduced = np.maximum(arcs + pi[None, :] - pi[:, None], 0.0)
        distance, parent = _shortest(reduced, np.flatnonzero(sizes > target))
        short = np.flatnonzero(sizes < target)
        end = int(short[np.argmin(distance[short])])
        pi -= np.minimum(distance, distance[end])
        path = [end]
        while parent[path[-1]] >= 0:
            path.append(int(parent[path[-1]]))
        path.reverse()
        steps = list(pairwise(path))
        movers = {}
        amount = min(int(sizes[path[0]] - target[path[0]]), int(target[end] - sizes[end]))
        for j, to in steps:
            if k in (j, to):
                amount = 1
                continue
            own = np.flatnonzero(label == j)
            extra = costs[to, own] - costs[j, own]
            # all samples of exactly equal cost move together, because coarse readings have thousands of them
            movers[j, to] = own[extra <= arcs[j, to]]
            amount = min(amount, movers[j, to].size)
        for j, to in steps:
            if to == k:
                target[j] += 1
            elif j == k:
                target[to] -= 1
            else:
                label[movers[j, to][:amount]] = to
                sizes[j] -= amount
                sizes[to] += amount
        for j in path:
            if j < k:
                _moves(costs, label, j, arcs)
    _passing_on(arcs, sizes, n)
    return label, _halfway(arcs)


def _passing_on(arcs: F64, sizes: I64, n: int) -> None:
    """Fill in the arcs of the last node: a smaller region may become a larger one if another becomes smaller."""
    k = sizes.size
    if n % k:
        arcs[:k, k] = np.where(sizes <= n // k, 0.0, np.inf)
        arcs[k, :k] = np.where(sizes > n // k, 0.0, np.inf)


def _halfway(arcs: F64) -> F64:
    """Return (region,) prices p with p_j ≤ arc_jl + p_l, halfway between the least and the largest such on average."""
    k = arcs.shape[0] - 1
    chains = arcs.copy()
    np.fill_diagonal(chains, 0.0)
    for via in range(k + 1):  # Floyd and Warshall: the cost of the cheapest chain of moves
        np.minimum(chains, chains[:, via, None] + chains[None, via, :], out=chains)
    if not np.isfinite(chains[:k, :k]).all():  # an empty region has no sample to give
        chains = np.where(np.isfinite(chains), chains, chains[np.isfinite(chains)].max())
    prices: F64 = (chains[:k, :k].mean(axis=1) - chains[:k, :k].mean(axis=0)) / 2.0
    return prices - prices.mean()


def _moves(costs: F64, label: I64, j: int, arcs: F64) -> None:
    """Fill arcs[j] with the cost of the cheapest move of a sample from region j to each other region."""
    k = costs.shape[0]
    own = np.flatnonzero(label == j)
    arcs[j, :k] = np.inf
    if own.size > _FEW:  # row by row: no (region, sample) copy
        here = costs[j, own]
        for to in range(k):
            arcs[j, to] = (costs[to, own] - here).min()
    elif own.size:
        table = costs[:, own]
        arcs[j, :k] = (table - table[j]).min(axis=1)
    arcs[j, j] = np.inf


def _shortest(lengths: F64, sources: I64) -> tuple[F64, I64]:
    """Return (node,) distances from the nearest source, and the node before (−1: a source); Bellman and Ford, dense."""
    distance = np.full(lengths.shape[0], np.inf)
    distance[sources] = 0.0
    parent = np.full(lengths.shape[0], -1, np.int64)
    while True:
        via = distance[:, None] + lengths
        before = np.argmin(via, axis=0)
        found = via[before, np.arange(before.size)]
        closer = found < distance
        if not closer.any():
            return distance, parent
        distance = np.where(closer, found, distance)
        parent[closer] = before[closer]
