"""The coordinator's logic as a pure state machine: an event in, instructions out; no sockets, no files, no clock.

    joining → configuring → probing ⇄ distilling → finishing → over

Every part of the state has one owner that also owns its deadlines: `roster` the nodes, `surface` what the surface
holds, `timetable` the clocks, `rounds` the rounds under way, `tally` their outcomes, `blocks` the way from rounds to
keys. This file joins them: the phases (`TRANSITIONS`), what is done in each phase (`COURSE`), which method handles
which message (`_ON_MESSAGE`), and in which order deadlines are checked (`_ON_TICK`). docs/states.md draws the tables.

A train of rounds: the surface acknowledges its pattern, every node is sent its slots, all report `Captured` (the air is
free, the next train starts), then `Probed` with what they measured. Where no pattern changes, nothing has to happen
between two trains: the next one is ordered while the nodes work on the present one, and no node reports `Captured`.
A round is used only if Alice and Bob both have an estimate, taken inside one acknowledged surface state; otherwise it
is rejected with a reason and counted. Every wait has a deadline.
The coordinator never sees key bits; in experiment mode it sees CSI and raw bits for the record.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.coordinator import steps
from testbed.coordinator.block import Blocks
from testbed.coordinator.events import (
    AdvanceWorld,
    DiskLow,
    Effect,
    Event,
    FinishKind,
    HaltNode,
    Instruction,
    KeyRefused,
    LinkChanged,
    Note,
    OrdersDropped,
    PauseAsked,
    ProcessEnded,
    Received,
    ResetWorld,
    RoundOver,
    RunFails,
    RunOver,
    RunStatus,
    Send,
    StopAsked,
    Tick,
    VersionRefused,
)
from testbed.coordinator.past import Past
from testbed.coordinator.roster import Node, Roster
from testbed.coordinator.round import Round, Rounds, csi_by_link
from testbed.coordinator.surface_keeper import MAX_FAILURES, SurfaceKeeper
from testbed.coordinator.tally import Tally
from testbed.coordinator.timetable import Timetable
from testbed.core.config import Experiment, Lab
from testbed.core.errors import Reject
from testbed.core.gate import printable
from testbed.core.machine import Deadlines, EventClock, Phases, Story, require
from testbed.core.schedule import Slot
from testbed.core.stages import SurfacePolicy
from testbed.core.words import counted
from testbed.net import messages as m
from testbed.records.documents import RUN_ENDING

OWN_PAUSE_S = 1.0
"""A longer time between two looks at the clock means that the coordinator was asleep, not that the nodes were."""
STOPPING_S = 3.0
"""How long the coordinator waits at the end for the nodes to report that their transmitters are silent."""

_FINISH = {"finishing": "the run fails, is aborted or halted"}
TRANSITIONS: Mapping[str, Mapping[str, str]] = {
    "joining": {
        "configuring": "every node that takes part is alive",
        "finishing": "the run fails, is aborted or halted, or had ended before it was resumed",
    },
    "configuring": {"probing": "every node is configured and its clock was read", **_FINISH},
    "probing": {
        "distilling": "enough rounds were kept for a block, or the last ones are in",
        "finishing": "all rounds are probed and used, or a stop was asked for, or the run fails",
    },
    "distilling": {"probing": "the block is closed", **_FINISH},
    "finishing": {
        "over": "every node has reported that it stopped, or the time for it is over",
        "finishing": "the run fails while the nodes stop, or is aborted or halted then",
    },
    "over": {},
}
"""Phase → the phases that may follow → why."""

_WORSE = (("finished", "failed"), ("stopped", "failed"), ("stopped", "stopped"))
"""(outcome, what happens while the nodes stop) → the latter becomes the outcome."""
_PHASE = "the end of the phase"


class CoordinatorState(Deadlines):
    """Drives one run of `experiment` on `lab`.

    `frame_s`: length of a probe; `antenna_s`: how much longer a sounding is with every antenna beyond the first;
    `past`: what is on record of a run that is resumed.
    """

    def __init__(
        self, lab: Lab, experiment: Experiment, run: str, slots: tuple[Slot, ...], frame_s: float,
        antenna_s: float = 0.0, past: Past | None = None,
    ) -> None:  # fmt: skip
        clock = EventClock(OWN_PAUSE_S)
        super().__init__(clock)
        self.lab, self.experiment = lab, experiment
        self._slots = slots
        self._timeout_s = lab.coordinator.operation_timeout_s
        self._story = story = Story(clock)
        self._phases = Phases(TRANSITIONS, "joining", story)
        self.roster = Roster(lab, experiment, run, clock, story)
        self.surface = SurfaceKeeper(experiment, self.roster, self._timeout_s, clock, story)
        self.timetable = Timetable(lab, experiment, slots, frame_s, antenna_s, clock)
        ahead = not (self.surface.is_changing or self.surface.watches)
        self.rounds = Rounds(self.roster, self._timeout_s, ahead, clock, story)
        self.tally = Tally(story)
        self.blocks = Blocks(lab, experiment, self.roster, self.surface, self.tally, clock, story)
        self._stop_asked = False
        """A stop was asked for: the trains under way end, their rounds are used for a last block, and no further round
        is begun."""
        self._is_paused = False
        """Whether the run is paused: no train is begun, but those under way, and an open block, are finished. A stop
        ends a paused run, too."""
        self._unsent: dict[str, m.Probe] = {}
        """Orders for the next train, by node, which wait until the surface has acknowledged the train's patterns."""
        self._latch_due_s: dict[int, float] = {}
        """Round of that train → when its pattern latches, on the board's clock."""
        self._strangers = ""
        """Who was refused because of a wrong key or version, for the message about nodes that do not join."""
        self._outcome: RunOver | None = None
        self._finish_kind: FinishKind = "stop"
        self._ended: RunOver | None = None
        """How the run had ended by its record when it was resumed: its nodes are told again, and nothing else."""
        self._is_resumed = past is not None
        if past is not None:
            self._go_on(past)

    def _go_on(self, past: Past) -> None:
        """Begin with the state that a run had when its coordinator's process died."""
        self.rounds.next = past.next_round
        self.tally.go_on(past.kept, past.rejected)
        self.timetable.go_on(past.end_s, past.down_s)
        self.surface.go_on(past.states, past.patterns, past.observed)
        guards = past.guarded, past.guard_left
        self.blocks.go_on(past.next_block, past.key_bits, past.to_train, guards, past.dropped, past.with_key)
        self._ended = past.ended

    # -- what the shell and its users read

    @property
    def phase(self) -> str:
        return self._phases.now

    @property
    def nodes(self) -> dict[str, Node]:
        return self.roster.nodes

    @property
    def policy(self) -> SurfacePolicy | None:
        return self.surface.policy

    @property
    def virtual(self) -> bool:
        return self.timetable.virtual

    @property
    def probed(self) -> int:
        return self.tally.probed

    @property
    def kept(self) -> int:
        return self.tally.kept

    @property
    def rejected(self) -> Counter[str]:
        return self.tally.rejected

    @property
    def key_bits(self) -> int:
        return self.blocks.key_bits

    @property
    def guarded(self) -> int:
        return self.blocks.guarded

    @property
    def snr_db(self) -> float:
        return self.timetable.snr_db

    def story(self, *, round: int | None = None, block: int | None = None, node: str | None = None) -> list[str]:
        """Return a line for everything remembered of this round, block or node, oldest first; all where none is named.

        The oldest entries of a long run are forgotten (`core.machine.STORY_ENTRIES`).
        """
        return self._story.tell(round=round, block=block, node=node)

    def check(self) -> None:
        """Raise InvariantError, naming every one, where an invariant of the machine does not hold. Between events."""
        require("coordinator", self.problems())

    # -- entry

    def handle(self, event: Event) -> list[Instruction]:
        """Take one event; return what to do, in order."""
        if self.phase == "over":
            return []
        out = self._conclude(self._take(event))
        while (more := self._step()) is not None:
            out += self._conclude(more)
        return out

    def _take(self, event: Event) -> list[Effect]:
        match event:
            case Tick(now_s):
                return self._tick(now_s)
            case Received(node, incarnation, body):
                return self._received(node, incarnation, body)
            case ProcessEnded(node, detail, is_final):
                return self._process_ended(node, detail, is_final)
            case LinkChanged(node, is_up):
                return self.roster.change_link(self.roster.nodes[node], is_up) if node in self.roster.nodes else []
            case OrdersDropped(node, orders):
                present = self.roster.nodes.get(node)  # None: a stranger, which does not read why it is refused
                return self._count_dropped(present, "coordinator", orders) if present is not None else []
            case KeyRefused(detail) | VersionRefused(detail):
                self._strangers = f"; {detail}"
                kind = "key_refused" if isinstance(event, KeyRefused) else "version_refused"
                return [Note(kind, {"detail": detail})]
            case DiskLow(detail):
                return [] if self.phase == "finishing" else [RunFails(detail)]
            case StopAsked(kind):
                return self._ask_stop(kind)
            case PauseAsked(paused):
                return self._ask_pause(paused)

    def _conclude(self, effects: list[Effect]) -> list[Instruction]:
        """Return the instructions among the effects, and the end of the run where an owner finds that it fails."""
        out: list[Instruction] = []
        for effect in effects:
            if isinstance(effect, RunFails):
                return out + self._finish("failed", effect.detail, "abort")
            out.append(effect)
        return out

    def _step(self) -> list[Effect] | None:
        """Do all that is possible now; None where everything waits for a report."""
        for rule in COURSE.get(self.phase, ()):
            if rule.when(self):
                return rule.do(self)
        return None

    # -- messages

    def _received(self, name: str, incarnation: str, body: Any) -> list[Effect]:
        node = self.roster.nodes.get(name)
        if node is None:
            return self.roster.refuse_stranger(name) if isinstance(body, m.Hello) else []
        if isinstance(body, m.Hello):
            return self._greeted(node, incarnation, body)
        if incarnation != node.incarnation:
            return []  # from a process of this node that has ended
        if not node.alive:
            return self._heard_again(node, body)
        node.seen()
        if not _may_say(node.role, body):
            return _unexpected(node, body)
        take = _ON_MESSAGE.get(type(body))
        return take(self, node, body) if take is not None else []

    def _beaten(self, node: Node, body: m.Heartbeat) -> list[Effect]:
        return self._count_dropped(node, "node", body.dropped)

    def _is_here(self, node: Node, body: m.Here) -> list[Effect]:
        """Take a node in again that was left out, once it has been away for long enough: it reads its orders."""
        is_wanted = node.left_out and node.may_come_back and not self._is_done
        if not is_wanted or self.phase not in ("probing", "distilling"):
            return []
        self.rounds.lose(node.name, node.required)
        return self._admit(node)

    def _count_dropped(self, node: Node, by: str, messages: int) -> list[Effect]:
        """Note that messages were dropped because too many waited: a round or a block may lack an answer for that."""
        node.dropped[by] = messages
        return node.note_dropped()

    def _heard_again(self, node: Node, body: Any) -> list[Effect]:
        """Handle a message of a node that was given up: it is alive, its process or its network had only paused."""
        if self.phase == "finishing":
            return self._stopped(node, body) if isinstance(body, m.Stopped) else []
        # A node that still holds its measurements continues; the others start with nothing.
        if not node.may_resume:
            return self._admit(node) if isinstance(body, (m.Heartbeat, m.Here)) and node.may_come_back else []
        if isinstance(body, m.Heartbeat):
            if self.blocks.open is not None:  # it computes, and comes to its other messages when it is done
                node.wait_for_return()
            return []
        if not isinstance(body, (m.Here, *_OF_BLOCKS)):
            return []
        self.rounds.forget_clock_of(node.name)
        out = self.roster.resume(node)
        # What a computation has found may come before any `Here`, and is not sent again.
        return out if isinstance(body, m.Here) else out + self._received(node.name, node.incarnation, body)

    def _greeted(self, node: Node, incarnation: str, body: m.Hello) -> list[Effect]:
        if body.role != node.role:
            return self.roster.refuse(node.name, f"claims role {body.role!r}, the lab file states {node.role!r}")
        if node.incarnation == incarnation:
            return []  # repeated greeting
        if self.phase == "finishing" and node.stopped:
            return []  # it stays, and waits for its next run
        out = self._lose(node, "restarted")
        came_back = node.incarnation != ""
        node.greet(incarnation, body)
        if not came_back:
            out.append(Note("joined", {"node": node.name, "identity": body.identity}))
        return out + self._admit(node, came_back)

    def _admit(self, node: Node, came_back: bool = True) -> list[Effect]:
        """Take a node in, new or come back; it starts with nothing."""
        self.rounds.forget_clock_of(node.name)
        out = self.roster.welcome(node, came_back)
        if self.phase == "finishing":
            return out + self._send_home(node)
        if self.phase != "joining":
            self.roster.ask(node)
            if node.role == "alice":  # her sockets have new addresses, which the others need
                self.roster.ask_anew("bob")
                self.roster.ask_anew("eve")
        return out

    def _configured(self, node: Node, body: m.Configured) -> list[Effect]:
        if not node.owes_settings:
            return _unexpected(node, body)
        node.have_clock_read()
        note = Note("configured", {"node": node.name, "accepted": body.accepted})
        return [note, *self.blocks.tidy(node), *self._stand_still(node), Send(node.name, m.ReadClock())]

    def _stand_still(self, node: Node | None = None) -> list[Effect]:
        """Let virtual time come to rest, if it does not rest already, and have Alice's clock read, if that is unknown.

        Clocks that are read while it rests are read at the same time. `node`: whose clock is read next. If it is not
        Alice's, hers says what time it is; a reading that were wrong by the length of a round would leave its node
        listening at the wrong time in every later round. No round is under way at this point.
        """
        if not self.virtual or self.phase not in ("probing", "distilling"):
            return []
        out: list[Effect] = [] if self.timetable.rests else [AdvanceWorld(self.timetable.come_to_rest())]
        alice = self.roster.by_role("alice")
        if alice is None or alice is node or not alice.ready or self.timetable.rests_at_s is not None:
            return out
        return out + self.roster.compare(alice)

    def _clock_read(self, node: Node, body: m.ClockReading) -> list[Effect]:
        if not node.owes_reading:
            return _unexpected(node, body)
        if node.is_compared:
            return self._clock_compared(node, body)
        if not self.timetable.synchronise(node, body.device_time_s):
            return _unexpected(node, body)
        node.get_ready()
        return []

    def _clock_compared(self, node: Node, body: m.ClockReading) -> list[Effect]:
        if self.timetable.compare(node, body.device_time_s):
            node.get_ready()
            return []
        for role in ("alice", "bob", "eve"):
            self.roster.ask_anew(role)
        return [Note("device_clock_set", {"node": node.name, "detail": "all clocks are read anew"})]

    def _applied(self, node: Node, body: m.Applied) -> list[Effect]:
        ris = self.roster.by_role("ris")
        answers_schedule = bool(self._unsent) and self.surface.is_answer(body)  # which `Scheduled` acknowledges
        if ris is None or not self.timetable.knows(ris.name) or answers_schedule:
            return self.surface.unexpected(body)
        timed = ris.hello is not None and ris.hello.timed
        if timed:
            assert self.timetable.scheduler is not None
            latched_s = self.timetable.scheduler.reference_s(ris.name, body.device_time_s)
        else:  # its clock is the host's, so this time is inexact; patterns are ordered between rounds only
            latched_s = self.timetable.last_end_s
        expected, exact = self.surface.is_answer(body), timed and self.roster.timed
        self.rounds.take_latch(latched_s, expected=expected, exact=exact)
        return self.surface.acknowledge(body, latched_s)

    def _scheduled(self, node: Node, body: m.Scheduled) -> list[Effect]:
        """The board has the patterns of the next train: send the orders that waited for that."""
        if not self._unsent or not self.surface.is_answer(body):
            return self.surface.unexpected(body)
        scheduler = self.timetable.scheduler
        assert scheduler is not None
        latched_s = {x.round: scheduler.reference_s(node.name, x.device_time_s) for x in body.patterns}
        names = {x.round: x.digest for x in body.patterns if self.surface.is_right(x.round, x.digest)}
        self.rounds.take_schedule(names, latched_s)
        out = self.surface.take_schedule(body)
        self.timetable.read_board(node.name, body.device_time_s)
        orders, self._unsent = self._unsent, {}
        self._wait_for_train()
        return out + [Send(n, order) for n, order in orders.items() if self.roster.nodes[n].alive]

    def _refuse_patterns(self, reason: Reject) -> list[Effect]:
        """The board will not hold the ordered pattern, or those of a train: reject the rounds that need them."""
        if not self._unsent:
            return self._reject_unprobed(reason)
        self._unsent = {}
        self.timetable.keep_clear()
        self.rounds.refuse_train(reason)
        return []

    def _surface_held(self, node: Node, body: m.SurfaceHeld) -> list[Effect]:
        if not self.surface.is_reading(body):
            return self.surface.unexpected(body)
        if self.surface.confirm(body):
            return []
        return self._withdraw("it holds another pattern than it acknowledged: the board was reset")

    def _captured(self, node: Node, body: m.Captured) -> list[Effect]:
        self.rounds.take_captured(node.name, body)
        return []

    def _stepped(self, node: Node, body: m.Stepped) -> list[Effect]:
        self.rounds.take_stepped(node.name, body)
        return []

    def _probed(self, node: Node, body: m.Probed) -> list[Effect]:
        return self.rounds.take_probed(node.name, body)

    def _reported(self, node: Node, body: Any) -> list[Effect]:
        return self.blocks.take(node, body)

    def _stopped(self, node: Node, body: m.Stopped) -> list[Effect]:
        node.stopped = True
        return []

    def _failed(self, node: Node, body: m.Failed) -> list[Effect]:
        body = m.Failed(  # the node's text may be printed as the reason why the run ends
            operation=printable(body.operation), state=printable(body.state), detail=printable(body.detail, 1000)
        )
        note = Note(
            "failed", {"node": node.name, "operation": body.operation, "state": body.state, "detail": body.detail}
        )
        return [note, *_ON_FAILURE.get(body.operation, CoordinatorState._work_failed)(self, node, body)]

    def _apply_failed(self, node: Node, body: m.Failed) -> list[Effect]:
        if self.surface.fail():
            return [RunFails(f"{node.name}: apply failed {MAX_FAILURES} times in a row: {body.detail}")]
        return self._refuse_patterns(Reject.SURFACE_NOT_APPLIED)

    def _reading_failed(self, node: Node, body: m.Failed) -> list[Effect]:
        return self._withdraw(body.detail) if self.surface.is_read_back else []

    def _node_failed(self, node: Node, body: m.Failed) -> list[Effect]:
        """A node cannot take part at all."""
        if node.is_compared:
            self.roster.ask(node)
            return []
        if node.required:
            return [RunFails(f"{node.name}: {body.operation}: {body.detail}")]
        node.dismiss()
        return []

    def _work_failed(self, node: Node, body: m.Failed) -> list[Effect]:
        """A node could not do its part in a round or a block."""
        if body.operation == "probe" and (noted := self.rounds.take_failure(node)) is not None:
            return noted
        return self.blocks.take_failure(node, f"{body.operation}: {body.detail}")

    # -- losses

    def _process_ended(self, name: str, detail: str, is_final: bool) -> list[Effect]:
        """A local process has ended. If it never greeted and is not started again, the run does not wait for it."""
        node = self.roster.nodes.get(name)
        if node is None:  # the simulated air
            return [RunFails(f"{name}: {detail}")] if self.phase != "finishing" else []
        if not is_final and not node.incarnation:
            return []  # it had not greeted yet, and is started again
        if self.phase != "finishing" and not node.incarnation and node.required:
            return [RunFails(f"{name} did not start: {detail}")]
        if self.phase != "finishing" and not node.incarnation and not node.left_out:
            return self.roster.leave_out(node, detail)
        out = self._lose(node, detail)
        if is_final and node.required and self.phase != "finishing":
            out.append(RunFails(f"{name} was lost and is not started again: {detail}"))
        return out

    def _lose(self, node: Node, why: str) -> list[Effect]:
        """Go on without a node that is no longer alive; the measurements that it held are lost."""
        if node.stopped or not (node.alive or node.is_missing):  # a node that has finished ends its process, too
            return []
        out = self.roster.lose(node, why)
        if node.role == "ris":
            self.surface.lose()
            if self._unsent:
                out += self._refuse_patterns(Reject.NODE_LOST)
        self.rounds.lose(node.name, node.required)
        out += self.blocks.lose(node)
        if node.required and node.measures and self.tally.pending and self.phase != "finishing":
            # Its measurements of the rounds that no block has used are lost: no key can be made of these rounds.
            out.append(Note("rounds_lost", {"node": node.name, "rounds": self.tally.pending}))
            out += self.tally.withdraw(Reject.MEASURED)
        return out

    def _miss(self, node: Node) -> list[Effect]:
        """A node is silent. Its measurements are given up only when its time to answer again is over."""
        why = f"silent for {node.silent_s:.1f} s; {node.where_it_fails}"
        if not (node.required and node.measures and (node.ready or node.is_compared)):
            return self._lose(node, why)
        out = self.roster.miss(node, why)
        self.rounds.lose(node.name, node.required)
        return out

    def _withdraw(self, why: str) -> list[Effect]:
        """Reject the rounds since the surface was last known to hold its pattern, and order the pattern again."""
        suspects = self.surface.withdraw()
        which = [suspects[0], suspects[-1]]
        out: list[Effect] = [Note("surface_lost", {"rounds": which, "detail": why})]
        out += self.tally.withdraw(Reject.SURFACE_CHANGED, suspects)
        for r in self.rounds.under_way:
            if r.number in suspects:
                r.reject(Reject.SURFACE_CHANGED)
        if self.surface.is_search:  # the search has already used these rounds
            out.append(RunFails(f"rounds {which[0]} to {which[1]} were measured under an unknown pattern: {why}"))
        return out

    # -- time

    def _tick(self, now_s: float) -> list[Effect]:
        """Take the time, then look at the deadlines in the order of `_ON_TICK`, until one ends the run."""
        first = not self._clock.begun
        self._clock.advance(now_s)
        if first:
            self.set_deadline(_PHASE, self.lab.coordinator.join_timeout_s)
        out: list[Effect] = []
        for look in _ON_TICK:
            out += look(self)
            if out and isinstance(out[-1], RunFails):
                break
        return out

    def _look_for_silence(self) -> list[Effect]:
        if self.phase == "finishing":  # nodes leave, and the wait for the others has a deadline of its own
            return []
        silent = [node for node in self.roster.nodes.values() if node.is_silent]
        return [x for node in silent for x in self._miss(node)]

    def _look_at_joining(self) -> list[Effect]:
        if self.phase != "joining" or not self.is_overdue(_PHASE):
            return []
        if self._ended is not None:
            return self._end_again()
        missing = [node for node in self.roster.nodes.values() if not node.alive]
        within_s = self.lab.coordinator.join_timeout_s
        failure = f"did not join within {within_s:g} s{self._strangers}"
        return self.roster.go_on_without(missing, failure, "did not join in time")

    def _look_for_returns(self) -> list[Effect]:
        if self.phase not in ("configuring", "probing", "distilling") or self._all_is_used():
            return []
        return self.roster.look_for_returns()

    def _look_for_unready(self) -> list[Effect]:
        if self.phase not in ("probing", "distilling"):
            return []
        late = [node for node in self.roster.taking_part() if node.is_late_to_get_ready]
        return [x for node in late for x in self.roster.ask_again(node)]

    def _look_at_configuring(self) -> list[Effect]:
        if self.phase != "configuring" or not self.is_overdue(_PHASE):
            return []
        late = [node for node in self.roster.taking_part() if not node.ready]
        return self.roster.go_on_without(late, "did not get ready in time", "did not get ready in time")

    def _look_at_surface(self) -> list[Effect]:
        out: list[Effect] = []
        if self.surface.acknowledgement_is_late:
            if self.surface.fail():
                return [RunFails(f"the surface acknowledged no pattern {MAX_FAILURES} times in a row")]
            out += self._refuse_patterns(Reject.SURFACE_NOT_APPLIED)
        if self.surface.reading_is_late:
            out += self._withdraw("the board did not answer")
        return out

    def _look_at_rounds(self) -> list[Effect]:
        out: list[Effect] = []
        for train in self.rounds.late():
            out += self.rounds.give_up_waiting(train)
            if out and isinstance(out[-1], RunFails):
                break
        return out

    def _look_at_block(self) -> list[Effect]:
        return self.blocks.look_for_late()

    def _look_at_stopping(self) -> list[Effect]:
        return self._end() if self.phase == "finishing" and self.is_overdue(_PHASE) else []

    # -- joining and configuring

    def _everybody_has_joined(self) -> bool:
        return self.roster.all_alive()

    def _everybody_can_be_told_the_end(self) -> bool:
        return self._ended is not None and self.roster.all_alive()

    def _end_again(self) -> list[Effect]:
        """Tell the nodes that are there the end that a resumed run had had already."""
        assert self._ended is not None
        return [*self._finish(self._ended.status, self._ended.detail, "stop")]

    def _begin_configuring(self) -> list[Effect]:
        self._phases.enter("configuring")
        self.set_deadline(_PHASE, self.roster.ready_within_s)
        out = self.roster.settle_timing()
        # A board that cannot time its latch must not get a pattern while a round is on the air.
        self.rounds.ahead = self.rounds.ahead and all(hello.timed for hello in self.roster.greetings())
        self.timetable.begin(self.roster)
        misfit = self.roster.misfit() or self.timetable.misfit
        if misfit is not None:
            return [RunFails(misfit)]
        for node in self.roster.taking_part():
            self.roster.ask(node)
        out += [ResetWorld()] if self.lab.world is not None else []
        if self._is_resumed and self.virtual:
            out.append(AdvanceWorld(self.timetable.last_end_s))
        return out + self.roster.beams_note()

    def _a_node_can_be_configured(self) -> bool:
        """In virtual time only between rounds: from then on the air waits for the node's samples, a round under way
        would stand still, and the node's clock reading is known exactly only while no round is under way."""
        return self.roster.someone_must_be_configured and not (self.virtual and self.rounds.under_way)

    def _configure(self) -> list[Effect]:
        return self.roster.configure()

    def _everybody_is_ready(self) -> bool:
        return self.roster.all_ready()

    def _begin_probing(self) -> list[Effect]:
        self._phases.enter("probing")
        self.clear_deadline(_PHASE)
        self.timetable.fix_origin()
        notes: list[Effect] = [Note("ready", {"nodes": sorted(node.name for node in self.roster.taking_part())})]
        too_short = self.timetable.why_too_short
        return notes + ([Note("interval_too_short", {"detail": too_short})] if too_short else [])

    # -- probing

    def _oldest_round_is_complete(self) -> bool:
        return self.rounds.oldest_is_complete

    def _close_round(self) -> list[Effect]:
        """Close the oldest round under way: keep it or reject it."""
        r = self.rounds.close_oldest()
        reason = r.reason(self.roster.name("alice"), self.roster.name("bob"))
        over = r.record_settled(reason)
        if self.surface.watches:
            self.surface.observe(r.number, csi_by_link(r, self.roster) if reason is None else {})
        self.timetable.heed_lateness(r, self.rounds.next, self.roster.pair(), self.rounds.has_closed(r.train))
        if reason is None:
            self.tally.keep(over, for_a_block=not self.blocks.takes_guard_round())
            return [over]
        self.timetable.pass_over(reason)
        self.tally.reject(r.number, reason, r.train)
        if not self.tally.is_hopeless:
            return [over]
        return [over, RunFails(f"{self.tally.refused_in_a_row} rounds in a row failed: {reason}")]

    def _a_train_is_on_air(self) -> bool:
        return bool(self.rounds.on_air)

    def _follow_train(self) -> list[Effect] | None:
        if self._unsent:
            return None
        orders = self.rounds.advance_on_air()
        if orders is None:
            return None
        return [Send(name, body) for name, body in orders if self.roster.nodes[name].alive]

    def _surface_is_read_back(self) -> bool:
        return self.surface.is_read_back

    @property
    def _is_done(self) -> bool:
        """Whether no further round will be begun."""
        return self._stop_asked or self._has_begun_all

    @property
    def _has_begun_all(self) -> bool:
        """Whether every round of the experiment was begun, or its search needs no more."""
        return self.rounds.next >= self.experiment.rounds or self.surface.search_is_done

    @property
    def _block_is_filled(self) -> bool:
        return self.blocks.is_filled and not self.surface.is_search

    def _rounds_pause(self) -> bool:
        """Whether no round is under way, and none may begin before the measured ones are used."""
        return (self._is_done or self._block_is_filled) and not self.rounds.settling

    def _rounds_must_be_confirmed(self) -> bool:
        return self._rounds_pause() and self.surface.must_be_read_back_before_use

    def _read_surface_back(self) -> list[Effect]:
        """Have the pattern read back under which the rounds since the last reading were measured; none of them is on
        the air."""
        orders = self.surface.read_back(self.rounds.next)
        return self._withdraw("the board's node is lost") if orders is None else orders

    def _a_block_can_start(self) -> bool:
        if not self._rounds_pause() or not self.tally.pending or self.surface.is_search:
            return False
        return self._block_is_filled or not self.blocks.to_train  # the last block may be short, a training may not

    def _begin_block(self) -> list[Effect]:
        self._phases.enter("distilling")
        return self.blocks.start()

    def _all_is_used(self) -> bool:
        """Whether nothing is left to be done but to tell the nodes the end."""
        return self.phase == "probing" and self._is_done and self._rounds_pause() and not self.tally.pending

    def _run_is_done(self) -> bool:
        return self._is_done and self._rounds_pause() and not self._an_end_may_still_be_told()

    def _an_end_may_still_be_told(self) -> bool:
        return not self._stop_asked and self._an_end_is_away

    @property
    def _an_end_is_away(self) -> bool:
        """Whether an end that may alone have a key is away, and its time to come back is not over."""
        away = (self.roster.nodes[name] for name in self.blocks.untold)
        return any(not node.is_overdue_to_return for node in away)

    def _end_as_planned(self) -> list[Effect]:
        if self._stop_asked and (not self._has_begun_all or self._an_end_is_away):  # else the stop came too late
            return [*self._finish("stopped", counted(self.probed, "round"), "stop")]
        if self.kept == 0:
            return [*self._finish("failed", self.tally.why_nothing_was_kept(), "stop")]
        return [*self._finish("finished", counted(self.probed, "round"), "stop")]

    def _clocks_must_be_compared(self) -> bool:
        alice = self.roster.by_role("alice")
        is_behind = self.timetable.is_behind and not self.timetable.rests
        wanted = self.timetable.must_be_compared or (self.surface.is_scheduled and is_behind)
        return wanted and not self._is_done and alice is not None and alice.ready

    def _compare_clocks(self) -> list[Effect] | None:
        """Have Alice's clock read, once nothing is under way that would delay the answer."""
        alice = self.roster.by_role("alice")
        assert alice is not None
        if self.rounds.under_way:
            return None
        return self._stand_still() if self.virtual else self.roster.compare(alice)

    def _eve_is_adrift(self) -> bool:
        eve = self.roster.by_role("eve")
        if eve is None or not eve.ready or eve.left_out or self._is_done or self.timetable.rests:
            return False
        return self.timetable.is_adrift(eve.name)

    def _read_eves_clock(self) -> list[Effect] | None:
        """Have Eve get ready again between two trains, which includes a reading of her clock."""
        if self.rounds.under_way:
            return None
        self.roster.ask_anew("eve")
        detail = "it has received nothing for long, so that its clock is read anew"
        return [Note("clock_adrift", {"node": self.roster.name("eve"), "detail": detail})]

    def _a_train_can_start(self) -> bool:
        if self._is_done or self._block_is_filled or self._is_paused:
            return False
        if not self.rounds.has_room or self.surface.awaits_acknowledgement:
            return False
        if self.rounds.settling and self.surface.watches:
            return False
        if not self.roster.required_ready() or (self.virtual and self.roster.getting_ready):
            return False
        if not self._may_be_planned:
            return False
        # On the wall clock a wide window becomes narrower if it is planned once the train under way has corrected the
        # clocks.
        looked_at = self.roster.timed and self.rounds.under_way and not self.virtual
        if looked_at and not self._windows_are_narrow(self.roster.receivers()):
            return False
        return not self.timetable.is_too_early(self.roster.timed)

    @property
    def _may_be_planned(self) -> bool:
        """Whether everything is known that the next round's windows depend on; without timing, it has none."""
        return not self.roster.timed or self.rounds.are_closed(self.timetable.learned_until(self.rounds.next))

    def _begin_train(self) -> list[Effect] | None:
        """Order the next train, or what the surface needs before it; None where the surface must wait for rounds under
        way."""
        first = self._prepare_surface()
        return self._order_train() if first == [] else first

    def _prepare_surface(self) -> list[Effect] | None:
        """Order the next pattern where one is due; [] where the surface holds the pattern that this round needs.

        None where the present pattern must be read back first and rounds under it are still under way.
        """
        surface = self.surface
        if surface.policy is None:
            return []
        if surface.is_scheduled:
            return self._read_surface_back() if surface.must_be_read_back_before_use else []
        failure = surface.choose(self.rounds.next)
        if failure is not None:
            return [RunFails(failure)]
        if surface.must_be_read_back:
            return None if self.rounds.under_way else self._read_surface_back()
        return [] if surface.held is not None else surface.order(self.rounds.next)

    def _order_train(self) -> list[Effect]:
        """Plan as many rounds as may form one train, and order them together."""
        if not self.roster.timed:
            return self._order_steps()
        most, nodes = self._room_for_train(), self.roster.receivers()
        orders: dict[str, list[m.RoundPlan]] = {n: [] for n in nodes}
        self._latch_due_s.clear()
        self.timetable.ask_board()
        train = [self._plan_round(orders)]
        while len(train) < most and self._may_follow(train[0], nodes):
            train.append(self._plan_round(orders))
        first = train[0]
        self._wait_for_train()
        common = {
            "report_captured": not self.rounds.ahead, "sounding": first.sounding, "paced": not self.virtual,
        }  # fmt: skip
        probes = {n: m.Probe(rounds=orders[n], **common) for n in nodes}
        if not self.surface.is_scheduled:
            return [Send(n, probe) for n, probe in probes.items()]
        self._unsent = probes
        # The board's clock is read while it takes the patterns, as of the end of the last round.
        return self.surface.schedule(self._latch_due_s)

    def _order_steps(self) -> list[Effect]:
        """Plan a train of rounds whose radios cannot time their samples; its steps are ordered one after the other."""
        self._correct_clocks(math.inf)
        number, nodes, rounds = self.rounds.next, self.roster.receivers(), self._room_for_train()
        assert self.timetable.steps is not None
        period = self.timetable.steps.period if rounds > 1 else 0
        names = {self.roster.nodes[n].role: n for n in nodes}
        plan = steps.plan(number, self._slots, names, rounds, period)
        takes_part = [n for n in nodes if n in plan.nodes]
        for times_s in self.timetable.plan_steps(rounds, self.surface.not_before_s):
            r = self.rounds.order(self.surface.held, times_s, takes_part)
            r.steps = plan
            self.surface.count(r.number)
        self._wait_for_train()
        return [AdvanceWorld(self.rounds.on_air[0].start_s)] if self.virtual else []

    def _room_for_train(self) -> int:
        """Return the largest length of the next train, without regard to the widths of the windows."""
        left = self.experiment.rounds - self.rounds.next
        block = self.blocks.room_for_train(len(self.rounds.under_way))
        return min(self.timetable.train, left, block, self.surface.room_for_train)

    def _may_follow(self, first: Round, nodes: list[str]) -> bool:
        """Return whether one more round of these nodes may join a train: a sounding is alone in its train, and the
        windows of every other round must be known."""
        if first.sounding or self._is_sounding(self.rounds.next) or not self._may_be_planned:
            return False
        return self._windows_are_narrow(nodes)

    def _windows_are_narrow(self, nodes: list[str]) -> bool:
        """Return whether the next round's windows are, with these nodes, narrow enough for a train."""
        return self.timetable.may_follow(self._not_before_s(), nodes)

    def _not_before_s(self) -> float:
        """Return the earliest start of the next round that leaves the surface time to change."""
        ris = self.roster.by_role("ris")
        if ris is None or ris.hello is None or not self.surface.is_scheduled:
            return self.surface.not_before_s
        return self.timetable.not_before_latch(not self.rounds.on_air, ris.hello.latency_s)

    def _wait_for_train(self) -> None:
        """Set the deadline for the answers of the train on the air."""
        left_s = 0.0 if self.virtual else self.rounds.on_air[-1].end_s - self.timetable.now_s
        # The surface must first acknowledge the patterns, which has a deadline of its own.
        patience_s = self._timeout_s * (2 if self._unsent or self.surface.is_scheduled else 1)
        self.rounds.wait_for_train(patience_s + left_s)

    def _is_sounding(self, number: int) -> bool:
        beams = self.experiment.beams
        return beams.policy != "none" and number % beams.sound_every == 0

    def _plan_round(self, orders: dict[str, list[m.RoundPlan]]) -> Round:
        """Plan the next round and add it to its nodes' orders."""
        self._correct_clocks(self.timetable.learned_until(self.rounds.next))
        scheduler, is_scheduled = self.timetable.scheduler, self.surface.is_scheduled
        assert scheduler is not None
        times_s = self.timetable.plan(self._not_before_s(), orders)
        held = None if is_scheduled else self.surface.held
        r = self.rounds.order(held, times_s, list(orders), self._is_sounding(self.rounds.next))
        if is_scheduled:
            ris = self.roster.name("ris")
            assert ris is not None
            self._latch_due_s[r.number] = scheduler.device_s(ris, self.timetable.latch_s(times_s[0]))
        else:
            self.surface.count(r.number)
        r.bases_s = {n: scheduler.clocks[n].base_s for n in orders}
        for name, plans in orders.items():
            plans.append(scheduler.round_plan(name, r.number, *times_s))
        return r

    def _correct_clocks(self, until: float) -> None:
        """Correct the clocks by the closed rounds up to this number."""
        for closed in self.rounds.due_for_correction(until):
            self.timetable.correct_clocks(closed)

    def _reject_unprobed(self, reason: Reject) -> list[Effect]:
        """Count the next round as rejected although it could not start."""
        number = self.rounds.next_number()
        self.tally.drop(number, reason.value)
        self.surface.observe_unprobed(number)
        return [RoundOver(number, False, reason.value, None, self.timetable.last_end_s, {})]

    # -- distilling

    def _no_block_is_open(self) -> bool:
        return self.blocks.open is None

    def _go_on_probing(self) -> list[Effect]:
        self._phases.enter("probing")
        return []

    def _advance_block(self) -> list[Effect] | None:
        return self.blocks.step()

    # -- the end

    def _ask_stop(self, kind: FinishKind) -> list[Effect]:
        note = Note("stop_asked", {"kind": kind})
        if kind == "stop" and self.phase in ("probing", "distilling"):
            self._stop_asked = True
            return [note]
        out = self._finish("stopped", f"{kind} was asked for", kind)
        # Nothing is written before the transmitters are silent, as that may take long.
        return sorted([note, *out], key=lambda x: not isinstance(x, HaltNode))

    def _ask_pause(self, paused: bool) -> list[Effect]:
        if paused == self._is_paused or self.phase == "finishing":
            return []
        self._is_paused = paused
        return [Note("paused" if paused else "unpaused", {"round": self.rounds.next})]

    def _finish(self, status: RunStatus, detail: str, kind: FinishKind) -> list[Instruction]:
        """Drop what is under way, order all nodes to finish, and wait until they have stopped.

        The end is recorded before any node is told: if this process dies after that, the run that is resumed ends in
        the same way, and makes no block of which a node may no longer know the earlier ones.
        """
        if self._ended is not None:
            status, detail = self._ended.status, self._ended.detail
        present = [node for node in self.roster.nodes.values() if node.alive or node.is_missing]
        out: list[Any] = [HaltNode(node.name) for node in present if kind == "halt"]
        self._unsent, self._finish_kind = {}, kind
        for r in self.rounds.drop_all():
            reason = (r.rejection or Reject.ABORTED).value
            self.tally.drop(r.number, reason)
            out.append(r.record(reason))
        out += self.blocks.give_up(detail)
        if self.tally.pending:
            out.append(Note("rounds_unused", {"rounds": self.tally.pending}))
        # Further failures while a failed run stops are consequences of the first one, which is the one to report. A
        # finished run has nothing left that a stop could cut short.
        if self._outcome is None or (self._outcome.status, status) in _WORSE:
            self._outcome = RunOver(status, detail)
        self._phases.enter("finishing")
        self.set_deadline(_PHASE, STOPPING_S)
        out.append(Note(RUN_ENDING, {"status": self._outcome.status, "detail": self._outcome.detail}))
        return out + [x for node in present for x in self._send_home(node)]

    def _send_home(self, node: Node) -> list[Effect]:
        """Order a node to finish; before that, to have the keys that both ends have, and no others."""
        return [*self.blocks.tidy(node), Send(node.name, m.Finish(kind=self._finish_kind, recorded=True))]

    def _everybody_has_stopped(self) -> bool:
        return self.roster.all_stopped()

    def _end(self) -> list[Effect]:
        self._phases.enter("over")
        self.clear_deadline(_PHASE)
        assert self._outcome is not None
        missed = sorted(n for n in self.roster.pair() if not self.roster.nodes[n].stopped)
        dropped = [x for node in self.roster.nodes.values() for x in node.note_dropped(factor=1)]
        return [*dropped, *(Note("end_not_told", {"node": name}) for name in missed), self._outcome]

    # -- invariants

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold between two events."""
        yield from super().problems()
        for owner in (self.roster, self.surface, self.timetable, self.rounds, self.tally, self.blocks):
            yield from owner.problems()
        under_way, phase = len(self.rounds.under_way), self.phase
        if self.tally.probed + under_way != self.rounds.next:
            yield f"{self.rounds.next} rounds were begun, but {self.tally.probed} are over and {under_way} under way"
        if (self.blocks.open is not None) != (phase == "distilling"):
            yield f"phase {phase}, but {'a' if self.blocks.open else 'no'} block is open"
        if phase == "distilling" and self.blocks.open is not None and not self.blocks.open.waiting:
            yield f"block {self.blocks.open.number} waits for no node"
        if under_way and phase != "probing":
            yield f"{under_way} rounds are under way in phase {phase}"
        if self._unsent and not (self.surface.awaits_acknowledgement and self.rounds.on_air):
            yield "a train waits for patterns whose acknowledgement is not awaited"
        if phase in ("configuring", "finishing") and not self.has_deadline(_PHASE):
            yield f"phase {phase} may last without limit"
        if (self._outcome is not None) != (phase in ("finishing", "over")):
            yield f"phase {phase}, but the outcome is {self._outcome}"
        if phase not in ("joining", "finishing", "over") and self.timetable.scheduler is None:
            yield f"phase {phase}, but nothing is scheduled"


# ---------------------------------------------------------------- tables


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of a phase: where `when` holds, `do` is done. It returns instructions, or None where it has to wait."""

    when: Callable[[CoordinatorState], bool]
    do: Callable[[CoordinatorState], list[Effect] | None]


def _wait(state: CoordinatorState) -> None:
    """Nothing can be done before a node reports or time passes."""


_S = CoordinatorState
COURSE: Mapping[str, tuple[Rule, ...]] = {
    "joining": (
        Rule(_S._everybody_can_be_told_the_end, _S._end_again),
        Rule(_S._everybody_has_joined, _S._begin_configuring),
    ),
    "configuring": (
        Rule(_S._a_node_can_be_configured, _S._configure),
        Rule(_S._everybody_is_ready, _S._begin_probing),
    ),
    "probing": (
        Rule(_S._oldest_round_is_complete, _S._close_round),
        Rule(_S._a_node_can_be_configured, _S._configure),
        Rule(_S._a_train_is_on_air, _S._follow_train),
        Rule(_S._surface_is_read_back, _wait),
        Rule(_S._rounds_must_be_confirmed, _S._read_surface_back),
        Rule(_S._a_block_can_start, _S._begin_block),
        Rule(_S._run_is_done, _S._end_as_planned),
        Rule(_S._clocks_must_be_compared, _S._compare_clocks),
        Rule(_S._eve_is_adrift, _S._read_eves_clock),
        Rule(_S._a_train_can_start, _S._begin_train),
    ),
    "distilling": (
        Rule(_S._a_node_can_be_configured, _S._configure),
        Rule(_S._no_block_is_open, _S._go_on_probing),
        Rule(lambda state: True, _S._advance_block),
    ),
    "finishing": (Rule(_S._everybody_has_stopped, _S._end),),
}
"""Phase → its rules. After every event, the first rule that holds is carried out, again and again until the state
machine has to wait."""

_OF_BLOCKS = (m.Agreed, m.Trained, m.Amplified, m.Failed)
"""What an end of a block reports when its computation is over."""
_ON_MESSAGE: Mapping[type, Callable[[CoordinatorState, Node, Any], list[Effect]]] = {
    m.Heartbeat: _S._beaten,
    m.Here: _S._is_here,
    m.Configured: _S._configured,
    m.ClockReading: _S._clock_read,
    m.Applied: _S._applied,
    m.Scheduled: _S._scheduled,
    m.SurfaceHeld: _S._surface_held,
    m.Captured: _S._captured,
    m.Stepped: _S._stepped,
    m.Probed: _S._probed,
    m.Agreed: _S._reported,
    m.Trained: _S._reported,
    m.Attacked: _S._reported,
    m.Amplified: _S._reported,
    m.KeyGuessed: _S._reported,
    m.Failed: _S._failed,
    m.Stopped: _S._stopped,
}
"""Message → the method that handles it; others only show that their sender is alive."""

_RADIOS, _ENDS, _SURFACE = ("alice", "bob", "eve"), ("alice", "bob"), ("ris",)
_SAID_BY: Mapping[type, tuple[str, ...]] = {
    m.Applied: _SURFACE,
    m.Scheduled: _SURFACE,
    m.SurfaceHeld: _SURFACE,
    m.Captured: _RADIOS,
    m.Stepped: _RADIOS,
    m.Probed: _RADIOS,
    m.Agreed: _ENDS,
    m.Trained: _ENDS,
    m.Amplified: _ENDS,
    m.Attacked: ("eve",),
    m.KeyGuessed: ("eve",),
}
"""Message → the roles whose reports it is: no node speaks for another. The other messages are about their sender."""


def _unexpected(node: Node, body: Any) -> list[Effect]:
    """Return the note of a message that its sender may not send, or that answers no order that is open."""
    return [Note("unexpected", {"node": node.name, "what": type(body).__name__})]


def _may_say(role: str, body: Any) -> bool:
    """Return whether a message is one of those by which a node of this role reports."""
    if isinstance(body, m.Failed) and body.operation in _OF_THE_SURFACE:
        return role in _SURFACE
    return role in _SAID_BY.get(type(body), (role,))


_OF_THE_SURFACE = ("apply", "applynext", "schedule", "readsurface")
_ON_FAILURE: Mapping[str, Callable[[CoordinatorState, Node, m.Failed], list[Effect]]] = {
    "apply": _S._apply_failed,
    "applynext": _S._apply_failed,
    "schedule": _S._apply_failed,
    "readsurface": _S._reading_failed,
    "configure": _S._node_failed,
    "readclock": _S._node_failed,
    "run": _S._node_failed,
    "authenticate": _S._node_failed,
}
"""Operation that failed at a node → the method that handles it; every other operation is part of a round or a block."""

_ON_TICK: tuple[Callable[[CoordinatorState], list[Effect]], ...] = (
    _S._look_for_silence,
    _S._look_at_joining,
    _S._look_for_returns,
    _S._look_for_unready,
    _S._look_at_configuring,
    _S._look_at_surface,
    _S._look_at_rounds,
    _S._look_at_block,
    _S._look_at_stopping,
)
"""Deadlines in the order in which they are looked at."""
