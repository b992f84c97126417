import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from testbed.chain.quantize.scalar import Scalar
from testbed.core.types import Features

# coarse values on purpose: ties, constant columns and gaps are where quantile rules break
VALUES = st.one_of(st.integers(-75, -65).map(float), st.just(float("nan")), st.floats(-90, -60))
SHAPES = st.tuples(st.integers(0, 40), st.integers(1, 3))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(SHAPES)
    return draw(arrays(np.float64, shape, elements=VALUES)), draw(arrays(np.float64, shape, elements=VALUES))


@settings(max_examples=60, deadline=None)
@given(pairs(), st.integers(1, 4), st.floats(0, 0.5))
def test_any_two_series_end_in_bits_of_the_same_origin(
    pair: tuple[np.ndarray, np.ndarray], bits: int, guard: float
) -> None:
    rounds = np.arange(pair[0].shape[0])
    a, b = (Features(x, rounds) for x in pair)
    q = Scalar(bits=bits, guard=guard)
    draft, lead = q.lead(a, np.random.default_rng(0))
    bob, follow = q.follow(b, lead)
    alice = q.finish(draft, follow)
    eve, _ = q.eavesdrop(b, lead, follow)
    for other in (bob, eve):
        np.testing.assert_array_equal(alice.probe, other.probe)
        np.testing.assert_array_equal(alice.dimension, other.dimension)
        np.testing.assert_array_equal(alice.level_bit, other.level_bit)
    assert alice.values.size % bits == 0
    assert np.isfinite(a.values[alice.probe, alice.dimension]).all()
    assert np.isfinite(b.values[alice.probe, alice.dimension]).all()
    # Bob's own ranks outside his guard bands are what an Eve in his place would guess
    np.testing.assert_array_equal(eve.values, bob.values)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(8, 60), st.just(1)), elements=VALUES), st.integers(1, 3))
def test_levels_rise_with_the_value(values: np.ndarray, bits: int) -> None:
    bits_out, _ = Scalar(bits=bits, guard=0.0).lead(Features(values, np.arange(len(values))), np.random.default_rng(0))
    gray = bits_out.values.reshape(-1, bits)
    level = np.bitwise_xor.accumulate(gray, axis=1) @ (1 << np.arange(bits - 1, -1, -1))
    order = np.argsort(values[bits_out.probe[::bits], 0], kind="stable")
    assert (np.diff(level[order].astype(int)) >= 0).all()
