"""SP 800-22 rev. 1a, 2.1–2.4 and 2.13: number of ones, runs of ones, and excursion of the cumulative sum."""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np

from testbed.assess.sp800_22._common import chi2_p, erfc, igamc
from testbed.core.types import F64, I64, U8

# 2.4.4 with the digits of its reference code: least bits, block length, lowest class, probabilities of the classes
_LONGEST_RUN = (
    (128, 8, 1, (0.21484375, 0.3671875, 0.23046875, 0.1875)),
    (6272, 128, 4, (0.1174035788, 0.242955959, 0.249363483, 0.17517706, 0.102701071, 0.112398847)),
    (750_000, 10_000, 10, (0.0882, 0.2092, 0.2483, 0.1933, 0.1208, 0.0675, 0.0727)),
)


def ones(bits: U8) -> I64:
    """Return (…,) the number of ones of (…, bit)."""
    total: I64 = np.bitwise_count(np.packbits(bits, axis=-1)).sum(axis=-1, dtype=np.int64)
    return total


def frequency(bits: U8) -> F64:
    """Frequency (monobit) test, 2.1."""
    n = bits.shape[1]
    return erfc(np.abs(2 * ones(bits) - n) / sqrt(2.0 * n))


def block_frequency(bits: U8, block: int) -> F64:
    """Frequency test within blocks of `block` bits, 2.2; an incomplete last block is left out."""
    n_blocks = bits.shape[1] // block
    share = ones(bits[:, : n_blocks * block].reshape(bits.shape[0], n_blocks, block)) / block
    chi2 = 4.0 * block * ((share - 0.5) ** 2).sum(axis=1)
    return igamc(n_blocks / 2.0, chi2 / 2.0)


def runs(bits: U8) -> F64:
    """Runs test, 2.3; 0 where the frequency is too far off for the test to apply."""
    n = bits.shape[1]
    share = ones(bits) / n
    n_runs = 1 + ones(bits[:, 1:] ^ bits[:, :-1])
    spread = 2.0 * share * (1.0 - share)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = erfc(np.abs(n_runs - n * spread) / (sqrt(2.0 * n) * spread))
    out: F64 = np.where(np.abs(share - 0.5) >= 2.0 / sqrt(n), 0.0, p)
    return out


def longest_run(bits: U8) -> F64:
    """Longest run of ones in a block, 2.4; at least 128 bits."""
    _, block, lowest, expected = [row for row in _LONGEST_RUN if row[0] <= bits.shape[1]][-1]
    n_blocks = bits.shape[1] // block
    left = bits[:, : n_blocks * block].reshape(bits.shape[0], n_blocks, block)
    if block == 8:
        left = np.packbits(left, axis=2)
    longest = np.zeros(left.shape[:2], dtype=np.int64)
    for _ in range(lowest + len(expected) - 1):  # longer ones are all of the last class
        # removing the end of each run leaves k − 1 of a run of k ones
        if block == 8:
            longest += left[:, :, 0] != 0
            left = left & (left << np.uint8(1))
        else:
            longest += left.any(axis=2)
            left = left[:, :, 1:] & left[:, :, :-1]
    classes = np.maximum(longest - lowest, 0)
    seen = np.stack([np.count_nonzero(classes == c, axis=1) for c in range(len(expected))], axis=-1)
    return chi2_p(seen, n_blocks * np.array(expected))


def cumulative_sums(bits: U8, reverse: bool = False) -> F64:
    """Cumulative sums test, 2.13, forward or from the end."""
    n = bits.shape[1]
    steps = bits.view(np.int8) * np.int8(2) - np.int8(1)
    walk = np.cumsum(steps, axis=1, dtype=np.int16 if n < 1 << 15 else np.int32)
    if reverse:  # a sum from the end is the total less a sum from the start
        low = np.minimum(walk[:, :-1].min(axis=1, initial=0), 0)
        high = np.maximum(walk[:, :-1].max(axis=1, initial=0), 0)
        total = walk[:, -1].astype(np.int64)
        z = np.maximum(np.abs(total - low), np.abs(total - high))
    else:
        z = np.maximum(walk.max(axis=1), -walk.min(axis=1)).astype(np.int64)
    values, which = np.unique(z, return_inverse=True)
    return np.array([_excursion_p(n, int(v)) for v in values])[which]


@cache
def _excursion_p(n: int, z: int) -> float:
    from scipy.special import ndtr

    # the standard's limits, rounded towards zero as in its reference code
    first = np.arange(int((-n / z + 1) / 4), int((n / z - 1) / 4) + 1)
    second = np.arange(int((-n / z - 3) / 4), int((n / z - 1) / 4) + 1)
    scale = z / sqrt(n)
    p = (
        1.0
        - (ndtr((4 * first + 1) * scale) - ndtr((4 * first - 1) * scale)).sum()
        + (ndtr((4 * second + 3) * scale) - ndtr((4 * second + 1) * scale)).sum()
    )
    return float(np.clip(p, 0.0, 1.0))
