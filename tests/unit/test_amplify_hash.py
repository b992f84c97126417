import numpy as np
import pytest
from scipy.stats import binomtest
from testbed.entropy.accounting import (
    CONFIDENCE,
    assumed_min_entropy,
    combined_min_entropy,
    eve_min_entropy,
    key_length,
)

from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.amplify.verify import PRIME, collision_bound, draw_point, verification_tag


def random_bits(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, n, np.uint8)


def test_long_hash_is_exact() -> None:
    """65536 → 16384 bits: a few rows by integer arithmetic, where an FFT of too little precision would fail."""
    n, n_out = 65_536, 16_384
    bits, key = np.ones(n, np.uint8), random_bits(1, seed_length(n, n_out))
    out = toeplitz_hash(bits, key, n_out)
    for row in (0, 1, 777, n_out - 1):
        assert out[row] == int(key[row : row + n].sum(dtype=np.int64)) % 2
    bits = random_bits(2, n)
    out = toeplitz_hash(bits, key, n_out)
    for row in (0, 4242, n_out - 1):
        assert out[row] == int((key[row : row + n][::-1] & bits).sum(dtype=np.int64)) % 2


def test_hash_is_linear_and_one_flipped_bit_changes_half_of_it() -> None:
    n, n_out = 2048, 256
    key, x, y = random_bits(3, seed_length(n, n_out)), random_bits(4, n), random_bits(5, n)
    out = toeplitz_hash(x, key, n_out)
    np.testing.assert_array_equal(toeplitz_hash(x ^ y, key, n_out), out ^ toeplitz_hash(y, key, n_out))
    flipped = x.copy()
    flipped[1000] ^= 1
    assert 90 < np.count_nonzero(out != toeplitz_hash(flipped, key, n_out)) < 166


def test_hash_refuses_what_it_cannot_do() -> None:
    assert toeplitz_hash(random_bits(0, 8), np.zeros(0, np.uint8), 0).size == 0
    with pytest.raises(ValueError, match="accepted: 0 to 8"):
        toeplitz_hash(random_bits(0, 8), random_bits(0, 16), 9)
    with pytest.raises(ValueError, match="accepted: 11"):
        toeplitz_hash(random_bits(0, 8), random_bits(0, 12), 4)


def test_tag_is_the_polynomial_written_out() -> None:
    bits = random_bits(6, 8 * 17)
    chunks = [int.from_bytes(np.packbits(bits)[i : i + 7].tobytes(), "big") for i in (0, 7, 14)]
    r = 0x1234_5678_9ABC_DEF0
    expected = (136 * r**3 + chunks[0] * r**2 + chunks[1] * r + chunks[2]) % PRIME
    assert verification_tag(bits, r) == expected


def test_tag_tells_apart_lengths_and_single_bits() -> None:
    rng = np.random.default_rng(7)
    point = draw_point(rng)
    assert 0 <= point < PRIME
    zeros = [verification_tag(np.zeros(n, np.uint8), point) for n in range(200)]
    assert len(set(zeros)) == 200
    x = random_bits(8, 500)
    tags = {verification_tag(x ^ (np.arange(500) == i).astype(np.uint8), point) for i in range(500)}
    assert len(tags) == 500
    with pytest.raises(ValueError, match="accepted"):
        verification_tag(x, PRIME)


def test_collision_bound_is_below_2_to_minus_53_for_64_kbit() -> None:
    assert 0 < collision_bound(65_536) < 2.0**-53
    pow_check = pow(3, PRIME - 1, PRIME)  # Fermat: the modulus is what it says
    assert pow_check == 1


def test_length_is_the_formula_of_the_leftover_hash_lemma() -> None:
    assert key_length(1000, 0, 0.9, 300, 64) == 900 - 300 - 128
    assert key_length(1000, 0, 0.9005, 300, 64) == 472
    assert key_length(1000, 0, 0.4, 300, 64) == 0
    assert key_length(0, 0, 1.0, 0) == 0
    nan = float("nan")
    for bad in (
        (-1, 0, 0.5, 0),
        (10, 11, 0.5, 0),
        (10, -1, 0.5, 0),
        (10, 0, 1.1, 0),
        (10, 0, 0.5, -1),
        (10, 0, nan, 0),
    ):
        with pytest.raises(ValueError, match="accepted"):
            key_length(*bad)
    with pytest.raises(ValueError, match="accepted"):
        key_length(10, 0, 0.5, 0, 0)


def test_published_bits_take_what_they_tell_about_those_kept() -> None:
    """Every bit is there twice, one of each pair is published: h = 1/2 a bit, and the kept ones are known."""
    assert key_length(20_000, 10_000, 0.5, 0, 8) == 0
    # and of independent bits exactly the kept ones are left
    assert key_length(20_000, 2_000, 1.0, 0, 8) == 18_000 - 16


def test_eve_bound_is_clopper_pearson() -> None:
    upper = binomtest(180, 300).proportion_ci(confidence_level=CONFIDENCE, method="exact").high
    assert eve_min_entropy(120, 300) == pytest.approx(-np.log2(upper), rel=1e-9)
    assert eve_min_entropy(180, 300) == eve_min_entropy(120, 300)


def test_eve_bound_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(9)
    truth = -np.log2(0.7)
    missed = [eve_min_entropy(int(e), 200, confidence=0.9) > truth for e in rng.binomial(200, 0.3, 2000)]
    assert np.mean(missed) < 0.1


def test_eve_who_is_always_right_or_always_wrong_leaves_nothing() -> None:
    assert eve_min_entropy(0, 50) == eve_min_entropy(50, 50) == 0.0
    assert eve_min_entropy(500_000, 1_000_000) > 0.98
    for errors, trials in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="accepted"):
            eve_min_entropy(errors, trials)


def test_assumed_and_combined() -> None:
    assert assumed_min_entropy(0.5) == 1.0
    assert assumed_min_entropy(0.25) == pytest.approx(-np.log2(0.75))
    assert assumed_min_entropy(0.8) == pytest.approx(assumed_min_entropy(0.2))
    assert combined_min_entropy(0.9, 0.8) == pytest.approx(0.7)
    assert combined_min_entropy(0.3, 0.4) == 0.0
