"""The shell around the coordinator's state machine: the hub's socket, the records, the clock, the progress."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import zmq

from testbed.assess import run_summary
from testbed.config import state_root
from testbed.coordinator import events as e
from testbed.coordinator.disk import Disks
from testbed.coordinator.past import Origin, past_of
from testbed.coordinator.recorder import Recorder, is_awaited
from testbed.coordinator.round_times import TimesOfRounds
from testbed.coordinator.state import CoordinatorState
from testbed.core import handshakes, logs, registry, schedule, seeds
from testbed.core.clock import STEP_S, TIME_OF_DAY, Clock, WallClock
from testbed.core.config import Experiment, Lab, is_rehearsal, to_dict
from testbed.core.errors import InputError, TestbedError
from testbed.core.gate import identifier, printable
from testbed.core.identity import Identity
from testbed.core.machine import handler_of
from testbed.core.types import AntennaFrame, SoundingFrame
from testbed.net import messages as m
from testbed.net import transport
from testbed.net.switchboard import Switchboard
from testbed.records import documents, files, reader, sound
from testbed.records.documents import BLOCK_BEGUN, RUN_BEGUN, RUN_ENDING
from testbed.records.recorded import RecordedRun
from testbed.records.writer import RunWriter

log = logging.getLogger("testbed.coordinator")
_POLL_MS = 20
_MESSAGES_A_LOOK = 256
"""How many messages are read before the clock is read again."""
_SHOWN = (
    "key_refused", "version_refused", "lost", "silent", "resumed", "link_down", "asked_again", "left_out", "failed",
    "refused", "rejoined", "rounds_lost", "no_answer", "beams_without_effect", "messages_dropped", "end_not_told",
    "interval_too_short",
)  # fmt: skip
"""Notes that a person who watches is shown; the others go into the log."""
_CHECK_S = 1.0
"""Seconds between two looks at the free disk space and the refused connections."""
_MOST_STRANGERS = 20
"""How many kinds of refused peers are reported."""
_MOST_KEPT = 4096
"""How many messages are read while the run is paused; more wait in the socket."""
_BYTES_A_VALUE = 8 + 3
"""Bytes on the disk per byte of CSI, which is in the journal and then compressed in rounds.h5."""
_KEYS_BYTES = 8 << 20
"""Bytes that nodes may write: keys, models and logs."""
_BYTES_A_ROUND = 2000
"""Bytes of a round's record without its CSI."""
_EXIT_STATUS: dict[e.RunStatus, documents.ExitStatus] = {"finished": "ok", "stopped": "aborted", "failed": "failed"}


def _antenna_s(frame: SoundingFrame) -> float:
    """Return how much longer a sounding is with every further antenna."""
    return AntennaFrame.of(frame, 2).duration_s - frame.duration_s


@dataclass(frozen=True, slots=True)
class Progress:
    """The figures of a progress bar, made after every round and block."""

    phase: str
    round: int
    rounds: int
    kept: int
    rounds_per_s: float
    """Mean since the nodes were ready, blocks included, as in the summary; of a resumed run, its present process's."""
    snr_db: float
    key_bits: int
    message: str | None = None
    share: float = 0.0
    """Finished share (0 to 1) of what is done once the last round and block are over …"""
    what: str = ""
    """… in words; '' before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    status: str
    """finished, stopped or failed."""
    detail: str
    folder: Path
    summary: dict[str, Any]


class Coordinator:
    """Runs one experiment. Construct (binds the port), start the nodes, then `run`."""

    def __init__(
        self, lab: Lab, experiment: Experiment, folder: Path, identity: Identity | None, clock: Clock | None = None,
        *, origin: Origin | None = None, dead: RecordedRun | None = None, shared: Switchboard | None = None,
    ) -> None:  # fmt: skip
        """`origin`: how the run is started, recorded so that it can be resumed; `dead`: the record of the run that is
        resumed; `shared`: carries the messages if all nodes share this process."""
        self._clock = clock if clock is not None else WallClock()
        self.lab, self.experiment, self.folder = lab, experiment, folder
        self._origin, self._dead = origin, dead
        watches = (
            registry.make_stage("policy", experiment.surface.policy, experiment.surface.options).watches
            if (dead is not None and experiment.surface.policy != "none")
            else False
        )
        self._past = None
        if dead is not None:
            down_s = max(0.0, TIME_OF_DAY.now_s() - files.written_s(dead.folder))
            with sound.damaged(dead.folder, "cannot be resumed"):
                self._past = past_of(dead, experiment, down_s, watches)
        # two runs that begin in the same second in different folders must not share a key folder
        self.run_name = f"{identifier(folder.name)}-{secrets.token_hex(3)}" if self._past is None else self._past.run
        sounder = registry.make_stage("probing", experiment.probing.waveform, experiment.probing.waveform_options)
        self._frame = sounder.frame(experiment.radio.sample_rate_hz)
        slots = schedule.parse(experiment.probing.schedule)
        self.state = CoordinatorState(
            lab, experiment, self.run_name, slots, self._frame.duration_s, _antenna_s(self._frame), self._past
        )
        self._wire: transport.Wire | Switchboard = transport.Wire(identity) if shared is None else shared
        self._identity = identity
        try:
            self._hub = self._wire.hub(lab.coordinator.host, lab.coordinator.port)
        except InputError:
            self._wire.close()
            raise
        self._hub.run = self.run_name
        self.port = self._hub.port
        self.on_round: Callable[[int], None] = lambda _: None
        """Called after every round, with the number of rounds that are over."""
        self.way_to_discussion: Callable[[str, str], str] = lambda node, endpoint: endpoint
        """(node, address of Alice's discussion) → the address that this node is given for it."""
        self._wall: Clock = WallClock()
        """Of full disks and the time of day; the other clock stands still if all nodes share this process."""
        self.disks = Disks(folder, state_root(), self._wall)
        self._asked: list[e.StopAsked | e.PauseAsked] = []
        self.is_told_to_end = False
        """A person has asked for the end, in whatever way."""
        self._kept: deque[Any] = deque()
        """Messages that were read while the disk was full."""
        self._handle = handler_of(self.state)
        self._over: e.RunOver | None = None
        self._recorder: Recorder | None = None
        self._progress: Callable[[Progress], None] = lambda _: None
        self._world: str | None = None
        """Endpoint of the simulated air."""
        self._open = ExitStack()
        self._advance_world: Callable[[float], None] | None = None
        """Lets the time of the simulated air pass; None until the air has loaded the scene, and without such an air."""
        self._untold: list[e.RoundOver] = []
        """The closed rounds of a train that come after the one that is being recorded."""
        self._began_s = 0.0
        self._next_check_s = 0.0
        self._day_ahead_s = TIME_OF_DAY.now_s() - self._wall.now_s()
        """By how much the time of day was ahead of the wall clock, when last looked at."""
        self._reported_keys: set[str] = set()
        interval_s = 0.0 if self.state.virtual else experiment.probing.interval_s
        self._times = TimesOfRounds(interval_s, takes_turns=shared is not None)

    @property
    def is_ending(self) -> bool:
        """Whether the nodes have been ordered to finish."""
        return self.state.phase in ("finishing", "over")

    def check_disk(self) -> None:
        """Raise InputError where the run's records would not fit on their disk, or a key not on its own."""
        n_links = 2 + 2 * (self.experiment.scene.eve is not None)
        values = n_links * len(self._frame.subcarrier_hz) if self.experiment.mode == "experiment" else 0
        needed = files.RESERVE_BYTES + self.experiment.rounds * (_BYTES_A_ROUND + _BYTES_A_VALUE * values)
        for folder, least in ((self.folder, needed), (state_root(), _KEYS_BYTES)):
            if (free := files.free_bytes(folder)) < least:
                raise InputError(
                    f"{folder}: {free >> 20} MB free, this run needs about {least >> 20} MB there; "
                    "free some, or choose fewer rounds or another disk"
                )

    def ask_stop(self, kind: e.FinishKind) -> None:
        """Ask for the end of the run, from a signal handler or a thread: "stop" finishes the trains under way, "abort"
        drops them, "halt" silences all transmitters at once."""
        self.is_told_to_end = True
        self._asked.append(e.StopAsked(kind))

    def ask_pause(self, paused: bool) -> None:
        """Ask, from a thread, to pause the run, so that no round is begun, or to let it go on."""
        self._asked.append(e.PauseAsked(paused))

    def close(self) -> None:
        self._open.close()
        self._hub.socket.close(linger=200)
        self._wire.close()

    def run(
        self,
        world: str | None,
        ended: Callable[[], list[e.ProcessEnded]] = lambda: [],
        progress: Callable[[Progress], None] = lambda _: None,
        before_close: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Drive the experiment to its end and write the run's folder. Never waits without a limit.

        `world` is the endpoint of the simulated air, `ended` reports local processes that have ended, `before_close` is
        called when the nodes have finished and the folder's files are about to be hashed.
        """
        self._world, self._progress = world, progress
        logs.about(run=self.run_name)
        with RunWriter(self.folder, self._start(), run_summary.summary_of, self._dead) as writer:
            writer.wait_for_space(self._wait_for_space)
            self._recorder = Recorder(writer, self.lab, self.run_name, private=self.experiment.mode == "private")
            self._dead = None  # frees memory: it is as large as the run's record
            try:
                self._begin_record(writer)
                over = self._serve(ended)
            except (TestbedError, OSError) as exc:
                self._send_home(recorded=self._has_recorded_failure(writer, exc))
                raise
            self._look_at_time_of_day()
            self._recorder.totals(self.state.guarded, dict(self._hub.refused), self._times.sums())
            before_close()
            status = _EXIT_STATUS[over.status]
            stop = documents.stop(status, None if status == "ok" else over.detail)
            writer.flush()
            self._show_closing(0.0, "the record is read for the summary")
            summary = run_summary.summary_of(replace(reader.load(self.folder), stop=stop), self._show_closing)
            self._show_closing(1.0, "the record is being closed")
            writer.close(stop, summary)
        return Outcome(over.status, over.detail, self.folder, summary)

    def _start(self) -> documents.Start:
        if self._dead is not None:
            return self._dead.start
        return documents.start(
            to_dict(self.experiment), to_dict(self.lab), seeds={"experiment": self.experiment.seed},
            subcarrier_hz=self._frame.subcarrier_hz,
        )  # fmt: skip

    def _begin_record(self, writer: RunWriter) -> None:
        """Record how the run was started or, if it is resumed, how the rounds and blocks ended that were under way."""
        if self._past is not None:
            for effect in self._past.effects:
                _DO[type(effect)](self, effect)
        elif self._origin is not None:
            writer.event(RUN_BEGUN, {"run": self.run_name, **asdict(self._origin)}, lasting=True)

    @staticmethod
    def _has_recorded_failure(writer: RunWriter, exc: Exception) -> bool:
        """Record that the run ends because of an error; False where not even that can be recorded."""
        try:
            writer.event(RUN_ENDING, {"status": "failed", "detail": f"{type(exc).__name__}: {exc}"}, lasting=True)
        except (TestbedError, OSError):
            return False
        return True

    def _send_home(self, recorded: bool) -> None:
        """Order all nodes to finish if the run cannot end in the usual way. Where its end is not `recorded`, the run
        may be resumed, and the nodes keep what they need for that."""
        for name in self.state.nodes:
            self._hub.send(name, m.Finish(kind="abort", recorded=recorded))

    def _serve(self, ended: Callable[[], list[e.ProcessEnded]]) -> e.RunOver:
        """Hand messages, the time and requests of people to the state machine until the run is over."""
        self._take(e.Tick(self._clock.now_s()))
        next_look_s = 0.0
        while self._over is None:
            now_s = self._clock.now_s()
            if now_s >= next_look_s or self._must_look():
                next_look_s = now_s + _POLL_MS / 1000
                self._look_around(now_s, ended)
            try:
                received = self._next_message()
            except zmq.Again:
                self._hub.socket.poll(_POLL_MS)
                continue
            if received is not None and self._over is None:
                self._receive(received)
        return self._over

    def _next_message(self) -> Any:
        """Return the next message, None for one that cannot be used; raises zmq.Again where there is none."""
        return self._kept.popleft() if self._kept else self._hub.receive()

    def _must_look(self) -> bool:
        """Return whether something besides the time, which may stand still, has to be looked at."""
        return bool(self._asked) or time.monotonic() >= self._next_check_s

    def _look_around(self, now_s: float, ended: Callable[[], list[e.ProcessEnded]]) -> None:
        """Handle the time, and all other events that are no messages."""
        # Read the queued messages before the time: a node whose heartbeat waits in the queue is not silent.
        for received in self._waiting_messages():
            self._receive(received)
        self._take(e.Tick(now_s))
        for name, is_up in self._hub.link_changes():
            self._take(e.LinkChanged(name, is_up))
        for name, orders in self._hub.drops():
            self._take(e.OrdersDropped(name, orders))
        if (wall_s := time.monotonic()) >= self._next_check_s:
            self._next_check_s = wall_s + _CHECK_S
            self._look_at_handshakes()
            self._look_at_disk()
            self._look_at_time_of_day()
        for end in ended():
            self._take(end)
        while self._asked:
            self._take(self._asked.pop(0))

    def _look_at_handshakes(self) -> None:
        """Report, once per kind, that a node is kept out because of a key or of its version."""
        found, keys = self._hub.handshakes, state_root() / self.lab.name / "transport"
        found.look()
        kinds = {
            f"a connection was refused whose key is in no {keys}/NAME.public: copy it again from the node's machine":
                found.refused_key,
            "a connection was refused that expects another key of the coordinator than "
            f"{keys / 'coordinator.public'}: copy that to "
            "the node's machine": found.not_understood >= handshakes.MANY,
        }  # fmt: skip
        for detail, happened in kinds.items():
            if happened and detail not in self._reported_keys and self.lab.curve:
                self._reported_keys.add(detail)
                self._take(e.KeyRefused(detail))
        other = self._hub.other_version
        if other and other not in self._reported_keys and len(self._reported_keys) < _MOST_STRANGERS:
            self._reported_keys.add(other)
            self._take(e.VersionRefused(f"{other}: install the same version of testbed on both machines"))

    def _look_at_time_of_day(self) -> None:
        """Record it where the time of day was set, or the machine slept: all times of the record follow it."""
        ahead_s = TIME_OF_DAY.now_s() - self._wall.now_s()
        if abs(by_s := ahead_s - self._day_ahead_s) >= STEP_S:
            self._note(e.Note("clock_stepped", {"by_s": round(by_s, 3)}))
            self._day_ahead_s = ahead_s

    def _look_at_disk(self) -> None:
        """Pause the run while its records can still be closed; end it in order where no space comes in time."""
        lack = self.disks.lack()
        if lack is not None and not self._may_pause:
            return
        if lack is not None and not self._wait_for_space():
            if not self.is_told_to_end:
                self._take(e.DiskLow(f"{lack}: the run was paused for {self.disks.full_for_s:.0f} s"))
            return
        if self.disks.is_full:
            paused_s = round(self.disks.go_on(), 1)
            log.warning("there is space again: the run goes on after %g s", paused_s)
            self._note(e.Note("disk_was_full", {"paused_s": paused_s}))

    @property
    def _may_pause(self) -> bool:
        return not (self.is_told_to_end or self.is_ending)

    def _wait_for_space(self) -> bool:
        """Pause the run until there is space; False where none came in time, or a person asks for the end.

        The nodes are answered, so that they stay. The state machine gets no event, and extends its deadlines by that
        time as it does for any other for which this process stood still.
        """
        within_s = self.lab.coordinator.disk_wait_s
        if self._may_pause and self.disks.pause():
            lack = self.disks.lack() or f"disk full: free space on the disk of {self.folder}"
            log.warning("%s: the run is paused, goes on when there is space, and ends after %g s", lack, within_s)
        while self._may_pause and self.disks.full_for_s <= within_s:
            self._answer_nodes(_CHECK_S)
            if self.disks.lack() is None:
                return True
        return False

    def _answer_nodes(self, for_s: float) -> None:
        """Read messages for so long, without acting on them."""
        until_s = self._wall.now_s() + for_s
        while self._wall.now_s() < until_s:
            try:
                received = self._hub.receive() if len(self._kept) < _MOST_KEPT else None
            except zmq.Again:
                received = None
            if received is None:
                time.sleep(_POLL_MS / 1000)
                continue
            if isinstance(received[2], m.Heartbeat):
                self._hub.send(received[0], m.Pulse(), to_pulse=True)
            elif not isinstance(received[2], m.Here):
                self._kept.append(received)

    def _waiting_messages(self) -> Iterator[Any]:
        """Yield the messages that have arrived, but no more than a fixed number before the clock is read again."""
        for _ in range(_MESSAGES_A_LOOK):
            try:
                received = self._next_message()
            except zmq.Again:
                return
            if received is not None and self._over is None:
                yield received

    def _receive(self, received: Any) -> None:
        name, header, body = received
        if isinstance(body, m.Probed) and not self._fits(body):
            self._hub.strike(name, "csi")
            return
        if isinstance(body, m.Heartbeat):
            self._hub.send(name, m.Pulse(), to_pulse=True)
        if not self.state.virtual:
            # On the wall clock, the next rounds are planned from the present time.
            self._take(e.Tick(self._clock.now_s()))
        try:
            self._times.heard(name, body)
            self._take(e.Received(name, header.incarnation, body))
        except (TestbedError, OSError):
            raise  # the sender is not the cause: the run's files or its simulated air failed
        except Exception as exc:
            # an error in the handling of a message must affect only its sender
            what = f"its {type(body).__name__} could not be handled: {type(exc).__name__}: {printable(str(exc))}"
            log.error("%s: %s", name, what)
            log.debug("%s", name, exc_info=True)
            self._hub.blame(name)
            self._take(e.ProcessEnded(name, what))

    def _fits(self, body: m.Probed) -> bool:
        """Whether all CSI has the shape of this run's waveform: policies and records assume the same for all links."""
        n = self._frame.subcarrier_hz.size
        links = (x for r in body.rounds for x in r.links)
        return all(x.csi is None or (x.shape[2] == n and min(x.shape[:2]) > 0) for x in links)

    def _take(self, event: e.Event) -> None:
        """Hand an event to the state machine and carry out its instructions."""
        self._times.begin_event()
        instructions = self._handle(event)
        over = [x for x in instructions if isinstance(x, e.RoundOver)]
        self._untold = list(over)
        if len(over) < 2:
            for instruction in instructions:
                _DO[type(instruction)](self, instruction)
        else:
            self._carry_out_together(instructions)
        for x in over:
            self._times.over(x.round)
        if self.state.phase != "probing":
            self._times.interrupt()

    def _carry_out_together(self, instructions: list[e.Instruction]) -> None:
        """Carry out the instructions at the end of a train, whose rounds are recorded together."""
        # Orders are sent before anything is written, so that the nodes work on them while the train is recorded; but
        # those that depend on the record are sent after it.
        first = next((i for i, x in enumerate(instructions) if is_awaited(x)), len(instructions))
        for instruction in instructions[:first]:
            if isinstance(instruction, (e.Send, e.HaltNode)):
                _DO[type(instruction)](self, instruction)
        assert self._recorder is not None
        with self._times.writing(), self._recorder.together():
            for instruction in instructions:
                if not isinstance(instruction, (e.Send, e.HaltNode)):
                    _DO[type(instruction)](self, instruction)
        for instruction in instructions[first:]:
            if isinstance(instruction, (e.Send, e.HaltNode)):
                _DO[type(instruction)](self, instruction)

    # -- instructions

    def record(self, kind: str, detail: dict[str, Any], shown: bool = False) -> None:
        """Record an event that the state machine did not make, and have it `shown` to a person. Call it from the thread
        that runs the coordinator."""
        if self._recorder is None:
            return
        self._recorder.note(e.Note(kind, detail))
        if shown:
            self._show_progress(_in_words(kind, detail))

    def _send(self, x: e.Send) -> None:
        body = x.body
        if isinstance(body, m.Configure) and self.state.nodes[x.node].role == "bob":
            body = msgspec.structs.replace(body, discussion=self.way_to_discussion(x.node, body.discussion))
        self._hub.send(x.node, body)
        self._times.sent(x.node, body)

    def _halt_node(self, x: e.HaltNode) -> None:
        self._hub.send(x.node, m.Finish(kind="halt"), to_pulse=True)

    def _withdraw_orders(self, x: e.WithdrawOrders) -> None:
        self._hub.withdraw(x.node, (m.Probe, m.Step, m.Apply, m.ApplyNext, m.Schedule, m.ReadSurface))

    def _reset_world(self, x: e.ResetWorld) -> None:
        place = self.lab.world
        if place is None or self._world is None:
            raise TestbedError("this lab has a [world], but its endpoint is not known")
        driver = registry.load_driver("worlds", place.driver)
        plan, limit_s = self.experiment, self.lab.coordinator.operation_timeout_s
        # Unless the run is a rehearsal, nothing in it may follow from the seed in a file, the simulated air included.
        seed = plan.seed if is_rehearsal(self.lab, plan) else seeds.fresh()
        driver.reset(self._world, self._identity, plan.scene, plan.radio, seed, limit_s)
        self._advance_world = self._open.enter_context(driver.pacer(self._world, self._identity))

    def _let_world_advance(self, x: e.AdvanceWorld) -> None:
        if self._advance_world is not None:
            self._advance_world(x.until_s)

    def _note(self, x: e.Note) -> None:
        assert self._recorder is not None
        if x.kind == "ready":
            self._began_s = time.monotonic()
        if not self._recorder.note(x):
            return
        text = _in_words(x.kind, x.detail)
        if x.kind in _SHOWN:
            self._show_progress(text)
            return
        log.info(text)
        if x.kind == BLOCK_BEGUN:
            self._show_progress()

    def _new_pattern(self, x: e.NewPattern) -> None:
        assert self._recorder is not None
        self._recorder.pattern(x)

    def _round_over(self, x: e.RoundOver) -> None:
        assert self._recorder is not None
        with self._times.writing():
            self._recorder.round(x)
        logs.about(round=x.round)
        self._untold = self._untold[1:]
        self._show_progress()
        self.on_round(self.state.probed)

    def _block_over(self, x: e.BlockOver) -> None:
        assert self._recorder is not None
        self._recorder.block(x)
        self._show_progress()

    def _run_over(self, x: e.RunOver) -> None:
        self._over = x

    def _show_closing(self, share: float, what: str) -> None:
        self._show_progress(share=share, what=what)

    def _show_progress(self, message: str | None = None, share: float = 0.0, what: str = "") -> None:
        st = self.state
        elapsed_s = time.monotonic() - self._began_s if self._began_s else 0.0
        before = 0 if self._past is None else self._past.next_round
        probed, kept = st.probed - len(self._untold), st.kept - sum(x.kept for x in self._untold)
        rate = (probed - before) / elapsed_s if elapsed_s > 0 else 0.0
        rounds, snr_db, bits = self.experiment.rounds, st.snr_db, st.key_bits
        self._progress(Progress(st.phase, probed, rounds, kept, rate, snr_db, bits, message, share, what))


def _in_words(kind: str, detail: dict[str, Any]) -> str:
    """Return an event as a line for a person's terminal; it may contain nodes' own words."""
    words = ", ".join(f"{k} {v}" for k, v in detail.items() if k not in ("identity", "accepted"))
    return printable(f"{kind.replace('_', ' ')}: {words}", 1000)


_DO: dict[type, Callable[[Coordinator, Any], None]] = {
    e.Send: Coordinator._send,
    e.HaltNode: Coordinator._halt_node,
    e.WithdrawOrders: Coordinator._withdraw_orders,
    e.ResetWorld: Coordinator._reset_world,
    e.AdvanceWorld: Coordinator._let_world_advance,
    e.Note: Coordinator._note,
    e.NewPattern: Coordinator._new_pattern,
    e.RoundOver: Coordinator._round_over,
    e.BlockOver: Coordinator._block_over,
    e.RunOver: Coordinator._run_over,
}
"""Instruction → who carries it out."""
