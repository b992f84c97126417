"""The shell around a node's state machine: sockets, the device, the key store, a heartbeat thread.

`run_node` is the whole process. Every wait has a timeout; whatever ends the process silences the transmitter first.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from testbed import __version__
from testbed.config.devices import open_device
from testbed.core import registry, seeds
from testbed.core.config import Lab, NodePlace
from testbed.core.errors import DeviceError, InputError, LateTransmit, ProbeRejected, Reject, TestbedError
from testbed.core.identity import Identity
from testbed.core.radio import Radio, RadioSettings
from testbed.core.ris import Board
from testbed.core.stages import CsiEstimator
from testbed.core.types import CsiFrame, IqBlock, Key, SoundingFrame, SurfacePattern
from testbed.core.world import DriverContext
from testbed.net import messages as m
from testbed.net import transport
from testbed.nodes import calibration
from testbed.nodes import state as s
from testbed.nodes.antennas import Antennas
from testbed.nodes.secret_surface import SecretSurface

log = logging.getLogger("testbed.node")
_POLL_MS = 100
_COARSE_S = 0.5e-6
"""What a node in private mode tells of arrival times: enough to track clocks, far too coarse to tell delays."""
_PERIODS = 3
PERIODS = 3
"""How much of a repeated frame is captured."""


class _Pulse(threading.Thread):
    """Tells the coordinator that this process lives, and hears its answers, whatever the main loop is busy with."""

    def __init__(self, daemon: NodeDaemon, wire: transport.Wire, endpoint: str, period_s: float) -> None:
        super().__init__(name="pulse", daemon=True)
        self._node, self._wire, self._endpoint, self._period_s = daemon, wire, endpoint, period_s
        self.last_answer_s = time.monotonic()
        self._over = threading.Event()

    def run(self) -> None:
        link = transport.Link(self._wire, self._endpoint, self._node.name, self._node.incarnation)
        try:
            while not self._over.is_set():
                if self._node.welcomed:
                    link.send(m.Heartbeat(state=self._node.state.name))
                deadline = time.monotonic() + self._period_s
                while not self._over.is_set() and (left := deadline - time.monotonic()) > 0:
                    if link.socket.poll(int(min(left, 0.1) * 1000) + 1):
                        received = link.receive()
                        if received is None:
                            continue
                        self.last_answer_s = time.monotonic()
                        if isinstance(received[1], m.Finish) and received[1].kind == "halt":
                            self._node.halt()
        finally:
            link.socket.close()

    def stop(self) -> None:
        self._over.set()


@dataclass(slots=True)
class _Part:
    """What this node did so far in a round that goes step by step."""

    round: int
    captured: list[tuple[str, IqBlock]] = field(default_factory=list)
    """(role of the transmitter, samples)."""
    fault: str | None = None


class NodeDaemon:
    """One node: `name` in the lab file, one device, one role."""

    def __init__(
        self, lab: Lab, name: str, coordinator: str, world: str | None, identity: Identity | None, state_dir: Path
    ) -> None:
        self.name = name
        self.place: NodePlace = lab.node[name]
        self.lab = lab
        self.role = self.place.role
        self.incarnation = transport.new_incarnation()
        self.state = s.NodeState(self.role, secrets.randbits(256))
        self.welcomed = False
        self._lost_after_s = lab.coordinator.join_timeout_s
        self._state_dir = state_dir
        self._device_lock = threading.Lock()
        self._halted = threading.Event()
        self._exit: s.Exit | None = None
        self._frame: SoundingFrame | None = None
        self._estimator: CsiEstimator | None = None
        self._antennas: Antennas | None = None
        self._record_iq: Path | None = None
        self._settings: RadioSettings | None = None
        self._radio_failed = False
        self._part = _Part(-1)
        self._experiment_mode = False
        self._secret_surface: SecretSurface | None = None
        self._surface_run = ""
        """The run whose secret patterns these are."""
        context = DriverContext(
            seed=seeds.derive(0, lab.name, name), world=world, identity=identity, state_dir=state_dir
        )
        self._device = open_device(lab, name, context)
        self._wire = transport.Wire(identity)
        self._link = transport.Link(self._wire, coordinator, name, self.incarnation)
        self._pulse = _Pulse(self, self._wire, coordinator, lab.coordinator.heartbeat_s)
        self._host: transport.DiscussionHost | None = None
        self._guest: transport.DiscussionGuest | None = None
        self._ear: transport.Eavesdropper | None = None
        if self.role == "alice":
            bob = lab.by_role("bob")
            assert bob is not None
            self._host = transport.DiscussionHost(self._wire, self.place.host, self.place.port, bob)
        self._poller = zmq.Poller()
        self._poller.register(self._link.socket, zmq.POLLIN)
        if self._host is not None:
            self._poller.register(self._host.socket, zmq.POLLIN)

    # -- life

    def run(self) -> int:
        """Serve until told to finish, or the coordinator has been silent for too long. Returns the exit status."""
        self._pulse.start()
        try:
            self._greet()
            next_hello_s = time.monotonic() + 1.0
            while self._exit is None:
                ready = dict(self._poller.poll(_POLL_MS))
                now_s = time.monotonic()
                self._take(s.Tick(now_s))
                if self._link.socket in ready:
                    while self._exit is None and self._link.waiting():
                        self._from_coordinator()
                if self._host is not None and self._host.socket in ready:
                    self._hear(self._host, self._host.socket)
                if self._guest is not None and self._guest.socket in ready:
                    self._hear(self._guest, self._guest.socket)
                if self._ear is not None and self._ear.socket in ready:
                    self._hear(self._ear, self._ear.socket)
                if self._halted.is_set() and self._exit is None:
                    self._exit = s.Exit(0, "halt")
                if not self.welcomed and now_s > next_hello_s:
                    self._greet()  # the coordinator may have started after us
                    next_hello_s = now_s + 1.0
                silent_s = now_s - self._pulse.last_answer_s
                if silent_s > self._lost_after_s:
                    self._exit = s.Exit(3, f"coordinator silent for {silent_s:.1f} s")
        except Exception as exc:  # whatever it is: the coordinator hears it, the transmitter is silenced
            log.error("%s: %s", self.name, exc, exc_info=not isinstance(exc, TestbedError))
            self._link.send(m.Failed(operation="run", state=self.state.name, detail=str(exc) or repr(exc)))
            self._exit = s.Exit(1, str(exc) or repr(exc))
        finally:
            self._close()
        if self._exit.code:
            log.error("%s: stopped: %s", self.name, self._exit.reason)
        return self._exit.code

    def interrupt(self) -> None:
        """Leave the main loop at its next turn (signal handler); leaving silences the transmitter."""
        self._halted.set()

    def halt(self) -> None:
        """Silence the transmitter now, from any thread, then leave the main loop."""
        self._halted.set()
        # a device in the middle of a capture is not transmitting: do not wait for it long
        got = self._device_lock.acquire(timeout=1.0)
        try:
            if isinstance(self._device, Radio):
                self._device.silence()
        except DeviceError as exc:
            log.error("%s: halt: %s", self.name, exc)
        finally:
            if got:
                self._device_lock.release()

    def _close(self) -> None:
        self._pulse.stop()
        self._pulse.join(timeout=2.0)
        try:
            with self._device_lock:
                self._device.close()
        except DeviceError as exc:
            log.error("%s: close: %s", self.name, exc)
        self._wire.close()

    def _greet(self) -> None:
        surface: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        if isinstance(self._device, Board):
            surface = {
                "surface_shape": self._device.shape,
                "phase_bits": self._device.phase_bits,
                "timed": self._device.capabilities.timed,
            }
        else:
            caps = self._device.capabilities
            surface = {"timed": caps.timed, "turnaround_s": caps.turnaround_s, "n_antennas": caps.n_antennas}
            measured = calibration.read(self._state_dir, self._device.identity())
            extra = calibration.correct(self._device, self.place.correction_ppm, measured)
            if measured is not None:
                surface["host_turnaround_s"] = measured.turnaround_s or 0.0
                surface["timing_spread_s"] = measured.delay_s.std_s if measured.delay_s is not None else 0.0
        self._link.send(
            m.Hello(
                role=self.role,
                identity={**self._device.identity(), **extra, "testbed": __version__},
                pid=os.getpid(),
                discussion_port=self._host.port if self._host else 0,
                transcript_port=self._host.transcript_port if self._host else 0,
                **surface,
            )
        )

    # -- events in

    def _from_coordinator(self) -> None:
        received = self._link.receive()
        if received is None:
            return
        _, body = received
        if isinstance(body, m.Welcome):
            self.welcomed = True
            self._link.run = body.run
            self._lost_after_s = body.lost_after_s
            self._pulse.last_answer_s = time.monotonic()
        self._take(s.Told(body))
        if isinstance(body, m.Welcome) and (kept := self._model_path()).is_file():
            self._take(s.Recalled(kept.read_bytes()))

    def _hear(self, ear: Any, socket: Any) -> None:
        while socket.poll(0):
            envelope = ear.receive()
            if envelope is not None:
                self._take(s.Heard(envelope))

    def _take(self, event: s.Event) -> None:
        """Hand an event to the state machine and do what it says; device work comes back as further events."""
        todo = deque(self.state.handle(event))
        while todo:
            instruction = todo.popleft()
            match instruction:
                case s.Report(body):
                    self._link.send(body)
                case s.Publish(envelope, to_peer):
                    self._publish(envelope, to_peer)
                case s.Do(body):
                    todo.extend(self.state.handle(self._do(body)))
                case s.KeepKey(key):
                    self._keep(key)
                case s.KeepModel(model):
                    self._keep_model(model)
                case s.Silence():
                    with self._device_lock:
                        if isinstance(self._device, Radio):
                            self._device.silence()
                case s.Exit():
                    self._exit = instruction

    def _publish(self, envelope: m.PublicEnvelope, to_peer: bool) -> None:
        if self._host is not None:
            self._host.publish(envelope)
            if to_peer:
                self._host.send(envelope)
        elif self._guest is not None:
            self._guest.send(envelope)

    def _keep(self, key: Key) -> None:
        """Write a verified key into this node's own folder, readable by its owner only."""
        kind = "rehearsals" if self.state.is_rehearsal else "keys"
        folder = self._state_dir / kind / self.state.run
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / f"block-{key.block:04d}.key"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # a key is never overwritten
        with os.fdopen(fd, "w") as f:
            json.dump({"bits": int(key.bits.size), "hex": np.packbits(key.bits).tobytes().hex()}, f)

    def _model_path(self) -> Path:
        return self._state_dir / "models" / f"{self.state.run}.npz"

    def _keep_model(self, model: bytes) -> None:
        """Write the enhancer's model into this node's own folder, whole or not at all."""
        path = self._model_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_suffix(".part")
        part.write_bytes(model)
        part.replace(path)

    # -- device operations

    def _do(self, body: Any) -> s.Event:
        operation = type(body).__name__.lower()
        if self._halted.is_set():
            return s.DeviceFault(operation, "halted")
        try:
            with self._device_lock:
                if self._halted.is_set():  # while this waited for the lock
                    return s.DeviceFault(operation, "halted")
                match body:
                    case m.Configure():
                        return self._configure(body)
                    case m.ReadClock():
                        return s.DeviceDone(m.ClockReading(device_time_s=self._device.now_s()))
                    case m.Apply():
                        return self._apply(body)
                    case m.ApplyNext():
                        return self._apply_next(body)
                    case m.ReadSurface():
                        return self._read_surface(body)
                    case m.Probe():
                        return self._probe(body)
                    case m.Step():
                        return self._step(body)
        except (DeviceError, InputError) as exc:
            return s.DeviceFault(operation, str(exc))
        return s.DeviceFault(operation, "unknown operation")

    def _configure(self, body: m.Configure) -> s.Event:
        if body.experiment_mode and self.place.private:
            return s.DeviceFault(
                "configure", "this node is private by its lab file: it takes part in private mode only"
            )
        self._experiment_mode = body.experiment_mode
        if self.role == "bob":
            if self._guest is not None:
                self._poller.unregister(self._guest.socket)
                self._guest.socket.close()
            self._guest = transport.DiscussionGuest(self._wire, body.discussion, str(self.lab.by_role("alice")))
            self._poller.register(self._guest.socket, zmq.POLLIN)
        if self.role == "eve":
            if self._ear is not None:
                self._poller.unregister(self._ear.socket)
                self._ear.socket.close()
            self._ear = transport.Eavesdropper(self._wire, body.transcript, str(self.lab.by_role("alice")))
            self._poller.register(self._ear.socket, zmq.POLLIN)
        if not isinstance(self._device, Radio):
            self._configure_surface(body)
            return s.DeviceDone(m.Configured(accepted={}))
        if self.role != "eve" and not self._device.capabilities.can_transmit:
            return s.DeviceFault("configure", f"{self.name}'s radio can only receive: accepted for role = 'eve' only")
        settings = RadioSettings(
            carrier_hz=body.radio.carrier_hz,
            sample_rate_hz=body.radio.sample_rate_hz,
            tx_gain_db=self.place.tx_gain_db,
            rx_gain_db=self.place.rx_gain_db,
        )
        self._device.use_timing(body.timed)
        accepted = self._device.configure(settings)
        self._settings, self._radio_failed, self._part = settings, False, _Part(-1)
        sounder = registry.make_stage("probing", body.probing.waveform, body.probing.waveform_options)
        self._frame = sounder.frame(accepted.sample_rate_hz)
        self._estimator = registry.make_stage("csi", body.probing.estimator, body.probing.estimator_options)
        self._antennas = Antennas(self.role, body.antennas, body.beams, self._frame, self.state.seed)
        self._record_iq = self._state_dir / "iq" / self.state.run if body.record_iq and body.experiment_mode else None
        return s.DeviceDone(
            m.Configured(
                accepted={
                    k: float(getattr(accepted, k)) for k in ("carrier_hz", "sample_rate_hz", "tx_gain_db", "rx_gain_db")
                }
            )
        )

    def _configure_surface(self, body: m.Configure) -> None:
        """Get ready to draw secret patterns; an order of the same run to configure again changes nothing."""
        plan, run = body.surface, self.state.run
        if not isinstance(self._device, Board) or not plan.is_secret or run == self._surface_run:
            return
        self._secret_surface = SecretSurface(
            plan.policy, plan.options, self._device.shape, self._device.phase_bits, self.state.seed,
            self.incarnation[:4],
        )  # fmt: skip
        self._surface_run = run

    def _apply_next(self, body: m.ApplyNext) -> s.Event:
        if not isinstance(self._device, Board) or self._secret_surface is None:
            return s.DeviceFault("applynext", f"{self.name} draws no patterns in this run")
        pattern = self._secret_surface.pattern_for(body.round)
        applied = self._device.apply(pattern)
        recorded = pattern.levels.tobytes() if self._experiment_mode else None
        return s.DeviceDone(
            m.Applied(
                round=body.round, digest=self._secret_surface.name_of(applied.digest), device_time_s=applied.time_s,
                levels=recorded, shape=self._device.shape, phase_bits=pattern.phase_bits,
            )
        )  # fmt: skip

    def _apply(self, body: m.Apply) -> s.Event:
        if not isinstance(self._device, Board):
            return s.DeviceFault("apply", f"{self.name} drives no surface")
        levels = np.frombuffer(body.levels, dtype=np.uint8)
        if levels.size != body.shape[0] * body.shape[1]:
            return s.DeviceFault("apply", f"{levels.size} levels for a surface of shape {body.shape}")
        applied = self._device.apply(SurfacePattern(levels.reshape(body.shape), body.phase_bits))
        return s.DeviceDone(m.Applied(round=body.round, digest=applied.digest, device_time_s=applied.time_s))

    def _read_surface(self, body: m.ReadSurface) -> s.Event:
        if not isinstance(self._device, Board):
            return s.DeviceFault("readsurface", f"{self.name} drives no surface")
        digest = self._device.readback().digest
        name = digest if self._secret_surface is None else self._secret_surface.name_of(digest)
        return s.DeviceDone(m.SurfaceHeld(round=body.round, digest=name))

    def _probe(self, body: m.Probe) -> s.Event:
        """Do this node's part in each slot, tell that the air is free, then estimate."""
        radio, frame, antennas = self._device, self._frame, self._antennas
        if not isinstance(radio, Radio) or frame is None or self._estimator is None or antennas is None:
            return s.DeviceFault("probe", "no configured radio")
        captured: list[tuple[m.SlotPlan, IqBlock]] = []
        fault: tuple[str, str] | None = None
        n_margin = int(np.ceil(body.margin_s * frame.sample_rate_hz))
        sounding = body.sounding
        try:
            # Transmissions first: they are only queued for their time, whereas a reception returns when it is over, and
            # the host's way from there to a transmission takes longer than a slot.
            for slot in body.slots:
                if slot.tx == self.role:
                    samples = antennas.outgoing(body.round, sounding)
                    block = IqBlock(samples, frame.sample_rate_hz, slot.start_s + body.margin_s)
                    radio.transmit(block, block.time_s)
            radio.idle_until(body.end_s)  # the others may hear on as soon as nothing more can come from here
            captured.extend(
                (x, radio.receive(antennas.n_samples(x.tx, sounding) + 2 * n_margin, x.start_s))
                for x in body.slots
                if antennas.listens(x.rx, sounding)
            )
        except LateTransmit as exc:
            fault = (Reject.LATE_TX.value, exc.detail)
        except DeviceError as exc:
            fault = (Reject.DEVICE.value, str(exc))
        try:
            radio.idle_until(body.end_s)  # whatever happened, the others must not wait for this transmitter
        except DeviceError as exc:
            fault = fault or (Reject.DEVICE.value, str(exc))
        if body.tell_captured:
            self._link.send(m.Captured(round=body.round))
        links: list[m.LinkResult] = []
        csi: dict[str, CsiFrame] = {}
        for slot, block in captured:
            if self._record_iq is not None:
                self._write_iq(body.round, slot.tx, block)
            result = self._estimate(body.round, slot, block, body.margin_s, csi, sounding)
            links.append(result)
        if sounding:  # for the beams, and for nobody else
            antennas.hear(body.round, csi)
            csi = {}
        reason, detail = fault if fault else (None, "")
        return s.ProbeDone(m.Probed(round=body.round, links=links, fault=reason, detail=detail), csi)

    def _step(self, body: m.Step) -> s.Event:
        """Do one step of a round without timing; with the last one, tell what was measured.

        A device that fails spoils the round, not its order: the others go on, and before its next round it is
        configured anew.
        """
        radio, frame, antennas = self._device, self._frame, self._antennas
        if not isinstance(radio, Radio) or frame is None or self._settings is None or antennas is None:
            return s.DeviceFault("step", "no configured radio")
        if self._part.round != body.round:
            self._part = _Part(body.round)
        part = self._part
        try:
            if self._radio_failed:
                radio.configure(self._settings)
                self._radio_failed = False
            match body.action:
                case "transmit":
                    samples = antennas.outgoing(body.round, sounding=False)
                    radio.transmit(IqBlock(samples, frame.sample_rate_hz, 0.0))
                case "receive":
                    part.captured.append((body.tx, radio.receive(PERIODS * frame.samples.size)))
                case "silence":
                    radio.silence()
        except DeviceError as exc:
            part.fault = part.fault or str(exc)
            self._radio_failed = True
        done = m.Stepped(round=body.round, step=body.step)
        if not body.last:
            return s.DeviceDone(done)
        self._link.send(done)  # the air is free: the others need not wait for the estimates
        csi: dict[str, CsiFrame] = {}
        links = [self._estimate_repeated(body.round, tx, block, csi) for tx, block in part.captured]
        reason = Reject.DEVICE.value if part.fault else None
        return s.ProbeDone(m.Probed(round=body.round, links=links, fault=reason, detail=part.fault or ""), csi)

    def _estimate_repeated(self, number: int, tx: str, block: IqBlock, csi: dict[str, CsiFrame]) -> m.LinkResult:
        """Estimate from a block of `PERIODS` periods of a repeated frame, which begins anywhere in it."""
        if self._record_iq is not None:
            self._write_iq(number, tx, block)
        assert self._frame is not None
        for part in repeated_windows(block, self._frame.samples.size):
            result = self._estimate(number, m.SlotPlan(tx, [], part.time_s), part, 0.0, csi)
            if result.reason not in (Reject.TRUNCATED.value, Reject.NO_PREAMBLE.value):
                break
        return result

    def _estimate(
        self, number: int, slot: m.SlotPlan, block: IqBlock, margin_s: float, csi: dict[str, CsiFrame],
        sounding: bool = False,
    ) -> m.LinkResult:  # fmt: skip
        assert self._estimator is not None
        assert self._antennas is not None
        try:
            found = self._antennas.estimate(self._estimator, number, slot.tx, block, sounding)
        except ProbeRejected as exc:
            return m.LinkResult(tx=slot.tx, reason=exc.reason.value, detail=exc.detail)
        csi[slot.tx] = found
        timing_error_s = found.time_s - (slot.start_s + margin_s)
        if not self._experiment_mode:
            # levels, SNR and exact arrival tell about the channel, hence about the key; the scheduler needs coarse time
            return m.LinkResult(tx=slot.tx, reason=None, timing_error_s=round(timing_error_s / _COARSE_S) * _COARSE_S)
        shape = (found.h.shape[0], found.h.shape[1], found.h.shape[2]) if not sounding else (0, 0, 0)
        return m.LinkResult(
            tx=slot.tx,
            reason=None,
            timing_error_s=timing_error_s,
            device_time_s=found.time_s,
            snr_db=float(np.median(found.snr_db)),
            cfo_hz=found.cfo_hz,
            rssi_dbfs=found.rssi_dbfs,
            shape=shape,
            csi=np.ascontiguousarray(found.h).tobytes() if not sounding else None,
        )

    def _write_iq(self, round_number: int, tx: str, block: IqBlock) -> None:
        from testbed.records import sigmf

        assert self._record_iq is not None
        assert isinstance(self._device, Radio)
        self._record_iq.mkdir(parents=True, exist_ok=True)
        stem = self._record_iq / f"round-{round_number:06d}-{tx}-{self.role}"
        sigmf.write(stem, block, self._device.settings.carrier_hz, [])


def repeated_windows(block: IqBlock, period: int) -> Iterator[IqBlock]:
    """Yield the parts of a block of `PERIODS` periods (samples) in which to look for one frame, in this order.

    Of two periods the second is cut off at the end, unless hardly: then it is mistaken for a whole one, and half a
    period later it cannot be.
    """
    for skip in (0, period // 2):
        window = block.samples[:, skip : skip + 2 * period + period // 8]
        yield replace(block, samples=window, time_s=block.time_s + skip / block.sample_rate_hz)


def watch_parent() -> None:
    """Leave the process when standard input closes: `testbed run` holds the other end, so it cannot leave orphans."""

    def wait() -> None:
        try:
            # the bare descriptor: a thread inside sys.stdin's buffer would hold its lock when the interpreter exits
            while os.read(0, 1):
                pass
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
