import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz

from testbed.chain.amplify.accounting import combined_min_entropy, eve_min_entropy, key_length
from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.amplify.verify import draw_point, verification_tag


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 2**32))
def test_hash_is_the_toeplitz_matrix_product(n: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_out = max(1, round(share * n))
    bits, key = rng.integers(0, 2, n, np.uint8), rng.integers(0, 2, seed_length(n, n_out), np.uint8)
    matrix = toeplitz(key[n - 1 :], key[n - 1 :: -1])
    assert matrix.shape == (n_out, n)
    np.testing.assert_array_equal(toeplitz_hash(bits, key, n_out), matrix.astype(int) @ bits % 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1), max_size=300), st.lists(st.integers(0, 1), max_size=300), st.integers(0, 2**32))
def test_tags_agree_exactly_where_strings_do(a: list[int], b: list[int], seed: int) -> None:
    x, y = np.array(a, np.uint8), np.array(b, np.uint8)
    # drawn, not chosen: whoever may choose the point can make two strings collide
    point = draw_point(np.random.default_rng(seed))
    assert (verification_tag(x, point) == verification_tag(y, point)) == (a == b)


@given(st.integers(0, 10**6), st.floats(0, 1), st.floats(0, 1), st.integers(0, 10**6), st.integers(1, 128))
def test_key_is_never_longer_than_what_is_secret(n: int, share: float, h: float, leak: int, epsilon_log2: int) -> None:
    sacrificed = round(share * n)
    length = key_length(n, sacrificed, h, leak, epsilon_log2)
    assert 0 <= length <= n - sacrificed
    assert length == 0 or length + sacrificed + leak + 2 * epsilon_log2 <= n * h
    assert key_length(n, sacrificed, h, leak + 1, epsilon_log2) <= length


@given(st.integers(1, 5000), st.floats(0, 1))
def test_eve_is_never_credited_with_less_than_she_showed(trials: int, share: float) -> None:
    errors = round(share * trials)
    h = eve_min_entropy(errors, trials)
    seen = max(errors, trials - errors) / trials
    assert 0.0 <= h <= -np.log2(seen) + 1e-12
    assert h == eve_min_entropy(trials - errors, trials)


@given(st.floats(0, 1), st.floats(0, 1))
def test_combined_entropy_is_below_both(source: float, eve: float) -> None:
    assert 0.0 <= combined_min_entropy(source, eve) <= min(source, eve)
