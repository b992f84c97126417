"""SP 800-22 rev. 1a, 2.7–2.9, 2.11, 2.12: how often patterns occur, and how far apart."""

from __future__ import annotations

from functools import cache
from math import log, sqrt

import numpy as np

from testbed.assess.sp800_22._common import chi2_p, erfc, igamc, rows_of_counts, windows
from testbed.core.types import F64, I64, U8

TEMPLATE_BITS = 9
NON_OVERLAPPING_BLOCKS = 8
_OVERLAPPING_BLOCK = 1032
# 2.8.4: probabilities of 0, 1, … 4, 5 or more times nine ones in 1032 bits, as Hamano and Kaneko corrected them
_OVERLAPPING = np.array((0.364091, 0.185659, 0.139381, 0.100571, 0.0704323, 0.139865))
# 2.9.4 and its table: least bits, block length, expected value, variance
UNIVERSAL = (
    (387_840, 6, 5.2177052, 2.954),
    (904_960, 7, 6.1962507, 3.125),
    (2_068_480, 8, 7.1836656, 3.238),
    (4_654_080, 9, 8.1764248, 3.311),
    (10_342_400, 10, 9.1723243, 3.356),
    (22_753_280, 11, 10.170032, 3.384),
    (49_643_520, 12, 11.168765, 3.401),
    (107_560_960, 13, 12.168070, 3.410),
    (231_669_760, 14, 13.167693, 3.416),
    (496_435_200, 15, 14.167488, 3.419),
    (1_059_061_760, 16, 15.167379, 3.421),
)


@cache
def aperiodic_templates(length: int) -> tuple[str, ...]:
    """Return the templates of `length` bits that cannot overlap themselves (148 of 9 bits), in order."""
    every = (format(code, f"0{length}b") for code in range(1 << length))
    return tuple(t for t in every if not any(t[k:] == t[: length - k] for k in range(1, length)))


def non_overlapping_template(bits: U8, length: int = TEMPLATE_BITS, n_blocks: int = NON_OVERLAPPING_BLOCKS) -> F64:
    """Non-overlapping template matching test, 2.7: (sequence, template) p-values, in `aperiodic_templates`' order.

    Such a template cannot overlap itself, so plain counts of windows are the non-overlapping ones.
    """
    block = bits.shape[1] // n_blocks
    blocks = bits[:, : n_blocks * block].reshape(-1, block)
    wanted = [int(t, 2) for t in aperiodic_templates(length)]
    counts = rows_of_counts(windows(blocks, length), 1 << length)[:, wanted].reshape(bits.shape[0], n_blocks, -1)
    mean = (block - length + 1) / 2.0**length
    variance = block * (2.0**-length - (2 * length - 1) * 2.0 ** (-2 * length))
    return igamc(n_blocks / 2.0, ((counts - mean) ** 2).sum(axis=1) / (2.0 * variance))


def overlapping_template(bits: U8) -> F64:
    """Overlapping template matching test for nine ones, 2.8."""
    n_blocks = bits.shape[1] // _OVERLAPPING_BLOCK
    blocks = bits[:, : n_blocks * _OVERLAPPING_BLOCK].reshape(bits.shape[0], n_blocks, _OVERLAPPING_BLOCK)
    found = np.count_nonzero(windows(blocks, TEMPLATE_BITS) == (1 << TEMPLATE_BITS) - 1, axis=2)
    return chi2_p(rows_of_counts(np.minimum(found, 5), 6), n_blocks * _OVERLAPPING)


def universal(bits: U8) -> F64:
    """Maurer's universal statistical test, 2.9; at least 387 840 bits."""
    _, length, expected, variance = [row for row in UNIVERSAL if row[0] <= bits.shape[1]][-1]
    return universal_p(bits, length, 10 << length, expected, variance)


def universal_p(bits: U8, length: int, n_first: int, expected: float, variance: float) -> F64:
    """Return p-values of the universal test for blocks of `length` bits, the first `n_first` of which only initialise.

    A block that never occurred before counts from the start, as in the standard's table of zeros.
    """
    n_blocks = bits.shape[1] // length
    blocks = bits[:, : n_blocks * length].reshape(bits.shape[0], n_blocks, length)
    codes = blocks @ (1 << np.arange(length - 1, -1, -1))
    total = np.empty(bits.shape[0])
    place = np.arange(1, n_blocks + 1)
    for i, code in enumerate(codes):
        order = np.argsort(code, kind="stable")
        gap = place[order].copy()
        same = code[order[1:]] == code[order[:-1]]
        gap[1:][same] -= place[order[:-1]][same]
        total[i] = np.log2(gap[order >= n_first]).sum()
    k = n_blocks - n_first
    correction = 0.7 - 0.8 / length + (4.0 + 32.0 / length) * k ** (-3.0 / length) / 15.0
    sigma = correction * sqrt(variance / k)
    return erfc(np.abs(total / k - expected) / (sqrt(2.0) * sigma))


def circular_counts(bits: U8, length: int) -> I64:
    """Return (sequence, pattern) counts of the overlapping patterns of `length` bits, wrapping around."""
    around = np.concatenate([bits, bits[:, : length - 1]], axis=1)
    return rows_of_counts(windows(around, length), 1 << length)


def shortened(counts: I64) -> I64:
    """Return counts of patterns one bit shorter than those of `circular_counts`."""
    out: I64 = counts.reshape(counts.shape[0], -1, 2).sum(axis=2)
    return out


def approximate_entropy(bits: U8, m: int, counts: I64 | None = None) -> F64:
    """Approximate entropy test with patterns of m and m + 1 bits, 2.12; `counts` of m + 1 bits where known."""
    n = bits.shape[1]
    longer = circular_counts(bits, m + 1) if counts is None else counts

    def phi(seen: I64) -> F64:
        share = seen / n
        total: F64 = (share * np.log(share, out=np.zeros_like(share), where=share > 0)).sum(axis=1)
        return total

    chi2 = 2.0 * n * (log(2.0) - (phi(shortened(longer)) - phi(longer)))
    return igamc(2.0 ** (m - 1), np.maximum(chi2, 0.0) / 2.0)


def serial(bits: U8, m: int, counts: I64 | None = None) -> tuple[F64, F64]:
    """Serial test with patterns of m bits (2 or more), 2.11: both p-values; `counts` of m bits where known."""
    n = bits.shape[1]

    def psi2(seen: I64) -> F64:
        total: F64 = (seen.astype(np.float64) ** 2).sum(axis=1) * seen.shape[1] / n - n
        return total

    long = circular_counts(bits, m) if counts is None else counts
    middle = shortened(long)
    low = shortened(middle)
    first, second = psi2(long) - psi2(middle), psi2(long) - 2.0 * psi2(middle) + psi2(low)
    return (
        igamc(2.0 ** (m - 2), np.maximum(first, 0.0) / 2.0),
        igamc(2.0 ** (m - 3), np.maximum(second, 0.0) / 2.0),
    )
