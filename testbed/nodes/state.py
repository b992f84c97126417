"""A node's logic as a pure state machine: an event in, instructions out; no sockets, no devices, no clock.

Alice and Bob hold a conversation for the block being distilled; Eve holds the transcript of what she overheard. The
same log of events gives the same instructions, so a node's run can be replayed from its messages.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import msgspec
import numpy as np

from testbed.assess import randomness
from testbed.chain.agreement import Agreed
from testbed.chain.dialogue import Conversation
from testbed.chain.knowledge import Knowledge, usable
from testbed.chain.pipeline import KeyChain
from testbed.core import seeds
from testbed.core.errors import InputError
from testbed.core.ledger import PublicMessage
from testbed.core.outcomes import AgreeReport, EveReport, KeyReport, SurfaceRecord, TrainReport
from testbed.core.stages import TrainableEnhancer
from testbed.core.types import CsiFrame, CsiSeries, Key
from testbed.net import messages as m

EVE_PATIENCE_S = 2.0
"""How long Eve waits for public messages that are still under way to her."""

Phase = Literal["agree", "amplify"]


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Told:
    """The coordinator said something."""

    body: Any


@dataclass(frozen=True, slots=True)
class Heard:
    """Something was said in the public discussion."""

    envelope: m.PublicEnvelope


@dataclass(frozen=True, slots=True)
class Recalled:
    """The model that this node kept of the run it was just welcomed to: it was trained before a restart."""

    model: bytes


@dataclass(frozen=True, slots=True)
class ProbeDone:
    """The device did its slots and the estimator its work."""

    report: m.Probed
    csi: dict[str, CsiFrame]
    """By role of the transmitter."""


@dataclass(frozen=True, slots=True)
class DeviceDone:
    """A device operation that is answered as it stands (settings accepted, clock read, pattern applied)."""

    report: Any


@dataclass(frozen=True, slots=True)
class DeviceFault:
    operation: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now_s: float


# ---------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Report:
    body: Any


@dataclass(frozen=True, slots=True)
class Publish:
    """Say something in the public discussion. `index` is its place in the transcript where Alice's node says it."""

    envelope: m.PublicEnvelope
    to_peer: bool
    """False: only put on record for listeners what the peer said."""


@dataclass(frozen=True, slots=True)
class Do:
    """A device operation: the body of the request."""

    body: m.Configure | m.ReadClock | m.Apply | m.ApplyNext | m.ReadSurface | m.Probe | m.Step


@dataclass(frozen=True, slots=True)
class KeepKey:
    key: Key


@dataclass(frozen=True, slots=True)
class KeepModel:
    """Keep what the training gave, for a restart within this run."""

    model: bytes


@dataclass(frozen=True, slots=True)
class Silence:
    pass


@dataclass(frozen=True, slots=True)
class Exit:
    code: int
    reason: str


Event = Told | Heard | Recalled | ProbeDone | DeviceDone | DeviceFault | Tick
Instruction = Report | Publish | Do | KeepKey | KeepModel | Silence | Exit


@dataclass(slots=True)
class _Overheard:
    """Eve's record of one block."""

    messages: dict[int, m.PublicEnvelope] = field(default_factory=dict)
    waiting: m.Attack | m.GuessKey | None = None
    deadline_s: float | None = None
    rounds: list[int] = field(default_factory=list)


class NodeState:
    """The state of one node. `role` is alice, bob, eve or ris.

    `secret_seed` feeds the node's own random choices in private mode, where the experiment's seed, which everybody
    knows, must not foretell which bits are sacrificed or how the key is hashed.
    """

    def __init__(self, role: str, secret_seed: int) -> None:
        self.role = role
        self._secret_seed = secret_seed
        self.name = "greeting"
        """greeting → ready ⇄ probing | agreeing | amplifying | attacking → stopped"""
        self.run = ""
        self._now_s = 0.0
        self._plan: m.Configure | None = None
        self._chain: KeyChain | None = None
        self._model: bytes | None = None
        """What the training of this run gave."""
        self._training = False
        """The conversation is one."""
        self._csi: dict[int, dict[str, CsiFrame]] = {}
        self._used = -1
        """Latest round that went into a block: none goes into two."""
        self._conversation: Conversation[Any] | None = None
        self._block = -1
        self._phase: Phase = "agree"
        self._deadline_s = 0.0
        self._agreed: dict[int, Agreed] = {}
        self._early: deque[m.PublicEnvelope] = deque()
        """What the peer said before this node was told to start."""
        self._said = 0
        """Alice: messages of the current block on the public record."""
        self._overheard: dict[int, _Overheard] = {}
        self._trained_on: CsiSeries | None = None
        self._knowledge = Knowledge()
        """What others may know of this run's strings, at Alice."""

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event; return what to do, in order."""
        match event:
            case Told(body):
                return self._told(body)
            case Heard(envelope):
                return self._heard(envelope)
            case Recalled(model):
                self._model = model
                return []
            case ProbeDone(report, csi):
                if csi:
                    self._csi[report.round] = csi
                self.name = "ready"
                return [Report(report)]
            case DeviceDone(report):
                self.name = "ready"
                return [Report(report)]
            case DeviceFault(operation, detail):
                state, self.name = self.name, "ready"
                return [Report(m.Failed(operation=operation, state=state, detail=detail))]
            case Tick(now_s):
                return self._tick(now_s)

    # -- coordinator

    def _told(self, body: Any) -> list[Instruction]:
        match body:
            case m.Welcome(run=run):
                self._forget()
                self.run, self.name = run, "ready"
                return []
            case m.Refused(reason=reason):
                self.name = "stopped"
                return [Silence(), Exit(1, reason)]
            case m.Configure():
                if self._plan is not None and self._plan.experiment_mode != body.experiment_mode:
                    detail = "the mode of a run cannot change within it"
                    return [Report(m.Failed(operation="configure", state=self.name, detail=detail))]
                self._plan = body
                try:
                    self._chain = KeyChain(body.chain, body.accounting, body.blocks)
                except InputError as exc:  # a model file that this machine does not have
                    return [Report(m.Failed(operation="configure", state=self.name, detail=str(exc)))]
                if (lost := self._restore()) is not None:
                    return [Report(m.Failed(operation="configure", state=self.name, detail=lost))]
                self.name = "configuring"
                return [Do(body)]
            case m.ReadClock() | m.Apply() | m.ApplyNext() | m.ReadSurface():
                self.name = "applying" if isinstance(body, m.Apply | m.ApplyNext) else "reading"
                return [Do(body)]
            case m.Probe() | m.Step():
                self.name = "probing"
                return [Do(body)]
            case m.Distil():
                return self._start_agreeing(body)
            case m.Amplify():
                return self._start_amplifying(body)
            case m.Attack() | m.GuessKey():
                return self._start_attack(body)
            case m.Abandon(block=block, reason=reason):
                return self._abandon(block, reason)
            case m.Finish(kind=kind):
                self.name = "stopped"
                return [Silence(), Report(m.Stopped(kind=kind)), Exit(0, kind)]
        return [Report(m.Failed(operation=type(body).__name__, state=self.name, detail="not a request to a node"))]

    def _restore(self) -> str | None:
        """Put the model of this run back into the chain, or say why it cannot be."""
        enhancer = self._chain.enhance if self._chain is not None else None
        if self._model is None or not isinstance(enhancer, TrainableEnhancer):
            return None
        try:
            enhancer.load(self._model)
        except ValueError as exc:
            return f"the model kept of this run: {exc}"
        return None

    def _forget(self) -> None:
        """A new run: nothing of an earlier one may reach its keys."""
        self._csi.clear()
        self._plan = self._model = None
        self._used = -1
        self._conversation = None
        self._agreed.clear()
        self._early.clear()
        self._overheard.clear()
        self._knowledge = Knowledge()
        self._block = -1

    @property
    def is_rehearsal(self) -> bool:
        """Whether the run follows from its seed, so that its keys are nobody's secret."""
        return self._plan is not None and self._plan.rehearsal

    @property
    def seed(self) -> int:
        """What random choices come from: a secret of this node and run, in a rehearsal the experiment's seed."""
        assert self._plan is not None
        return self._plan.seed if self._plan.rehearsal else seeds.secret(self._secret_seed, self.run)

    def _series(self, rounds: list[int], tx: str) -> CsiSeries | None:
        """What this node measured of transmitter `tx` in these rounds, NaN where it has nothing; None if never."""
        frames = [self._csi.get(r, {}).get(tx) for r in rounds]
        known = [f for f in frames if f is not None]
        if not known:
            return None
        blank = np.full_like(known[0].h, np.nan)
        return CsiSeries(
            h=np.stack([blank if f is None else f.h for f in frames]),
            rounds=np.array(rounds, dtype=np.int64),
            subcarrier_hz=known[0].subcarrier_hz,
        )

    # -- Alice and Bob

    def _start_agreeing(self, body: m.Distil) -> list[Instruction]:
        peer = "bob" if self.role == "alice" else "alice"
        series = self._series(body.rounds, peer)
        if self._chain is None or self._plan is None or self.role not in ("alice", "bob"):
            return [Report(m.Failed(operation="distil", state=self.name, detail="not configured as alice or bob"))]
        if self._conversation is not None:
            return [Report(m.Failed(operation="distil", state=self.name, detail=f"block {self._block} is still open"))]
        if body.rounds[0] <= self._used or any(b <= a for a, b in pairwise(body.rounds)):
            detail = f"rounds of block {body.block} repeat or are out of order"
            return [Report(m.Failed(operation="distil", state=self.name, detail=detail))]
        if series is None:
            return [
                Report(
                    m.Failed(operation="distil", state=self.name, detail=f"no CSI of block {body.block}: restarted?")
                )
            ]
        self._used = body.rounds[-1]
        for r in [r for r in self._csi if r <= self._used]:
            del self._csi[r]  # used once, then gone
        self._block, self._phase, self._said = body.block, "agree", 0
        self._deadline_s = self._now_s + body.timeout_s
        self.name = "agreeing"
        role: Literal["alice", "bob"] = "alice" if self.role == "alice" else "bob"
        self._training = body.purpose == "training"
        self._trained_on = series if self._training and role == "alice" else None
        start = self._chain.train if self._training else self._chain.agree
        self._conversation = Conversation(start(role, series, body.block, self.seed))
        return self._converse(None, start=True)

    def _start_amplifying(self, body: m.Amplify) -> list[Instruction]:
        agreed = self._agreed.pop(body.block, None)
        if self._chain is None or self._plan is None or agreed is None or self._conversation is not None:
            return [
                Report(m.Failed(operation="amplify", state=self.name, detail=f"block {body.block} was not agreed here"))
            ]
        self._block, self._phase = body.block, "amplify"
        self._deadline_s = self._now_s + body.timeout_s
        self.name = "amplifying"
        role: Literal["alice", "bob"] = "alice" if self.role == "alice" else "bob"
        decided = self._decide(agreed, body.eve, body.surface) if role == "alice" else None
        self._conversation = Conversation(self._chain.amplify(role, agreed, decided, self.seed))
        return self._converse(None, start=True)

    def _decide(self, agreed: Agreed, eve: EveReport | None, surface: SurfaceRecord | None) -> KeyReport:
        """Return how long the key may be, by everything that others may know; from now on they know this block."""
        assert self._chain is not None
        if eve is not None and usable(eve, agreed.report.block):
            self._knowledge.add_heard(eve.heard)
        decided = self._chain.decide(agreed, self._knowledge.facts(agreed, surface), self.seed)
        if agreed.features is not None:
            self._knowledge.add_features(f"block {agreed.report.block}", agreed.features)
        return decided

    def _converse(self, incoming: PublicMessage | None, start: bool = False) -> list[Instruction]:
        """Advance the conversation by a message, then by everything that arrived early."""
        conversation = self._conversation
        assert conversation is not None
        out: list[Instruction] = []
        if start or incoming is not None:
            out += [self._say(x) for x in conversation.advance(incoming)]
        while not conversation.done and self._early:
            envelope = self._early.popleft()
            if (envelope.block, envelope.phase) == (self._block, self._phase):
                out += self._on_record(envelope)
                out += [self._say(x) for x in conversation.advance(envelope.message)]
        if conversation.done:
            out += self._conclude(conversation)
        return out

    def _say(self, message: PublicMessage) -> Publish:
        sender: Literal["alice", "bob"] = "alice" if self.role == "alice" else "bob"
        index = -1
        if self.role == "alice":
            index, self._said = self._said, self._said + 1
        return Publish(m.PublicEnvelope(self.run, self._block, self._phase, index, sender, message), to_peer=True)

    def _on_record(self, envelope: m.PublicEnvelope) -> list[Instruction]:
        """Alice's node puts what Bob said on the public record."""
        if self.role != "alice":
            return []
        index, self._said = self._said, self._said + 1
        heard = m.PublicEnvelope(self.run, envelope.block, envelope.phase, index, "bob", envelope.message)
        return [Publish(heard, to_peer=False)]

    def _conclude(self, conversation: Conversation[Any]) -> list[Instruction]:
        self._conversation = None
        phase, self.name = self._phase, "ready"
        assert self._plan is not None
        if phase == "agree" and self._training:
            return self._trained(conversation)
        if phase == "agree":
            agreed: Agreed | None = conversation.result
            if agreed is None:
                return [self._no_agreement(_reason(conversation))]
            if agreed.report.verified:
                self._agreed = {self._block: agreed}
            raw = agreed.raw.values.tobytes() if self._plan.experiment_mode and agreed.raw is not None else None
            return [Report(m.Agreed(report=agreed.report, raw_bits=raw, public_messages=self._said))]
        if conversation.result is None:
            return [self._no_key(_reason(conversation))]
        key, report = conversation.result
        if key is None:
            return [Report(m.Amplified(report=self._public(report), public_messages=self._said))]
        digest, p_values = None, {}
        if self._plan.experiment_mode:
            digest = self._digest(key)
            if self.role == "alice":
                p_values = {test: float(p[0]) for test, p in randomness.p_values(key.bits[None, :]).items()}
        amplified = m.Amplified(
            report=self._public(report), digest=digest, public_messages=self._said, p_values=p_values
        )
        return [KeepKey(key), Report(amplified)]

    def _trained(self, conversation: Conversation[Any]) -> list[Instruction]:
        report: TrainReport | None = conversation.result
        if report is None:
            ledger = conversation.ledger
            report = TrainReport(
                block=self._block, probes=0, model=None, public_bytes=ledger.sent_bytes, messages=ledger.messages,
                failure=_reason(conversation),
            )  # fmt: skip
        said = Report(m.Trained(report=report, public_messages=self._said))
        enhancer = self._chain.enhance if self._chain is not None else None
        if report.failure is not None or not isinstance(enhancer, TrainableEnhancer):
            return [said]
        self._model = enhancer.dump()
        assert self._chain is not None
        features = None if self._trained_on is None else self._chain.features(self._trained_on, "alice")
        if features is not None:
            self._knowledge.add_features("training", features)
        return [KeepModel(self._model), said]

    def _no_agreement(self, reason: str) -> Report:
        report = AgreeReport(
            block=self._block, probes=0, raw_bits=0, sacrificed_bits=0, sacrificed_errors=0, reconciled_bits=0,
            corrected_bits=None, leaked_bits=0, leaked_by_kind={}, public_bytes=0, messages=self._said,
            verified=False, failure=reason,
        )  # fmt: skip
        return Report(m.Agreed(report=report, public_messages=self._said))

    def _no_key(self, reason: str) -> Report:
        report = KeyReport(block=self._block, key_bits=0, failure=reason)
        return Report(m.Amplified(report=report, public_messages=self._said))

    def _public(self, report: KeyReport) -> KeyReport:
        """Return what may be said of a length: entropies follow from secret bits, so private nodes keep them."""
        return report if self._plan is not None and self._plan.experiment_mode else report.public()

    def _digest(self, key: Key) -> str:
        text = f"{self.run}/{key.block}/".encode() + np.packbits(key.bits).tobytes() + str(key.bits.size).encode()
        return hashlib.sha256(text).hexdigest()

    def _abandon(self, block: int, reason: str) -> list[Instruction]:
        self._agreed.pop(block, None)
        if self._conversation is not None and self._block == block:
            self._conversation = None
            self.name = "ready"
        if self._block == block:
            self._early.clear()
        return []

    # -- the public discussion

    def _heard(self, envelope: m.PublicEnvelope) -> list[Instruction]:
        if envelope.run != self.run:
            return []
        if self.role == "eve":
            record = self._overheard.setdefault(envelope.block, _Overheard())
            record.messages[envelope.index] = envelope
            return self._try_attack(envelope.block)
        active = self._conversation is not None and (envelope.block, envelope.phase) == (self._block, self._phase)
        if not active:
            if (envelope.block, envelope.phase) > (self._block, self._phase):
                self._early.append(envelope)
            return []
        out = self._on_record(envelope)
        return out + self._converse(envelope.message)

    # -- Eve

    def _start_attack(self, body: m.Attack | m.GuessKey) -> list[Instruction]:
        record = self._overheard.setdefault(body.block, _Overheard())
        record.waiting = body
        record.deadline_s = self._now_s + EVE_PATIENCE_S
        if isinstance(body, m.Attack):
            record.rounds = body.rounds
            for old in [b for b in self._overheard if b < body.block]:
                del self._overheard[old]
            for r in [r for r in self._csi if body.rounds and r < body.rounds[0]]:
                del self._csi[r]
        self.name = "attacking"
        return self._try_attack(body.block)

    def _try_attack(self, block: int, patience_over: bool = False) -> list[Instruction]:
        record = self._overheard[block]
        request = record.waiting
        if request is None:
            return []
        complete = all(i in record.messages for i in range(request.public_messages))
        if not complete and not patience_over:
            return []
        record.waiting = None
        self.name = "ready"
        assert self._chain is not None
        assert self._plan is not None
        transcript = [record.messages[i].message for i in sorted(record.messages)]
        if isinstance(request, m.Attack) and request.purpose == "training":
            return self._overhear_training(block, record, transcript, complete)
        guess = self._chain.eavesdrop(
            block,
            self._series(record.rounds, "alice"),
            self._series(record.rounds, "bob"),
            transcript,
            complete,
        )
        if isinstance(request, m.Attack):
            raw = guess.raw.tobytes() if self._plan.experiment_mode and guess.raw is not None else None
            from_alice, from_bob = (self._series(record.rounds, tx) for tx in ("alice", "bob"))
            heard = self._chain.report_series(from_alice, from_bob)
            report = msgspec.structs.replace(guess.report, heard=heard)
            return [Report(m.Attacked(report=report, guess=raw))]
        del self._overheard[block]
        for r in [r for r in self._csi if record.rounds and r <= record.rounds[-1]]:
            del self._csi[r]
        digest = None
        if guess.key is not None and self._plan.experiment_mode:
            digest = self._digest(Key(block=block, bits=guess.key))
        return [Report(m.KeyGuessed(block=block, digest=digest))]

    def _overhear_training(
        self, block: int, record: _Overheard, transcript: list[PublicMessage], complete: bool
    ) -> list[Instruction]:
        assert self._chain is not None
        assert self._plan is not None
        self._chain.overhear_training(
            self._series(record.rounds, "alice"), self._series(record.rounds, "bob"), transcript, self._plan.seed
        )
        del self._overheard[block]
        for r in [r for r in self._csi if record.rounds and r <= record.rounds[-1]]:
            del self._csi[r]
        nothing = EveReport(
            block=block, sacrificed_bits=0, covered_bits=0, sacrificed_errors=0, best_link="none",
            transcript_complete=complete,
        )  # fmt: skip
        return [Report(m.Attacked(report=nothing))]

    # -- time

    def _tick(self, now_s: float) -> list[Instruction]:
        self._now_s = now_s
        if self._conversation is not None and now_s > self._deadline_s:
            late = self._conversation
            last_words: list[Instruction] = [self._say(x) for x in late.fail("timeout", "the peer fell silent")]
            return last_words + self._conclude(late)
        for block, record in list(self._overheard.items()):
            if record.waiting is not None and record.deadline_s is not None and now_s > record.deadline_s:
                return self._try_attack(block, patience_over=True)
        return []


def _reason(conversation: Conversation[Any]) -> str:
    return conversation.failure.reason if conversation.failure is not None else "protocol"


__all__ = [
    "DeviceDone",
    "DeviceFault",
    "Do",
    "EveReport",
    "Event",
    "Exit",
    "Heard",
    "Instruction",
    "KeepKey",
    "KeepModel",
    "NodeState",
    "ProbeDone",
    "Publish",
    "Recalled",
    "Report",
    "Silence",
    "Tick",
    "Told",
]  # fmt: skip
