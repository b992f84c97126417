"""What nodes report of a distilled block: metrics, never bits. These structs are sent in messages and recorded."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from testbed.core.gate import Finite, Number, Share, Tally, Text

COVERAGE = 0.8
"""Least share of the sacrificed bits for which Eve must have a measurement to count as measured. An Eve who receives
nothing guesses half of the bits wrong, which must not be mistaken for security."""


class AgreeReport(Struct, frozen=True, kw_only=True):
    """One side's view of a block from quantization to verification."""

    block: Number
    probes: Tally
    """Number of rows of the input CSI series."""
    raw_bits: Tally
    """Bits both sides kept after quantization."""
    sacrificed_bits: Tally
    sacrificed_errors: Tally
    """Number of sacrificed bits that differ between Alice and Bob."""
    reconciled_bits: Tally
    """Length of the string that was reconciled (raw − sacrificed); 0 where the block failed before."""
    corrected_bits: Tally | None
    """Number of bits that Bob flipped, which is the exact number of errors if the strings were verified. None at Alice
    and where reconciliation failed."""
    leaked_bits: Tally
    leaked_by_kind: dict[str, Tally]
    public_bytes: Tally
    messages: Tally
    verified: bool
    failure: Text | None
    """The reason, where the block was not verified."""
    csi_defects: dict[str, Tally] = {}
    """Number of each kind of defect of this side's CSI that was masked or repaired (`chain.defects`)."""
    csi_bins: list[Tally] = []
    """Positions of the subcarriers that were left out: dead, or jumping."""


class TrainReport(Struct, frozen=True, kw_only=True):
    """One side's view of a training block, which makes no key."""

    block: Number
    probes: Tally
    """Number of rows of the input CSI series."""
    model: Text | None
    """Name of the model, the same at both ends; None where there is none."""
    nmse_before: Finite | None = None
    """Mean square of the difference of both ends' CSI over the mean square of Bob's, on the validation rounds."""
    nmse_after: Finite | None = None
    """The same with the model. Both are known at Alice only."""
    memory_rounds: Tally | None = None
    """Rounds after which Alice's levels are no longer correlated (`training.memory_rounds`); None: longer than can be
    estimated."""
    card: dict[str, Any] = {}
    """Description of the model and its training data, plain values, as published. At Alice only."""
    public_bytes: Tally
    messages: Tally
    failure: Text | None


class HeardSeries(Struct, frozen=True, kw_only=True):
    """Measurements of one link by one antenna of an Eve, in the rounds that she has not reported yet. Public."""

    name: Text
    """Node, antenna and link, as "eve.0:alice"."""
    rounds: bytes
    """(round,) little-endian int64, ascending."""
    dimensions: Tally
    values: bytes
    """(round, dimension) little-endian float32, NaN where she received nothing: features as the chain computes them."""
    channels: Tally = 0
    csi: bytes = b""
    """(round, channel) little-endian complex64: a few channels of CSI."""


class SurfaceRecord(Struct, frozen=True, kw_only=True):
    """The surface in a block's rounds, as far as it is public."""

    states: tuple[Number, ...]
    """(round,) opaque number of the latched state: equal numbers are equal patterns."""
    levels: bytes | None = None
    """(round, element) uint8 phase levels, where the patterns are public; None where they are secret."""
    phase_bits: Annotated[int, Meta(ge=1, le=8)] = 1
    responses: bytes | None = None
    """(round,) complex64 response of the surface's path between Alice and Bob, computed from the scene's geometry up to
    a factor, where patterns are public and the scene gives all positions."""
    elements: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    """Number of elements of a secret surface, each with `phase_bits` bits; 0: unknown."""
    other_rounds: tuple[Number, ...] = ()
    """Earlier rounds that were in no such record, ascending: those of training and of failed blocks."""
    other_states: tuple[Number, ...] = ()
    """(other round,) the surface's state in them."""


class EveReport(Struct, frozen=True, kw_only=True):
    """How well Eve's best attack did on the bits that were published anyway."""

    block: Number
    sacrificed_bits: Tally
    covered_bits: Tally
    """Number of sacrificed bits for which she had a measurement to guess from."""
    sacrificed_errors: Tally
    """Number of covered bits that her best guess got wrong."""
    best_link: Text
    """The transmission from which she guessed best: from alice, from bob, or both."""
    transcript_complete: bool
    """Whether she received all public messages; otherwise her attack is weaker than it could be."""
    heard: tuple[HeardSeries, ...] = ()
    """The measurements with which Alice judges the key's length; not kept in records."""

    @property
    def error_rate(self) -> float:
        """Share of the covered bits that her best guess got wrong; ½ where she covered none."""
        return self.sacrificed_errors / self.covered_bits if self.covered_bits else 0.5

    @property
    def measured(self) -> bool:
        """Whether this report measures how well Eve can guess: the attack was complete, she received enough, and her
        counts are possible.
        """
        possible = 0 <= self.sacrificed_errors <= self.covered_bits <= self.sacrificed_bits
        return self.transcript_complete and possible and self.covered_bits >= max(1, COVERAGE * self.sacrificed_bits)


class EveRow(Struct, frozen=True, kw_only=True):
    """A row of "Who could know this key"."""

    name: Text
    knows: Text
    guess_probability: Share | None
    """Share of whole labels that she guesses, out of fold; None where this Eve is assumed."""
    upper_bound: Share | None
    """Confidence limit of that share, from which the length is computed."""
    key_bits: Tally
    """Length of the key if she were the only Eve."""


class LengthTerm(Struct, frozen=True, kw_only=True):
    """A line of the length's ledger: bits that are added or subtracted (negative)."""

    name: Text
    bits: Finite
    why: Text


class KeyReport(Struct, frozen=True, kw_only=True):
    """One side's view of amplification. Both sides fill in the first two fields, `entropy`, `failure` and the bits for
    authentication. All other fields are known at Alice only, and they leave her node only in experiment mode, because
    they follow from her secret string.
    """

    block: Number
    key_bits: Tally
    min_entropy_per_bit: Finite | None = None
    """Min-entropy of a kept bit given all attacks of the portfolio, as used for the length. None: not estimated."""
    eve_measured: bool = False
    entropy: Text = "estimated"
    """The rule: estimated or modelled (`core.config.Accounting`)."""
    failure: Text | None = None
    """Why the key has 0 bits or was not delivered."""
    limiting: Text | None = None
    """The Eve who set the length."""
    eves: tuple[EveRow, ...] = ()
    sensitivity: tuple[EveRow, ...] = ()
    """Length of the key under other assumptions."""
    terms: tuple[LengthTerm, ...] = ()
    assumptions: tuple[Text, ...] = ()
    epsilon_log2: dict[str, Finite] = {}
    """log2 of total, estimation, correction, amplification over the whole run."""
    refill_bits: Tally = 0
    """Bits of the hashed string that went into the pool of one-time authentication and are no part of `key_bits`.
    Reported by both sides in both modes, as `authentication_bits` is."""
    authentication_bits: Tally = 0
    """Bits of the pool that this block used up at this side."""

    def public(self) -> KeyReport:
        """Return the part of the report that a node sends in private mode."""
        failure = None if self.failure is None else self.failure.partition(":")[0]
        return KeyReport(
            block=self.block,
            key_bits=self.key_bits,
            eve_measured=self.eve_measured,
            entropy=self.entropy,
            failure=failure,
            refill_bits=self.refill_bits,
            authentication_bits=self.authentication_bits,
        )
