"""SP 800-22 and SP 800-90B compared with NIST's own code (`sp80022suite`) on the same bits."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

import numpy as np

from testbed.assess import sp800_22
from testbed.benchmarks import BenchRow, interleaved
from testbed.core.seeds import generator
from testbed.entropy import sp800_90b

SEQUENCES, BITS = 1000, 2048
LONG_BITS = 1_000_000
PAIRS = 5


def run() -> list[BenchRow]:
    """Return rows for 1000 × 2048 bits, a million bits, and the min-entropy of a million bits.

    Without the peer's package (extra "oracle") the first two have no peer. On 2048 bits both run the eight tests that
    the standard allows for that length; on a million the peer runs 14, because its non-overlapping test fails.
    """
    rng = generator(1, "bench", "randomness")
    short = rng.integers(0, 2, (SEQUENCES, BITS), dtype=np.uint8)
    long = rng.integers(0, 2, (1, LONG_BITS), dtype=np.uint8)
    rows = []
    try:
        nist = importlib.import_module("sp80022suite")
    except ImportError:
        rows += [_alone(short, "8 tests"), _alone(long, "15 tests")]
    else:
        eight: list[Callable[[bytes], float]] = [
            nist.frequency,
            lambda x: nist.block_frequency(BITS // 50, x),
            nist.runs,
            nist.longest_run_of_ones,
            nist.discrete_fourier_transform,
            lambda x: nist.approximate_entropy(5, x),
            lambda x: nist.serial(8, x),
            nist.cumulative_sums,
        ]
        fourteen: list[Callable[[bytes], float]] = [
            nist.frequency,
            lambda x: nist.block_frequency(LONG_BITS // 50, x),
            nist.runs,
            nist.longest_run_of_ones,
            nist.discrete_fourier_transform,
            lambda x: nist.approximate_entropy(10, x),
            lambda x: nist.serial(16, x),
            nist.cumulative_sums,
            nist.rank,
            lambda x: nist.overlapping_template_matchings(9, x),
            nist.universal,
            lambda x: nist.linear_complexity(500, x),
            nist.random_excursions,
            nist.random_excursions_variant,
        ]
        rows += [_row(short, eight, "8 tests"), _row(long, fourteen, "15 tests, peer 14")]
    start = time.perf_counter()
    entropy = sp800_90b.min_entropy_90b(long[0])
    took_s = time.perf_counter() - start
    note = f"{LONG_BITS / took_s / 1e6:.2f} Mbit/s, ten estimators, least {entropy:.3f} bit/bit of ideal bits"
    rows.append(
        BenchRow(name=f"SP 800-90B, {LONG_BITS} bits", ours_s=took_s, peer="", peer_s=0.0, ratio=0.0, note=note)
    )
    return rows


def _alone(bits: np.ndarray, what: str) -> BenchRow:
    ours_s, _, _ = interleaved(lambda: sp800_22.run(bits), lambda: None, PAIRS)
    return BenchRow(
        name=f"SP 800-22, {bits.shape[0]} × {bits.shape[1]} bits",
        ours_s=ours_s,
        peer="",
        peer_s=0.0,
        ratio=0.0,
        note=f"{bits.size / ours_s / 1e6:.1f} Mbit/s, {what}; to compare with the peer: pip install '.[oracle]'",
    )


def _row(bits: np.ndarray, peers: list[Callable[[bytes], float]], what: str) -> BenchRow:
    raw = [row.tobytes() for row in bits]

    def theirs() -> None:
        for sequence in raw:
            for test in peers:
                try:
                    test(sequence)
                except ValueError:  # too few cycles of the random walk; the peer has counted them by then
                    pass

    ours_s, peer_s, ratio = interleaved(lambda: sp800_22.run(bits), theirs, PAIRS)
    return BenchRow(
        name=f"SP 800-22, {bits.shape[0]} × {bits.shape[1]} bits",
        ours_s=ours_s,
        peer="sp80022suite (NIST's C)",
        peer_s=peer_s,
        ratio=ratio,
        note=f"{bits.size / ours_s / 1e6:.1f} Mbit/s, {what}, one thread each",
    )
