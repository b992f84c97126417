"""Verification that both ends hold the same string: a polynomial hash, almost universal.

The string is cut into 120-bit coefficients m_1 … m_d, with its length first as m_0, and the tag is Σ m_i·r^(d−i) mod P
at a random public point r (Carter and Wegman 1979; den Boer 1993). Two different strings give two different polynomials
of degree ≤ d, which agree at no more than d of the P points.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from testbed.core.types import U8

PRIME = (1 << 128) - 159
"""Largest prime below 2**128."""
TAG_BITS = 128
"""Largest number of bits that a published tag reveals; the caller counts them as leaked."""
TAG_BYTES = TAG_BITS // 8
_CHUNK_BYTES = 15


def draw_point(rng: np.random.Generator) -> int:
    """Return a uniform evaluation point; draw and publish it only after both strings are final."""
    while True:
        point = int.from_bytes(rng.bytes(TAG_BYTES), "big")
        if point < PRIME:
            return point


def verification_tag(bits: U8, point: int) -> int:
    """Return the tag of (bit,) 0/1 values, 0 ≤ tag < 2**128; raises ValueError for a point outside the field."""
    if not 0 <= point < PRIME:
        raise ValueError(f"point = {point}, accepted: 0 to {PRIME - 1}")
    packed = np.packbits(bits).tobytes()
    tag = bits.size
    for coefficient in coefficients(packed):
        tag = (tag * point + coefficient) % PRIME
    return tag


def coefficients(data: bytes) -> Iterator[int]:
    """Cut data into coefficients of a polynomial, each below 2**120, and yield them."""
    for start in range(0, len(data), _CHUNK_BYTES):
        yield int.from_bytes(data[start : start + _CHUNK_BYTES], "big")


def collision_bound(n_bits: int) -> float:
    """Return the largest probability that two different strings of n bits have the same tag: ⌈n/120⌉ / P."""
    return -(-n_bits // (8 * _CHUNK_BYTES)) / PRIME
