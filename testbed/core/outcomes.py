"""What nodes tell about a distilled block: metrics, never bits. They travel in messages and stand in records."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

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
    verified: bool
    failure: Text | None
    """Reason, where not verified."""
    csi_defects: dict[str, Tally] = {}
    """What was wrong with this side's CSI and was masked or repaired, by name (`chain.defects`), and how many of it."""
    csi_bins: list[Tally] = []
    """Places of the subcarriers that were left out: dead, or jumping."""


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


class HeardSeries(Struct, frozen=True, kw_only=True):
    """What one antenna of an Eve measured of one link in the rounds that were not reported before. Public."""

    name: Text
    """Node, antenna and link, as "eve.0:alice"."""
    rounds: bytes
    """(round,) little-endian int64, ascending."""
    dimensions: Tally
    values: bytes
    """(round, dimension) little-endian float32, NaN where she heard nothing: features as the chain makes them."""
    channels: Tally = 0
    csi: bytes = b""
    """(round, channel) little-endian complex64: a few channels of CSI."""


class SurfaceRecord(Struct, frozen=True, kw_only=True):
    """The surface in a block's rounds, as far as it is public."""

    states: tuple[int, ...]
    """(round,) opaque number of the latched state: equal numbers are equal patterns."""
    levels: bytes | None = None
    """(round, element) uint8 phase levels, where the patterns are public; None where they are secret."""
    phase_bits: Annotated[int, Meta(ge=1, le=8)] = 1
    responses: bytes | None = None
    """(round,) complex64: what the surface's path between Alice and Bob responds by the scene's geometry, but for a
    factor, where patterns are public and the scene says where everything stands."""
    elements: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    """Of a secret surface, each of `phase_bits`: so many bits a state was drawn with. 0 where that is not told."""
    other_rounds: tuple[int, ...] = ()
    """Rounds until now that were in no record, ascending: of training, of blocks that failed."""
    other_states: tuple[int, ...] = ()
    """(other round,) what the surface held in them."""


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
    heard: tuple[HeardSeries, ...] = ()
    """What Alice judges the key's length with; not kept in records."""

    @property
    def error_rate(self) -> float:
        """Share of the covered bits that her best guess got wrong; ½ where she covered none."""
        return self.sacrificed_errors / self.covered_bits if self.covered_bits else 0.5

    @property
    def measured(self) -> bool:
        """Whether this says how well Eve can do: a possible count from a complete attack that was not deaf."""
        possible = 0 <= self.sacrificed_errors <= self.covered_bits <= self.sacrificed_bits
        return self.transcript_complete and possible and self.covered_bits >= max(1, COVERAGE * self.sacrificed_bits)


class EveRow(Struct, frozen=True, kw_only=True):
    """A row of "Who could know this key"."""

    name: Text
    knows: Text
    guess_probability: Share | None
    """Share of whole labels that she guesses, out of fold; None where she is assumed."""
    upper_bound: Share | None
    """Confidence limit of it that the length goes by."""
    key_bits: Tally
    """What the key would be if she were the only Eve."""


class LengthTerm(Struct, frozen=True, kw_only=True):
    """A line of the length's ledger: bits that are there, or taken off (negative)."""

    name: Text
    bits: Finite
    why: Text


class KeyReport(Struct, frozen=True, kw_only=True):
    """One side's view of amplification. All but the first two fields, `entropy` and `failure` are Alice's only, and
    leave her node in experiment mode only: they follow from her secret string.
    """

    block: Number
    key_bits: Tally
    min_entropy_per_bit: Finite | None = None
    """Of the kept bits given everything in the portfolio, as used for the length. None where it was not estimated."""
    eve_measured: bool = False
    entropy: Text = "estimated"
    """The rule: estimated or modelled (`core.config.Accounting`)."""
    failure: Text | None = None
    """Why the key has 0 bits or was not delivered."""
    limiting: Text | None = None
    """The Eve who set the length."""
    eves: tuple[EveRow, ...] = ()
    sensitivity: tuple[EveRow, ...] = ()
    """What the key would be under other assumptions."""
    terms: tuple[LengthTerm, ...] = ()
    assumptions: tuple[Text, ...] = ()
    epsilon_log2: dict[str, Finite] = {}
    """log2 of total, estimation, correction, amplification over the whole run."""

    def public(self) -> KeyReport:
        """Return what may leave a node in private mode."""
        failure = None if self.failure is None else self.failure.partition(":")[0]
        return KeyReport(
            block=self.block,
            key_bits=self.key_bits,
            eve_measured=self.eve_measured,
            entropy=self.entropy,
            failure=failure,
        )
