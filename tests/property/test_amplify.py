import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz

from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.amplify.verify import draw_point, verification_tag
from testbed.core.errors import InputError
from testbed.entropy.judge import clopper_pearson
from testbed.entropy.length import Budget


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
@given(st.integers(1, 300), st.floats(0, 1), st.integers(0, 2**32))
def test_hash_is_linear(n: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_out = max(1, round(share * n))
    x, y = rng.integers(0, 2, (2, n), np.uint8)
    key = rng.integers(0, 2, seed_length(n, n_out), np.uint8)
    both = toeplitz_hash(x, key, n_out) ^ toeplitz_hash(y, key, n_out)
    np.testing.assert_array_equal(toeplitz_hash(x ^ y, key, n_out), both)
    assert not toeplitz_hash(np.zeros(n, np.uint8), key, n_out).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, (1 << n) - 1))))
def test_hash_is_universal(case: tuple[int, int, int]) -> None:
    """Two strings that differ have, over all seeds, every difference of hashes equally often: 2**−n_out collide."""
    n, n_out, difference = case
    d = np.array([difference >> i & 1 for i in range(n)], np.uint8)
    length = seed_length(n, n_out)
    seeds = (np.arange(1 << length)[:, None] >> np.arange(length) & 1).astype(np.uint8)
    hashes = [int(toeplitz_hash(d, s, n_out) @ (1 << np.arange(n_out))) for s in seeds]
    np.testing.assert_array_equal(np.bincount(hashes, minlength=1 << n_out), 1 << length - n_out)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1), max_size=300), st.lists(st.integers(0, 1), max_size=300), st.integers(0, 2**32))
def test_tags_agree_exactly_where_strings_do(a: list[int], b: list[int], seed: int) -> None:
    x, y = np.array(a, np.uint8), np.array(b, np.uint8)
    # drawn, not chosen: an attacker who chooses the point can make two strings collide
    point = draw_point(np.random.default_rng(seed))
    assert (verification_tag(x, point) == verification_tag(y, point)) == (a == b)


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(8, 128), st.floats(1.0, 50.0))
def test_eve_is_never_credited_with_less_than_she_showed(hits: int, misses: int, e: int, inflation: float) -> None:
    trials, delta = hits + misses, 2.0 ** -(e + 2)
    bound = clopper_pearson(hits, trials, inflation, delta)
    assert hits / trials <= bound <= 1.0
    # fewer independent trials and less risk can only raise the limit
    assert clopper_pearson(hits, trials, 2 * inflation, delta) >= bound
    assert clopper_pearson(hits, trials, inflation, delta / 16) >= bound
    assert clopper_pearson(trials, trials, inflation, delta) == 1.0


@given(st.integers(8, 128), st.integers(1, 1000), st.integers(0, 1 << 20))
def test_epsilon_is_shared_out_among_blocks(e: int, blocks: int, string_bits: int) -> None:
    """The quarters for hashing of all blocks together are 2**−(e + 2), and a tag is good enough or refused."""
    budget = Budget(e, blocks)
    per_block = 2.0 ** (-budget.hashing_bits / 2)
    assert blocks * per_block <= 2.0**budget.quarter_log2 * (1 + 1e-9)
    failure = blocks * (string_bits / 128 + 1) / 2.0**128
    refused = False
    try:
        budget.check_tag(string_bits)
    except InputError as exc:
        refused = "accepted: up to 2^" in str(exc)
    assert refused == (failure > 2.0**budget.quarter_log2)
