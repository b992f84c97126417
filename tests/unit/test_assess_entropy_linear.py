from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.chain.quantize.scalar import Scalar
from testbed.core.types import Bits, Features
from testbed.entropy.bit_grid import BitGrid, alternate_segments
from testbed.entropy.context_predictors import context_hits
from testbed.entropy.linear_predictors import linear_hits
from testbed.entropy.source import guess_probabilities, source_min_entropy


def quantized(values: np.ndarray, bits: int, guard: float = 0.0) -> Bits:
    """(probe, dimension) cut by rank, Gray labels."""
    features = Features(values, np.arange(len(values)))
    return Scalar(bits=bits, guard=guard).lead(features, np.random.default_rng(0))[0]


def field(seed: int, probes: int, dimensions: int, in_time: float, beside: float) -> np.ndarray:
    """Normal, correlation in_time^Δprobe · beside^Δdimension."""
    out = np.random.default_rng(seed).standard_normal((probes, dimensions))
    for d in range(1, dimensions):
        out[:, d] = beside * out[:, d - 1] + np.sqrt(1 - beside**2) * out[:, d]
    for p in range(1, probes):
        out[p] = in_time * out[p - 1] + np.sqrt(1 - in_time**2) * out[p]
    return out


def shares(bits: Bits) -> tuple[float, float]:
    """Share of bits that the best context and the best linear predictor guess right."""
    grid, n = BitGrid.of(bits), bits.values.size
    return max(context_hits(grid).values()) / n, max(linear_hits(grid).values()) / n


@pytest.mark.parametrize(
    ("dimensions", "bits", "in_time", "beside", "guard", "best"),
    [
        (4, 3, 0.6, 0.7, 0.0, 0.697),
        (4, 1, 0.9, 0.8, 0.3, 0.957),
        (1, 3, 0.9, 0.0, 0.0, 0.775),
        (4, 2, 0.6, 0.7, 0.1, 0.734),
        (4, 3, 0.9, 0.8, 0.1, 0.820),
    ],
)
def test_correlated_gaussian_features_are_predicted_as_well_as_anybody_can(
    dimensions: int, bits: int, in_time: float, beside: float, guard: float, best: float
) -> None:
    """`best`: the optimal causal predictor, a particle filter that knows the model (standard error below 0.002).

    The tolerances are what strings of this length vary by from seed to seed.
    """
    string = quantized(field(1, 12_000 // (dimensions * bits), dimensions, in_time, beside), bits, guard)
    assert shares(string)[1] == pytest.approx(best, abs=0.02)
    assert source_min_entropy(string) < -np.log2(best) + 0.03


def test_a_narrow_band_of_which_half_is_dropped_needs_more_than_a_few_bits_of_context() -> None:
    """Fading that repeats about every 5 probes, one bit, guard bands: what RSSI in a room with a fan looks like."""
    x = np.random.default_rng(2).standard_normal((8000, 1))
    for p in range(2, len(x)):
        x[p] += 2 * 0.9 * np.cos(2 * np.pi / 5.3) * x[p - 1] - 0.81 * x[p - 2]
    context, linear = shares(quantized(x + 0.8 * np.random.default_rng(3).standard_normal(x.shape), 1, 0.4))
    assert linear > context + 0.02


def test_public_gaps_some_probes_away_are_charged() -> None:
    """A rule that drops the third probe after a one: that far, only the flags of the linear predictors reach."""
    rng = np.random.default_rng(9)
    ones = rng.integers(0, 2, 6000)
    keep = np.ones(ones.size, dtype=bool)
    keep[3:] = (ones[:-3] == 0) | (rng.random(ones.size - 3) < 0.1)
    zero = np.zeros(ones.size, dtype=np.int64)
    context, linear = shares(Bits(ones.astype(np.uint8), np.arange(ones.size), zero, zero).take(keep))
    assert context < 0.6
    assert linear > 0.9


def test_dimensions_that_mix_in_any_way_are_found() -> None:
    """Three sources behind eight antenna pairs: no neighbour tells much, all together nearly everything."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((600, 3)) @ rng.standard_normal((3, 8))
    context, linear = shares(quantized(values, 1))
    assert linear > context + 0.1


def test_sources_may_be_partly_missing() -> None:
    """A bit of each label may have been sacrificed."""
    whole = quantized(field(5, 1000, 4, 0.9, 0.8), 3)
    some = whole.take(np.random.default_rng(6).random(whole.values.size) < 0.9)
    assert shares(some)[1] > 0.74  # 0.82 where all is there, 0.5 where nothing is learnt


@pytest.mark.parametrize("shape", [(400, 1, 1), (40, 10, 1), (63, 64, 1), (150, 4, 3), (400, 8, 1)])
@pytest.mark.parametrize("kept", [1.0, 0.6])
def test_nothing_leaks_from_the_tested_half(shape: tuple[int, int, int], kept: float) -> None:
    """Ideal bits: every predictor is right half of the time, over many strings."""
    hits, total = Counter[str](), Counter[str]()
    rng = np.random.default_rng(7)
    for _ in range(8):
        probe, dimension, level_bit = (x.reshape(-1) for x in np.indices(shape))
        bits = Bits(rng.integers(0, 2, probe.size).astype(np.uint8), probe, dimension, level_bit)
        bits = bits.take(rng.random(probe.size) < kept)
        for name, count in linear_hits(BitGrid.of(bits)).items():
            hits[name] += count
            total[name] += bits.values.size
    assert hits
    for name, count in hits.items():
        assert abs(count / total[name] - 0.5) < 4 * 0.5 / np.sqrt(total[name]), name


def test_ideal_labels_are_worth_nearly_one() -> None:
    values = np.random.default_rng(8).standard_normal((450, 4))
    assert source_min_entropy(quantized(values, 3, 0.1)) > 0.85


def test_the_estimate_stays_below_theory() -> None:
    """Not in 1 of 40 strings, at 0.5 % each, whatever the number of predictors."""
    theory = -np.log2(0.7)
    for seed in range(40):
        flips = np.random.default_rng(seed).random((1000, 1)) < 0.3
        string = np.cumsum(flips, axis=0) % 2
        zero = np.zeros(string.size, dtype=np.int64)
        assert source_min_entropy(Bits(string[:, 0].astype(np.uint8), np.arange(string.size), zero, zero)) < theory


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 8), st.integers(1, 4)),
    kept=st.floats(0.05, 1.0),
    bias=st.floats(0.0, 1.0),
    seed=st.integers(0, 1000),
)
def test_any_string_gets_probabilities(shape: tuple[int, int, int], kept: float, bias: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    probe, dimension, level_bit = (x.reshape(-1) for x in np.indices(shape))
    bits = Bits((rng.random(probe.size) < bias).astype(np.uint8), probe + 5, dimension, level_bit)
    bits = bits.take(rng.random(probe.size) < kept)
    assert 0.0 <= source_min_entropy(bits) <= 1.0
    if bits.values.size >= 2:
        found = guess_probabilities(bits)
        assert all(0.0 <= p <= 1.0 for p in found.values())
        assert found == guess_probabilities(bits)


def test_one_probe_is_laid_out_with_its_dimensions_as_probes() -> None:
    nothing = np.zeros(3, dtype=np.int64)
    grid = BitGrid.of(Bits(np.array([1, 0, 1], dtype=np.uint8), nothing + 4, np.array([2, 3, 5]), nothing))
    assert grid.table[:, 0, 0].tolist() == [1, 0, 2, 1]
    assert grid.back(probes=1).tolist() == [2, 1, 2]


def test_segments_alternate_and_are_no_shorter_than_a_probe() -> None:
    assert alternate_segments(8, 4).tolist() == [False, False, True, True] * 2
    assert alternate_segments(3, 64).tolist() == [False, True, False]
