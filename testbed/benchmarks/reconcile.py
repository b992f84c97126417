"""LDPC compared with Cascade, and hashing: efficiency, failures and speed on the same strings."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import log2

import numpy as np

from testbed.benchmarks import BenchRow, interleaved
from testbed.chain.amplify.toeplitz import toeplitz_hash
from testbed.chain.dialogue import run as discuss
from testbed.chain.reconcile.cascade import Cascade
from testbed.chain.reconcile.ldpc import Ldpc
from testbed.core.errors import DialogueFailed
from testbed.core.seeds import generator
from testbed.core.stages import Evidence, Reconciler

BLOCKS = {2048: 40, 10_240: 12, 65_536: 5, 131_072: 2}
"""Bits of a block → number of blocks."""
RATES = (0.01, 0.05, 0.10)
ONE_MESSAGE_MARGIN = 1.6
"""Margin of the mode with one message: at 1 %, codes of 131 072 bits need 1.15 to 1.19 times Shannon's limit."""


def run() -> list[BenchRow]:
    """Return one row per length, error rate and LDPC mode: seconds per block, both sides; Cascade is the peer.

    The strings differ in exactly rate·n bits. Matrices are built before the clock starts; the note gives the time for
    that. f is the mean over delivered blocks.
    """
    rows = []
    for n, blocks in BLOCKS.items():
        for rate in RATES:
            peer = _measure(Cascade(), n, rate, blocks)
            for mode, stage in (("blind", Ldpc()), ("one message", Ldpc(rounds=0, margin=ONE_MESSAGE_MARGIN))):
                built_s = _measure(stage, n, rate, 1).seconds
                ours = _measure(stage, n, rate, blocks)
                rows.append(
                    BenchRow(
                        name=f"ldpc {mode}, {rate:.0%} errors, {n} bits",
                        ours_s=ours.seconds,
                        peer="cascade",
                        peer_s=peer.seconds,
                        ratio=peer.seconds / ours.seconds,
                        note=f"ours {ours}, first block {built_s:.2f} s; peer {peer}",
                    )
                )
    return [*rows, _toeplitz()]


def _toeplitz() -> BenchRow:
    """Hash 131 072 bits to half the length by FFT; the peer multiplies row by row, of which one in 256 is computed."""
    n, m, every = 131_072, 65_536, 256
    rng = generator(1, "bench", "toeplitz")
    bits, seed = rng.integers(0, 2, n, dtype=np.uint8), rng.integers(0, 2, n + m - 1, dtype=np.uint8)
    packed = np.packbits(bits)

    def rows() -> None:
        for i in range(0, m, every):
            np.bitwise_count(np.packbits(seed[i : i + n][::-1]) & packed).sum() & 1

    ours_s, part_s, _ = interleaved(lambda: toeplitz_hash(bits, seed, m), rows, 5)
    peer_s = part_s * every
    return BenchRow(
        name=f"toeplitz, {n} to {m} bits",
        ours_s=ours_s,
        peer="row by row on packed bits",
        peer_s=peer_s,
        ratio=peer_s / ours_s,
        note=f"{n / ours_s / 1e6:.1f} Mbit/s in; peer {n / peer_s / 1e6:.3f} Mbit/s, from one row in {every}",
    )


@dataclass(slots=True)
class _Measured:
    n: int
    rate: float
    seconds: float = 0.0
    blocks: int = 0
    failures: int = 0
    leaked: list[int] = field(default_factory=list)
    messages: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        h2 = -self.rate * log2(self.rate) - (1 - self.rate) * log2(1 - self.rate)
        f = np.mean(self.leaked) / (self.n * h2) if self.leaked else float("nan")
        return (
            f"f {f:.3f}, {self.failures} of {self.blocks} blocks failed, {self.n / self.seconds / 1e3:.0f} kbit/s, "
            f"{np.mean(self.messages) if self.messages else float('nan'):.1f} messages"
        )


def _measure(stage: Reconciler, n: int, rate: float, blocks: int) -> _Measured:
    out = _Measured(n, rate, blocks=blocks)
    for block in range(blocks):
        rng = generator(1, "bench", "reconcile", n, str(rate), block)
        alice = rng.integers(0, 2, n, dtype=np.uint8)
        bob = alice.copy()
        bob[rng.choice(n, round(n * rate), replace=False)] ^= 1
        start_s = time.perf_counter()
        try:
            _, outcome, said = discuss(
                stage.alice(Evidence.of(alice, rate), rng), stage.bob(Evidence.of(bob, rate), rng)
            )
        except DialogueFailed:
            out.failures += 1
            continue
        finally:
            out.seconds += (time.perf_counter() - start_s) / blocks
        out.leaked.append(sum(m.leaked_bits for _, m in said))
        out.messages.append(len(said))
        out.failures += not np.array_equal(outcome.values, alice)
    return out
