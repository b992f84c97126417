"""Tests of NIST SP 800-22 rev. 1a that mean something on short keys, vectorised over sequences.

Every function takes (sequence, bit) of 0 and 1 and returns p-values (sequence,), two of them where the standard
defines two. P-values tell something about the bits they come from (the frequency test: how many are ones), so a node
that keeps its key private keeps them too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log2, sqrt

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, U8

ALPHA = 0.01

# SP 800-22 2.4.4: block length, lowest and highest class of the longest run, probabilities of the classes.
_LONGEST_RUN = (
    (128, 8, 1, (0.2148, 0.3672, 0.2305, 0.1875)),
    (6272, 128, 4, (0.1174, 0.2430, 0.2493, 0.1752, 0.1027, 0.1124)),
    (750_000, 10_000, 10, (0.0882, 0.2092, 0.2483, 0.1933, 0.1208, 0.0675, 0.0727)),
)


def frequency(bits: U8) -> F64:
    """Frequency (monobit) test, 2.1."""
    from scipy.special import erfc

    excess = np.abs(_signed(bits).sum(axis=1))
    out: F64 = erfc(excess / sqrt(2.0 * bits.shape[1]))
    return out


def block_frequency(bits: U8, block: int) -> F64:
    """Frequency test within blocks of `block` bits, 2.2; an incomplete last block is left out."""
    n_blocks = bits.shape[1] // block
    share = bits[:, : n_blocks * block].reshape(bits.shape[0], n_blocks, block).mean(axis=2)
    chi2 = 4.0 * block * ((share - 0.5) ** 2).sum(axis=1)
    return _igamc(n_blocks / 2.0, chi2 / 2.0)


def runs(bits: U8) -> F64:
    """Runs test, 2.3; 0 where the frequency is too far off for the test to apply."""
    from scipy.special import erfc

    n = bits.shape[1]
    share = bits.mean(axis=1)
    n_runs = 1 + np.count_nonzero(bits[:, 1:] != bits[:, :-1], axis=1)
    spread = 2.0 * share * (1.0 - share)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = erfc(np.abs(n_runs - n * spread) / (sqrt(2.0 * n) * spread))
    out: F64 = np.where(np.abs(share - 0.5) >= 2.0 / sqrt(n), 0.0, p)
    return out


def longest_run(bits: U8) -> F64:
    """Longest run of ones in a block, 2.4; at least 128 bits."""
    _, block, lowest, expected = [row for row in _LONGEST_RUN if row[0] <= bits.shape[1]][-1]
    n_blocks = bits.shape[1] // block
    blocks = bits[:, : n_blocks * block].reshape(bits.shape[0], n_blocks, block)
    run = np.zeros(blocks.shape[:2], dtype=np.int64)
    longest = run.copy()
    for i in range(block):
        run = (run + 1) * blocks[:, :, i]
        np.maximum(longest, run, out=longest)
    classes = np.clip(longest - lowest, 0, len(expected) - 1)
    chi2 = np.zeros(bits.shape[0])
    for c, probability in enumerate(expected):
        seen = np.count_nonzero(classes == c, axis=1)
        chi2 += (seen - n_blocks * probability) ** 2 / (n_blocks * probability)
    return _igamc((len(expected) - 1) / 2.0, chi2 / 2.0)


def cumulative_sums(bits: U8, reverse: bool = False) -> F64:
    """Cumulative sums test, 2.13, forward or from the end."""
    from scipy.special import ndtr

    n = bits.shape[1]
    steps = _signed(bits[:, ::-1] if reverse else bits)
    z = np.abs(np.cumsum(steps, axis=1)).max(axis=1)
    out = np.empty(bits.shape[0])
    for i, excursion in enumerate(z):
        # the standard's limits, rounded towards zero as in its reference code
        first = np.arange(int((-n / excursion + 1) / 4), int((n / excursion - 1) / 4) + 1)
        second = np.arange(int((-n / excursion - 3) / 4), int((n / excursion - 1) / 4) + 1)
        scale = excursion / sqrt(n)
        out[i] = (
            1.0
            - (ndtr((4 * first + 1) * scale) - ndtr((4 * first - 1) * scale)).sum()
            + (ndtr((4 * second + 3) * scale) - ndtr((4 * second + 1) * scale)).sum()
        )
    p: F64 = np.clip(out, 0.0, 1.0)
    return p


def approximate_entropy(bits: U8, m: int) -> F64:
    """Approximate entropy test with patterns of m and m + 1 bits, 2.12."""

    def phi(length: int) -> F64:
        share = _pattern_counts(bits, length) / bits.shape[1]
        logs = np.log(share, out=np.zeros_like(share), where=share > 0)
        total: F64 = (share * logs).sum(axis=1)
        return total

    chi2 = 2.0 * bits.shape[1] * (np.log(2.0) - (phi(m) - phi(m + 1)))
    return _igamc(2.0 ** (m - 1), np.maximum(chi2, 0.0) / 2.0)


def serial(bits: U8, m: int) -> tuple[F64, F64]:
    """Serial test with patterns of m bits (≥ 3), 2.11: both p-values."""

    def psi2(length: int) -> F64:
        total: F64 = (_pattern_counts(bits, length) ** 2).sum(axis=1) * 2.0**length / bits.shape[1] - bits.shape[1]
        return total

    top, middle, low = psi2(m), psi2(m - 1), psi2(m - 2)
    first, second = top - middle, top - 2.0 * middle + low
    p1 = _igamc(2.0 ** (m - 2), np.maximum(first, 0.0) / 2.0)
    p2 = _igamc(2.0 ** (m - 3), np.maximum(second, 0.0) / 2.0)
    return p1, p2


def spectral(bits: U8) -> F64:
    """Discrete Fourier transform test, 2.6, with the threshold of rev. 1a (√(n·ln 20), variance n·0.95·0.05/4)."""
    from scipy.fft import rfft
    from scipy.special import erfc

    n = bits.shape[1]
    peaks = np.abs(rfft(_signed(bits).astype(np.float64), axis=1))[:, : n // 2]
    below = np.count_nonzero(peaks < sqrt(n * np.log(20.0)), axis=1)
    d = (below - 0.95 * n / 2.0) / sqrt(n * 0.95 * 0.05 / 4.0)
    out: F64 = erfc(np.abs(d) / sqrt(2.0))
    return out


def p_values(bits: U8) -> dict[str, F64]:
    """Return the p-values (sequence,) of every test that the standard allows at this length; none below 100 bits.

    Sequences of one length only: (sequence, bit).
    """
    n = bits.shape[1]
    if n < 100:
        return {}
    out = {
        "frequency": frequency(bits),
        # 2.2.7: blocks ≥ 20 bits, > n/100 bits
        "block_frequency": block_frequency(bits, max(20, n // 50)),
        "runs": runs(bits),
        "cumulative_sums_forward": cumulative_sums(bits),
        "cumulative_sums_reverse": cumulative_sums(bits, reverse=True),
    }
    m_serial = min(5, floor(log2(n)) - 3)  # 2.11.7: m < ⌊log2 n⌋ − 2
    out["serial_1"], out["serial_2"] = serial(bits, m_serial)
    if n >= 128:
        out["longest_run"] = longest_run(bits)
    m_entropy = min(5, floor(log2(n)) - 6)  # 2.12.7: m < ⌊log2 n⌋ − 5
    if m_entropy >= 2:
        out["approximate_entropy"] = approximate_entropy(bits, m_entropy)
    if n >= 1000:  # 2.6.7; at 256 bits the statistic takes so few values that good keys fail too often
        out["spectral"] = spectral(bits)
    return out


def combine(by_test: Mapping[str, NDArray[np.float64]], alpha: float = ALPHA) -> dict[str, dict[str, float]]:
    """Return {test: {pass_ratio, p_value}} over all sequences, as summary.json wants it.

    pass_ratio: share of p ≥ alpha. p_value: uniformity of the p-values (4.2.2) from 55 sequences on, as the standard
    asks; of fewer, Fisher's combination, which for one sequence is its own p-value.
    """
    out = {}
    for test, p in by_test.items():
        if p.size == 0:
            continue
        if p.size >= 55:
            seen = np.histogram(p, bins=10, range=(0.0, 1.0))[0]
            chi2 = ((seen - p.size / 10.0) ** 2).sum() / (p.size / 10.0)
            value = _igamc(4.5, np.array([chi2 / 2.0]))
        else:
            value = _igamc(p.size, np.array([-np.log(np.maximum(p, 1e-300)).sum()]))
        out[test] = {"pass_ratio": float(np.mean(p >= alpha)), "p_value": float(value[0])}
    return out


def _igamc(a: float, x: F64) -> F64:
    """Regularised upper incomplete gamma function, "igamc" in the standard."""
    from scipy.special import gammaincc

    return np.asarray(gammaincc(a, x), dtype=np.float64)


def _signed(bits: U8) -> NDArray[np.int64]:
    return 2 * bits.astype(np.int64) - 1


def _pattern_counts(bits: U8, length: int) -> F64:
    """Return (sequence, pattern) counts of the overlapping patterns of `length` bits, wrapping around."""
    n_sequences = bits.shape[0]
    if length == 0:
        return np.full((n_sequences, 1), float(bits.shape[1]))
    code = np.zeros(bits.shape, dtype=np.int64)
    for i in range(length):
        code = 2 * code + np.roll(bits, -i, axis=1)
    code += np.arange(n_sequences)[:, None] << length
    return np.bincount(code.ravel(), minlength=n_sequences << length).reshape(n_sequences, -1).astype(np.float64)
