"""Privacy amplification by a random Toeplitz matrix over GF(2): a 2-universal family (Krawczyk 1994)."""

from __future__ import annotations

import numpy as np

from testbed.core.types import U8


def seed_length(n_in: int, n_out: int) -> int:
    """Return the number of public random bits that `toeplitz_hash` needs."""
    return n_in + n_out - 1 if n_in and n_out else 0


def toeplitz_hash(bits: U8, seed_bits: U8, n_out: int) -> U8:
    """Return T @ bits mod 2 as (n_out,) of 0 and 1, with T[i, j] = seed_bits[i − j + n − 1].

    That is `scipy.linalg.toeplitz(seed_bits[n-1:], seed_bits[n-1::-1])`, computed as a convolution by FFT. The sums
    are integers ≤ n and the rounding error of a double-precision FFT is below 1e-6 up to n = 2**24, so rounding is
    exact. Raises ValueError for n_out > n, n_out < 0 or a seed of the wrong length. The seed must be uniform and
    chosen independently of `bits`; it may be public.
    """
    from scipy.fft import irfft, next_fast_len, rfft

    n = bits.size
    if not 0 <= n_out <= n:
        raise ValueError(f"n_out = {n_out}, accepted: 0 to {n}, the number of input bits")
    if seed_bits.size != seed_length(n, n_out):
        raise ValueError(f"seed of {seed_bits.size} bits, accepted: {seed_length(n, n_out)} (n + n_out − 1)")
    if n_out == 0:
        return np.zeros(0, np.uint8)
    # Only outputs n−1 … n+n_out−2 are needed; a circular convolution of this length wraps around below these only.
    size = next_fast_len(seed_bits.size, real=True)
    product = rfft(seed_bits.astype(np.float64), size) * rfft(bits.astype(np.float64), size)
    sums = np.rint(irfft(product, size)[n - 1 : n - 1 + n_out]).astype(np.int64)
    return (sums & 1).astype(np.uint8)
