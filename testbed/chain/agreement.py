"""Agreement: two CSI series become one common string, or an explicit failure.

What leaks. The ledger counts what each message reveals about the string that remains in the end: the quantizer's
messages, parities, positions of corrected bits, and the verification tag, by which the key is confirmed as well
(`chain.confirm`). Sacrificed bits are published in full and removed from the string, so they count 0; what they reveal
about their neighbours lowers the entropy in the length rule (`testbed.entropy`).

Every reconciler is charged by the same rule: all bits that Alice reveals of her string, and all that Bob's messages
reveal beyond that. By the chain rule the string loses no more than I(string; Bob's messages) + Alice's bits.
- Alice's bits. Cascade: one for each division of a part into two halves whose parity was not published before; the
parity of the other half follows and reveals nothing new. LDPC and multilevel: one for each syndrome bit, and for each
bit that is sent in the clear.
- Bob's messages. Cascade's questions follow from public seeds and from the positions at which the strings differ, and
in the end they reveal the position of every error. If errors were independent of the string, that would reveal
nothing. But errors occur next to thresholds, so `correction_leak` charges what the positions reveal of the labels. The
charge itself depends on secret labels and is published, so the bits that its number takes are charged, too. LDPC's and
multilevel's replies say which frames failed: one bit for each reply. Which bits Bob corrected, and how many, is not
charged there, because no message of the discussion depends on it. (His node reports the number of corrected bits as a
metric; from it, a reader of the records learns at most log2(n + 1) bits about the errors, and no position.)
The benchmarks' efficiency f counts Alice's bits and the replies only, because their strings have no labels.

Turns. At any time one side sends and the other waits. Only the side whose turn it is may report a failure, so that a
failure is sent once and is never mistaken for a message of the next discussion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np

from testbed.chain.amplify.verify import TAG_BITS, TAG_BYTES, draw_point, verification_tag
from testbed.chain.confirm import Transcript, shown_tag
from testbed.chain.defects import Defects, mend
from testbed.chain.dialogue import (
    FAILED,
    PEER_FAILED,
    check_rounds,
    failed_message,
    integer,
    large,
    packed,
    read,
    rounds_digest,
    watched,
)
from testbed.chain.training import read_model_id, trained_features
from testbed.core.antennas import canonical_antennas
from testbed.core.config import Accounting
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import Dialogue, Ledger, PublicMessage, Receive, Send
from testbed.core.outcomes import AgreeReport
from testbed.core.seeds import generator, permutation
from testbed.core.stages import Enhancer, Evidence, Quantizer, Reconciler
from testbed.core.types import I64, U8, Bits, CsiSeries, Features
from testbed.entropy.corrections import correction_leak
from testbed.entropy.gaussian_labels import Symbols

Side = Literal["alice", "bob"]
T = TypeVar("T")
Steps = Generator[Send | Receive, PublicMessage | None, T]

MIN_BITS = 256
"""With fewer kept bits, the tag and 2·log2(1/ε) take all of them."""
LEAD, FOLLOW = "quantize_lead", "quantize_follow"
SACRIFICE, ERRORS = "sacrifice", "sacrifice_errors"
TAG, VERIFIED = "verify_tag", "verified"


@dataclass(slots=True)
class Agreed:
    """One side's outcome of `agree`; `report.verified` says whether there is a string."""

    report: AgreeReport
    values: U8 = field(repr=False)
    """(bit,) the verified common string; empty where not verified."""
    raw: Bits | None = field(repr=False)
    """Raw bits before the sacrifice; None where quantization failed."""
    sacrificed: I64
    """(position,) ascending indices into `raw` of the bits that were published."""
    ledger: Ledger
    csi: CsiSeries = field(repr=False)
    """This side's measurements, antennas in canonical order, defects masked or repaired."""
    features: Features | None = field(default=None, repr=False)
    """The quantizer's input; None where the block failed before."""
    columns: I64 | None = None
    """(dimension, feature) the columns of `features` from which each label follows; None: each its own column."""
    transcript: Transcript = field(default_factory=Transcript)
    """The messages so far."""
    tag: bytes = field(default=b"", repr=False)
    """Secret tag of the verified string; the code that confirms the final key is keyed by it (`chain.confirm`)."""


@dataclass(slots=True)
class _Progress:
    """The state of a block so far, from which a failure is reported."""

    block: int
    csi: CsiSeries
    features: Features | None = None
    columns: I64 | None = None
    defects: Defects = field(default_factory=Defects)
    raw: Bits | None = None
    sacrificed: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    errors: int = 0
    kept: Bits | None = None
    values: U8 = field(default_factory=lambda: np.zeros(0, np.uint8))
    corrected: int | None = None
    tag: bytes = b""

    def agreed(self, ledger: Ledger, transcript: Transcript, failure: str | None) -> Agreed:
        verified = failure is None
        report = AgreeReport(
            block=self.block,
            probes=self.csi.h.shape[0],
            raw_bits=0 if self.raw is None else self.raw.values.size,
            sacrificed_bits=self.sacrificed.size,
            sacrificed_errors=self.errors,
            reconciled_bits=0 if self.kept is None else self.kept.values.size,
            corrected_bits=self.corrected if verified else None,
            leaked_bits=ledger.leaked_bits,
            leaked_by_kind=dict(ledger.by_kind),
            public_bytes=ledger.sent_bytes,
            messages=ledger.messages,
            verified=verified,
            failure=failure,
            csi_defects=self.defects.counts,
            csi_bins=self.defects.bins,
        )
        values = self.values if verified else np.zeros(0, np.uint8)
        return Agreed(
            report, values, self.raw, self.sacrificed, ledger, self.csi, self.features, self.columns, transcript,
            self.tag if verified else b"",
        )  # fmt: skip


class Agreement:
    """Alice's half and Bob's half of a block's agreement, by the stages of one experiment."""

    def __init__(
        self,
        enhance: Enhancer,
        quantize: Quantizer,
        reconcile: Reconciler,
        accounting: Accounting,
        begin: Callable[[], Transcript] = Transcript,
    ) -> None:
        """`begin` makes the transcript that a block begins with."""
        self.enhance, self.quantize, self.reconcile, self.accounting = enhance, quantize, reconcile, accounting
        self._begin = begin

    def agree(self, role: Side, csi: CsiSeries, block: int, seed: int) -> Dialogue[Agreed]:
        """Return one side's dialogue from CSI to a verified common string.

        `csi` is what this side received; both series hold the same rounds. Never raises DialogueFailed: a failure is
        sent to the peer and returned as `report.failure` (other_rounds, too_few_bits, error_rate_too_high,
        verification_failed, not_trained, wrong_model, protocol, or peer_failed: <the peer's reason>) with everything
        that was measured until then.
        """
        ledger, transcript = Ledger(), self._begin()
        peer: Side = "bob" if role == "alice" else "alice"
        csi, defects = mend(canonical_antennas(csi, role))
        progress = _Progress(block, csi, defects=defects)
        steps = self._alice if role == "alice" else self._bob
        rng = generator(seed, "chain", role, block)

        def seen(whose: Literal["own", "peer"], message: PublicMessage) -> None:
            ledger.count(message)
            transcript.add(role if whose == "own" else peer, message)

        def side() -> Steps[Agreed]:
            failure: str | None = None
            try:
                yield from watched(steps(csi, progress, rng), seen)
            except DialogueFailed as exc:
                failure = f"{PEER_FAILED}: {exc.detail}" if exc.reason == PEER_FAILED else exc.reason
                if exc.reason != PEER_FAILED:
                    yield Send(failed_message(exc))  # in neither side's ledger, because the string is discarded
            return progress.agreed(ledger, transcript, failure)

        return side()

    def _alice(self, csi: CsiSeries, progress: _Progress, rng: np.random.Generator) -> Steps[None]:
        features, model = trained_features(self.enhance, csi, "alice")
        progress.features = features
        draft, lead = self.quantize.lead(features, rng)
        pairs = {"rounds": rounds_digest(csi)}
        yield Send(msgspec.structs.replace(lead, kind=LEAD, body={**lead.body, **model, **pairs}))
        follow = yield Receive(FOLLOW)
        assert follow is not None
        raw = progress.raw = read(follow, lambda: self.quantize.finish(draft, follow))
        seed = int(rng.integers(1 << 63))
        positions = self._sacrificed(raw, lead, seed)
        count = positions.size
        kept = _without(raw, positions)
        body: dict[str, Any] = {
            "block": progress.block,
            "raw": raw.values.size,
            "seed": seed,
            "count": count,
            "bits": np.packbits(raw.values[positions]).tobytes(),
        }
        # published in full and removed from the string, so that nothing remains that they could reveal
        yield Send(PublicMessage(kind=SACRIFICE, body=body, leaked_bits=0))
        answer = yield Receive(ERRORS)
        assert answer is not None
        progress.errors = integer(answer, "errors", 0, count)
        if answer.leaked_bits != _count_leak(count):
            raise DialogueFailed(
                "protocol", f"{ERRORS} counts {answer.leaked_bits} bits, accepted {_count_leak(count)}"
            )
        progress.sacrificed = positions
        progress.columns = self.quantize.columns(features, lead)
        rate = _estimate(progress.errors, count)
        if rate > self.reconcile.most_errors:
            yield Receive(FAILED)  # Bob applies the same rule, and reports it in his next message
        progress.kept = kept
        outcome = yield from self.reconcile.alice(Evidence(kept, rate, features, raw.take(positions)), rng)
        progress.values, progress.corrected = outcome.values, None
        point = draw_point(rng)
        tag = verification_tag(outcome.values, point)
        progress.tag = to_bytes(tag)
        told = {"point": to_bytes(point), "tag": shown_tag(progress.tag)}
        yield Send(PublicMessage(kind=TAG, body=told, leaked_bits=TAG_BITS))
        verified = yield Receive(VERIFIED)
        assert verified is not None
        _check_corrections(verified, kept, self.reconcile.shows_corrections)

    def _bob(self, csi: CsiSeries, progress: _Progress, rng: np.random.Generator) -> Steps[None]:
        lead = yield Receive(LEAD)
        assert lead is not None
        check_rounds(lead, csi)
        read_model_id(self.enhance, lead)
        features, _ = trained_features(self.enhance, csi, "bob")
        raw, follow = read(lead, lambda: self.quantize.follow(features, lead))
        progress.raw = raw
        yield Send(msgspec.structs.replace(follow, kind=FOLLOW))
        message = yield Receive(SACRIFICE)
        assert message is not None
        positions, theirs = self.read_sacrifice(message, raw, lead)
        progress.sacrificed = positions
        public = replace(raw.take(positions), values=theirs)
        progress.errors = int(np.count_nonzero(raw.values[positions] != theirs))
        kept = _without(raw, positions)
        # Bob publishes only how many sacrificed bits differ, not which ones. These bits leave the string, but their
        # number still reveals something about the remaining labels, so it is charged in full.
        leaked = _count_leak(positions.size)
        yield Send(PublicMessage(kind=ERRORS, body={"errors": progress.errors}, leaked_bits=leaked))
        rate = _estimate(progress.errors, positions.size)
        if rate > self.reconcile.most_errors:
            raise DialogueFailed("error_rate_too_high", f"{progress.errors} of {positions.size} sacrificed bits differ")
        progress.kept = kept
        outcome = yield from self.reconcile.bob(Evidence(kept, rate, features, public), rng)
        message = yield Receive(TAG)
        assert message is not None
        point = large(message, "point", TAG_BYTES)
        if message.leaked_bits != TAG_BITS:
            raise DialogueFailed("protocol", f"{TAG} counts {message.leaked_bits} bits, accepted {TAG_BITS}")
        progress.tag = to_bytes(read(message, lambda: verification_tag(outcome.values, point)))
        if message.body.get("tag") != shown_tag(progress.tag):
            raise DialogueFailed(
                "verification_failed", f"{outcome.corrected} bits were corrected, yet the strings differ"
            )
        progress.values, progress.corrected = outcome.values, outcome.corrected
        body: dict[str, Any] = {"corrections": []}
        leaked = 0
        # An interactive discussion reveals which bits Bob corrected. A syndrome does not, because it depends on Alice's
        # string alone; its bits are counted, as is each flag of Bob's replies. Then no positions are charged.
        if self.reconcile.shows_corrections:
            theirs_all = raw.values.copy()
            theirs_all[positions] = theirs
            theirs_all[np.delete(np.arange(raw.values.size), positions)] = outcome.values
            wrong = np.delete(np.arange(raw.values.size), positions)[kept.values != outcome.values]
            body["corrections"] = _by_level_bit(raw.take(wrong), kept)
            # A discussion cannot reveal more bits than the string has.
            leaked = min(kept.values.size, _corrections_leak(replace(raw, values=theirs_all), wrong))
        yield Send(PublicMessage(kind=VERIFIED, body=body, leaked_bits=leaked))

    def _sacrificed(self, raw: Bits, lead: PublicMessage, seed: int) -> I64:
        """Return the ascending positions that are published; raises DialogueFailed('too_few_bits').

        They are the bits of whole symbols, so that no label is partly known. Symbols whose bits the quantizer has
        already published are chosen first.
        """
        n, share = raw.values.size, self.accounting.sacrifice_fraction
        group = np.zeros(0, np.int64)
        if n:
            group = np.cumsum((np.diff(raw.probe, prepend=-1) != 0) | (np.diff(raw.dimension, prepend=-1) != 0)) - 1
        chosen = np.zeros(int(group[-1]) + 1 if n else 0, np.bool_)
        chosen[group[read(lead, lambda: self.quantize.published(raw, lead))]] = True
        order = permutation(chosen.size, seed, "sacrifice")
        order = order[~chosen[order]]
        chosen[order[: max(0, math.ceil(share * chosen.size) - int(chosen.sum()))]] = True
        positions = np.flatnonzero(chosen[group])
        if n - positions.size < MIN_BITS:
            raise DialogueFailed(
                "too_few_bits", f"{n} raw bits leave {n - positions.size} after the sacrifice, accepted {MIN_BITS}"
            )
        return positions

    def read_sacrifice(self, message: PublicMessage, raw: Bits, lead: PublicMessage) -> tuple[I64, U8]:
        """Return (positions, Alice's bits there); the share is agreed on, so Alice cannot publish another one."""
        n = raw.values.size
        if integer(message, "raw", 0, 1 << 32) != n:
            raise DialogueFailed(
                "protocol", f"{message.kind}: Alice kept {message.body['raw']} raw bits, this side {n}"
            )
        positions = self._sacrificed(raw, lead, integer(message, "seed", 0, (1 << 63) - 1))
        if integer(message, "count", 0, n) != positions.size:
            raise DialogueFailed(
                "protocol", f"{message.kind}: {message.body['count']} of {n} bits is not the agreed share"
            )
        return positions, packed(message, "bits", positions.size)


def to_bytes(value: int) -> bytes:
    """Return a tag or its point as bytes, because messages cannot contain integers of 128 bits."""
    return value.to_bytes(TAG_BYTES, "big")


def _estimate(errors: int, trials: int) -> float:
    """Return the error rate for the reconciliation: Laplace's rule, never 0, and rather too high for few trials."""
    return (errors + 1) / (trials + 2)


def _count_leak(most: int) -> int:
    """Return what a number in 0 … most can reveal: ⌈log2(most + 1)⌉ bits."""
    return most.bit_length()


def _without(bits: Bits, positions: I64) -> Bits:
    mask = np.ones(bits.values.size, bool)
    mask[positions] = False
    return bits.take(mask)


def _by_level_bit(bits: Bits, of: Bits) -> list[int]:
    """Count bits by their place in the label, most significant first; as many places as `of` has."""
    return [int(n) for n in np.bincount(bits.level_bit, minlength=int(of.level_bit.max()) + 1)]


def _corrections_leak(alice: Bits, wrong: I64) -> int:
    """Return the charge for the positions of corrected bits of Alice's whole string, and for publishing the charge."""
    if not wrong.size:
        return 0
    symbols = Symbols.of(alice)
    which = np.searchsorted(symbols.first, wrong, "right") - 1
    bits = symbols.bits[which]
    if not symbols.whole:
        return int((bits - 1).sum())
    flags = np.zeros_like(symbols.value)
    np.add.at(flags, which, 1 << (bits - 1 - alice.level_bit[wrong]))
    return correction_leak(symbols.value, flags, symbols.bits) + _count_leak(alice.values.size)


def _check_corrections(message: PublicMessage, kept: Bits, shown: bool) -> None:
    """Raise DialogueFailed('protocol') unless Bob's counts of corrections, and the bits charged for them, are possible.

    The charge follows from labels that only Bob can compare. He is trusted, so no proof is asked for.
    """
    most = _by_level_bit(kept, kept) if shown else []
    counts = message.body.get("corrections")
    if (
        not isinstance(counts, list)
        or len(counts) != len(most)
        or any(isinstance(n, bool) or not isinstance(n, int) for n in counts)
        or any(not 0 <= n <= m for n, m in zip(counts, most, strict=True))
    ):
        raise DialogueFailed("protocol", f"{message.kind}: corrections {str(counts)[:40]}, accepted up to {most}")
    limit = kept.values.size if any(counts) else 0
    if not 0 <= message.leaked_bits <= limit:
        raise DialogueFailed("protocol", f"{message.kind} counts {message.leaked_bits} bits, accepted 0 to {limit}")
