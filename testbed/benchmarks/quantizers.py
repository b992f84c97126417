"""Balanced k-means compared with `k-means-constrained`, ortools' min-cost flow and the Hungarian algorithm.

All start from the same centroids. Ours, ortools and the Hungarian algorithm solve the same assignment problem, so their
costs must agree, or the benchmark fails (ortools computes with whole numbers: to 1e-6 per sample).
`k-means-constrained` assigns by distances, not by squared distances, so its rows compare whole clusterings; both costs
are sums of squares, and lower is better.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.benchmarks import BenchRow
from testbed.chain.quantize._balanced import assign_balanced, dual_bound
from testbed.chain.quantize._vector import plus_plus, squared_distances
from testbed.chain.quantize.balanced_kmeans import MAX_SAMPLES, match_places
from testbed.chain.quantize.ilp_bvq import IlpBvq
from testbed.core.errors import InputError
from testbed.core.seeds import generator
from testbed.core.types import F64, I64

REGIONS, DIMENSION = 16, 2
SIZES = ((4096, 5, True), (100_000, 1, False))
"""Samples, rounds of clustering, and whether the Hungarian algorithm is run: at 10⁵ samples its costs take 80 GB."""


def run() -> list[BenchRow]:
    """Return rows for one assignment and for a clustering with as many rounds as the peer's; raises InputError."""
    try:
        from k_means_constrained import KMeansConstrained
        from ortools.graph.python.min_cost_flow import SimpleMinCostFlow
    except ImportError as exc:
        raise InputError(f"bench quantizers: {exc}; install its peers: pip install '.[dev]'") from exc

    rows = []
    for n, rounds, hungarian in SIZES:
        rows += _assignments(n, SimpleMinCostFlow, hungarian)
        rows.append(_clusterings(n, rounds, KMeansConstrained))
    return rows


def _data(n: int) -> tuple[F64, F64]:
    points = generator(1, "bench", "quantizers", n).normal(size=(n, DIMENSION))
    return points, plus_plus(points, REGIONS, _start(n))


def _start(n: int) -> np.random.Generator:
    return generator(1, "bench", "quantizers", "start", n)


def _assignments(n: int, solver: Any, hungarian: bool) -> list[BenchRow]:
    points, start = _data(n)
    costs = squared_distances(points, start)
    (label, prices), ours_s = _timed(lambda: assign_balanced(costs), 5)
    cost = _cost(costs, label)
    note = f"cost {cost:.4f}, at most {abs(cost - dual_bound(costs, prices)):.1e} above the least; peer's cost "
    peers: dict[str, Callable[[], I64]] = {"ortools min-cost flow": lambda: min_cost_flow(costs, solver)}
    if hungarian:
        peers["Hungarian (scipy)"] = lambda: match_places(costs)
    rows = []
    for peer, solve in peers.items():
        theirs, peer_s = _timed(solve)
        if abs(_cost(costs, theirs) - cost) > 1e-6 * n:
            raise RuntimeError(
                f"{peer}: cost {_cost(costs, theirs):.6f}, ours {cost:.6f}: at least one of them is not the minimum"
            )
        rows.append(
            BenchRow(
                name=f"quantizers, one assignment, {n} samples, {REGIONS} regions",
                ours_s=ours_s,
                peer=peer,
                peer_s=peer_s,
                ratio=peer_s / ours_s,
                note=f"{note}{_cost(costs, theirs):.4f}",
            )
        )
    return rows


def _clusterings(n: int, rounds: int, peer: Any) -> BenchRow:
    points, start = _data(n)
    ilp = IlpBvq(dimension=DIMENSION, regions=REGIONS)
    ours, ours_s = _timed(lambda: ilp.cluster(points, _start(n), rounds), 5)
    model = peer(REGIONS, n // REGIONS, -(-n // REGIONS), init=start, n_init=1, max_iter=rounds, tol=0.0)
    _, peer_s = _timed(lambda: model.fit(points))
    note = (
        f"{rounds} rounds each from one start; balanced squared error with our centroids "
        f"{_balanced_cost(points, ours):.1f}, with the peer's {_balanced_cost(points, model.cluster_centers_):.1f}"
    )
    if n > MAX_SAMPLES:
        note += f"; Hungarian not run: its {n}² costs are {8 * n * n / 1e9:.0f} GB"
    return BenchRow(
        name=f"quantizers, clustering, {n} samples, {REGIONS} regions",
        ours_s=ours_s,
        peer="k-means-constrained",
        peer_s=peer_s,
        ratio=peer_s / ours_s,
        note=note,
    )


def min_cost_flow(costs: F64, solver: Any, scale: float = 1e6) -> I64:
    """Return (sample,) regions by ortools' SimpleMinCostFlow (`solver`), with costs rounded to 1/scale."""
    k, n = costs.shape
    flow = solver()
    sample, region = np.repeat(np.arange(n), k), np.tile(np.arange(n, n + k), n)
    whole = np.rint((costs - costs.min()).T * scale).astype(np.int64).reshape(-1)
    arcs = flow.add_arcs_with_capacity_and_unit_cost(sample, region, np.ones(n * k, np.int64), whole)
    # ⌊n/k⌋ samples end in each region, the rest in one more node that takes at most one from each region
    flow.add_arcs_with_capacity_and_unit_cost(
        np.arange(n, n + k), np.full(k, n + k), np.ones(k, np.int64), np.zeros(k, np.int64)
    )
    supplies = np.concatenate([np.ones(n, np.int64), np.full(k, -(n // k)), [-(n % k)]])
    flow.set_nodes_supplies(np.arange(n + k + 1), supplies)
    status = flow.solve()
    if status != flow.OPTIMAL:
        raise RuntimeError(f"min-cost flow ended with status {status}")
    return np.asarray(np.argmax(flow.flows(arcs).reshape(n, k), axis=1), np.int64)


def _cost(costs: F64, label: I64) -> float:
    return float(costs[label, np.arange(label.size)].sum())


def _balanced_cost(points: F64, centroids: F64) -> float:
    costs = squared_distances(points, centroids)
    return _cost(costs, assign_balanced(costs)[0])


def _timed(call: Callable[[], Any], times: int = 1) -> tuple[Any, float]:
    """Return the last result and the median time of `times` calls."""
    spent_s = []
    for _ in range(times):
        start_s = time.perf_counter()
        out = call()
        spent_s.append(time.perf_counter() - start_s)
    return out, statistics.median(spent_s)
