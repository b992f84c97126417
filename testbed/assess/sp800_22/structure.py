"""SP 800-22 rev. 1a, 2.5, 2.6, 2.10: linear dependence and periods."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray

from testbed.assess.sp800_22._common import chi2_p, erfc, rows_of_counts
from testbed.core.types import F64, I64, U8

MATRIX = 32
COMPLEXITY_BLOCK = 500
# 2.10.4: probabilities of the seven classes
_COMPLEXITY = np.array((1 / 96, 1 / 32, 1 / 8, 1 / 2, 1 / 4, 1 / 16, 1 / 48))
_WORD = 64


def rank(bits: U8) -> F64:
    """Binary matrix rank test with matrices of 32 × 32, 2.5."""
    size = MATRIX * MATRIX
    n_matrices = bits.shape[1] // size
    rows = np.packbits(bits[:, : n_matrices * size].reshape(-1, MATRIX, MATRIX), axis=2).view(">u4")[:, :, 0]
    full = MATRIX - gf2_ranks(rows.astype(np.uint32)).reshape(bits.shape[0], n_matrices)
    # 3.5: the product formula; full rank, one less, and anything below
    ratio = np.prod(1.0 - 0.5 ** np.arange(1, MATRIX + 1))
    one_less = ratio * 2.0 * (1.0 - 0.5**MATRIX)
    expected = n_matrices * np.array([ratio, one_less, 1.0 - ratio - one_less])
    return chi2_p(rows_of_counts(np.minimum(full, 2), 3), expected)


def gf2_ranks(rows: NDArray[np.uint32]) -> I64:
    """Return (matrix,) ranks over GF(2) of (matrix, row) numbers whose bits are the row's entries."""
    rows = rows.copy()
    n_matrices, n_rows = rows.shape
    rank = np.zeros(n_matrices, dtype=np.int64)
    matrix = np.arange(n_matrices)
    used = np.zeros(rows.shape, dtype=np.bool_)
    for column in range(31, -1, -1):
        has = ((rows >> np.uint32(column)) & np.uint32(1)).astype(np.bool_)
        candidates = has & ~used
        pivot = candidates.argmax(axis=1)
        found = candidates[matrix, pivot]
        line = np.where(found, rows[matrix, pivot], np.uint32(0))
        used[matrix, pivot] |= found
        rank += found
        has[matrix, pivot] = False
        rows ^= np.where(has, line[:, None], np.uint32(0))
    return np.minimum(rank, n_rows)


def spectral(bits: U8) -> F64:
    """Discrete Fourier transform test, 2.6, with the threshold of rev. 1a (√(n·ln 20), variance n·0.95·0.05/4)."""
    from scipy.fft import rfft

    n = bits.shape[1]
    spectrum = rfft(bits * 2.0 - 1.0, axis=1)[:, : n // 2]
    below = np.count_nonzero(spectrum.real**2 + spectrum.imag**2 < n * np.log(20.0), axis=1)
    d = (below - 0.95 * n / 2.0) / sqrt(n * 0.95 * 0.05 / 4.0)
    return erfc(np.abs(d) / sqrt(2.0))


def linear_complexity(bits: U8, block: int = COMPLEXITY_BLOCK) -> F64:
    """Linear complexity test in blocks of `block` bits, 2.10."""
    n_blocks = bits.shape[1] // block
    blocks = bits[:, : n_blocks * block].reshape(-1, block)
    mean = block / 2.0 + (9.0 + (-1.0) ** (block + 1)) / 36.0 - (block / 3.0 + 2.0 / 9.0) / 2.0**block
    t = (-1.0) ** block * (complexities(blocks) - mean) + 2.0 / 9.0
    classes = np.digitize(t, (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5), right=True).reshape(bits.shape[0], n_blocks)
    return chi2_p(rows_of_counts(classes, 7), n_blocks * _COMPLEXITY)


def complexities(sequences: U8) -> I64:
    """Return (sequence,) the length of the shortest linear feedback shift register that makes each (sequence, bit).

    Berlekamp–Massey on all sequences at once, 64 coefficients in a word: a step is the same few operations on whole
    arrays whatever the discrepancies are, with masks instead of branches.
    """
    n_sequences, n = sequences.shape
    n_words = n // _WORD + 1
    # bit j of the register is the bit j places back, so that the discrepancy is the parity of register & connection
    register, connection, before = np.zeros((3, n_words, n_sequences), dtype=np.uint64)
    connection[0] = 1
    before[0] = 2  # x · 1: shifted once a step, so always as it would be added
    length = np.zeros(n_sequences, dtype=np.int64)
    for i, bit in enumerate(sequences.T.astype(np.uint64)):
        used = min(i // _WORD + 1, n_words)
        _shift(register[:used])
        register[0] |= bit
        odd = np.bitwise_xor.reduce(register[:used] & connection[:used], axis=0)
        wrong = (np.bitwise_count(odd) & 1).astype(np.bool_)
        longer = wrong & (2 * length <= i)
        old = connection.copy()
        connection ^= np.where(wrong, before, np.uint64(0))
        length = np.where(longer, i + 1 - length, length)
        before = np.where(longer, old, before)
        _shift(before)
    return length


def _shift(words: NDArray[np.uint64]) -> None:
    """Shift (word, sequence) by one bit towards the higher words, in place."""
    carry = words[:-1] >> np.uint64(_WORD - 1)
    words <<= np.uint64(1)
    words[1:] |= carry
