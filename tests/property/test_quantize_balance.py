import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.chain.quantize._balanced import assign_balanced, dual_bound, prices_of
from testbed.chain.quantize._labels import label_bits, label_regions
from testbed.chain.quantize._vector import VectorQuantizer, squared_distances
from testbed.chain.quantize.balanced_kmeans import BalancedKMeans, match_places
from testbed.chain.quantize.bkq_bm import BkqBm, fill
from testbed.chain.quantize.ilp_bvq import IlpBvq
from testbed.chain.quantize.kmeans import KMeans
from testbed.core.types import Features

ALL = (KMeans, BalancedKMeans, BkqBm, IlpBvq)


@st.composite
def problems(draw: st.DrawFn) -> np.ndarray:
    """(region, sample) costs; coarse ones on purpose: with ties balancing could go wrong or never end."""
    k, n, d = draw(st.integers(2, 9)), draw(st.integers(1, 120)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    x, c = rng.normal(size=(n, d)), rng.normal(size=(k, d))
    if draw(st.booleans()):
        x, c = np.round(2.0 * x), np.round(2.0 * c)
    return squared_distances(x, c)


def cost(costs: np.ndarray, label: np.ndarray) -> float:
    return float(costs[label, np.arange(label.size)].sum())


@settings(max_examples=200, deadline=None)
@given(problems())
def test_balance_is_exact_and_the_cost_is_hungarian_s_and_proved(costs: np.ndarray) -> None:
    k, n = costs.shape
    label, prices = assign_balanced(costs)
    hungarian, greedy = match_places(costs), fill(costs)
    for found in (label, hungarian, greedy):
        sizes = np.bincount(found, minlength=k)
        assert sizes.sum() == n
        assert set(sizes) <= {n // k, -(-n // k)}
    tolerance = 1e-9 * (1.0 + np.abs(costs).sum())
    assert cost(costs, label) == pytest.approx(cost(costs, hungarian), abs=tolerance)
    assert cost(costs, greedy) >= cost(costs, label) - tolerance
    # a bound that no assignment can go below, met: exact without asking another solver
    if n >= k:
        assert cost(costs, label) == pytest.approx(dual_bound(costs, prices), abs=tolerance)
        assert cost(costs, hungarian) == pytest.approx(dual_bound(costs, prices_of(costs, hungarian)), abs=tolerance)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 1 << 30))
def test_any_starting_prices_end_at_the_same_cost(costs: np.ndarray, seed: int) -> None:
    start = np.random.default_rng(seed).normal(size=costs.shape[0]) * 3.0
    expected = cost(costs, assign_balanced(costs)[0])
    assert cost(costs, assign_balanced(costs, start)[0]) == pytest.approx(expected, abs=1e-9 * (1 + costs.sum()))


@settings(max_examples=40, deadline=None)
@given(problems())
def test_greedy_filling_equals_the_plain_loop(costs: np.ndarray) -> None:
    k, n = costs.shape
    each, larger = divmod(n, k)
    sizes, expected = np.zeros(k, int), []
    for i in range(n):
        allowed = [j for j in range(k) if sizes[j] < each or (sizes[j] == each and (sizes > each).sum() < larger)]
        expected.append(min(allowed, key=lambda j: (costs[j, i], j)))
        sizes[expected[-1]] += 1
    np.testing.assert_array_equal(fill(costs), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 64), st.integers(1, 4), st.integers(0, 1 << 30), st.booleans())
def test_labels_are_distinct_and_gray_on_a_line(k: int, d: int, seed: int, coarse: bool) -> None:
    c = np.random.default_rng(seed).normal(size=(k, d))
    if coarse:
        c = np.round(c)  # centroids in one place
    table = label_regions(c, np.random.default_rng(seed))
    assert table.shape == (k, label_bits(k))
    assert len({tuple(row) for row in table}) == k
    np.testing.assert_array_equal(table, label_regions(c, np.random.default_rng(seed)))
    if d == 1:
        line = table[np.argsort(c[:, 0], kind="stable")].astype(int)
        assert (np.abs(np.diff(line, axis=0)).sum(axis=1) == 1).all()


VALUES = st.sampled_from([*np.arange(-70.0, -60.0), float("nan"), -66.3, -61.01])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ALL),
    st.integers(1, 3),
    st.integers(2, 9),
    st.floats(0, 0.5),
    st.sampled_from(["adjacent", "spread"]),
    st.sampled_from(["same", "nearest"]),
    st.integers(0, 1 << 30),
)
def test_any_two_series_end_in_bits_of_the_same_origin(
    kind: type[VectorQuantizer], d: int, k: int, guard: float, grouping: str, bob: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (np.round(rng.normal(-66, 2, (40, 4))) for _ in range(2))
    for x in (a, b):
        x[rng.random(x.shape) < 0.1] = np.nan
    a[:, 1] = -66.0  # never varies at Alice
    b[:, 2] = -66.3  # nor at Bob
    rounds = np.arange(40)
    q = kind(dimension=d, regions=k, guard=guard, grouping=grouping, bob=bob)
    draft, lead = q.lead(Features(a, rounds), np.random.default_rng(seed))
    again, same = q.lead(Features(a, rounds), np.random.default_rng(seed))
    assert lead == same
    np.testing.assert_array_equal(draft.values, again.values)
    ours, follow = q.follow(Features(b, rounds), lead)
    alice = q.finish(draft, follow)
    eve, covered = q.eavesdrop(Features(b, rounds), lead, follow)
    assert covered.all()
    for other in (ours, eve):
        np.testing.assert_array_equal(alice.probe, other.probe)
        np.testing.assert_array_equal(alice.dimension, other.dimension)
        np.testing.assert_array_equal(alice.level_bit, other.level_bit)
    if bob == "same":
        np.testing.assert_array_equal(eve.values, ours.values)
    assert np.isfinite(a[alice.probe, alice.dimension]).all()
    assert not np.isin(alice.dimension, [1, 2]).any() or d > 1
    if kind is not KMeans:
        labels = draft.values.reshape(-1, label_bits(k)) @ (1 << np.arange(label_bits(k)))
        counts = np.bincount(labels, minlength=1 << label_bits(k))
        assert np.ptp(np.sort(counts)[-k:]) <= 1
        assert counts.sum() == np.sort(counts)[-k:].sum()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([BalancedKMeans, BkqBm, IlpBvq]),
    st.integers(1, 7),
    st.integers(2, 40),
    st.integers(0, 200),
    st.integers(0, 1 << 30),
)
def test_regions_are_exactly_balanced_for_any_dimension_regions_and_samples(
    kind: type[VectorQuantizer], d: int, k: int, more: int, seed: int
) -> None:
    n = k + more
    x = np.random.default_rng(seed).normal(size=(n, d))
    q = kind(dimension=d, regions=k, guard=0.0)
    centroids = q.cluster(x, np.random.default_rng(seed), 3)
    sizes = np.bincount(q.assign(squared_distances(x, centroids))[0], minlength=k)
    assert sizes.sum() == n
    assert set(sizes) <= {n // k, -(-n // k)}
