"""Cascade: efficiency and speed of the default variant compared with the original one, on the same strings."""

from __future__ import annotations

import time
from math import log2

import numpy as np

from testbed.benchmarks import BenchRow
from testbed.chain.dialogue import run as discuss
from testbed.chain.reconcile.cascade import Cascade
from testbed.core.errors import DialogueFailed
from testbed.core.seeds import generator
from testbed.core.stages import Evidence
from testbed.core.types import F64

BITS, BLOCKS = 10_240, 12
RATES = (0.01, 0.05, 0.10)
OURS, PEER = "weighted", "original"


def run() -> list[BenchRow]:
    """Return one row per error rate: seconds of both sides for one block of 10 240 bits; f, kbit/s, round trips."""
    rows = []
    for rate in RATES:
        ours, peer = _measure(OURS, rate), _measure(PEER, rate)
        rows.append(
            BenchRow(
                name=f"cascade, {rate:.0%} errors, {BITS} bits",
                ours_s=ours.seconds,
                peer=f"variant {PEER!r}",
                peer_s=peer.seconds,
                ratio=peer.seconds / ours.seconds,
                note=f"ours {ours}; peer {peer}; published f 1.02–1.05",
            )
        )
    return rows


class _Measured:
    def __init__(self, rate: float, leaked: list[int], trips: list[int], failures: int, seconds: float) -> None:
        h2 = -rate * log2(rate) - (1 - rate) * log2(1 - rate)
        self.f: F64 = np.array(leaked) / (BITS * h2)
        self.trips, self.failures, self.seconds = trips, failures, seconds

    def __str__(self) -> str:
        return (
            f"f {self.f.mean():.3f} (p95 {np.percentile(self.f, 95):.3f}), {BITS / self.seconds / 1e3:.0f} kbit/s, "
            f"{np.mean(self.trips):.0f} round trips, {self.failures} of {BLOCKS} blocks not equal"
        )


def _measure(variant: str, rate: float) -> _Measured:
    stage = Cascade(variant=variant)
    leaked, trips, failures, spent_s = [], [], 0, 0.0
    for block in range(BLOCKS):
        rng = generator(1, "bench", "cascade", str(rate), block)
        alice = rng.integers(0, 2, BITS, dtype=np.uint8)
        bob = alice.copy()
        # exactly rate·n errors, so that f does not vary with their number
        bob[rng.choice(BITS, round(BITS * rate), replace=False)] ^= 1
        start_s = time.perf_counter()
        try:
            _, outcome, transcript = discuss(
                stage.alice(Evidence.of(alice, rate), rng), stage.bob(Evidence.of(bob, rate), rng)
            )
        except DialogueFailed:
            failures += 1
            continue
        finally:
            spent_s += time.perf_counter() - start_s
        leaked.append(sum(m.leaked_bits for _, m in transcript))
        trips.append(sum(m.kind == "cascade_answer" for _, m in transcript))
        failures += not np.array_equal(outcome.values, alice)
    return _Measured(rate, leaked, trips, failures, spent_s / BLOCKS)
