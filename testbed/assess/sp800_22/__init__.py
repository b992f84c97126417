"""The 15 tests of NIST SP 800-22 rev. 1a, vectorised over sequences.

Every test takes (sequence, bit) uint8 of 0 and 1 and returns p-values (sequence,), or (sequence, statistic) where the
standard defines several. `run` applies all that the sequences' length allows. P-values reveal something about the bits
(the frequency test: the number of ones), so a node that keeps its key private keeps its p-values private, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, log2

import numpy as np

from testbed.assess.sp800_22 import excursions, frequency, patterns, structure
from testbed.core.types import F64, U8

LEAST_BITS = {
    "frequency": 100,  # 2.1.7
    "block_frequency": 100,  # 2.2.7
    "runs": 100,  # 2.3.7
    "longest_run": 128,  # 2.4.2
    "rank": 38 * structure.MATRIX**2,  # 2.5.7: 38 matrices
    "spectral": 1000,  # 2.6.7; at 256 bits the statistic takes so few values that good keys fail too often
    # 2.7.7 gives no length; ours: 5 expected occurrences of a template in a block, as usual for chi-squared
    "non_overlapping_template": patterns.NON_OVERLAPPING_BLOCKS
    * (5 * 2**patterns.TEMPLATE_BITS + patterns.TEMPLATE_BITS - 1),
    "overlapping_template": 1_000_000,  # 2.8.7
    "universal": patterns.UNIVERSAL[0][0],  # 2.9.7
    "linear_complexity": 1_000_000,  # 2.10.7
    "serial": 100,  # 2.11.7 allows patterns of 3 bits there
    "approximate_entropy": 256,  # 2.12.7 allows patterns of 2 bits from there on
    "cumulative_sums": 100,  # 2.13.7
    "random_excursions": 1_000_000,  # 2.14.7
    "random_excursions_variant": 1_000_000,  # 2.15.7
}
"""Test → bits that a sequence must have for it, in the standard's order."""

_CHUNK_BITS = 1 << 19
_SERIAL_BITS, _ENTROPY_BITS = 16, 10
"""The longest patterns: those of the standard's own example of a million bits."""


def run(bits: U8) -> dict[str, F64]:
    """Return statistic → p-values (sequence,) of every test that this length allows; NaN where a sequence has none.

    A statistic is called after its test; where a test has several, "_" and which one follow. NaN: a random walk with
    too few cycles. Empty below 100 bits, and for no sequences.
    """
    n_sequences, n = bits.shape
    # ours fits the processor's cache
    step = max(1, _CHUNK_BITS // max(n, 1))
    parts = [dict(_p_values(bits[i : i + step])) for i in range(0, n_sequences, step)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def family(statistic: str) -> str:
    """Return the test that a statistic of `run` belongs to."""
    return max((test for test in LEAST_BITS if statistic.startswith(test)), key=len)


def _p_values(bits: U8) -> Iterator[tuple[str, F64]]:
    n = bits.shape[1]
    applies = {test for test, least in LEAST_BITS.items() if n >= least}
    if "frequency" not in applies:
        return
    yield "frequency", frequency.frequency(bits)
    # 2.2.7: blocks of 20 bits or more, longer than n/100, fewer than 100 of them
    yield "block_frequency", frequency.block_frequency(bits, max(20, n // 50))
    yield "runs", frequency.runs(bits)
    yield "cumulative_sums_forward", frequency.cumulative_sums(bits)
    yield "cumulative_sums_reverse", frequency.cumulative_sums(bits, reverse=True)
    m_serial = min(_SERIAL_BITS, floor(log2(n)) - 3)  # 2.11.7: m < ⌊log2 n⌋ − 2
    counts = patterns.circular_counts(bits, m_serial)
    yield from zip(("serial_1", "serial_2"), patterns.serial(bits, m_serial, counts), strict=True)
    if "longest_run" in applies:
        yield "longest_run", frequency.longest_run(bits)
    if "approximate_entropy" in applies:
        m = min(_ENTROPY_BITS, floor(log2(n)) - 6)  # 2.12.7: m < ⌊log2 n⌋ − 5
        for _ in range(m_serial - m - 1):
            counts = patterns.shortened(counts)
        yield "approximate_entropy", patterns.approximate_entropy(bits, m, counts)
    if "spectral" in applies:
        yield "spectral", structure.spectral(bits)
    if "rank" in applies:
        yield "rank", structure.rank(bits)
    if "non_overlapping_template" in applies:
        templates = patterns.aperiodic_templates(patterns.TEMPLATE_BITS)
        yield from _columns("non_overlapping_template", templates, patterns.non_overlapping_template(bits))
    if "overlapping_template" in applies:
        yield "overlapping_template", patterns.overlapping_template(bits)
    if "universal" in applies:
        yield "universal", patterns.universal(bits)
    if "linear_complexity" in applies:
        yield "linear_complexity", structure.linear_complexity(bits)
    if "random_excursions" in applies:
        cycles = excursions.enough_cycles(n)
        p = excursions.random_excursions(bits, cycles)
        yield from _columns("random_excursions", [f"{s:+d}" for s in excursions.STATES], p)
        p = excursions.random_excursions_variant(bits, cycles)
        yield from _columns("random_excursions_variant", [f"{s:+d}" for s in excursions.VARIANT_STATES], p)


def _columns(test: str, labels: tuple[str, ...] | list[str], p: F64) -> Iterator[tuple[str, F64]]:
    for label, column in zip(labels, p.T, strict=True):
        yield f"{test}_{label}", column
