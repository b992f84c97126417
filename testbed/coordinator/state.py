"""The coordinator's logic as a pure state machine: an event in, instructions out; no sockets, no files, no clock.

    joining → configuring → synchronising → probing ⇄ distilling → finishing → over

A round: the surface acknowledges its pattern, every node gets its slots, all say `Captured` (the air is free, the next
round starts), then `Probed` with what they measured. In virtual time, where no pattern changes, nothing has to happen
between two rounds: the next one is ordered while the nodes are busy with one, and nobody says `Captured`.
A round is used only if Alice and Bob both have an estimate, taken inside one acknowledged surface state; otherwise it
is rejected with a reason and counted. Every wait has a deadline.
The coordinator never sees key bits; in experiment mode it sees CSI and raw bits for the record.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from testbed.coordinator import steps
from testbed.coordinator.scheduler import Scheduler
from testbed.core import registry, seeds
from testbed.core.config import Experiment, Lab
from testbed.core.errors import InputError, Reject
from testbed.core.outcomes import AgreeReport, EveReport, KeyReport, TrainReport
from testbed.core.schedule import Slot
from testbed.core.stages import SurfacePolicy
from testbed.core.types import C64, SurfacePattern
from testbed.net import messages as m

_STAGE_OF = {"Agreed": "agree", "Trained": "agree", "Attacked": "attack", "Amplified": "amplify", "Unmasked": "unmask"}
"""Which report ends which stage of a block."""
LOST_MODEL = ("not_trained", "wrong_model")
MAX_REFUSED = 20
"""Rounds in a row without a usable device or answer, after which going on is no use."""
MAX_STRIKES = 3
"""Rounds in a row that a node may leave unanswered before it is treated as lost."""
OWN_PAUSE_S = 1.0
"""A longer time between two looks at the clock means that the coordinator was asleep, not that the nodes were."""
LATE_UNCERTAINTY_S = 200e-6
"""How far off the clock of a node may be that joined a run in virtual time."""
_SPREADS = 6.0
"""A receiver listens this many standard deviations of the measured arrivals early and late, at least."""
SURFACE_SETTLE_S = 10e-6
"""Between a pattern's latch time and the first probe under it."""
LOADING_S = 60.0
"""How much longer nodes may take to get ready that load a trained policy and the library it needs."""
SURFACE_CHECK_ROUNDS = 50
"""A pattern that is held is read back after so many rounds, and before they are used: boards start anew unasked."""
WALL_LEAD_S = 0.03
"""On the wall clock an order must reach the nodes before its first sample is due."""

FinishKind = Literal["stop", "abort", "halt"]


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Received:
    node: str
    incarnation: str
    body: Any


@dataclass(frozen=True, slots=True)
class Tick:
    now_s: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The launcher saw a local node's process end."""

    node: str
    detail: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    kind: FinishKind


# ---------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Tell:
    node: str
    body: Any


@dataclass(frozen=True, slots=True)
class ResetWorld:
    """Put the experiment's scene into the simulated air (labs that have one)."""


@dataclass(frozen=True, slots=True)
class LetTimePass:
    """Let the simulated air's time pass up to this; radios that cannot time anything do not make it pass."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the record and the log."""

    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NewPattern:
    pattern: SurfacePattern


@dataclass(frozen=True, slots=True)
class RoundOver:
    round: int
    kept: bool
    reason: str | None
    surface: str | None
    start_s: float
    """On the reference timeline."""
    links: dict[str, list[m.LinkResult]]
    """By receiving node."""


@dataclass(frozen=True, slots=True)
class BlockOver:
    block: int
    rounds: list[int]
    alice: AgreeReport | None
    bob: AgreeReport | None
    eve: EveReport | None
    key_alice: KeyReport | None
    key_bob: KeyReport | None
    failure: str | None
    raw: dict[str, bytes]
    """Raw bits by role (experiment mode)."""
    digests: dict[str, str]
    """Key digests by role (experiment mode)."""
    p_values: dict[str, float]
    """Randomness tests on Alice's key (experiment mode)."""
    training: bool = False
    """The enhancer learnt from these rounds; the rest but `failure` is empty."""
    trained: dict[str, TrainReport] = field(default_factory=dict)
    """By role."""


@dataclass(frozen=True, slots=True)
class Over:
    """The run is over; `failure` is None where it went as asked."""

    status: Literal["finished", "stopped", "failed"]
    detail: str


Event = Received | Tick | Gone | StopAsked
Instruction = Tell | ResetWorld | LetTimePass | Note | NewPattern | RoundOver | BlockOver | Over


# ---------------------------------------------------------------- state


@dataclass(slots=True)
class _Node:
    role: str
    required: bool
    alive: bool = False
    left_out: bool = False
    """Optional node that was given up; the run goes on without it."""
    incarnation: str = ""
    hello: m.Hello | None = None
    last_seen_s: float = 0.0
    lost_s: float = 0.0
    strikes: int = 0
    ready: bool = False
    """Configured, and its clock was read."""
    stopped: bool = False


@dataclass(slots=True)
class _Round:
    number: int
    surface: str | None
    start_s: float
    end_s: float
    expected: set[str]
    deadline_s: float
    captured: set[str] = field(default_factory=set)
    results: dict[str, m.Probed] = field(default_factory=dict)
    spoilt: Reject | None = None
    bases_s: dict[str, float] = field(default_factory=dict)
    """What each clock was taken for when the round was planned."""
    sounding: bool = False
    """All antennas are sounded: what comes of it stays in the nodes."""
    steps: steps.Steps | None = None
    """Where the radios cannot time their samples."""


@dataclass(slots=True)
class _Block:
    number: int
    rounds: list[int]
    deadline_s: float
    stage: Literal["agree", "attack", "amplify", "unmask"] = "agree"
    waiting: set[str] = field(default_factory=set)
    agreed: dict[str, m.Agreed] = field(default_factory=dict)
    attacked: m.Attacked | None = None
    amplified: dict[str, m.Amplified] = field(default_factory=dict)
    unmasked: m.Unmasked | None = None
    failure: str | None = None
    training: bool = False
    trained: dict[str, TrainReport] = field(default_factory=dict)
    heard: int = 0
    """Public messages of a training."""


class CoordinatorState:
    """Drives one run of `experiment` on `lab`.

    `antenna_s`: how much longer a sounding is with every antenna beyond the first.
    """

    def __init__(
        self, lab: Lab, experiment: Experiment, run: str, slots: tuple[Slot, ...], frame_s: float,
        antenna_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.lab, self.experiment, self.run = lab, experiment, run
        self.phase = "joining"
        self.rejected: Counter[str] = Counter()
        self.kept = 0
        self.probed = 0
        self.key_bits = 0
        self.snr_db = math.nan
        self._slots, self._frame_s, self._antenna_s = slots, frame_s, antenna_s
        self.virtual = lab.world is not None and lab.world.pace == "virtual"
        wants_surface = experiment.surface.policy != "none"
        self.nodes = {
            name: _Node(
                role=place.role, required=place.role in ("alice", "bob") or (place.role == "ris" and wants_surface)
            )
            for name, place in lab.node.items()
            if place.role in ("alice", "bob")
            or (place.role == "ris" and wants_surface)
            or (place.role == "eve" and experiment.scene.eve is not None)
        }
        self._now_s = 0.0
        self._timed = True
        """Every radio can start at a given time; otherwise rounds go step by step, and none does."""
        self._started = False
        self._deadline_s = 0.0
        self._epoch_s: float | None = None
        self._scheduler: Scheduler | None = None
        self._sync_asked_s: dict[str, float] = {}
        self.policy: SurfacePolicy | None = None
        if wants_surface:
            self.policy = registry.make_stage("policy", experiment.surface.policy, experiment.surface.options)
        self._pattern: SurfacePattern | None = None
        self._surface_wait: tuple[int, float] | None = None
        """(round of the order, deadline) while the surface has not acknowledged."""
        self._surface_now: str | None = None
        self._surface_latched_s = 0.0
        self._surface_failures = 0
        self._surface_told: str | None = None
        """What the surface last acknowledged."""
        self._unconfirmed: list[int] = []
        """Rounds ordered since it did, or since it was read back."""
        self._surface_check: tuple[int, float] | None = None
        """(round of the order, deadline) while it is being read back."""
        self._round: _Round | None = None
        """On the air."""
        self._settling: list[_Round] = []
        """Captured, or ordered ahead; results still coming, oldest first."""
        self._lessons: list[_Round] = []
        """Closed rounds whose arrival times the clocks have not learned from yet."""
        self._ahead = self.virtual and not (self.policy is not None and self.policy.changes)
        """Order a round while the one before is still on the air: nodes take orders one after the other, and nothing
        has to happen between two rounds."""
        self._next_round = 0
        self._last_end_s = 0.0
        """End of the last round planned, on the reference timeline; in virtual time the air stands there."""
        self._surface_round = -1
        """Round the policy was last asked about."""
        self._pending: list[int] = []
        """Kept rounds not distilled yet."""
        self._told: dict[int, RoundOver] = {}
        """What was said of them, without their links."""
        self._refused_in_a_row = 0
        self._block: _Block | None = None
        self._next_block = 0
        self._to_train = experiment.training.rounds > 0
        """The next block is one that the enhancer learns from."""
        self._guard = 0
        """Kept rounds still to be thrown away after a training."""
        self.guarded = 0
        self._stop: FinishKind | None = None
        self._outcome: Over | None = None

    # -- entry

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event; return what to do, in order."""
        if self.phase == "over":
            return []
        match event:
            case Tick(now_s):
                self._forgive(now_s - self._now_s)
                self._now_s = now_s
                if not self._started:
                    self._started = True
                    self._deadline_s = now_s + self.lab.coordinator.join_timeout_s
                out = self._check_time()
            case Received(node, incarnation, body):
                out = self._received(node, incarnation, body)
            case Gone(node, detail):
                out = self._gone(node, detail)
            case StopAsked(kind):
                out = self._stop_asked(kind)
        return out + self._advance()

    def _tell(self, role: str, body: Any) -> list[Instruction]:
        name = self._name(role)
        return [Tell(name, body)] if name is not None and self.nodes[name].alive else []

    def _name(self, role: str) -> str | None:
        return next((n for n, node in self.nodes.items() if node.role == role and not node.left_out), None)

    def _taking_part(self) -> dict[str, _Node]:
        return {n: node for n, node in self.nodes.items() if not node.left_out}

    def _eve(self) -> str | None:
        name = self._name("eve")
        return name if name is not None and self.nodes[name].alive and self.nodes[name].ready else None

    # -- nodes coming and going

    def _received(self, name: str, incarnation: str, body: Any) -> list[Instruction]:
        node = self.nodes.get(name)
        if node is None:
            if isinstance(body, m.Hello):
                why = "not in this lab file" if name not in self.lab.node else "not needed by this experiment"
                return [Tell(name, m.Refused(reason=why)), Note("refused", {"node": name, "why": why})]
            return []
        if isinstance(body, m.Hello):
            return self._hello(name, node, incarnation, body)
        if incarnation != node.incarnation:
            return []  # an earlier life of this node
        if not node.alive:
            # given up, but it lives: it was paused, or its network was
            return self._admit(name, node) if isinstance(body, m.Heartbeat) and self.phase != "finishing" else []
        node.last_seen_s = self._now_s
        match body:
            case m.Heartbeat():
                return []
            case m.Configured() | m.ClockReading():
                return self._prepared(name, node, body)
            case m.Applied():
                return self._applied(body)
            case m.SurfaceHeld():
                return self._surface_held(body)
            case m.Captured():
                return self._captured(name, body)
            case m.Stepped():
                if self._round is not None and self._round.steps is not None and self._round.number == body.round:
                    self._round.steps.report(name, body.step)
            case m.Probed():
                return self._probed(name, node, body)
            case m.Agreed() | m.Trained() | m.Attacked() | m.Amplified() | m.Unmasked():
                return self._distilled(name, node, body)
            case m.Failed():
                return self._failed(name, node, body)
            case m.Stopped():
                node.stopped = True
        return []

    def _hello(self, name: str, node: _Node, incarnation: str, body: m.Hello) -> list[Instruction]:
        if body.role != node.role:
            why = f"claims role {body.role!r}, the lab file says {node.role!r}"
            return [Tell(name, m.Refused(reason=why)), Note("refused", {"node": name, "why": why})]
        if node.incarnation == incarnation:
            return []  # repeated greeting
        out: list[Instruction] = []
        if node.alive:
            out += self._lose(name, "restarted")
        came_back = node.incarnation != ""
        node.incarnation, node.hello = incarnation, body
        out += [Note("joined", {"node": name, "identity": body.identity})] if not came_back else []
        return out + self._admit(name, node, came_back)

    def _admit(self, name: str, node: _Node, came_back: bool = True) -> list[Instruction]:
        """Take a node in, new or come back; it starts with nothing."""
        for r in self._lessons:  # what its former life measured says nothing about the clock of this one
            r.results.pop(name, None)
        node.alive, node.left_out, node.ready, node.strikes = True, False, False, 0
        node.last_seen_s = self._now_s
        identity = node.hello.identity if node.hello is not None else {}
        out: list[Instruction] = [Note("rejoined", {"node": name, "identity": identity})] if came_back else []
        place = self.lab.coordinator
        patience_s = place.lost_after_s + place.rejoin_timeout_s
        out.append(Tell(name, m.Welcome(run=self.run, lost_after_s=patience_s)))
        if self.phase != "joining":
            out += self._prepare(name)
            if node.role == "alice":  # her sockets are new: the others must find them
                out += [x for other in ("bob", "eve") for x in self._reprepare(other)]
        return out

    def _reprepare(self, role: str) -> list[Instruction]:
        name = self._name(role)
        if name is None or not self.nodes[name].alive:
            return []
        self.nodes[name].ready = False
        return self._prepare(name)

    def _prepare(self, name: str) -> list[Instruction]:
        """Configure a node and read its clock."""
        e = self.experiment
        alice_name = self._name("alice")
        alice = self.nodes[alice_name] if alice_name else None
        discussion = transcript = ""
        if alice is not None and alice.hello is not None and alice_name is not None:
            host = self.lab.node[alice_name].host
            discussion = f"tcp://{host}:{alice.hello.discussion_port}"
            transcript = f"tcp://{host}:{alice.hello.transcript_port}"
        body = m.Configure(
            radio=e.radio, probing=e.probing, chain=e.chain, accounting=e.accounting,
            beams=e.beams, antennas=self._antennas(),
            experiment_mode=e.mode == "experiment", record_iq=e.records.iq, seed=e.seed, timed=self._timed,
            discussion=discussion, transcript=transcript,
        )  # fmt: skip
        return [Tell(name, body)]

    def _antennas(self) -> dict[str, int]:
        """Return how many antennas each role's radio has."""
        return {n.role: n.hello.n_antennas for n in self._taking_part().values() if n.hello and n.role != "ris"}

    def _misfit(self) -> str | None:
        """Return why the radios that joined do not serve this experiment; None where they do."""
        if self._antennas().get("eve", 1) > 1:
            return f"eve: {self._antennas()['eve']} antennas, accepted 1: what more she hears would go uncounted"
        if self.experiment.beams.policy != "none" and not self._timed:
            return (
                f"table [beams]: policy = {self.experiment.beams.policy!r} needs radios that can time their samples; "
                "accepted with these: policy = 'none'"
            )
        return None

    def _prepared(self, name: str, node: _Node, body: m.Configured | m.ClockReading) -> list[Instruction]:
        if isinstance(body, m.Configured):
            self._sync_asked_s[name] = self._now_s
            return [Note("configured", {"node": name, "accepted": body.accepted}), Tell(name, m.ReadClock())]
        if self._scheduler is None:
            return [Note("unexpected", {"node": name, "what": type(body).__name__})]
        asked_s = self._sync_asked_s.get(name, self._now_s)
        if self.virtual:
            # The air stands still while nobody probes. Before the first round it stands at 0 exactly; a node that
            # comes later finds it near the end of the last round.
            fresh = self._epoch_s is None
            self._scheduler.synchronise(
                name, body.device_time_s, self._last_end_s, 0.0 if fresh else LATE_UNCERTAINTY_S
            )
        else:
            round_trip_s = self._now_s - asked_s
            middle_s = asked_s + round_trip_s / 2 - self._reference_origin_s()
            self._scheduler.synchronise(name, body.device_time_s, middle_s, round_trip_s / 2 + 1e-3)
        node.ready = True
        return []

    def _reference_origin_s(self) -> float:
        if self._epoch_s is None:
            self._epoch_s = self._now_s
        return self._epoch_s

    def _gone(self, name: str, detail: str) -> list[Instruction]:
        """A local process has ended. One that never greeted will not: say why at once instead of waiting for it."""
        node = self.nodes.get(name)
        if self.phase == "finishing":
            return self._lose(name, detail)
        if node is None:  # the simulated air
            return self._finish("failed", f"{name}: {detail}", "abort")
        if not node.incarnation and node.required:
            return self._finish("failed", f"{name} did not start: {detail}", "abort")
        if not node.incarnation and not node.left_out:
            node.left_out = True
            return [Note("left_out", {"node": name, "why": detail})]
        return self._lose(name, detail)

    def _lose(self, name: str, detail: str) -> list[Instruction]:
        node = self.nodes.get(name)
        if node is None or not node.alive:
            return []
        node.alive, node.ready, node.lost_s = False, False, self._now_s
        out: list[Instruction] = [Note("lost", {"node": name, "detail": detail})]
        if not node.required:
            node.left_out = True
        if node.role == "ris":
            self._surface_wait = self._surface_now = self._surface_check = None
        for r in self._flying():
            if name in r.expected:
                r.expected.discard(name)
                if node.required and name not in r.results:
                    r.spoilt = r.spoilt or Reject.NODE_LOST
        if self._block is not None:
            if node.required and node.role != "ris":
                out += self._block_failed(f"{name} was lost")
            else:
                self._block.waiting.discard(name)
        if node.required and node.role != "ris" and self._pending:
            # its share of the undistilled rounds died with it: they count as rejected after all
            out.append(Note("rounds_lost", {"node": name, "rounds": len(self._pending)}))
            self.rejected[Reject.NODE_LOST.value] += len(self._pending)
            self.kept -= len(self._pending)
            out += [replace(self._told[n], kept=False, reason=Reject.NODE_LOST.value) for n in self._pending]
            self._pending.clear()
        return out

    def _failed(self, name: str, node: _Node, body: m.Failed) -> list[Instruction]:
        out: list[Instruction] = [
            Note("failed", {"node": name, "operation": body.operation, "state": body.state, "detail": body.detail})
        ]
        if body.operation == "apply":
            self._surface_wait = None
            self._surface_failures += 1
            if self._surface_failures >= MAX_STRIKES:
                return out + self._finish(
                    "failed", f"{name}: apply failed {MAX_STRIKES} times in a row: {body.detail}", "abort"
                )
            return out + self._reject_unprobed(Reject.SURFACE_NOT_APPLIED)
        if body.operation == "readsurface":
            return out + (self._unconfirm(body.detail) if self._surface_check is not None else [])
        if body.operation in ("configure", "readclock", "run"):
            if node.required:
                return out + self._finish("failed", f"{name}: {body.operation}: {body.detail}", "abort")
            node.left_out, node.alive = True, False
            return out
        asked = next((r for r in self._flying() if name in r.expected and name not in r.results), None)
        if body.operation == "probe" and asked is not None:
            asked.spoilt = asked.spoilt or Reject.DEVICE
            asked.expected.discard(name)
        elif self._block is not None and name in self._block.waiting:
            if node.role == "eve":
                self._block.waiting.discard(name)
            else:
                return out + self._block_failed(f"{name}: {body.operation}: {body.detail}")
        return out

    # -- time

    def _forgive(self, gap_s: float) -> None:
        """Move every deadline by the time this process itself slept (suspended, stopped): it judges nobody for that."""
        if not self._started or gap_s < OWN_PAUSE_S:
            return
        self._deadline_s += gap_s
        for node in self.nodes.values():
            node.last_seen_s += gap_s
            node.lost_s += gap_s
        for r in self._flying():
            r.deadline_s += gap_s
        if self._block is not None:
            self._block.deadline_s += gap_s
        if self._surface_wait is not None:
            self._surface_wait = (self._surface_wait[0], self._surface_wait[1] + gap_s)
        if self._surface_check is not None:
            self._surface_check = (self._surface_check[0], self._surface_check[1] + gap_s)

    def _check_time(self) -> list[Instruction]:
        out: list[Instruction] = []
        place = self.lab.coordinator
        for name, node in self.nodes.items():
            if node.alive and self._now_s - node.last_seen_s > place.lost_after_s:
                out += self._lose(name, f"silent for {self._now_s - node.last_seen_s:.1f} s")
        if self.phase == "joining" and self._now_s > self._deadline_s:
            missing = [n for n, node in self.nodes.items() if not node.alive]
            required = [n for n in missing if self.nodes[n].required]
            if required:
                return out + self._finish(
                    "failed", f"{', '.join(required)} did not join within {place.join_timeout_s:g} s", "abort"
                )
            for n in missing:
                self.nodes[n].left_out = True
                out.append(Note("left_out", {"node": n, "why": "did not join in time"}))
        if self.phase in ("configuring", "probing", "distilling"):
            for name, node in self.nodes.items():
                if node.required and not node.alive and self._now_s - node.lost_s > place.rejoin_timeout_s:
                    return out + self._finish(
                        "failed", f"{name} was lost and did not come back within {place.rejoin_timeout_s:g} s", "abort"
                    )
        if self.phase == "configuring" and self._now_s > self._deadline_s:
            late = [n for n, node in self._taking_part().items() if not node.ready]
            required = [n for n in late if self.nodes[n].required]
            if required:
                return out + self._finish("failed", f"{', '.join(required)} did not get ready in time", "abort")
            for n in late:
                self.nodes[n].left_out = True
                out.append(Note("left_out", {"node": n, "why": "did not get ready in time"}))
        if self._surface_wait is not None and self._now_s > self._surface_wait[1]:
            self._surface_wait = None
            self._surface_failures += 1
            if self._surface_failures >= MAX_STRIKES:
                return out + self._finish(
                    "failed", f"the surface acknowledged no pattern {MAX_STRIKES} times in a row", "abort"
                )
            out += self._reject_unprobed(Reject.SURFACE_NOT_APPLIED)
        if self._surface_check is not None and self._now_s > self._surface_check[1]:
            out += self._unconfirm("the board did not answer")
        flying = self._flying()
        for r in flying[:1] if self._ahead else flying:  # ahead, a round's time begins when the one before is over
            if self._now_s > r.deadline_s and r.expected - set(r.results):
                out += self._round_late(r)
        if self._block is not None and self._now_s > self._block.deadline_s:
            eve = self._name("eve")
            late_names = ", ".join(sorted(self._block.waiting))
            if self._block.stage in ("attack", "unmask") and eve in self._block.waiting:
                self._block.waiting.discard(eve)
                self.nodes[eve].left_out = True
                out.append(Note("left_out", {"node": eve, "why": f"no answer to {self._block.stage}"}))
            else:
                out += self._block_failed(f"timeout waiting for {late_names}")
        if self.phase == "finishing" and self._now_s > self._deadline_s:
            out += self._over()
        return out

    def _round_late(self, r: _Round) -> list[Instruction]:
        out: list[Instruction] = []
        late = r.expected - set(r.results)
        if r.steps is not None and not r.steps.over:  # the others could not do their part yet
            late = set(r.steps.waiting)
            r.steps.cut()
            r.spoilt = r.spoilt or Reject.TIMEOUT
            r.deadline_s = self._now_s + self.lab.coordinator.operation_timeout_s
        for name in sorted(late):
            node = self.nodes[name]
            node.strikes += 1
            r.expected.discard(name)
            out.append(Note("no_answer", {"node": name, "round": r.number, "strikes": node.strikes}))
            if node.required:
                r.spoilt = r.spoilt or Reject.TIMEOUT
            if node.strikes >= MAX_STRIKES:
                if node.required:
                    return out + self._finish(
                        "failed", f"{name} left {MAX_STRIKES} rounds in a row unanswered", "abort"
                    )
                node.left_out = True
                out.append(Note("left_out", {"node": name, "why": f"{MAX_STRIKES} rounds unanswered"}))
        return out

    # -- the run's course

    def _advance(self) -> list[Instruction]:
        """Do whatever is possible now; called after every event."""
        out: list[Instruction] = []
        while (step := self._step()) is not None:
            out += step
        return out

    def _step(self) -> list[Instruction] | None:
        """Take one step of the run's course; None where everything waits for somebody."""
        match self.phase:
            case "joining":
                if all(n.alive for n in self._taking_part().values()):
                    self.phase = "configuring"
                    self._deadline_s = self._now_s + self.lab.coordinator.operation_timeout_s
                    if self.experiment.beams.policy != "none":
                        self._deadline_s += LOADING_S
                    self._make_scheduler()
                    misfit = self._misfit()
                    if misfit is not None:
                        return self._finish("failed", misfit, "abort")
                    out: list[Instruction] = [ResetWorld()] if self.lab.world is not None else []
                    return out + [x for name in self._taking_part() for x in self._prepare(name)]
            case "configuring":
                if all(n.ready for n in self._taking_part().values()):
                    self.phase = "probing"
                    self._epoch_s = self._epoch_s if self._epoch_s is not None else self._now_s
                    return [Note("ready", {"nodes": sorted(self._taking_part())})]
            case "probing":
                return self._step_probing()
            case "distilling":
                return self._step_distilling()
            case "finishing":
                if all(n.stopped or not n.alive for n in self._taking_part().values()):
                    return self._over()
        return None

    def _make_scheduler(self) -> None:
        self._timed = all(n.hello.timed for n in self.nodes.values() if n.hello and n.role != "ris")
        # a board that cannot say when it latched must not be asked to while a round may still be captured
        self._ahead = self._ahead and all(n.hello.timed for n in self.nodes.values() if n.hello)
        hellos = [n.hello for n in self.nodes.values() if n.hello]
        turnaround_s = max((h.turnaround_s for h in hellos), default=0.0)
        if not self.virtual:  # in virtual time the air waits for the host
            turnaround_s = max([turnaround_s, *(h.host_turnaround_s for h in hellos)])
        p = self.experiment.probing
        frame_s = self._frame_s
        if self.experiment.beams.policy != "none":
            frame_s += self._antenna_s * (max(self._antennas().values()) - 1)
        self._scheduler = Scheduler(
            self._slots, frame_s, p.interval_s, p.turnaround_s + turnaround_s,
            max([p.guard_s, *(_SPREADS * h.timing_spread_s for h in hellos)]),
            0.0 if self.virtual else WALL_LEAD_S,
        )  # fmt: skip

    def _flying(self) -> list[_Round]:
        """Return the rounds that were ordered and are not settled, oldest first."""
        return [*self._settling, *([self._round] if self._round else [])]

    def _step_probing(self) -> list[Instruction] | None:
        if self._settling and self._settling[0].expected <= set(self._settling[0].results):
            over = self._settling.pop(0)
            if self._ahead and self._settling:
                self._settling[0].deadline_s = self._now_s + self.lab.coordinator.operation_timeout_s
            return self._settle(over)
        if self._round is not None:
            if self._round.steps is not None:
                orders = self._round.steps.advance(self._round.expected)
                if orders:
                    return [Tell(n, body) for n, body in orders if self.nodes[n].alive]
                if self._round.steps.over:
                    self._round.captured |= self._round.expected
            if not self._ahead and not self._round.expected <= self._round.captured:
                return None
            self._settling.append(self._round)
            self._round = None
            return []
        errand = self.policy is not None and self.policy.errand
        done = self._next_round >= self.experiment.rounds or self._stop is not None
        done = done or (errand and self.policy is not None and self.policy.done)
        full = len(self._pending) >= self._block_rounds and not errand
        if self._surface_check is not None:
            return None
        if (done or full) and not self._settling:
            if len(self._unconfirmed) > 1 and self._stop != "abort":
                return self._check_surface()
            if self._pending and self._stop != "abort" and not errand and (full or not self._to_train):
                return self._start_block()
            if done:
                kind = self._stop or "stop"
                if self._stop is None and self.kept == 0:
                    return self._finish("failed", self._nothing_kept(), kind)
                return self._finish("finished" if self._stop is None else "stopped", f"{self.probed} rounds", kind)
        if done or full or len(self._settling) > 1 or self._surface_wait is not None:
            return None
        if self._settling and self.policy is not None and self.policy.watches:
            return None
        if not all(n.ready for n in self._taking_part().values() if n.required):
            return None
        assert self._scheduler is not None
        # timed radios wait for a round's time themselves
        if not (self._timed or self.virtual) and self._scheduler.next_s > self._now_s - (self._epoch_s or 0.0):
            return None
        return self._start_round()

    @property
    def _block_rounds(self) -> int:
        e = self.experiment
        return e.training.rounds if self._to_train else e.accounting.block_rounds

    def _nothing_kept(self) -> str:
        why = ", ".join(f"{n} {reason}" for reason, n in self.rejected.most_common())
        return f"no round of {self.probed} was kept: {why}"

    def _start_round(self) -> list[Instruction] | None:
        surface = self._surface_plan()
        if surface is None or surface:
            return surface
        assert self._scheduler is not None
        # A round is planned from what was learned up to the round before the previous one, whether or not the previous
        # one's results happen to be in already: otherwise two runs of one seed could differ.
        while self._lessons and self._lessons[0].number <= self._next_round - 2:
            self._learn(self._lessons.pop(0))
        now_s = 0.0 if self.virtual else self._now_s - (self._epoch_s or 0.0)
        not_before_s = self._surface_latched_s + SURFACE_SETTLE_S if self._surface_now else 0.0
        start_s, end_s = self._scheduler.plan(now_s, max(not_before_s, self._last_end_s))
        self._last_end_s = end_s
        number, self._next_round = self._next_round, self._next_round + 1
        if self.policy is not None:
            self._unconfirmed.append(number)
        nodes = [n for n, node in self._taking_part().items() if node.ready and node.role != "ris"]
        wait_s = self.lab.coordinator.operation_timeout_s
        if not self.virtual:
            wait_s += end_s - now_s
        beams = self.experiment.beams
        sounding = beams.policy != "none" and number % beams.sound_every == 0
        self._round = _Round(
            number, self._surface_now, start_s, end_s, set(nodes), self._now_s + wait_s, sounding=sounding
        )
        if not self._timed:
            names = {self.nodes[n].role: n for n in nodes}
            self._round.steps = steps.plan(number, self._slots, names)
            self._round.expected &= self._round.steps.nodes
            return [LetTimePass(start_s)] if self.virtual else []
        self._round.bases_s = {n: self._scheduler.clocks[n].base_s for n in nodes}
        captured = not self._ahead
        return [Tell(n, self._scheduler.probe(n, number, start_s, end_s, captured, sounding)) for n in nodes]

    def _surface_plan(self) -> list[Instruction] | None:
        """Ask for the next pattern where one is due; [] where the surface holds what this round wants.

        None while rounds under the present pattern are on the air that is to be read back first.
        """
        policy = self.policy
        if policy is None:
            return []
        ris = self._name("ris")
        assert ris is not None
        hello = self.nodes[ris].hello
        if hello is None or hello.surface_shape is None:
            return self._finish("failed", f"{ris}: this node said nothing of its surface", "abort")
        if self._surface_round != self._next_round:
            try:
                if self._surface_round < 0:
                    policy.survey(self.experiment.scene, self.experiment.radio.carrier_hz)
                    policy.begin(hello.surface_shape, hello.phase_bits, seeds.derive(self.experiment.seed, "surface"))
                wanted = policy.pattern_for(self._next_round)
            except InputError as exc:
                return self._finish("failed", f"surface policy {self.experiment.surface.policy!r}: {exc}", "abort")
            self._surface_round = self._next_round
            if self._pattern is None or wanted.digest != self._pattern.digest:
                self._pattern, self._surface_now = wanted, None
        held = self._surface_now is not None  # otherwise it is new, or the surface lost it
        # a pattern that serves one round was acknowledged just before: only those that are held are read back
        if len(self._unconfirmed) >= (SURFACE_CHECK_ROUNDS if held else 2):
            return None if self._flying() else self._check_surface()
        if held:
            return []
        assert self._pattern is not None
        self._unconfirmed.clear()
        self._surface_wait = (self._next_round, self._now_s + self.lab.coordinator.operation_timeout_s)
        body = m.Apply(
            round=self._next_round,
            levels=self._pattern.levels.tobytes(),
            shape=hello.surface_shape,
            phase_bits=hello.phase_bits,
        )
        return [NewPattern(self._pattern), Tell(ris, body)]

    def _check_surface(self) -> list[Instruction]:
        """Have the pattern read back that the rounds since the last look count on; none of them is on the air."""
        ris = self._name("ris")
        if ris is None or not self.nodes[ris].alive:
            return self._unconfirm("the board's node is lost")
        self._surface_check = (self._next_round, self._now_s + self.lab.coordinator.operation_timeout_s)
        return [Tell(ris, m.ReadSurface(round=self._next_round))]

    def _surface_held(self, body: m.SurfaceHeld) -> list[Instruction]:
        if self._surface_check is None or body.round != self._surface_check[0]:
            return [Note("unexpected_pattern", {"digest": body.digest, "round": body.round})]
        if body.digest != self._surface_told:
            return self._unconfirm("it holds another pattern than it acknowledged: the board has started anew")
        self._surface_check = None
        self._unconfirmed.clear()
        return []

    def _unconfirm(self, why: str) -> list[Instruction]:
        """Take back the rounds since the surface was last known to hold its pattern; it is told again."""
        suspects, self._unconfirmed = self._unconfirmed, []
        self._surface_check = self._surface_now = None
        out: list[Instruction] = [Note("surface_lost", {"rounds": [suspects[0], suspects[-1]], "detail": why})]
        for n in [n for n in self._pending if n in suspects]:
            self._pending.remove(n)
            self.kept -= 1
            self.rejected[Reject.SURFACE_CHANGED.value] += 1
            out.append(replace(self._told[n], kept=False, reason=Reject.SURFACE_CHANGED.value))
        if self.policy is not None and self.policy.errand:  # what the search was told cannot be taken back
            which = f"rounds {suspects[0]} to {suspects[-1]}"
            return out + self._finish("failed", f"{which} were measured under an unknown pattern: {why}", "abort")
        return out

    def _applied(self, body: m.Applied) -> list[Instruction]:
        ris = self._name("ris")
        if self._scheduler is None or ris is None or ris not in self._scheduler.clocks:
            return [Note("unexpected_pattern", {"digest": body.digest, "round": body.round})]
        hello = self.nodes[ris].hello
        timed = hello is not None and hello.timed
        if timed:
            latched_s = self._scheduler.reference_s(ris, body.device_time_s)
        else:  # its clock is the host's, which says nothing of the air's: patterns are asked for between rounds
            latched_s = self._last_end_s
        # an answer to an order that was given up says what the outputs hold, and that it is not what was counted on
        expected = self._surface_wait is not None and body.round == self._surface_wait[0]
        for r in self._flying():
            during = r.start_s < latched_s < r.end_s if self._timed and timed else r is self._round
            if r.surface is not None and (during or (not expected and latched_s < r.end_s)):
                r.spoilt = r.spoilt or Reject.SURFACE_CHANGED
        if not expected:
            self._surface_now = None
            return [Note("unexpected_pattern", {"digest": body.digest, "round": body.round})]
        self._surface_wait, self._surface_failures = None, 0
        self._surface_now, self._surface_latched_s = body.digest, latched_s
        self._surface_told = body.digest
        return []

    def _reject_unprobed(self, reason: Reject) -> list[Instruction]:
        """Count the round that could not even start."""
        number, self._next_round = self._next_round, self._next_round + 1
        self.probed += 1
        self.rejected[reason.value] += 1
        if self.policy is not None:
            self.policy.observe(number, {})
        return [RoundOver(number, False, reason.value, None, self._last_end_s, {})]

    def _captured(self, name: str, body: m.Captured) -> list[Instruction]:
        if self._round is None or self._round.number != body.round:
            return []
        self._round.captured.add(name)
        return []

    def _probed(self, name: str, node: _Node, body: m.Probed) -> list[Instruction]:
        rounds = self._flying()
        r = next((r for r in rounds if r.number == body.round), None)
        if r is None or name not in r.expected or name in r.results:
            repeated = r is not None and name in r.results
            return [Note("duplicate" if repeated else "late_answer", {"node": name, "round": body.round})]
        r.results[name] = body
        r.captured.add(name)
        node.strikes = 0
        if body.fault is None:
            return []
        return [Note("fault", {"node": name, "round": body.round, "reason": body.fault, "detail": body.detail})]

    def _settle(self, r: _Round) -> list[Instruction]:
        """Close a round: keep it or reject it."""
        reason = r.spoilt.value if r.spoilt else None
        alice, bob = self._name("alice"), self._name("bob")
        pair = [(r.results.get(alice or ""), "bob"), (r.results.get(bob or ""), "alice")]
        # what a node could not do comes before what the others therefore did not hear
        for result, _ in pair:
            reason = reason or (Reject.NODE_LOST.value if result is None else result.fault)
        for result, transmitter in pair:
            if reason is None and result is not None:
                link = next((x for x in result.links if x.tx == transmitter), None)
                reason = Reject.DEVICE.value if link is None else link.reason
        self._lessons.append(r)
        self.probed += 1
        links = {name: result.links for name, result in r.results.items()}
        if r.sounding:
            reason = reason or Reject.SOUNDING.value
            links = {name: [x for x in found if x.reason is not None] for name, found in links.items()}
        over = RoundOver(r.number, reason is None, reason, r.surface, r.start_s, links)
        if self.policy is not None and self.policy.watches:
            self.policy.observe(r.number, self._heard(r) if reason is None else {})
        if reason is None:
            self.kept += 1
            self._refused_in_a_row = 0
            if self._guard:  # too near to what the training published
                self._guard, self.guarded = self._guard - 1, self.guarded + 1
                return [over]
            self._pending.append(r.number)
            self._told[r.number] = replace(over, links={})
            return [over]
        self.rejected[reason] += 1
        self._refused_in_a_row += reason in (Reject.DEVICE.value, Reject.TIMEOUT.value)
        if self._refused_in_a_row < MAX_REFUSED:
            return [over]
        return [over, *self._finish("failed", f"{MAX_REFUSED} rounds in a row failed: {reason}", "abort")]

    def _heard(self, r: _Round) -> dict[str, C64]:
        """Return a round's CSI (rx antenna, tx antenna, subcarrier) by roles "tx>rx", in an order of its own."""
        found = {}
        for name, result in r.results.items():
            for link in result.links:
                if link.csi is not None and len(link.csi) == 8 * math.prod(link.shape) > 0:
                    csi = np.frombuffer(link.csi, dtype=np.complex64).reshape(link.shape)
                    found[f"{link.tx}>{self.nodes[name].role}"] = csi
        return dict(sorted(found.items()))

    def _learn(self, r: _Round) -> None:
        assert self._scheduler is not None
        snrs = []
        clocks = self._scheduler.clocks if self._timed else {}
        for name, result in r.results.items():
            for link in result.links:
                if link.reason is None:
                    if self.experiment.mode == "experiment":  # private nodes do not tell it
                        snrs.append(link.snr_db)
                    if link.tx == "alice" and name in clocks:  # Alice's clock is the reference
                        self._scheduler.track(name, r.bases_s[name] + link.timing_error_s)
                elif link.tx == "alice" and link.reason == Reject.NO_PREAMBLE and name in clocks:
                    self._scheduler.miss(name)
        if snrs:
            self.snr_db = sum(snrs) / len(snrs)

    # -- distilling

    def _start_block(self) -> list[Instruction]:
        rounds = self._pending[: self._block_rounds]
        self._pending = self._pending[len(rounds) :]
        self._told = {n: self._told[n] for n in self._pending}
        timeout_s = self.lab.coordinator.distil_timeout_s
        names = {n for n in (self._name("alice"), self._name("bob")) if n is not None}
        # the nodes give up first, so that their reason arrives before ours
        training = self._to_train
        self._block = _Block(self._next_block, rounds, self._now_s + timeout_s + 5.0, waiting=names, training=training)
        self._next_block += 1
        self.phase = "distilling"
        body = m.Distil(
            block=self._block.number,
            rounds=rounds,
            timeout_s=timeout_s,
            purpose="training" if training else "key",
        )
        return [Tell(n, body) for n in sorted(names)]

    def _distilled(self, name: str, node: _Node, body: Any) -> list[Instruction]:
        block = self._block
        number = body.block if isinstance(body, m.Unmasked) else body.report.block
        wanted = _STAGE_OF[type(body).__name__]
        if block is None or number != block.number or block.stage != wanted or name not in block.waiting:
            return [Note("late_answer", {"node": name, "block": number, "what": wanted})]
        block.waiting.discard(name)
        match body:
            case m.Trained():
                block.trained[node.role] = body.report
                block.heard = max(block.heard, body.public_messages)
            case m.Agreed():
                block.agreed[node.role] = body
            case m.Attacked():
                block.attacked = body
            case m.Amplified():
                block.amplified[node.role] = body
            case m.Unmasked():
                block.unmasked = body
        return []

    def _step_distilling(self) -> list[Instruction] | None:
        block = self._block
        if block is None or block.waiting:
            return None
        eve = self._eve()
        place = self.lab.coordinator
        if block.training:
            return self._step_training(block, eve)
        if block.stage == "agree":
            reports = [a.report for a in block.agreed.values()]
            if len(reports) < 2 or not all(r.verified for r in reports):
                reasons = sorted({r.failure for r in reports if r.failure and r.failure != "peer_failed"})
                block.failure = block.failure or ", ".join(reasons) or "no agreement"
            if eve is not None and block.agreed:
                block.stage, block.waiting = "attack", {eve}
                block.deadline_s = self._now_s + place.operation_timeout_s + 10.0
                heard = block.agreed["alice"].public_messages if "alice" in block.agreed else 0
                return [Tell(eve, m.Attack(block=block.number, rounds=block.rounds, public_messages=heard))]
            block.stage = "attack"
            return []
        if block.stage == "attack":
            if block.failure is not None:
                return self._close_block()
            names = {n for n in (self._name("alice"), self._name("bob")) if n is not None}
            block.stage, block.waiting = "amplify", set(names)
            block.deadline_s = self._now_s + place.distil_timeout_s + 5.0
            report = block.attacked.report if block.attacked is not None else None
            return [
                Tell(n, m.Amplify(block=block.number, eve=report, timeout_s=place.distil_timeout_s))
                for n in sorted(names)
            ]
        if block.stage == "amplify":
            reasons = sorted({a.report.failure for a in block.amplified.values() if a.report.failure})
            block.failure = block.failure or (", ".join(reasons) if reasons else None)
            if eve is not None and block.attacked is not None:
                block.stage, block.waiting = "unmask", {eve}
                block.deadline_s = self._now_s + place.operation_timeout_s + 10.0
                heard = block.amplified["alice"].public_messages if "alice" in block.amplified else 0
                return [Tell(eve, m.Unmask(block=block.number, public_messages=heard))]
        return self._close_block()

    def _step_training(self, block: _Block, eve: str | None) -> list[Instruction]:
        """Go on when both ends, or Eve, have learnt; she may take as long as they."""
        if block.stage == "agree":
            reports = block.trained.values()
            if len(reports) < 2 or any(r.failure for r in reports) or len({r.model for r in reports}) != 1:
                reasons = sorted({r.failure for r in reports if r.failure and not r.failure.startswith("peer_failed")})
                block.failure = block.failure or "; ".join(reasons) or "no training"
            else:
                self._to_train = False
                self._guard = self.experiment.training.guard_rounds
                dropped = self._pending[: self._guard]  # kept while the block filled up
                self._pending = self._pending[len(dropped) :]
                self._guard, self.guarded = self._guard - len(dropped), self.guarded + len(dropped)
            block.stage = "attack"
            if eve is None or block.failure is not None:
                return []
            block.waiting = {eve}
            block.deadline_s = self._now_s + self.lab.coordinator.distil_timeout_s
            return [
                Tell(
                    eve,
                    m.Attack(block=block.number, rounds=block.rounds, public_messages=block.heard, purpose="training"),
                )
            ]
        return self._close_block()

    def _block_failed(self, reason: str) -> list[Instruction]:
        """Give up the open block everywhere; what was measured of it is kept for the record."""
        block = self._block
        if block is None:
            return []
        block.failure = block.failure or reason
        out = [x for role in ("alice", "bob") for x in self._tell(role, m.Abandon(block=block.number, reason=reason))]
        return out + self._close_block()

    def _close_block(self) -> list[Instruction]:
        block = self._block
        assert block is not None
        self._block = None
        if self.phase == "distilling":
            self.phase = "probing"
        raw = {role: a.raw_bits for role, a in block.agreed.items() if a.raw_bits is not None}
        if block.attacked is not None and block.attacked.guess is not None:
            raw["eve"] = block.attacked.guess
        digests = {role: a.digest for role, a in block.amplified.items() if a.digest is not None}
        if block.unmasked is not None and block.unmasked.digest is not None:
            digests["eve"] = block.unmasked.digest
        over = BlockOver(
            block=block.number,
            rounds=block.rounds,
            alice=block.agreed["alice"].report if "alice" in block.agreed else None,
            bob=block.agreed["bob"].report if "bob" in block.agreed else None,
            eve=block.attacked.report if block.attacked else None,
            key_alice=block.amplified["alice"].report if "alice" in block.amplified else None,
            key_bob=block.amplified["bob"].report if "bob" in block.amplified else None,
            failure=block.failure,
            raw=raw,
            digests=digests,
            p_values=block.amplified["alice"].p_values if "alice" in block.amplified else {},
            training=block.training,
            trained=block.trained,
        )
        if block.failure is not None and any(w in block.failure for w in LOST_MODEL):
            self._to_train = self.experiment.training.rounds > 0  # a node came back without it
        if over.key_alice is not None and over.key_bob is not None and block.failure is None:
            self.key_bits += min(over.key_alice.key_bits, over.key_bob.key_bits)
        return [over]

    # -- the end

    def _stop_asked(self, kind: FinishKind) -> list[Instruction]:
        out: list[Instruction] = [Note("stop_asked", {"kind": kind})]
        if kind == "stop" and self.phase in ("probing", "distilling"):
            self._stop = "stop"  # the round on the air and what was gathered are finished first
            return out
        return out + self._finish("stopped", f"{kind} was asked for", kind)

    def _finish(
        self, status: Literal["finished", "stopped", "failed"], detail: str, kind: FinishKind
    ) -> list[Instruction]:
        """Drop what is on the air, tell everybody, and wait for their goodbye."""
        out: list[Instruction] = []
        for r in self._flying():
            self.probed += 1
            reason = r.spoilt or Reject.ABORTED
            self.rejected[reason.value] += 1
            links = {name: result.links for name, result in r.results.items()}
            out.append(RoundOver(r.number, False, reason.value, r.surface, r.start_s, links))
        self._settling, self._round = [], None
        if self._block is not None:
            out += self._block_failed(detail)
        if self._pending:
            out.append(Note("rounds_unused", {"rounds": len(self._pending)}))
        self._outcome = Over(status, detail)
        self.phase = "finishing"
        self._deadline_s = self._now_s + 3.0
        return out + [Tell(n, m.Finish(kind=kind)) for n, node in self.nodes.items() if node.alive]

    def _over(self) -> list[Instruction]:
        self.phase = "over"
        assert self._outcome is not None
        return [self._outcome]
