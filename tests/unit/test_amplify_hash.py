import numpy as np
import pytest

from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.amplify.verify import PRIME, TAG_BITS, collision_bound, draw_point, verification_tag


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
    """33 bytes are two coefficients of 15 bytes and one of 3, behind the length in bits."""
    bits = random_bits(6, 8 * 33)
    chunks = [int.from_bytes(np.packbits(bits)[i : i + 15].tobytes(), "big") for i in (0, 15, 30)]
    r = 0x1234_5678_9ABC_DEF0_0FED_CBA9_8765_4321
    expected = (264 * r**3 + chunks[0] * r**2 + chunks[1] * r + chunks[2]) % PRIME
    assert verification_tag(bits, r) == expected < 1 << TAG_BITS


def test_tag_tells_apart_lengths_and_single_bits() -> None:
    rng = np.random.default_rng(7)
    point = draw_point(rng)
    assert 0 <= point < PRIME
    zeros = [verification_tag(np.zeros(n, np.uint8), point) for n in range(200)]
    assert len(set(zeros)) == 200
    x = random_bits(8, 500)
    tags = {verification_tag(x ^ (np.arange(500) == i).astype(np.uint8), point) for i in range(500)}
    assert len(tags) == 500
    for outside in (PRIME, -1):
        with pytest.raises(ValueError, match="accepted"):
            verification_tag(x, outside)


def test_points_fill_the_field() -> None:
    rng = np.random.default_rng(8)
    points = [draw_point(rng) for _ in range(200)]
    assert len(set(points)) == 200
    assert all(0 <= p < PRIME for p in points)
    assert sum(p >> 127 for p in points) > 70  # the top bit is drawn, too


def test_collision_bound_is_below_2_to_minus_118_for_64_kbit() -> None:
    assert collision_bound(65_536) == pytest.approx(547 / 2.0**128)
    assert 0 < collision_bound(65_536) < 2.0**-118
    assert collision_bound(121) == 2 * collision_bound(120)
    assert pow(3, PRIME - 1, PRIME) == 1  # Fermat's test: the modulus is prime
    assert PRIME == 2**128 - 159
