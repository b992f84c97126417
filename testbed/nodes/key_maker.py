"""Alice's or Bob's part in a block: the discussion with the peer, and the reports of it. Pure.

    idle ──distil──► agree ──agreed──► idle ──amplify──► amplify ──► idle
                       │ failed, abandoned, out of time ──► idle

The agreed bits are stored only here, and only from the end of the agreement to the start of the amplification. If a
message of the peer arrives before the coordinator's order for its block, it waits for the order. A block is a list of
rounds; it makes no difference here whether they were measured in trains or under secret patterns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import msgspec

from testbed.assess import randomness
from testbed.chain.agreement import Agreed
from testbed.chain.dialogue import Conversation
from testbed.chain.knowledge import Knowledge
from testbed.chain.pipeline import KeyChain
from testbed.core.config import SurfacePlan
from testbed.core.errors import InputError
from testbed.core.forks import Children
from testbed.core.ledger import PublicMessage, size_of
from testbed.core.machine import Deadlines, EventClock, Story
from testbed.core.outcomes import AgreeReport, KeyReport, SurfaceRecord, TrainReport
from testbed.core.stages import TrainableEnhancer
from testbed.core.types import CsiSeries, Key
from testbed.net import messages as m
from testbed.nodes import known
from testbed.nodes.events import (
    DropKey,
    Instruction,
    OrderRefused,
    Publish,
    Report,
    StoreKey,
    StoreKnown,
    StoreModel,
    StorePool,
)
from testbed.nodes.measured import MeasuredCsi
from testbed.nodes.setup import NO_POOL, Setup

Phase = Literal["agree", "amplify"]

_PEER = "the peer's next message"
_SHARE_OF_TIME = 0.9
"""Share of a discussion's time limit that judging may take, so that Bob still hears why there is no key."""
MOST_SERIES = 16
"""Number of Eve's antennas and links whose measurements Alice judges. Sixteen take some seconds, 64 take minutes."""
MAX_EARLY = 64
"""Largest number of messages that wait for the order to begin their discussion …"""
MAX_EARLY_BYTES = m.MAX_PUBLIC_BYTES
"""… and of their bytes together, which a single message may have."""


class KeyMaker(Deadlines):
    """One end of the pair. `role` of a node that is neither Alice nor Bob refuses every order.

    `children`: how the length of a key is judged in forked children; None: in this process.
    """

    def __init__(
        self, role: str, setup: Setup, measured: MeasuredCsi, clock: EventClock, story: Story,
        children: Children | None = None,
    ) -> None:  # fmt: skip
        super().__init__(clock)
        self._setup, self._measured, self._story = setup, measured, story
        self._node_role, self._children = role, children
        self._side: Literal["alice", "bob"] = "bob" if role == "bob" else "alice"
        self._conversation: Conversation[Any] | None = None
        self._is_training = False
        self.block = -1
        """Number of the latest block that was begun."""
        self.phase: Phase = "agree"
        self._agreed: dict[int, Agreed] = {}
        """The block on whose string the ends agreed, and which waits to be amplified."""
        self._early: deque[m.PublicEnvelope] = deque()
        """Messages that the peer sent before this node was ordered to begin the block."""
        self.dropped = 0
        """Number of such messages that were dropped because there were too many."""
        self._on_record = 0
        """Alice: number of messages of the present block that were published."""
        self._discussed: CsiSeries | None = None
        """Alice: CSI of the block under discussion."""
        self._told: list[tuple[str, CsiSeries]] = []
        """Alice: CSI of trainings and of interrupted discussions, which counts as public; not yet turned into
        features."""
        self._knowledge = Knowledge(MOST_SERIES)
        """Alice: what others may know of this run's strings."""
        self._first: int | None = None
        """The first block of this run that this node knows; an earlier process of it stored nothing of those before."""
        self._spent_bits = 0
        """Bits of the pool before the present amplification."""

    @property
    def is_busy(self) -> bool:
        return self._conversation is not None

    @property
    def has_agreed(self) -> bool:
        """Whether it holds a block's agreed bits, of which the key has still to be made."""
        return bool(self._agreed)

    def clear(self, same_run: bool = False) -> None:
        """Delete everything for a new run; `same_run`: keep what others may know of this run's strings."""
        self._give_up()
        self._end_conversation()
        for agreed in self._agreed.values():
            self._give_away(agreed)
        self._agreed.clear()
        self._early.clear()
        if not same_run:
            self._told, self._knowledge, self._first = [], Knowledge(MOST_SERIES), None
        self.block = -1

    def recall(self, past: known.Past) -> None:
        """Take what an earlier process of this node stored of the run, unless this one has already begun a block.

        All of it counts as known to everybody, because it is unknown how much of it was published.
        """
        if self._first is not None or self._node_role != "alice":
            return
        self._first = past.first
        self._told = [(f"block {part.block}", part.series) for part in past.begun]
        last_rounds = {block.block: int(block.series.rounds[-1]) for block in past.begun}
        for part in past.decided:
            self._knowledge.add_heard(part.heard, last_rounds.get(part.block))
        self._setup.has_spent(part.block for part in past.decided)

    # -- orders

    def start_agreement(self, body: m.Distil) -> list[Instruction]:
        """Begin a block, of a key or of training; raises OrderRefused."""
        if self._node_role not in ("alice", "bob") or self._setup.chain is None or self._setup.plan is None:
            raise OrderRefused("not configured as alice or bob")
        if self.is_busy:
            raise OrderRefused(f"block {self.block} is still open")
        if self._setup.pool is not None and not self._setup.pool.pairs:
            return self._end_without_pool()
        series = self._measured.use(body.rounds, "bob" if self._side == "alice" else "alice", body.block)
        chain = self._setup.chain
        self._is_training = body.purpose == "training"
        self._discussed = series if self._side == "alice" else None
        for agreed in self._agreed.values():  # blocks that were neither amplified nor abandoned
            self._give_away(agreed)
        self._agreed.clear()
        self._first = body.block if self._first is None else self._first
        self._on_record = 0
        self._story.add("block begun", rounds=body.rounds, block=body.block, purpose=body.purpose)
        start = chain.train if self._is_training else chain.agree
        dialogue = start(self._side, series, body.block, self._setup.seed)
        alice = self._side == "alice"
        keep = StoreKnown(known.begun(body.block, self._first, series) if alice else known.Numbered(body.block))
        return [keep, *self._begin(body.block, "agree", Conversation(dialogue), body.timeout_s)]

    def start_amplification(self, body: m.Amplify) -> list[Instruction]:
        """Hash the agreed bits to a key; raises OrderRefused."""
        agreed = self._agreed.pop(body.block, None)
        if self._setup.chain is None or self._setup.plan is None or agreed is None or self.is_busy:
            raise OrderRefused(f"block {body.block} was not agreed here")
        chain = self._setup.chain
        self._spent_bits = 0 if self._setup.pool is None else self._setup.pool.spent_bits
        decided = self._decide(chain, agreed, body) if self._side == "alice" else None
        dialogue = chain.amplify(self._side, agreed, decided, self._setup.seed)
        heard = body.eve.heard if body.eve is not None and body.eve.block == body.block else ()
        keep = [StoreKnown(known.Decided(body.block, heard))] if self._side == "alice" else []
        return [*keep, *self._begin(body.block, "amplify", Conversation(dialogue), body.timeout_s)]

    def _decide(self, chain: KeyChain, agreed: Agreed, body: m.Amplify) -> KeyReport:
        """Return how long the key may be, given all that others may know. For later blocks, this block counts as known.

        Raises OrderRefused where the reports on Eve and the surface do not fit the block.
        """
        block, plan, eve, surface = agreed.report.block, self._setup.plan, body.eve, body.surface
        assert plan is not None
        children = self._children and replace(self._children, limit_s=_SHARE_OF_TIME * body.timeout_s)
        # Eve's measurements count even if public messages did not reach her.
        if eve is not None and eve.block == block:
            self._knowledge.add_heard(eve.heard, int(agreed.csi.rounds[-1]))
        self._learn_what_was_told(chain)
        try:
            if self._first:
                why = (
                    f"earlier_blocks_unknown: this node joined at block {self._first} and does not know what others "
                    "may know of earlier blocks"
                )
                return KeyReport(block=block, key_bits=0, entropy=plan.accounting.entropy, failure=why)
            _check_surface(plan.surface, surface, block)
            report = chain.decide(agreed, self._knowledge.facts(agreed, surface), self._setup.seed, children)
            is_whole = not self._knowledge.refused_series  # what is left out of her report does not count as measured
            return report if is_whole else msgspec.structs.replace(report, eve_measured=False)
        except InputError as exc:
            raise OrderRefused(f"block {agreed.report.block}: {exc}") from exc
        finally:
            self._give_away(agreed)

    def _give_away(self, agreed: Agreed | None) -> None:
        """Count a block as known to others: parts of it were published, and its key is in use."""
        if self._side == "alice" and agreed is not None and agreed.features is not None:
            self._knowledge.add_features(f"block {agreed.report.block}", agreed.features)

    def _give_up(self) -> None:
        """Count an interrupted discussion's CSI as public, because it is unknown how much was published."""
        if self._discussed is not None:
            self._told.append((f"block {self.block}", self._discussed))
        self._discussed = None

    def _learn_what_was_told(self, chain: KeyChain) -> None:
        """Turn published CSI and that of interrupted discussions into features, once the enhancer's model is there."""
        waiting = []
        for name, csi in self._told:
            features = chain.features(csi, "alice")
            if features is None:
                waiting.append((name, csi))
            else:
                self._knowledge.add_features(name, features)
        self._told = waiting

    def abandon(self, body: m.Abandon) -> list[Instruction]:
        """Give a block up and delete its bits, and its key where there is one already."""
        self._give_away(self._agreed.pop(body.block, None))
        if self.block == body.block:
            self._give_up()
            self._end_conversation()
            # Messages of a later block may have arrived before this order; they are kept.
            self._early = deque(x for x in self._early if x.block > body.block)
        self._story.add("abandoned", block=body.block, reason=body.reason)
        return [DropKey(body.block)] if self._node_role in ("alice", "bob") else []

    # -- the discussion

    def _begin(self, block: int, phase: Phase, conversation: Conversation[Any], timeout_s: float) -> list[Instruction]:
        self.block, self.phase, self._conversation = block, phase, conversation
        self.set_deadline(_PEER, timeout_s)
        return self._publish(conversation.advance(None)) + self._take_early_and_conclude(conversation)

    def take(self, envelope: m.PublicEnvelope) -> list[Instruction]:
        """Handle a message of the peer, now or once its block is begun."""
        of, present = (envelope.block, envelope.phase), (self.block, self.phase)
        if self._conversation is None or of != present:
            if of > present:
                self._early.append(envelope)
                n_bytes = sum(size_of(early.message) for early in self._early)
                if len(self._early) > MAX_EARLY or n_bytes > MAX_EARLY_BYTES:
                    self._early.pop()
                    self.dropped += 1
            return []
        return self._advance(self._conversation, envelope) + self._take_early_and_conclude(self._conversation)

    def _take_early_and_conclude(self, conversation: Conversation[Any]) -> list[Instruction]:
        out: list[Instruction] = []
        while not conversation.done and self._early:
            envelope = self._early.popleft()
            if (envelope.block, envelope.phase) == (self.block, self.phase):
                out += self._advance(conversation, envelope)
        return out + self._conclude(conversation) if conversation.done else out

    def _advance(self, conversation: Conversation[Any], envelope: m.PublicEnvelope) -> list[Instruction]:
        """Pass a message of the peer to the conversation; Alice's node also adds it to the public record."""
        recorded: list[Instruction] = []
        if self._side == "alice":
            copy = m.PublicEnvelope(
                self._setup.run, envelope.block, envelope.phase, self._next_index(), "bob", envelope.message
            )
            recorded.append(Publish(copy, to_peer=False))
        return recorded + self._publish(conversation.advance(envelope.message))

    def _publish(self, messages: list[PublicMessage]) -> list[Instruction]:
        return self._strike_off() + [Publish(self._envelope(message), to_peer=True) for message in messages]

    def _strike_off(self) -> list[Instruction]:
        """Have the used pads removed from the pool's file before a message made with them is sent."""
        pool = self._setup.pool
        if pool is None or pool.is_rehearsal or not pool.changed:
            return []
        pool.changed = False
        return [StorePool(pool.dump())]

    def _envelope(self, message: PublicMessage) -> m.PublicEnvelope:
        index = self._next_index() if self._side == "alice" else -1
        return m.PublicEnvelope(self._setup.run, self.block, self.phase, index, self._side, message)

    def _next_index(self) -> int:
        index, self._on_record = self._on_record, self._on_record + 1
        return index

    def look_for_late(self) -> list[Instruction]:
        """End a discussion whose peer is silent, and send it the reason."""
        late = self._conversation
        if late is None or not self.is_overdue(_PEER):
            return []
        return self._publish(late.fail("timeout", "the peer stopped answering")) + self._conclude(late)

    def _end_conversation(self) -> None:
        self._conversation = None
        self.clear_deadline(_PEER)

    # -- reports

    def _conclude(self, conversation: Conversation[Any]) -> list[Instruction]:
        self._end_conversation()
        failure = conversation.failure.reason if conversation.failure is not None else "protocol"
        self._story.add(
            "discussion over", block=self.block, phase=self.phase,
            failure=failure if conversation.result is None else None,
        )  # fmt: skip
        if self.phase == "amplify":
            return self._report_key(conversation.result, failure)
        if self._is_training:
            return self._report_training(conversation, failure)
        return self._report_agreement(conversation.result, failure)

    def _report_agreement(self, agreed: Agreed | None, failure: str) -> list[Instruction]:
        if agreed is None:
            self._give_up()
            report = AgreeReport(
                block=self.block, probes=0, raw_bits=0, sacrificed_bits=0, sacrificed_errors=0, reconciled_bits=0,
                corrected_bits=None, leaked_bits=0, leaked_by_kind={}, public_bytes=0, messages=self._on_record,
                verified=False, failure=failure,
            )  # fmt: skip
            return [Report(m.Agreed(report=report, public_messages=self._on_record))]
        self._discussed = None
        if agreed.report.verified:
            self._agreed = {self.block: agreed}
        else:
            self._give_away(agreed)
        raw = agreed.raw.values.tobytes() if self._setup.is_experiment and agreed.raw is not None else None
        report = agreed.report
        if not self._setup.is_experiment:
            # In private mode the number of corrected bits is not reported: it depends on both secret strings.
            report = msgspec.structs.replace(report, corrected_bits=None, csi_defects=_public(report.csi_defects))
        return [Report(m.Agreed(report=report, raw_bits=raw, public_messages=self._on_record))]

    def _report_training(self, conversation: Conversation[Any], failure: str) -> list[Instruction]:
        report: TrainReport | None = conversation.result
        self._give_up()  # CSI was published, whether or not the training succeeded
        if report is None:
            ledger = conversation.ledger
            report = TrainReport(
                block=self.block, probes=0, model=None, public_bytes=ledger.sent_bytes, messages=ledger.messages,
                failure=failure,
            )  # fmt: skip
        trained = Report(m.Trained(report=report, public_messages=self._on_record))
        enhancer = self._setup.chain.enhance if self._setup.chain is not None else None
        if report.failure is not None or not isinstance(enhancer, TrainableEnhancer):
            return [trained]
        self._setup.model = enhancer.dump()
        return [StoreModel(self._setup.model), trained]

    def _report_key(self, result: tuple[Key | None, KeyReport] | None, failure: str) -> list[Instruction]:
        key, report = result if result is not None else (None, KeyReport(block=self.block, key_bits=0, failure=failure))
        if self._setup.pool is not None:
            spent = self._setup.pool.spent_bits - self._spent_bits
            report = msgspec.structs.replace(report, authentication_bits=spent)
        report = self._setup.reportable(report)
        if key is None:
            none = Report(m.Amplified(report=report, public_messages=self._on_record))
            is_exhausted = result is None and failure == "pool_exhausted"
            return [none, *self._end_without_pool()] if is_exhausted else [none]
        digest, p_values = None, {}
        if self._setup.is_experiment:
            digest = self._setup.digest(key)
            if self._side == "alice":
                p_values = {test: float(p[0]) for test, p in randomness.p_values(key.bits[None, :]).items()}
        amplified = m.Amplified(report=report, digest=digest, public_messages=self._on_record, p_values=p_values)
        return [StoreKey(key), Report(amplified)]

    @staticmethod
    def _end_without_pool() -> list[Instruction]:
        """Report that the run cannot go on, because no pads are left to authenticate the discussion."""
        return [Report(m.Failed(operation="authenticate", state="ready", detail=NO_POOL))]

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.is_busy != self.has_deadline(_PEER):
            yield f"the discussion of block {self.block} and its deadline do not go together"
        if self.is_busy and (self._setup.chain is None or self._setup.plan is None):
            yield f"block {self.block} is discussed by a node that is not configured"
        if self.is_busy and self._conversation is not None and self._conversation.done:
            yield f"the discussion of block {self.block} is over but was not concluded"
        if len(self._agreed) > 1 or any(block > self.block for block in self._agreed):
            yield f"bits of blocks {sorted(self._agreed)} are kept in block {self.block}"
        if self.is_busy and any((e.block, e.phase) == (self.block, self.phase) for e in self._early):
            yield f"messages of block {self.block} wait although it has begun"


def _public(defects: dict[str, int]) -> dict[str, int]:
    """Return the defects that the discussion reveals as well: frames and dimensions that are left out of the key."""
    return {name: n for name, n in defects.items() if name not in ("filled_values", "level_steps")}


def _check_surface(plan: SurfacePlan, surface: SurfaceRecord | None, block: int) -> None:
    """Raise OrderRefused where a run has a surface whose public patterns were not reported: no length can be
    decided."""
    if plan.policy == "none":
        return
    if surface is None or (surface.levels is None and not plan.is_secret):
        raise OrderRefused(f"block {block}: the surface's patterns are public and were not reported")
