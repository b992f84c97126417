"""From kept rounds to keys, or to a trained enhancer: block by block, stage by stage. Pure.

A block that makes a key has four stages: agreement (Alice and Bob quantize, reconcile and verify), Eve's attack on what
was published, privacy amplification, and Eve's guess of the final key. A block that trains an enhancer is closed when
both ends, and then Eve, have trained on it. `STAGES` is the table of these stages. A block stores only the numbers of
its rounds: whether they were measured in one train, or under secret patterns, makes no difference here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from testbed.coordinator.events import BlockOver, Effect, Note, Send
from testbed.coordinator.roster import Node, Roster
from testbed.coordinator.surface_keeper import SurfaceKeeper
from testbed.coordinator.tally import Tally
from testbed.core.config import Experiment, Lab
from testbed.core.machine import Deadlines, EventClock, Phases, Story
from testbed.core.outcomes import TrainReport
from testbed.net import messages as m
from testbed.records.documents import BLOCK_BEGUN

Stage = Literal["agree", "attack", "amplify", "guess", "closed"]

STAGES: Mapping[str, Mapping[str, str]] = {
    "agree": {
        "attack": "both ends have reported, or one has failed: Eve attacks what was published",
        "closed": "a node was lost or silent",
    },
    "attack": {
        "amplify": "both ends agree on a string: they hash it to a key",
        "closed": "there is no agreement, or this was a training",
    },
    "amplify": {
        "guess": "both ends have reported and Eve attacked: she hashes her guess, too",
        "closed": "there is no Eve, or a node was lost or silent",
    },
    "guess": {"closed": "Eve has reported or was left out"},
    "closed": {},
}
LOST_MODEL = ("not_trained", "wrong_model")
"""Reasons for a failure that mean that an end has no trained enhancer, or another one than its peer."""
GRACE_S = 5.0
"""How much longer the coordinator waits than a node does: the node gives up first, so that its reason is on record."""
EVE_GRACE_S = 10.0
"""How much longer Eve's operations may take than those of Alice and Bob."""
_REPORTS = "the reports"

_STAGE_OF: Mapping[type, str] = {
    m.Agreed: "agree", m.Trained: "agree", m.Attacked: "attack", m.Amplified: "amplify", m.KeyGuessed: "guess",
}  # fmt: skip
"""Which report ends which stage of a block."""


class Block(Deadlines):
    """One block: its rounds, its stage, and what was reported of it."""

    def __init__(self, number: int, rounds: list[int], training: bool, clock: EventClock, story: Story) -> None:
        super().__init__(clock)
        self.number, self.rounds, self.training = number, rounds, training
        self.stage = Phases(STAGES, "agree", story, "stage", block=number)
        self.waiting: set[str] = set()
        """Nodes whose report of this stage is awaited."""
        self.failure: str | None = None
        """The first reason why there is no key, or no training; later ones follow from it."""
        self.agreed: dict[str, m.Agreed] = {}
        self.trained: dict[str, TrainReport] = {}
        self.attacked: m.Attacked | None = None
        self.amplified: dict[str, m.Amplified] = {}
        self.guessed: m.KeyGuessed | None = None
        self._training_messages = 0

    def wait_for(self, names: set[str], within_s: float) -> None:
        self.waiting = set(names)
        self.set_deadline(_REPORTS, within_s)

    @property
    def is_late(self) -> bool:
        return self.is_overdue(_REPORTS)

    def fail(self, reason: str | None) -> None:
        self.failure = self.failure or reason

    def take(self, role: str, body: Any) -> None:
        """Take a report of the present stage."""
        match body:
            case m.Trained():
                self.trained[role] = body.report
                self._training_messages = max(self._training_messages, body.public_messages)
            case m.Agreed():
                self.agreed[role] = body
            case m.Attacked():
                self.attacked = body
            case m.Amplified():
                self.amplified[role] = body
            case m.KeyGuessed():
                self.guessed = body

    @property
    def public_messages(self) -> int:
        """Number of messages of the discussion that Eve must have, by the latest count of Alice's node."""
        if self.training:
            return self._training_messages
        latest = self.amplified or self.agreed
        return latest["alice"].public_messages if "alice" in latest else 0

    def judge_agreement(self) -> None:
        """Set `failure` where the two ends do not agree on a string."""
        reports = [a.report for a in self.agreed.values()]
        if len(reports) < 2 or not all(r.verified for r in reports):
            reasons = sorted({r.failure for r in reports if r.failure and r.failure != "peer_failed"})
            self.fail(", ".join(reasons) or "no agreement")

    def judge_training(self) -> None:
        """Set `failure` where the two ends have not trained the same model."""
        reports = self.trained.values()
        if len(reports) < 2 or any(r.failure for r in reports) or len({r.model for r in reports}) != 1:
            reasons = sorted({r.failure for r in reports if r.failure and not r.failure.startswith("peer_failed")})
            self.fail("; ".join(reasons) or "no training")

    def judge_amplification(self) -> None:
        reasons = sorted({a.report.failure for a in self.amplified.values() if a.report.failure})
        self.fail(", ".join(reasons) if reasons else None)

    def over(self) -> BlockOver:
        """Return the record of the block."""
        raw = {role: a.raw_bits for role, a in self.agreed.items() if a.raw_bits is not None}
        if self.attacked is not None and self.attacked.guess is not None:
            raw["eve"] = self.attacked.guess
        digests = {role: a.digest for role, a in self.amplified.items() if a.digest is not None}
        if self.guessed is not None and self.guessed.digest is not None:
            digests["eve"] = self.guessed.digest
        agreed = {role: a.report for role, a in self.agreed.items()}
        keys = {role: a.report for role, a in self.amplified.items()}
        return BlockOver(
            block=self.number, rounds=self.rounds,
            alice=agreed.get("alice"), bob=agreed.get("bob"),
            eve=self.attacked.report if self.attacked else None,
            key_alice=keys.get("alice"), key_bob=keys.get("bob"),
            failure=self.failure, raw=raw, digests=digests,
            p_values=self.amplified["alice"].p_values if "alice" in self.amplified else {},
            training=self.training, trained=self.trained,
        )  # fmt: skip

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.waiting and not self.has_deadline(_REPORTS):
            yield f"block {self.number} may wait without limit"
        if not self.rounds:
            yield f"block {self.number} has no rounds"


class Blocks:
    """The open block, if there is one, and what decides about the next one."""

    def __init__(
        self,
        lab: Lab,
        experiment: Experiment,
        roster: Roster,
        surface: SurfaceKeeper,
        tally: Tally,
        clock: EventClock,
        story: Story,
    ) -> None:
        self._experiment, self._roster, self._surface, self._tally = experiment, roster, surface, tally
        self._clock, self._story = clock, story
        self._distil_timeout_s = lab.coordinator.distil_timeout_s
        self._operation_timeout_s = lab.coordinator.operation_timeout_s
        self.open: Block | None = None
        self.key_bits = 0
        self.to_train = experiment.training.rounds > 0
        """Whether the next block trains the enhancer."""
        self.guarded = 0
        """Number of kept rounds that were discarded as guard rounds after a training."""
        self._guard = 0
        """Number of kept rounds still to be discarded: they are correlated with the CSI that the training published."""
        self._next = 0
        self._one_sided: list[int] = []
        """Blocks that failed when one end may already have had its key: both ends are ordered to delete it."""
        self.untold: set[str] = set()
        """Ends that were away when they had to be ordered to delete such a key."""
        self._with_key: list[int] = []
        """Blocks of which both ends have reported a key: both ends are ordered to keep it."""

    def go_on(
        self, next_block: int, key_bits: int, to_train: bool, guards: tuple[int, int], dropped: Iterable[int],
        with_key: Iterable[int],
    ) -> None:  # fmt: skip
        """Continue a run that is resumed. `guards`: numbers of guard rounds that were discarded, and that still have
        to be; `dropped`: blocks of which one end alone may have a key; `with_key`: those of which both have one.
        """
        self._next, self.key_bits, self.to_train = next_block, key_bits, to_train
        self.guarded, self._guard = guards
        self._one_sided, self._with_key = list(dropped), list(with_key)

    def tidy(self, node: Node) -> list[Effect]:
        """Order a node to delete every key that the other end does not have, and to keep all others: when it joins or
        comes back, and at the end of the run."""
        if not node.required or not node.measures:
            return []
        self.untold.discard(node.name)
        drop = [m.Abandon(block=n, reason="the other end has no key of it") for n in self._one_sided]
        parts = (self._with_key[i : i + m.MAX_KEPT] for i in range(0, len(self._with_key), m.MAX_KEPT))
        return [Send(node.name, body) for body in (*drop, *(m.KeepKeys(blocks=part) for part in parts))]

    @property
    def rounds_wanted(self) -> int:
        """Number of rounds of the next block."""
        e = self._experiment
        return e.training.rounds if self.to_train else e.accounting.block_rounds

    @property
    def is_filled(self) -> bool:
        """Whether enough kept rounds wait for a whole block."""
        return self._tally.pending >= self.rounds_wanted

    def room_for_train(self, under_way: int) -> int:
        """Return how many rounds the next train may have so that no block ends in the middle of it.

        `under_way`: number of rounds that are ordered already and not closed.
        """
        lacking = self.rounds_wanted - self._tally.pending - under_way
        return lacking if lacking > 0 else self.rounds_wanted

    def takes_guard_round(self) -> bool:
        """Return whether the round just kept is a guard round between training and keys; if so, count it."""
        if not self._guard:
            return False
        self._guard, self.guarded = self._guard - 1, self.guarded + 1
        return True

    # -- one block's course

    def start(self) -> list[Effect]:
        """Open a block of the oldest kept rounds."""
        rounds = self._tally.take(self.rounds_wanted)
        block = self.open = Block(self._next, rounds, self.to_train, self._clock, self._story)
        self._next += 1
        names = self._roster.pair()
        block.wait_for(names, self._distil_timeout_s + GRACE_S)
        self._story.add("opened", rounds=rounds, block=block.number, training=block.training)
        purpose: Literal["training", "key"] = "training" if block.training else "key"
        # The block is recorded before any node is ordered to work on it, so that its number is never used twice.
        begun = Note(BLOCK_BEGUN, {"block": block.number, "rounds": rounds, "purpose": purpose})
        body = m.Distil(
            block=block.number, rounds=rounds, timeout_s=self._distil_timeout_s, purpose=purpose,
        )  # fmt: skip
        return [begun, *(Send(n, body) for n in sorted(names))]

    def take(self, node: Node, body: Any) -> list[Effect]:
        """Take a report of a node about the open block."""
        block = self.open
        number = body.block if isinstance(body, m.KeyGuessed) else body.report.block
        stage = _STAGE_OF[type(body)]
        if block is None or number != block.number or block.stage.now != stage or node.name not in block.waiting:
            return [Note("late_answer", {"node": node.name, "block": number, "what": stage})]
        block.waiting.discard(node.name)
        block.take(node.role, body)
        self._story.add("reported", block=number, node=node.name, stage=stage)
        return []

    def step(self) -> list[Effect] | None:
        """Advance the open block where no report is awaited; None: reports are awaited, or no block is open."""
        block = self.open
        if block is None or block.waiting:
            return None
        return _AFTER[block.training, block.stage.now](self, block)

    def _after_agreement(self, block: Block) -> list[Effect]:
        block.judge_agreement()
        block.stage.enter("attack")
        eve = self._roster.eve()
        if eve is None or not block.agreed:
            return []
        block.wait_for({eve}, self._operation_timeout_s + EVE_GRACE_S)
        return [Send(eve, m.Attack(block=block.number, rounds=block.rounds, public_messages=block.public_messages))]

    def _after_attack(self, block: Block) -> list[Effect]:
        if block.failure is not None:
            return self._close()
        block.stage.enter("amplify")
        names = self._roster.pair()
        block.wait_for(names, self._distil_timeout_s + GRACE_S)
        report = block.attacked.report if block.attacked is not None else None
        surface = self._surface.record(block.rounds)
        body = m.Amplify(block=block.number, eve=report, timeout_s=self._distil_timeout_s, surface=surface)
        return [Send(n, body) for n in sorted(names)]

    def _after_amplification(self, block: Block) -> list[Effect]:
        block.judge_amplification()
        drop: list[Effect] = []
        if block.failure is not None and any(a.report.key_bits for a in block.amplified.values()):
            drop = self._abandon(block)  # one end has a key
        return drop + self._after_drop(block)

    def _after_drop(self, block: Block) -> list[Effect]:
        eve = self._roster.eve()
        if eve is None or block.attacked is None:
            return self._close()
        block.stage.enter("guess")
        block.wait_for({eve}, self._operation_timeout_s + EVE_GRACE_S)
        return [Send(eve, m.GuessKey(block=block.number, public_messages=block.public_messages))]

    def _after_training(self, block: Block) -> list[Effect]:
        """Both ends have trained, or failed: Eve may train on what they published, for as long as they were given."""
        block.judge_training()
        if block.failure is None:
            self.to_train = False
            self._guard = self._experiment.training.guard_rounds
            dropped = self._tally.take(self._guard)  # rounds that were kept while the ends trained
            self._guard, self.guarded = self._guard - len(dropped), self.guarded + len(dropped)
            self._story.add("discarded as guard rounds", rounds=dropped)
        block.stage.enter("attack")
        eve = self._roster.eve()
        if eve is None or block.failure is not None:
            return []
        block.wait_for({eve}, self._distil_timeout_s)
        body = m.Attack(
            block=block.number, rounds=block.rounds, public_messages=block.public_messages, purpose="training"
        )
        return [Send(eve, body)]

    def _after_last_stage(self, block: Block) -> list[Effect]:
        return self._close()

    # -- nodes that fail their part

    def lose(self, node: Node) -> list[Effect]:
        """A node was lost: without one of the pair the open block cannot go on."""
        if self.open is None:
            return []
        if node.required and node.measures:
            return self.give_up(f"{node.name} was lost")
        self.open.waiting.discard(node.name)
        return []

    def take_failure(self, node: Node, what: str) -> list[Effect]:
        """A node that the open block waits for cannot do its part."""
        if self.open is None or node.name not in self.open.waiting:
            return []
        if node.role == "eve":
            self.open.waiting.discard(node.name)
            return []
        return self.give_up(f"{node.name}: {what}")

    def look_for_late(self) -> list[Effect]:
        """Go on without an Eve that is late; without one of the pair the block is given up."""
        block = self.open
        if block is None or not block.is_late:
            return []
        eve = self._roster.by_role("eve")
        if block.stage.now in ("attack", "guess") and eve is not None and eve.name in block.waiting:
            block.waiting.discard(eve.name)
            return self._roster.leave_out(eve, f"no answer to {block.stage.now}")
        return self.give_up(f"timeout waiting for {', '.join(sorted(block.waiting))}")

    def give_up(self, reason: str) -> list[Effect]:
        """Give up the open block everywhere; what was measured of it is kept for the record."""
        block = self.open
        if block is None:
            return []
        if block.stage.now == "guess":
            return self._close()  # both ends have their key: only Eve's guess of it is missing
        block.fail(reason)
        return self._abandon(block) + self._close()

    def _abandon(self, block: Block) -> list[Effect]:
        """Order both ends to give a block up; an end that is away gets the order when it comes back."""
        if block.stage.now == "amplify":
            self._one_sided.append(block.number)
            ends = (self._roster.nodes[name] for name in self._roster.pair())
            self.untold |= {node.name for node in ends if not (node.alive or node.is_missing)}
        body = m.Abandon(block=block.number, reason=block.failure or "no key")
        return [*self._roster.send("alice", body), *self._roster.send("bob", body)]

    def _close(self) -> list[Effect]:
        block = self.open
        assert block is not None
        self.open = None
        block.stage.enter("closed")
        over = block.over()
        if block.failure is not None and any(word in block.failure for word in LOST_MODEL):
            self.to_train = self._experiment.training.rounds > 0  # a node came back without its model
        self._story.add("closed", rounds=block.rounds, block=block.number, failure=block.failure)
        return [over, *self._keep_key(over)]

    def _keep_key(self, over: BlockOver) -> list[Effect]:
        """Order both ends to keep a block's key where both have reported one; an end that is away is ordered later."""
        if over.key_alice is None or over.key_bob is None or over.failure is not None:
            return []
        key_bits = min(over.key_alice.key_bits, over.key_bob.key_bits)
        if not key_bits:
            return []
        self.key_bits += key_bits
        self._with_key.append(over.block)
        body = m.KeepKeys(blocks=[over.block])
        return [*self._roster.send("alice", body), *self._roster.send("bob", body)]

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        if self.open is not None:
            yield from self.open.problems()
            if self.open.stage.now == "closed":
                yield f"block {self.open.number} is closed but still open"
            if not self.open.waiting <= self._roster.nodes.keys():
                yield f"block {self.open.number} waits for unknown nodes"
            if self.open.number != self._next - 1:
                yield f"block {self.open.number} is open, but the next one is {self._next}"
        if self._guard < 0:
            yield f"{self._guard} rounds are still to be discarded"


_AFTER: Mapping[tuple[bool, str], Callable[[Blocks, Block], list[Effect]]] = {
    (False, "agree"): Blocks._after_agreement,
    (False, "attack"): Blocks._after_attack,
    (False, "amplify"): Blocks._after_amplification,
    (False, "guess"): Blocks._after_last_stage,
    (True, "agree"): Blocks._after_training,
    (True, "attack"): Blocks._after_last_stage,
}
"""(training, stage) → the method to call when all reports are in."""
