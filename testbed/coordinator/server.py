"""The shell around the coordinator's state machine: the hub's socket, the records, the clock, the progress."""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from testbed.assess import run_summary
from testbed.coordinator import events as e
from testbed.coordinator.state import CoordinatorState
from testbed.core import registry, schedule, seeds
from testbed.core.clock import Clock, WallClock
from testbed.core.config import Experiment, Lab, is_rehearsal, to_dict
from testbed.core.errors import InputError, TestbedError
from testbed.core.identity import Identity
from testbed.core.types import AntennaFrame, SoundingFrame
from testbed.net import messages as m
from testbed.net import transport
from testbed.records import documents, reader
from testbed.records.writer import RunWriter

log = logging.getLogger("testbed.coordinator")
_POLL_MS = 20


def _antenna_s(frame: SoundingFrame) -> float:
    """Return how much longer a sounding is with every further antenna."""
    return AntennaFrame.of(frame, 2).duration_s - frame.duration_s


@dataclass(frozen=True, slots=True)
class Progress:
    """For a progress bar, after every round and block."""

    phase: str
    round: int
    rounds: int
    kept: int
    rounds_per_s: float
    snr_db: float
    key_bits: int
    message: str | None = None


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
        self, lab: Lab, experiment: Experiment, folder: Path, identity: Identity | None, clock: Clock | None = None
    ) -> None:
        self._clock = clock if clock is not None else WallClock()
        self.lab, self.experiment, self.folder = lab, experiment, folder
        # two runs that begin in the same second in different folders must not share a key folder
        self.run_name = f"{folder.name}-{secrets.token_hex(3)}"
        sounder = registry.make_stage("probing", experiment.probing.waveform, experiment.probing.waveform_options)
        self._frame = sounder.frame(experiment.radio.sample_rate_hz)
        slots = schedule.parse(experiment.probing.schedule)
        self.state = CoordinatorState(
            lab, experiment, self.run_name, slots, self._frame.duration_s, _antenna_s(self._frame)
        )
        self._wire = transport.Wire(identity)
        self._identity = identity
        try:
            self._hub = transport.Hub(self._wire, lab.coordinator.host, lab.coordinator.port)
        except InputError:
            self._wire.close()
            raise
        self._hub.run = self.run_name
        self.port = self._hub.port
        self.interrupted = False
        """A person asked for the end (exit status 130)."""
        self._stop_asked: list[e.FinishKind] = []
        self._links_rejected: dict[str, Counter[str]] = {}
        self._over: e.RunOver | None = None
        self._drivers: dict[str, dict[str, Any]] = {}
        self._accepted: dict[str, dict[str, Any]] = {}
        self._let_time_pass: Callable[[float], None] | None = None
        """From the simulated air, once it holds the scene."""
        self._began_s = 0.0
        self._last_progress: Progress | None = None

    def ask_stop(self, kind: e.FinishKind) -> None:
        """Ask from a signal handler or a thread: stop finishes the round, abort drops it, halt silences at once."""
        self._stop_asked.append(kind)

    def close(self) -> None:
        self._hub.socket.close(linger=200)
        self._wire.close()

    def run(
        self,
        world: str | None,
        gone: Callable[[], list[tuple[str, str]]] = lambda: [],
        progress: Callable[[Progress], None] = lambda _: None,
        before_close: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Drive the experiment to its end and write the run's folder. Never waits without a limit.

        `world` is the endpoint of the simulated air, `gone` reports local processes that have ended, `before_close` is
        called when the nodes have finished and the folder's files are about to be hashed.
        """
        start = documents.start(
            to_dict(self.experiment), to_dict(self.lab), seeds={"experiment": self.experiment.seed},
            subcarrier_hz=self._frame.subcarrier_hz,
        )  # fmt: skip
        with RunWriter(self.folder, start, summarise=run_summary.summary_of) as writer:
            next_look_s = 0.0
            while self._over is None:
                now_s = self._clock.now_s()
                if now_s >= next_look_s:
                    next_look_s = now_s + _POLL_MS / 1000
                    # what waits was sent before now: nobody is judged silent whose heartbeat lies here unread
                    for received in self._waiting_messages():
                        self._receive(received, writer, world, progress)
                    self._take(e.Tick(now_s), writer, world, progress)
                    for name, detail in gone():
                        self._take(e.ProcessEnded(name, detail), writer, world, progress)
                    while self._stop_asked:
                        self._take(e.StopAsked(self._stop_asked.pop(0)), writer, world, progress)
                try:
                    received = self._hub.receive()
                except zmq.Again:
                    self._hub.socket.poll(_POLL_MS)
                    continue
                if received is not None and self._over is None:
                    self._receive(received, writer, world, progress)
            for node, counts in self._links_rejected.items():
                log.info("%s could not use: %s", node, dict(counts))
            writer.event("guard_rounds", {"rounds": self.state.guarded})
            writer.event("links_rejected", {n: dict(c) for n, c in self._links_rejected.items()})
            writer.event("messages_refused", dict(self._hub.refused))
            status: documents.ExitStatus = {"finished": "ok", "stopped": "aborted", "failed": "failed"}[
                self._over.status
            ]  # type: ignore[assignment]
            before_close()
            stop = documents.stop(status, None if status == "ok" else self._over.detail)
            writer.flush()
            summary = run_summary.summary_of(replace(reader.load(self.folder), stop=stop))
            writer.close(stop, summary)
        return Outcome(self._over.status, self._over.detail, self.folder, summary)

    def _waiting_messages(self) -> Iterator[Any]:
        """Yield what has arrived, up to a number that one look can take."""
        for _ in range(256):
            try:
                received = self._hub.receive()
            except zmq.Again:
                return
            if received is not None and self._over is None:
                yield received

    def _receive(self, received: Any, writer: RunWriter, world: str | None, progress: Any) -> None:
        name, header, body = received
        if isinstance(body, m.Heartbeat):
            self._hub.send(name, m.Pulse(), to_pulse=True)
        if not self.state.virtual:
            # on the wall clock, plans are made from the time at which something happened
            self._take(e.Tick(self._clock.now_s()), writer, world, progress)
        self._take(e.Received(name, header.incarnation, body), writer, world, progress)

    def _take(self, event: e.Event, writer: RunWriter, world: str | None, progress: Callable[[Progress], None]) -> None:
        for instruction in self.state.handle(event):
            match instruction:
                case e.Send(node, body):
                    self._hub.send(node, body)
                    if isinstance(body, m.Finish) and body.kind == "halt":
                        self._hub.send(node, body, to_pulse=True)
                case e.ResetWorld():
                    self._reset_world(world)
                case e.AdvanceWorld(until_s):
                    if self._let_time_pass is not None:
                        self._let_time_pass(until_s)
                case e.Note(kind, detail):
                    self._note(kind, detail, writer, progress)
                case e.NewPattern(pattern, name):
                    writer.pattern(name, pattern.levels, pattern.phase_bits)
                case e.RoundOver():
                    self._record_round(instruction, writer)
                    self._tell_progress(progress)
                case e.BlockOver():
                    self._record_block(instruction, writer)
                    self._tell_progress(progress)
                case e.RunOver():
                    self._over = instruction

    def _reset_world(self, endpoint: str | None) -> None:
        place = self.lab.world
        if place is None or endpoint is None:
            raise TestbedError("this lab has a [world], but its endpoint is not known")
        driver = registry.load_driver("worlds", place.driver)
        plan = self.experiment
        # A run that is no rehearsal must not follow from a number in a file, the simulated air included.
        seed = plan.seed if is_rehearsal(self.lab, plan) else seeds.fresh()
        limit_s = self.lab.coordinator.operation_timeout_s
        driver.reset(endpoint, self._identity, plan.scene, plan.radio, seed, limit_s)
        self._let_time_pass = driver.pacer(endpoint, self._identity)

    def _note(self, kind: str, detail: dict[str, Any], writer: RunWriter, progress: Callable[[Progress], None]) -> None:
        writer.event(kind, detail)
        if kind in ("joined", "rejoined"):
            self._drivers[detail["node"]] = detail["identity"]
        if kind == "configured":
            self._accepted[detail["node"]] = detail["accepted"]
        if kind == "ready":
            self._began_s = self._clock.now_s()
            writer.set_up(radios=self._accepted, drivers=self._drivers)
        text = f"{kind.replace('_', ' ')}: " + ", ".join(
            f"{k} {v}" for k, v in detail.items() if k not in ("identity", "accepted")
        )
        if kind in ("lost", "left_out", "failed", "refused", "rejoined", "rounds_lost", "no_answer"):
            self._tell_progress(progress, text)
        else:
            log.info(text)

    def _record_round(self, r: e.RoundOver, writer: RunWriter) -> None:
        for node, links in r.links.items():
            for link in links:
                tx = self.lab.by_role(link.tx) or link.tx
                if link.reason is not None:
                    self._links_rejected.setdefault(node, Counter())[link.reason] += 1
                    continue
                if self.experiment.mode == "private":
                    continue  # levels, SNR and arrival times tell about the channel, hence about the key
                try:
                    csi = None if link.csi is None else np.frombuffer(link.csi, dtype=np.complex64).reshape(link.shape)
                except ValueError as exc:
                    self._links_rejected.setdefault(node, Counter())["malformed"] += 1
                    log.warning("%s: CSI of round %d does not fit its shape: %s", node, r.round, exc)
                    continue
                writer.probe(
                    r.round,
                    node,
                    f"{tx}>{node}",
                    link.device_time_s,
                    link.snr_db,
                    link.cfo_hz,
                    link.rssi_dbfs,
                    r.surface,
                    csi,
                )
        writer.round(r.round, r.kept, r.reason, r.surface, r.start_s)

    def _record_block(self, b: e.BlockOver, writer: RunWriter) -> None:
        if b.training:
            reports = {role: to_dict(r) for role, r in b.trained.items()}
            training = {"block": b.block, "rounds": len(b.rounds), "reports": reports, "failure": b.failure}
            training["file"] = f"models/{self.run_name}.npz"
            writer.event("training", training)
            log.info("training on %d rounds: %s", len(b.rounds), b.failure or "done")
            return
        names = {role: self.lab.by_role(role) or role for role in ("alice", "bob", "eve")}
        agree = {names[role]: r for role, r in (("alice", b.alice), ("bob", b.bob)) if r is not None}
        # What Eve's node reports to Alice is large, and her CSI is recorded anyway.
        eve = None if b.eve is None else msgspec.structs.replace(b.eve, heard=())
        key = {names[role]: r for role, r in (("alice", b.key_alice), ("bob", b.key_bob)) if r is not None}
        writer.block(documents.Block(block=b.block, rounds=list(b.rounds), agree=agree, eve=eve, key=key))
        for role, raw in b.raw.items():
            bits = np.frombuffer(raw, dtype=np.uint8)
            if bits.size and bits.max() > 1:
                log.warning("%s: bits of block %d are not 0 and 1: not recorded", names[role], b.block)
                continue
            writer.bits(b.block, names[role], "guess" if role == "eve" else "raw", bits)
        if b.digests:
            writer.event("key_digests", {"block": b.block, "by_role": b.digests})
        if b.p_values:
            writer.event("randomness", {"block": b.block, "p_values": b.p_values})
        if b.failure:
            writer.event("block_failed", {"block": b.block, "why": b.failure})
            log.info("block %d: %s", b.block, b.failure)

    def _tell_progress(self, progress: Callable[[Progress], None], message: str | None = None) -> None:
        st = self.state
        elapsed_s = self._clock.now_s() - self._began_s if self._began_s else 0.0
        rate = st.probed / elapsed_s if elapsed_s > 0 else 0.0
        progress(Progress(st.phase, st.probed, self.experiment.rounds, st.kept, rate, st.snr_db, st.key_bits, message))
