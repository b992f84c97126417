"""The losses from raw bits to key bits, from the blocks' reports: raw − Σ losses = key by construction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.core.outcomes import AgreeReport
from testbed.records.documents import Block


@dataclass(frozen=True, slots=True)
class Step:
    """Bits that were lost for one reason."""

    label: str
    bits: int
    why: str


STEPS = {
    "sacrificed": ("sacrificed", "published to estimate error rates"),
    "failed": ("blocks without agreement", "reconciliation or verification failed, or the run ended first"),
    "leaked": ("leaked", "revealed by reconciliation and verification; the ledger counts every public bit"),
    "deficit": ("min-entropy deficit", "what the best Eve may know or guess: kept bits × (1 − min-entropy per bit)"),
    "epsilon": (
        "security margin",
        "2·log2(1/ε) bits per block for hashing, and the bits that the published length reveals",
    ),
    "authentication": ("authentication", "refill of the one-time pads by which the discussion is authenticated"),
    "other": (
        "rounding, undelivered",
        "key lengths are rounded down to a multiple, and a key that one side lacks is not delivered",
    ),
}


def raw_bits(blocks: Sequence[Block]) -> int:
    """Return the number of raw bits of the blocks."""
    return sum(agreed.raw_bits for b in blocks if (agreed := report_of(b)) is not None)


def key_bits(block: Block) -> int:
    """Return the key bits that both reporting sides hold."""
    return min((k.key_bits for k in block.key.values()), default=0)


def report_of(block: Block) -> AgreeReport | None:
    """Return Alice's report if there is one, else any: hers counts all messages of the discussion."""
    reports = sorted(block.agree.values(), key=lambda a: a.corrected_bits is not None)
    return reports[0] if reports else None


def flow(blocks: Sequence[Block], epsilon_log2: int) -> list[Step]:
    """Return the losses between raw bits and key bits, in order, summed over blocks.

    A loss is at most the number of bits that are left, so that a block whose losses exceed its raw bits ends at 0. The
    step `other` is negative if a block delivered more bits than its own report allows, which is an error.
    """
    lost = dict.fromkeys(STEPS, 0)
    for block in blocks:
        agreed = report_of(block)
        if agreed is None:
            continue
        left = agreed.raw_bits

        def take(step: str, amount: int) -> None:
            nonlocal left
            amount = min(amount, left)
            lost[step] += amount
            left -= amount

        take("sacrificed", agreed.sacrificed_bits)
        if not block.key or not all(a.verified for a in block.agree.values()):
            take("failed", left)
            continue
        known = [k for k in block.key.values() if k.min_entropy_per_bit is not None]
        take("leaked", agreed.leaked_bits)
        if known and known[0].min_entropy_per_bit is not None:
            take("deficit", agreed.reconciled_bits - math.floor(agreed.reconciled_bits * known[0].min_entropy_per_bit))
        margin = [-t.bits for k in known for t in k.terms if t.name in ("hashing", "lengths")]
        take("epsilon", math.ceil(sum(margin)) if margin else 2 * epsilon_log2)
        take("authentication", max((k.refill_bits for k in block.key.values()), default=0))
        lost["other"] += left - key_bits(block)
    shown = {step: told for step, told in STEPS.items() if step != "authentication" or lost[step]}
    return [Step(label, lost[step], why) for step, (label, why) in shown.items()]
