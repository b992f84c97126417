"""Chains the stages by name: Alice's side, Bob's side and Eve's, from CSI to a verified key.

`KeyChain.agree` makes one string out of two CSI series, `KeyChain.amplify` makes a key out of that string. Both are
dialogues (`core.ledger`): Alice and Bob each run their half, `chain.dialogue` or a node carries the messages.

A trainable enhancer learns before that, in a discussion of its own (`chain.training`).

What leaks. The ledger counts what each message tells about the string that is left in the end: the quantizer's,
parities, positions of corrected bits, the verification tag. Sacrificed bits are published in full and leave the string,
so they count 0; what they tell about their neighbours the length rule takes off the entropy (`amplify.accounting`).

What a reconciler is charged, each by the same rule: every bit that Alice tells of her string, and all that Bob's
messages tell beyond that. By the chain rule the string loses no more than I(string; Bob's messages) + Alice's bits.
- Alice's bits. Cascade: one a cut that was never answered before; siblings' parities follow and are no news. LDPC and
  multilevel: one a syndrome bit, or a bit in the clear.
- Bob's messages. Cascade's questions follow from public seeds and from where the strings differ, not from the strings
  otherwise, and end with every error laid open. Were errors independent of the string, that would tell nothing. They
  are not, errors lie next to borders, so `correction_leak` charges what the places tell of the labels, and the charge
  itself, which follows from secret labels, is charged for the digits it has. LDPC's and multilevel's replies say which
  frames failed: a bit for each failure and one for each success. Where and how often he corrected then stays with
  Bob: the discussion has no message that depends on it, hence no charge. (His node reports the number of corrected
  bits as a metric; who reads the records knows log2(n + 1) bits at most of the errors, none of a position.)
f as the benches give it is the first item and the flags of the second: bare strings have no labels.

Who speaks. At any moment one side speaks and the other waits, and only the speaker may find fault, so that a failure is
told once and never collides with a message of the next discussion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.amplify.verify import TAG_BITS, draw_point, verification_tag
from testbed.chain.dialogue import FAILED, PEER_FAILED, UNREADABLE, check_rounds, failed_message, metered, rounds_digest
from testbed.chain.training import EveModels, read_model_id, trained_features, training
from testbed.core import registry
from testbed.core.antennas import canonical_antennas
from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import DialogueFailed, InputError
from testbed.core.ledger import Dialogue, Ledger, PublicMessage, Receive, Send
from testbed.core.outcomes import COVERAGE, AgreeReport, EveReport, KeyReport, TrainReport
from testbed.core.seeds import generator, permutation
from testbed.core.stages import Enhancer, Evidence, Quantizer, Reconciler
from testbed.core.types import I64, U8, Bits, CsiSeries, Features, Key
from testbed.entropy import gaussian_eve
from testbed.entropy.accounting import (
    assumed_min_entropy,
    combined_min_entropy,
    correction_leak,
    eve_min_entropy,
    key_length,
)
from testbed.entropy.gaussian_labels import Symbols
from testbed.entropy.source import predicted_min_entropy, source_min_entropy

Side = Literal["alice", "bob"]
T = TypeVar("T")
Steps = Generator[Send | Receive, PublicMessage | None, T]

MIN_BITS = 256
"""Fewer kept bits cannot pay for the tag and 2·log2(1/ε)."""
LEAD, FOLLOW = "quantize_lead", "quantize_follow"
SACRIFICE, ERRORS = "sacrifice", "sacrifice_errors"
TAG, VERIFIED = "verify_tag", "verified"
AMPLIFY, CONFIRMED, DELIVERED = "amplify", "confirmed", "delivered"


@dataclass(slots=True)
class Agreed:
    """One side's outcome of `agree`; `report.verified` says whether there is a string."""

    report: AgreeReport
    values: U8 = field(repr=False)
    """(bit,) the verified common string; empty where not verified."""
    raw: Bits | None = field(repr=False)
    """Before the sacrifice; None where quantization failed."""
    sacrificed: I64
    """(position,) ascending indices into `raw` of the bits that were published."""
    ledger: Ledger


@dataclass(slots=True)
class EveGuess:
    """Outcome of Eve's attack on one block."""

    report: EveReport
    raw: U8 = field(repr=False)
    """(bit,) her best guess of the raw bits, sacrificed ones included; empty where she heard no quantizer messages."""
    reconciled: U8 | None = field(repr=False)
    """(bit,) of the kept bits, improved by the public discussion; None where the positions are not known."""
    key: U8 | None = field(repr=False)
    """(bit,) None where no key was announced."""


@dataclass(slots=True)
class _Progress:
    """What is known of a block so far; a failure reports from here."""

    block: int
    probes: int
    raw: Bits | None = None
    sacrificed: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    errors: int = 0
    kept: Bits | None = None
    values: U8 = field(default_factory=lambda: np.zeros(0, np.uint8))
    corrected: int | None = None
    source: float | None = None

    def agreed(self, ledger: Ledger, failure: str | None) -> Agreed:
        verified = failure is None
        report = AgreeReport(
            block=self.block,
            probes=self.probes,
            raw_bits=0 if self.raw is None else self.raw.values.size,
            sacrificed_bits=self.sacrificed.size,
            sacrificed_errors=self.errors,
            reconciled_bits=0 if self.kept is None else self.kept.values.size,
            corrected_bits=self.corrected if verified else None,
            leaked_bits=ledger.leaked_bits,
            leaked_by_kind=dict(ledger.by_kind),
            public_bytes=ledger.sent_bytes,
            messages=ledger.messages,
            source_min_entropy=self.source,
            verified=verified,
            failure=failure,
        )
        values = self.values if verified else np.zeros(0, np.uint8)
        return Agreed(report, values, self.raw, self.sacrificed, ledger)


class KeyChain:
    """The stages of one experiment. Stateless between blocks, but for the enhancer's model where it has one: a seed and
    a block number fix every random choice.
    """

    def __init__(self, plan: ChainPlan, accounting: Accounting) -> None:
        self.accounting = accounting
        self._eves: dict[str, EveModels] = {}
        """Who trained a model of her own; a node is one Eve, a replay may have several."""
        self.enhance: Enhancer = registry.make_stage("enhance", plan.enhance, plan.enhance_options)
        self.quantize: Quantizer = registry.make_stage("quantize", plan.quantize, plan.quantize_options)
        self.reconcile: Reconciler = registry.make_stage("reconcile", plan.reconcile, plan.reconcile_options)
        if self._modelled and not self.quantize.whole_symbols:
            raise InputError(
                f"accounting.entropy = 'modelled' with quantize = {plan.quantize!r}; "
                "accepted: 'estimated', or a quantizer with equally likely cells ('equiprobable')"
            )

    @property
    def _modelled(self) -> bool:
        return self.accounting.entropy == "modelled"

    # ------------------------------------------------------------ training

    def train(self, role: Side, csi: CsiSeries, block: int, seed: int) -> Dialogue[TrainReport]:
        """Return one side's dialogue in which the enhancer learns from a block that enters no key.

        Never raises DialogueFailed: a failure is told to the peer and returned as `report.failure`
        (untrainable, protocol, or peer_failed: <the peer's reason>). The model of before, if any, then stays.
        """
        return training(self.enhance, role, canonical_antennas(csi, role), block, generator(seed, "train", role, block))

    def overhear_training(
        self,
        from_alice: CsiSeries | None,
        from_bob: CsiSeries | None,
        transcript: Sequence[PublicMessage],
        seed: int,
        who: str = "eve",
    ) -> None:
        """Let Eve take the public part of the model, and learn her own from Bob's published CSI and what she heard."""
        models = self._eves[who] = EveModels()
        models.learn(self.enhance, from_alice, from_bob, transcript, generator(seed, "train", who))

    # ------------------------------------------------------------ agreement

    def agree(self, role: Side, csi: CsiSeries, block: int, seed: int) -> Dialogue[Agreed]:
        """Return one side's dialogue from CSI to a verified common string.

        `csi` is what this side received; both series hold the same rounds. Never raises DialogueFailed: a failure is
        told to the peer and returned as `report.failure` (other_rounds, too_few_bits, error_rate_too_high,
        verification_failed, not_trained, wrong_model, protocol, or peer_failed: <the peer's reason>) with whatever had
        been measured until then.
        """
        ledger = Ledger()
        progress = _Progress(block, csi.h.shape[0])
        steps = self._alice if role == "alice" else self._bob
        rng = generator(seed, "chain", role, block)

        def side() -> Steps[Agreed]:
            failure: str | None = None
            try:
                yield from metered(steps(canonical_antennas(csi, role), progress, rng), ledger)
            except DialogueFailed as exc:
                failure = f"{PEER_FAILED}: {exc.detail}" if exc.reason == PEER_FAILED else exc.reason
                if exc.reason != PEER_FAILED:
                    yield Send(failed_message(exc))  # in neither side's ledger: the string is thrown away
            return progress.agreed(ledger, failure)

        return side()

    def _alice(self, csi: CsiSeries, progress: _Progress, rng: np.random.Generator) -> Steps[None]:
        features, model = trained_features(self.enhance, csi, "alice")
        draft, lead = self.quantize.lead(features, rng)
        pairs = {"rounds": rounds_digest(csi)}
        yield Send(msgspec.structs.replace(lead, kind=LEAD, body={**lead.body, **model, **pairs}))
        follow = yield Receive(FOLLOW)
        assert follow is not None
        raw = progress.raw = _read(follow, lambda: self.quantize.finish(draft, follow))
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
        # published in full and removed from the string: nothing of them is left to leak
        yield Send(PublicMessage(kind=SACRIFICE, body=body, leaked_bits=0))
        answer = yield Receive(ERRORS)
        assert answer is not None
        progress.errors = _integer(answer, "errors", 0, count)
        if answer.leaked_bits != _count_leak(count):
            raise DialogueFailed(
                "protocol", f"{ERRORS} counts {answer.leaked_bits} bits, accepted {_count_leak(count)}"
            )
        progress.sacrificed = positions
        # Of the whole string, not of what is kept: the sacrificed bits are public, and they help to predict the rest.
        progress.source = (predicted_min_entropy if self._modelled else source_min_entropy)(raw)
        rate = _estimate(progress.errors, count)
        if rate > self.reconcile.most_errors:
            yield Receive(FAILED)  # Bob goes by the same rule and says so next
        progress.kept = kept
        outcome = yield from self.reconcile.alice(Evidence(kept, rate, features, raw.take(positions)), rng)
        progress.values, progress.corrected = outcome.values, None
        point = draw_point(rng)
        tag = verification_tag(outcome.values, point)
        yield Send(PublicMessage(kind=TAG, body={"point": point, "tag": tag}, leaked_bits=TAG_BITS))
        verified = yield Receive(VERIFIED)
        assert verified is not None
        _check_corrections(verified, kept, self.reconcile.shows_corrections)

    def _bob(self, csi: CsiSeries, progress: _Progress, rng: np.random.Generator) -> Steps[None]:
        lead = yield Receive(LEAD)
        assert lead is not None
        check_rounds(lead, csi)
        read_model_id(self.enhance, lead)
        features, _ = trained_features(self.enhance, csi, "bob")
        raw, follow = _read(lead, lambda: self.quantize.follow(features, lead))
        progress.raw = raw
        yield Send(msgspec.structs.replace(follow, kind=FOLLOW))
        message = yield Receive(SACRIFICE)
        assert message is not None
        positions, theirs = self._read_sacrifice(message, raw, lead)
        progress.sacrificed = positions
        public = replace(raw.take(positions), values=theirs)
        progress.errors = int(np.count_nonzero(raw.values[positions] != theirs))
        kept = _without(raw, positions)
        # Which sacrificed bits differ stays with Bob, and what differs is left out of the string. Yet a differing bit
        # says that the rest of its label lies next to a threshold, so the number is charged for all that it can say.
        leaked = _count_leak(positions.size)
        yield Send(PublicMessage(kind=ERRORS, body={"errors": progress.errors}, leaked_bits=leaked))
        rate = _estimate(progress.errors, positions.size)
        if rate > self.reconcile.most_errors:
            raise DialogueFailed("error_rate_too_high", f"{progress.errors} of {positions.size} sacrificed bits differ")
        progress.kept = kept
        outcome = yield from self.reconcile.bob(Evidence(kept, rate, features, public), rng)
        message = yield Receive(TAG)
        assert message is not None
        point, tag = _integer(message, "point", 0, (1 << 64) - 1), _integer(message, "tag", 0, (1 << 64) - 1)
        if message.leaked_bits != TAG_BITS:
            raise DialogueFailed("protocol", f"{TAG} counts {message.leaked_bits} bits, accepted {TAG_BITS}")
        if _read(message, lambda: verification_tag(outcome.values, point)) != tag:
            raise DialogueFailed(
                "verification_failed", f"{outcome.corrected} bits were corrected, yet the strings differ"
            )
        progress.values, progress.corrected = outcome.values, outcome.corrected
        body: dict[str, Any] = {"corrections": []}
        leaked = 0
        # An interactive discussion lays open where Bob corrected. A syndrome does not: it is a function of Alice's
        # string alone, its bits are counted, and of Bob's replies each flag. So nothing is told of positions here.
        if self.reconcile.shows_corrections:
            theirs_all = raw.values.copy()
            theirs_all[positions] = theirs
            theirs_all[np.delete(np.arange(raw.values.size), positions)] = outcome.values
            wrong = np.delete(np.arange(raw.values.size), positions)[kept.values != outcome.values]
            body["corrections"] = _by_level_bit(raw.take(wrong), kept)
            # more than all of it cannot be told
            leaked = min(kept.values.size, _corrections_leak(replace(raw, values=theirs_all), wrong))
        yield Send(PublicMessage(kind=VERIFIED, body=body, leaked_bits=leaked))

    def _sacrificed(self, raw: Bits, lead: PublicMessage, seed: int) -> I64:
        """Return the ascending positions that are published; raises DialogueFailed('too_few_bits').

        Bits anywhere, or all the bits of symbols anywhere, as the quantizer asks; first those that it has told already.
        """
        n, share = raw.values.size, self.accounting.sacrifice_fraction
        group = np.arange(n)
        if self.quantize.whole_symbols and n:
            group = np.cumsum((np.diff(raw.probe, prepend=-1) != 0) | (np.diff(raw.dimension, prepend=-1) != 0)) - 1
        chosen = np.zeros(int(group[-1]) + 1 if n else 0, np.bool_)
        chosen[group[_read(lead, lambda: self.quantize.published(raw, lead))]] = True
        order = permutation(chosen.size, seed, "sacrifice")
        order = order[~chosen[order]]
        chosen[order[: max(0, math.ceil(share * chosen.size) - int(chosen.sum()))]] = True
        positions = np.flatnonzero(chosen[group])
        if n - positions.size < MIN_BITS:
            raise DialogueFailed(
                "too_few_bits", f"{n} raw bits leave {n - positions.size} after the sacrifice, accepted {MIN_BITS}"
            )
        return positions

    def _read_sacrifice(self, message: PublicMessage, raw: Bits, lead: PublicMessage) -> tuple[I64, U8]:
        """Return (positions, Alice's bits there); the share is agreed, so that Alice cannot publish another one."""
        n = raw.values.size
        if _integer(message, "raw", 0, 1 << 32) != n:
            raise DialogueFailed(
                "protocol", f"{message.kind}: Alice kept {message.body['raw']} raw bits, this side {n}"
            )
        positions = self._sacrificed(raw, lead, _integer(message, "seed", 0, (1 << 63) - 1))
        if _integer(message, "count", 0, n) != positions.size:
            raise DialogueFailed(
                "protocol", f"{message.kind}: {message.body['count']} of {n} bits is not the agreed share"
            )
        return positions, _packed(message, "bits", positions.size)

    # ------------------------------------------------------------ amplification

    def amplify(
        self, role: Side, agreed: Agreed, eve: EveReport | None, seed: int
    ) -> Dialogue[tuple[Key | None, KeyReport]]:
        """Return one side's dialogue from a verified string to a key of the length that the accounting allows.

        Alice decides the length; `eve` is her node's knowledge of Eve and is ignored at Bob; a report that is no
        measurement of this block counts as none (`assumed_eve_error_rate`). Bob hashes only if his own
        ledger and the length rule give no shorter key. Alice's key is delivered when Bob confirmed, Bob's when he
        then heard `delivered`. The last message of any protocol can be lost (two generals): then Alice has a key that
        Bob does not use, and his node reports the failure; two different keys are not possible.
        A key of 0 bits is no key: (None, report) with the numbers in `failure`. Raises ValueError where `agreed` is not
        verified, DialogueFailed where the discussion fails (ledger_mismatch, protocol, peer_failed).
        """
        if not agreed.report.verified:
            raise ValueError(f"block {agreed.report.block} was not verified ({agreed.report.failure})")
        return self._amplify_alice(agreed, eve, seed) if role == "alice" else self._amplify_bob(agreed)

    def _amplify_alice(self, agreed: Agreed, eve: EveReport | None, seed: int) -> Steps[tuple[Key | None, KeyReport]]:
        block, n, leaked = agreed.report.block, agreed.values.size, agreed.ledger.leaked_bits
        measured = eve is not None and _usable(eve, agreed)
        if self._modelled:
            assert agreed.raw is not None
            measured = measured and eve is not None and gaussian_eve.usable(eve.dependence, agreed.raw)
            against_eve = self._modelled_entropy(agreed.raw, eve if measured else None)
        elif eve is not None and measured:
            against_eve = eve_min_entropy(eve.sacrificed_errors, eve.covered_bits)
        else:
            against_eve = assumed_min_entropy(self.accounting.assumed_eve_error_rate)
        h_min = combined_min_entropy(agreed.report.source_min_entropy or 0.0, against_eve)
        length = self._length(agreed, h_min)
        rng = generator(seed, "chain", "amplify", block)
        toeplitz = rng.integers(0, 2, seed_length(n, length), dtype=np.uint8)
        body: dict[str, Any] = {
            "block": block,
            "bits": n,
            "leaked": leaked,
            "min_entropy": h_min,
            "eve_measured": measured,
            "length": length,
            "seed": np.packbits(toeplitz).tobytes(),
        }
        yield Send(PublicMessage(kind=AMPLIFY, body=body))
        report = self._key_report(agreed, h_min, measured, length)
        if not length:
            return None, report
        key = Key(block, toeplitz_hash(agreed.values, toeplitz, length))
        yield Receive(CONFIRMED)
        yield Send(PublicMessage(kind=DELIVERED, body={"block": block}))
        return key, report

    def _modelled_entropy(self, raw: Bits, eve: EveReport | None) -> float:
        """Return the min-entropy per raw bit given Eve by the Gaussian model; None: she is as good as assumed."""
        counts = dict(enumerate(np.bincount(raw.dimension[raw.level_bit == 0]).tolist()))
        if eve is None:
            correlation = gaussian_eve.assumed_correlation(self.accounting.assumed_eve_error_rate)
            correlations = dict.fromkeys(counts, correlation)
        else:
            correlations = gaussian_eve.eve_correlations(eve.dependence, counts)
        total = gaussian_eve.smooth_min_entropy(raw, correlations, self.accounting.epsilon_log2)
        return min(1.0, total / raw.values.size)

    def _amplify_bob(self, agreed: Agreed) -> Steps[tuple[Key | None, KeyReport]]:
        block, n, leaked = agreed.report.block, agreed.values.size, agreed.ledger.leaked_bits
        message = yield Receive(AMPLIFY)
        assert message is not None
        if _integer(message, "block", 0, 1 << 62) != block:
            raise DialogueFailed("protocol", f"{AMPLIFY} speaks of another block than {block}")
        theirs = _integer(message, "leaked", 0, 1 << 62), _integer(message, "bits", 0, 1 << 62)
        if theirs != (leaked, n):
            detail = f"Alice counts {theirs[0]} leaked of {theirs[1]} bits, Bob {leaked} of {n}"
            raise DialogueFailed("ledger_mismatch", detail)
        h_min, measured = message.body.get("min_entropy"), message.body.get("eve_measured")
        if not isinstance(h_min, float) or not 0.0 <= h_min <= 1.0 or not isinstance(measured, bool):
            raise DialogueFailed("protocol", f"{AMPLIFY}: min_entropy or eve_measured is unusable")
        length = _integer(message, "length", 0, self._length(agreed, h_min))
        report = self._key_report(agreed, h_min, measured, length)
        if not length:
            return None, report
        toeplitz = _packed(message, "seed", seed_length(n, length))
        key = Key(block, toeplitz_hash(agreed.values, toeplitz, length))
        yield Send(PublicMessage(kind=CONFIRMED, body={"block": block}))
        yield Receive(DELIVERED)
        return key, report

    def _length(self, agreed: Agreed, h_min: float) -> int:
        raw, sacrificed = agreed.report.raw_bits, agreed.report.sacrificed_bits
        return key_length(raw, sacrificed, h_min, agreed.ledger.leaked_bits, self.accounting.epsilon_log2)

    def _key_report(self, agreed: Agreed, h_min: float, measured: bool, length: int) -> KeyReport:
        epsilon, r = self.accounting.epsilon_log2, agreed.report
        why = (
            f"entropy_exhausted: {r.raw_bits} raw bits × {h_min:.3f} − {r.sacrificed_bits} published − "
            f"{agreed.ledger.leaked_bits} leaked − {2 * epsilon} for ε = 2^−{epsilon} < 1"
        )
        return KeyReport(
            block=r.block,
            key_bits=length,
            min_entropy_per_bit=h_min,
            eve_measured=measured,
            entropy=self.accounting.entropy,
            failure=None if length else why,
        )

    # ------------------------------------------------------------ Eve

    def eavesdrop(
        self,
        block: int,
        from_alice: CsiSeries | None,
        from_bob: CsiSeries | None,
        transcript: Sequence[PublicMessage],
        complete: bool,
        who: str = "eve",
    ) -> EveGuess:
        """Run Eve's attack on a block: the same chain on what she heard, then everything that was said in public.

        She tries Alice's transmissions, Bob's, and the mean of both in the feature domain, each also through a model of
        her own where the enhancer was trained, and keeps what errs least on the sacrificed bits; a link that she hardly
        heard only where there is no other. Her error rate is therefore the least of three or six: a little in her
        favour.
        Works with any part missing (a series None, messages not heard), with a poorer result.
        """
        heard = {m.kind: m for m in transcript}
        links = self._links(from_alice, from_bob, self._eves.get(who, EveModels()))
        empty = np.zeros(0, np.uint8)
        if LEAD not in heard or FOLLOW not in heard:
            return EveGuess(_eve_report(block, 0, 0, 0, "none", complete), empty, None, None)
        guesses: dict[str, Bits] = {}
        covered: dict[str, NDArray[np.bool_]] = {}
        for link, features in links.items():
            try:
                guesses[link], covered[link] = self.quantize.eavesdrop(features, heard[LEAD], heard[FOLLOW])
            except UNREADABLE:
                continue  # her series does not fit this block (other rounds, other antennas)
        if not guesses:
            return EveGuess(_eve_report(block, 0, 0, 0, "none", complete), empty, None, None)
        link, first = next(iter(guesses.items()))
        try:
            positions, published = self._read_sacrifice(heard[SACRIFICE], first, heard[LEAD])
        except (DialogueFailed, KeyError):
            return EveGuess(_eve_report(block, 0, 0, 0, link, complete), first.values, None, None)
        scores = {}
        for link, guess in guesses.items():
            known = covered[link][positions]
            errors = int(np.count_nonzero((guess.values[positions] != published) & known))
            scores[link] = _eve_report(block, positions.size, int(known.sum()), errors, link, complete)
        link = min(scores, key=lambda name: _weakness(scores[name]))
        report, raw = scores[link], guesses[link].values
        if self.quantize.whole_symbols:
            public = replace(guesses[link].take(positions), values=published)
            own = [links[name].values for name in ("alice", "bob") if name in links]
            report = msgspec.structs.replace(report, dependence=gaussian_eve.dependence(public, own))
        reconciled = self.reconcile.eavesdrop(np.delete(raw, positions), transcript)
        return EveGuess(report, raw, reconciled, _eve_key(reconciled, heard.get(AMPLIFY)))

    def _links(self, from_alice: CsiSeries | None, from_bob: CsiSeries | None, eve: EveModels) -> dict[str, Features]:
        heard = {name: csi for name, csi in (("alice", from_alice), ("bob", from_bob)) if csi is not None}
        links: dict[str, Features] = {}
        for how, features in eve.features(self.enhance, heard).items():
            links |= {f"{name}{how}": f for name, f in features.items()}
            links |= _both(features, f"both{how}")
        return links


def _both(links: dict[str, Features], name: str) -> dict[str, Features]:
    """Return the mean of two links' features, where both are of the same rounds and dimensions."""
    if len(links) == 2:
        a, b = links["alice"], links["bob"]
        if a.values.shape == b.values.shape and np.array_equal(a.rounds, b.rounds):
            # where one of both is missing, the other stands alone
            both = np.where(
                np.isnan(a.values), b.values, np.where(np.isnan(b.values), a.values, (a.values + b.values) / 2)
            )
            return {name: replace(a, values=both)}
    return {}


def _usable(eve: EveReport, agreed: Agreed) -> bool:
    """Return whether a report is a measurement of this block: it comes from a node that may be wrong or broken."""
    return eve.block == agreed.report.block and eve.sacrificed_bits <= agreed.sacrificed.size and eve.measured


def _weakness(eve: EveReport) -> tuple[bool, float]:
    """Order links by how little they serve Eve; where she heard nothing she guesses half of the bits."""
    deaf = eve.sacrificed_bits - eve.covered_bits
    return eve.covered_bits < COVERAGE * eve.sacrificed_bits, eve.sacrificed_errors + deaf / 2


def _eve_report(block: int, sacrificed: int, covered: int, errors: int, link: str, complete: bool) -> EveReport:
    return EveReport(
        block=block,
        sacrificed_bits=sacrificed,
        covered_bits=covered,
        sacrificed_errors=errors,
        best_link=link,
        transcript_complete=complete,
    )


def _eve_key(reconciled: U8, message: PublicMessage | None) -> U8 | None:
    if message is None:
        return None
    try:
        length = _integer(message, "length", 1, reconciled.size)
        return toeplitz_hash(reconciled, _packed(message, "seed", seed_length(reconciled.size, length)), length)
    except DialogueFailed:
        return None


def _estimate(errors: int, trials: int) -> float:
    """Return the error rate to reconcile with: Laplace's rule, never 0, and rather above for few trials."""
    return (errors + 1) / (trials + 2)


def _count_leak(most: int) -> int:
    """Return what a number in 0 … most can tell: ⌈log2(most + 1)⌉ bits."""
    return most.bit_length()


def _without(bits: Bits, positions: I64) -> Bits:
    mask = np.ones(bits.values.size, bool)
    mask[positions] = False
    return bits.take(mask)


def _by_level_bit(bits: Bits, of: Bits) -> list[int]:
    """Count bits by their place in the label, most significant first; as many places as `of` has."""
    return [int(n) for n in np.bincount(bits.level_bit, minlength=int(of.level_bit.max()) + 1)]


def _corrections_leak(alice: Bits, wrong: I64) -> int:
    """Return the charge for the positions of corrected bits of Alice's whole string, and for saying it."""
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


# ---------------------------------------------------------------- reading the peer


def _read(message: PublicMessage, parse: Callable[[], T]) -> T:
    """Run a reader of the peer's message; what it raises for garbage becomes DialogueFailed('protocol')."""
    try:
        return parse()
    except UNREADABLE as exc:
        raise DialogueFailed("protocol", f"{message.kind}: {type(exc).__name__}: {exc}") from exc


def _integer(message: PublicMessage, key: str, least: int, most: int) -> int:
    value = message.body.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise DialogueFailed("protocol", f"{message.kind}: {key} = {str(value)[:40]}, accepted {least} to {most}")
    return value


def _packed(message: PublicMessage, key: str, count: int) -> U8:
    value = message.body.get(key)
    if not isinstance(value, bytes) or len(value) != (count + 7) // 8:
        raise DialogueFailed("protocol", f"{message.kind}: {key} is not {count} packed bits")
    return np.unpackbits(np.frombuffer(value, np.uint8), count=count)


def _check_corrections(message: PublicMessage, kept: Bits, shown: bool) -> None:
    """Raise DialogueFailed('protocol') unless Bob's counts are possible and charged. He is honest: they are not proved.

    The charge follows from labels that only Bob compares; it is checked to be possible.
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
