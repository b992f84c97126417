"""What nodes tell about a distilled block: metrics, never bits. They travel in messages and stand in records."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from testbed.core.gate import Finite, Number, Share, Tally, Text

COVERAGE = 0.8
"""Least share of the sacrificed bits that Eve must have heard something about to count as measured: who hears nothing
errs on every other bit, which must not pass for security."""


class AgreeReport(Struct, frozen=True, kw_only=True):
    """One side's view of a block from quantization to verification."""

    block: Number
    probes: Tally
    """Rows of the CSI series that went in."""
    raw_bits: Tally
    """Bits both sides kept after quantization."""
    sacrificed_bits: Tally
    sacrificed_errors: Tally
    """Of the sacrificed bits, how many differed between Alice and Bob."""
    reconciled_bits: Tally
    """Length of the string that was reconciled (raw − sacrificed); 0 where it did not come to that."""
    corrected_bits: Tally | None
    """Bits Bob flipped: with `verified`, the exact number of errors. None at Alice and where reconciliation failed."""
    leaked_bits: Tally
    leaked_by_kind: dict[str, Tally]
    public_bytes: Tally
    messages: Tally
    source_min_entropy: Share | None
    """Per bit, of Alice's string from its own statistics (bias, memory in time and frequency). None at Bob."""
    verified: bool
    failure: Text | None
    """Reason, where not verified."""


class TrainReport(Struct, frozen=True, kw_only=True):
    """One side's view of a training block: no bit of it enters a key."""

    block: Number
    probes: Tally
    """Rows of the CSI series that went in."""
    model: Text | None
    """Name of the model, the same at both ends; None where there is none."""
    nmse_before: Finite | None = None
    """Mean square of what differs between both ends' CSI over the mean square of Bob's, on the validation stretch."""
    nmse_after: Finite | None = None
    """The same after the model. Both at Alice only."""
    memory_rounds: Tally | None = None
    """Rounds after which Alice's levels have forgotten, see `training.memory_rounds`; None: longer than can be told."""
    card: dict[str, Any] = {}
    """What the model is and what it was learnt from, plain values; as published. At Alice only."""
    public_bytes: Tally
    messages: Tally
    failure: Text | None


class Dependence(Struct, frozen=True, kw_only=True):
    """How far Eve's features of one dimension explain Alice's published symbols."""

    dimension: Tally
    samples: Tally
    links: Tally
    """How many transmissions she used together."""
    r2: Finite
    """Share of Alice's variance that they explain."""


class EveReport(Struct, frozen=True, kw_only=True):
    """How well Eve's best attack did on the bits that were published anyway."""

    block: Number
    sacrificed_bits: Tally
    covered_bits: Tally
    """Of the sacrificed bits, for how many she had heard something to guess from."""
    sacrificed_errors: Tally
    """Of the covered bits, how many her best guess got wrong."""
    best_link: Text
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

    block: Number
    key_bits: Tally
    min_entropy_per_bit: Share
    """Per raw bit given Eve's measurements, as used for the length; the sacrificed bits are taken off separately."""
    eve_measured: bool
    entropy: Text = "estimated"
    """Where the min-entropy comes from: estimated from strings, or modelled (`core.config.Accounting`)."""
    failure: Text | None = None
    """Why the key has 0 bits or was not delivered."""
