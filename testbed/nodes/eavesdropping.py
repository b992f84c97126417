"""Eve's part in a block: she stores what is published, and attacks when she has all of it or her time is over. Pure.

    listening ──attack──► waiting for messages ──all there, or out of patience──► reported ──guess the key──► …

Eve needs the CSI of the block's rounds until the block's last stage. With each block she also reports her measurements
of earlier rounds that belong to no block with a key: rounds of training, of blocks that failed, and rejected ones.
Secret patterns reach her as opaque numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from testbed.chain.dialogue import MAX_BYTES, MAX_MESSAGES
from testbed.chain.eavesdropping import EveGuess
from testbed.chain.pipeline import KeyChain
from testbed.core.ledger import PublicMessage, size_of
from testbed.core.machine import Deadlines, EventClock, Story
from testbed.core.outcomes import EveReport, HeardSeries
from testbed.core.types import Key
from testbed.net import messages as m
from testbed.nodes.events import Instruction, Report
from testbed.nodes.measured import MeasuredCsi
from testbed.nodes.setup import Setup

EVE_PATIENCE_S = 2.0
"""How long Eve waits for public messages that have not reached her yet."""

MAX_BLOCKS = 16
"""Largest number of blocks whose public messages Eve stores before she is ordered to attack them."""

MOST_OTHER_ROUNDS = 4096
"""Largest number of rounds outside of a block that she reports with it; the earliest ones are left out."""

_MESSAGES = "the missing public messages"


class _Overheard(Deadlines):
    """What Eve has received of one block."""

    def __init__(self, clock: EventClock) -> None:
        super().__init__(clock)
        self.messages: dict[int, m.PublicEnvelope] = {}
        self.n_bytes = 0
        self.rounds: list[int] = []
        self.request: m.Attack | m.GuessKey | None = None
        """The coordinator's order that Eve has not answered yet."""
        self.guess: EveGuess | None = None
        """Her attack, once it was made with all messages."""

    def wait_for_messages(self, request: m.Attack | m.GuessKey) -> None:
        self.request = request
        self.set_deadline(_MESSAGES, EVE_PATIENCE_S)

    @property
    def is_complete(self) -> bool:
        return self.request is not None and all(i in self.messages for i in range(self.request.public_messages))

    @property
    def is_out_of_patience(self) -> bool:
        return self.request is not None and self.is_overdue(_MESSAGES)

    @property
    def transcript(self) -> list[PublicMessage]:
        return [self.messages[i].message for i in sorted(self.messages)]

    def take_request(self) -> m.Attack | m.GuessKey:
        request = self.request
        assert request is not None
        self.request = None
        self.clear_deadline(_MESSAGES)
        return request

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if (self.request is not None) != self.has_deadline(_MESSAGES):
            yield "an attack and its deadline do not go together"


class Eavesdropping:
    """Eve's records, by block."""

    def __init__(self, setup: Setup, measured: MeasuredCsi, clock: EventClock, story: Story) -> None:
        self._setup, self._measured, self._clock, self._story = setup, measured, clock, story
        self._blocks: dict[int, _Overheard] = {}
        self._reported = -1
        """Latest round that was reported to Alice."""

    @property
    def is_busy(self) -> bool:
        # The heartbeat's thread reads this as well, and must not iterate over a dictionary that grows meanwhile.
        return any(record.request is not None for record in tuple(self._blocks.values()))

    def clear(self) -> None:
        self._blocks.clear()
        self._reported = -1

    def take(self, envelope: m.PublicEnvelope) -> list[Instruction]:
        """Store a public message; attack if it was the last missing one."""
        if envelope.block not in self._blocks and len(self._blocks) >= MAX_BLOCKS:
            return []
        record = self._record(envelope.block)
        n_bytes = size_of(envelope.message)
        kept = sum(r.n_bytes for r in self._blocks.values())
        if len(record.messages) >= MAX_MESSAGES or kept + n_bytes > MAX_BYTES:
            return []
        record.n_bytes += n_bytes
        record.messages[envelope.index] = envelope
        return self._report(envelope.block) if record.is_complete else []

    def start(self, body: m.Attack | m.GuessKey) -> list[Instruction]:
        """Take an order to attack or to guess the key; raises OrderRefused."""
        self._setup.configured()
        record = self._record(body.block)
        record.wait_for_messages(body)
        if isinstance(body, m.Attack):
            record.rounds = body.rounds
            for old in [b for b in self._blocks if b < body.block]:
                del self._blocks[old]
        return self._report(body.block) if record.is_complete else []

    def look_for_late(self) -> list[Instruction]:
        """Where Eve's deadline is over, attack with the messages that have arrived."""
        late = next((block for block, record in self._blocks.items() if record.is_out_of_patience), None)
        return self._report(late) if late is not None else []

    def _record(self, block: int) -> _Overheard:
        return self._blocks.setdefault(block, _Overheard(self._clock))

    def _report(self, block: int) -> list[Instruction]:
        record = self._blocks[block]
        complete, request = record.is_complete, record.take_request()
        chain, plan = self._setup.configured()
        self._story.add("attacks", rounds=record.rounds, block=block, order=type(request).__name__, complete=complete)
        if isinstance(request, m.Attack) and request.purpose == "training":
            return self._learn_from_training(chain, block, record, complete, plan.seed)
        guess = record.guess or self._attack(chain, block, record, complete)
        if isinstance(request, m.Attack):
            record.guess = guess if complete else None  # otherwise she tries again with what arrives later
            raw = guess.raw.tobytes() if plan.experiment_mode and guess.raw is not None else None
            report = msgspec.structs.replace(guess.report, heard=self._heard(chain, record.rounds))
            return [Report(m.Attacked(report=report, guess=raw))]
        found = chain.guess_key(guess, record.transcript) if plan.experiment_mode else None
        self._forget(block, record)
        digest = None
        if found is not None and found.key is not None:
            digest = self._setup.digest(Key(block=block, bits=found.key))
        return [Report(m.KeyGuessed(block=block, digest=digest))]

    def _attack(self, chain: KeyChain, block: int, record: _Overheard, complete: bool) -> EveGuess:
        alice, bob = (self._measured.series(record.rounds, tx) for tx in ("alice", "bob"))
        return chain.eavesdrop(block, alice, bob, record.transcript, complete)

    def _heard(self, chain: KeyChain, block: list[int]) -> tuple[HeardSeries, ...]:
        """Return her unreported measurements up to the end of a block, whether the rounds were kept or rejected."""
        if not block:
            return ()
        others = [r for r in self._measured.until(block[-1], MOST_OTHER_ROUNDS + len(block)) if r > self._reported]
        rounds = sorted({*others, *block})
        self._reported = block[-1]
        heard = chain.report_series(self._measured.series(rounds, "alice"), self._measured.series(rounds, "bob"))
        self._measured.forget_until(block[0] - 1)
        return heard

    def _learn_from_training(
        self, chain: KeyChain, block: int, record: _Overheard, complete: bool, seed: int
    ) -> list[Instruction]:
        alice, bob = (self._measured.series(record.rounds, tx) for tx in ("alice", "bob"))
        chain.overhear_training(alice, bob, record.transcript, seed)
        del self._blocks[block]
        nothing = EveReport(
            block=block, sacrificed_bits=0, covered_bits=0, sacrificed_errors=0, best_link="none",
            transcript_complete=complete,
        )  # fmt: skip
        return [Report(m.Attacked(report=nothing))]

    def _forget(self, block: int, record: _Overheard) -> None:
        """Delete the messages and CSI of a block that is over."""
        del self._blocks[block]
        if record.rounds:
            self._measured.forget_until(record.rounds[-1])

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        for block, record in self._blocks.items():
            for problem in record.problems():
                yield f"block {block}: {problem}"
