"""What nodes tell about a distilled block: metrics, never bits. They travel in messages and stand in records."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

COVERAGE = 0.8
"""Least share of the sacrificed bits that Eve must have heard something about to count as measured: who hears nothing
errs on every other bit, which must not pass for security."""


class AgreeReport(Struct, frozen=True, kw_only=True):
    """One side's view of a block from quantization to verification."""

    block: int
    probes: int
    """Rows of the CSI series that went in."""
    raw_bits: int
    """Bits both sides kept after quantization."""
    sacrificed_bits: int
    sacrificed_errors: int
    """Of the sacrificed bits, how many differed between Alice and Bob."""
    reconciled_bits: int
    """Length of the string that was reconciled (raw − sacrificed); 0 where it did not come to that."""
    corrected_bits: int | None
    """Bits Bob flipped: with `verified`, the exact number of errors. None at Alice and where reconciliation failed."""
    leaked_bits: int
    leaked_by_kind: dict[str, int]
    public_bytes: int
    messages: int
    source_min_entropy: float | None
    """Per bit, of Alice's string from its own statistics (bias, memory in time and frequency). None at Bob."""
    verified: bool
    failure: str | None
    """Reason, where not verified."""


class TrainReport(Struct, frozen=True, kw_only=True):
    """One side's view of a training block: no bit of it enters a key."""

    block: int
    probes: int
    """Rows of the CSI series that went in."""
    model: str | None
    """Name of the model, the same at both ends; None where there is none."""
    nmse_before: float | None = None
    """Mean square of what differs between both ends' CSI over the mean square of Bob's, on the validation stretch."""
    nmse_after: float | None = None
    """The same after the model. Both at Alice only."""
    memory_rounds: int | None = None
    """Rounds after which Alice's levels have forgotten, see `training.memory_rounds`; None: longer than can be told."""
    card: dict[str, Any] = {}
    """What the model is and what it was learnt from, plain values; as published. At Alice only."""
    public_bytes: int
    messages: int
    failure: str | None


class Dependence(Struct, frozen=True, kw_only=True):
    """How far Eve's features of one dimension explain Alice's published symbols."""

    dimension: int
    samples: int
    links: int
    """How many transmissions she used together."""
    r2: float
    """Share of Alice's variance that they explain."""


class EveReport(Struct, frozen=True, kw_only=True):
    """How well Eve's best attack did on the bits that were published anyway."""

    block: int
    sacrificed_bits: int
    covered_bits: int
    """Of the sacrificed bits, for how many she had heard something to guess from."""
    sacrificed_errors: int
    """Of the covered bits, how many her best guess got wrong."""
    best_link: str
    """Which transmission served her best: from alice, from bob, or both."""
    transcript_complete: bool
    """False where she missed public messages; her attack is then weaker than it could be."""
    dependence: tuple[Dependence, ...] = ()
    """By dimension, where whole symbols were sacrificed: for the modelled accounting."""

    @property
    def measured(self) -> bool:
        """Whether this says how well Eve can do: a possible count from a complete attack that was not deaf."""
        possible = 0 <= self.sacrificed_errors <= self.covered_bits <= self.sacrificed_bits
        return self.transcript_complete and possible and self.covered_bits >= max(1, COVERAGE * self.sacrificed_bits)


class KeyReport(Struct, frozen=True, kw_only=True):
    """One side's view of amplification."""

    block: int
    key_bits: int
    min_entropy_per_bit: float
    """Per raw bit given Eve's measurements, as used for the length; the sacrificed bits are taken off separately."""
    eve_measured: bool
    entropy: str = "estimated"
    """Where the min-entropy comes from: estimated from strings, or modelled (`core.config.Accounting`)."""
    failure: str | None = None
    """Why the key has 0 bits or was not delivered."""
