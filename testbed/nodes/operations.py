"""A node's device operations, as the coordinator orders them: rounds with a radio, patterns with a board.

An order that a device or its settings refuse raises DeviceError or InputError; the daemon reports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core import registry
from testbed.core.config import NodePlace
from testbed.core.errors import DeviceError, InputError, LateTransmit, ProbeRejected, Reject
from testbed.core.radio import Radio, RadioSettings
from testbed.core.ris import Board
from testbed.core.stages import CsiEstimator
from testbed.core.types import CsiFrame, IqBlock, SoundingFrame, SurfacePattern
from testbed.core.windows import PERIODS, repeated_windows
from testbed.net import messages as m
from testbed.nodes import events as e
from testbed.nodes.antennas import Antennas
from testbed.nodes.secret_surface import SecretSurface

_COARSE_S = 0.5e-6
"""Resolution of the arrival times that a node in private mode reports: enough to track clocks, far too coarse to tell
delays."""
_ACCEPTED = ("carrier_hz", "sample_rate_hz", "tx_gain_db", "rx_gain_db")


@dataclass(frozen=True, slots=True)
class _Tuned:
    """A configured radio, with all that leads from orders to estimates."""

    settings: RadioSettings
    frame: SoundingFrame
    estimator: CsiEstimator
    antennas: Antennas
    is_experiment: bool
    iq_folder: Path | None
    """Where the captured samples are written; None where they are not."""


@dataclass(slots=True)
class _Part:
    """This node's progress in a round that goes step by step."""

    round: int
    captured: list[tuple[str, IqBlock]] = field(default_factory=list)
    """(role of the transmitter, samples)."""
    fault: str | None = None


class RadioWork:
    """One node's radio. `send` sends a message to the coordinator while an order is still being carried out."""

    def __init__(self, radio: Radio, place: NodePlace, state_dir: Path, send: Callable[[Any], None]) -> None:
        self._radio, self._place, self._state_dir, self._send = radio, place, state_dir, send
        self._tuned: _Tuned | None = None
        self._has_failed = False
        """In a round that went step by step: it is configured anew before the next step."""
        self._part = _Part(-1)

    def configure(self, body: m.Configure, run: str, seed: int) -> m.Configured:
        if self._place.role != "eve" and not self._radio.capabilities.can_transmit:
            raise InputError(f"{self._radio.name}'s radio can only receive: accepted for role = 'eve' only")
        settings = RadioSettings(
            carrier_hz=body.radio.carrier_hz,
            sample_rate_hz=body.radio.sample_rate_hz,
            tx_gain_db=self._place.tx_gain_db,
            rx_gain_db=self._place.rx_gain_db,
        )
        self._radio.use_timing(body.timed)
        accepted = self._radio.configure(settings)
        self._has_failed, self._part = False, _Part(-1)
        sounder = registry.make_stage("probing", body.probing.waveform, body.probing.waveform_options)
        frame = sounder.frame(accepted.sample_rate_hz)
        self._tuned = _Tuned(
            settings=settings,
            frame=frame,
            estimator=registry.make_stage("csi", body.probing.estimator, body.probing.estimator_options),
            antennas=Antennas(self._place.role, body.antennas, body.beams, frame, seed),
            is_experiment=body.experiment_mode,
            iq_folder=self._state_dir / "iq" / run if body.record_iq and body.experiment_mode else None,
        )
        return m.Configured(accepted={k: float(getattr(accepted, k)) for k in _ACCEPTED})

    def _ready(self) -> _Tuned:
        if self._tuned is None:
            raise InputError("no configured radio")
        return self._tuned

    # -- rounds with timed samples

    def probe(self, body: m.Probe) -> e.ProbeDone:
        """Do this node's part in each slot, report that the air is free, then estimate."""
        tuned = self._ready()
        captured, fault = self._take_slots(tuned, body)
        if body.report_captured:
            self._send(m.Captured(round=body.round))
        links: list[m.LinkResult] = []
        csi: dict[str, CsiFrame] = {}
        for slot, block in captured:
            self._write_iq(tuned, body.round, slot.tx, block)
            links.append(_estimate(tuned, body.round, slot, block, csi, body.margin_s, body.sounding))
        if body.sounding:  # only the beams use a sounding
            tuned.antennas.hear(body.round, csi)
            csi = {}
        reason, detail = fault if fault else (None, "")
        return e.ProbeDone(m.Probed(round=body.round, links=links, fault=reason, detail=detail), csi)

    def _take_slots(
        self, tuned: _Tuned, body: m.Probe
    ) -> tuple[list[tuple[m.SlotPlan, IqBlock]], tuple[str, str] | None]:
        """Transmit and receive; returns what was captured and, where the radio failed, (reason, detail)."""
        captured: list[tuple[m.SlotPlan, IqBlock]] = []
        fault: tuple[str, str] | None = None
        try:
            self._transmit(tuned, body)
            self._radio.idle_until(body.end_s)  # the others may go on as soon as nothing more can come from here
            n_margin = int(np.ceil(body.margin_s * tuned.frame.sample_rate_hz))
            for x in body.slots:
                if tuned.antennas.listens(x.rx, body.sounding):
                    n = tuned.antennas.n_samples(x.tx, body.sounding) + 2 * n_margin
                    captured.append((x, self._radio.receive(n, x.start_s)))
        except LateTransmit as exc:
            fault = (Reject.LATE_TX.value, exc.detail)
        except DeviceError as exc:
            fault = (Reject.DEVICE.value, str(exc))
        try:
            self._radio.idle_until(body.end_s)  # after an error, too, the others must not wait for this transmitter
        except DeviceError as exc:
            fault = fault or (Reject.DEVICE.value, str(exc))
        return captured, fault

    def _transmit(self, tuned: _Tuned, body: m.Probe) -> None:
        """Queue this node's transmissions, before anything is received.

        They are only queued for their time, whereas a reception returns when it is over, and the host's way from there
        to a transmission takes longer than a slot.
        """
        for slot in body.slots:
            if slot.tx == self._place.role:
                samples = tuned.antennas.outgoing(body.round, body.sounding)
                block = IqBlock(samples, tuned.frame.sample_rate_hz, slot.start_s + body.margin_s)
                self._radio.transmit(block, block.time_s)

    # -- rounds step by step

    def step(self, body: m.Step) -> e.DeviceDone | e.ProbeDone:
        """Do one step of a round without timing; with the last one, report what was measured.

        A device that fails costs the round and leaves its order as it is: the others go on, and before its next step
        the device is configured anew.
        """
        tuned = self._ready()
        if self._part.round != body.round:
            self._part = _Part(body.round)
        part = self._part
        try:
            if self._has_failed:
                self._radio.configure(tuned.settings)
                self._has_failed = False
            self._act(tuned, body, part)
        except DeviceError as exc:
            part.fault = part.fault or str(exc)
            self._has_failed = True
        done = m.Stepped(round=body.round, step=body.step)
        if not body.last:
            return e.DeviceDone(done)
        self._send(done)  # the air is free: the others need not wait for the estimates
        csi: dict[str, CsiFrame] = {}
        links = [self._estimate_repeated(tuned, body.round, tx, block, csi) for tx, block in part.captured]
        reason = Reject.DEVICE.value if part.fault else None
        return e.ProbeDone(m.Probed(round=body.round, links=links, fault=reason, detail=part.fault or ""), csi)

    def _act(self, tuned: _Tuned, body: m.Step, part: _Part) -> None:
        match body.action:
            case "transmit":
                samples = tuned.antennas.outgoing(body.round, sounding=False)
                self._radio.transmit(IqBlock(samples, tuned.frame.sample_rate_hz, 0.0))
            case "receive":
                part.captured.append((body.tx, self._radio.receive(PERIODS * tuned.frame.samples.size)))
            case "silence":
                self._radio.silence()

    def _estimate_repeated(
        self, tuned: _Tuned, number: int, tx: str, block: IqBlock, csi: dict[str, CsiFrame]
    ) -> m.LinkResult:
        """Estimate from a block of `PERIODS` periods of a repeated frame, which begins anywhere in it."""
        self._write_iq(tuned, number, tx, block)
        for window in repeated_windows(block, tuned.frame.samples.size):
            result = _estimate(tuned, number, m.SlotPlan(tx, [], window.time_s), window, csi)
            if result.reason not in (Reject.TRUNCATED.value, Reject.NO_PREAMBLE.value):
                break
        return result

    def _write_iq(self, tuned: _Tuned, number: int, tx: str, block: IqBlock) -> None:
        if tuned.iq_folder is None:
            return
        from testbed.records import sigmf

        tuned.iq_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stem = tuned.iq_folder / f"round-{number:06d}-{tx}-{self._place.role}"
        sigmf.write(stem, block, self._radio.settings.carrier_hz, [])


def _estimate(
    tuned: _Tuned, number: int, slot: m.SlotPlan, block: IqBlock, csi: dict[str, CsiFrame], margin_s: float = 0.0,
    sounding: bool = False,
) -> m.LinkResult:  # fmt: skip
    """Return what is reported of one captured slot; the estimate itself goes into `csi`, by role of the transmitter."""
    try:
        found = tuned.antennas.estimate(tuned.estimator, number, slot.tx, block, sounding)
    except ProbeRejected as exc:
        if not tuned.is_experiment:  # details name levels and SNR, which are much like those of the rounds around
            return m.LinkResult(tx=slot.tx, reason=exc.reason.value)
        return m.LinkResult(tx=slot.tx, reason=exc.reason.value, detail=exc.detail, cfo_hz=exc.cfo_hz or 0.0)
    csi[slot.tx] = found
    timing_error_s = found.time_s - (slot.start_s + margin_s)
    if not tuned.is_experiment:
        # level, SNR and exact arrival depend on the channel, as the key does; the scheduler needs a coarse time only
        return m.LinkResult(tx=slot.tx, reason=None, timing_error_s=round(timing_error_s / _COARSE_S) * _COARSE_S)
    shape = (found.h.shape[0], found.h.shape[1], found.h.shape[2]) if not sounding else (0, 0, 0)
    return m.LinkResult(
        tx=slot.tx,
        reason=None,
        timing_error_s=timing_error_s,
        device_time_s=found.time_s,
        # a channel without any noise has no finite SNR, and messages have no other numbers
        snr_db=float(np.clip(np.median(found.snr_db), -300.0, 300.0)),
        cfo_hz=found.cfo_hz,
        rssi_dbfs=found.rssi_dbfs,
        shape=shape,
        csi=np.ascontiguousarray(found.h).tobytes() if not sounding else None,
    )


def life_of(incarnation: str) -> str:
    """Return a mark of one process of a node: its random part, since successive processes have similar numbers."""
    return incarnation.rpartition("-")[2][:6]


class BoardWork:
    """One node's surface, called `name` in messages. `life` marks the names of patterns that this process has drawn."""

    def __init__(self, board: Board, name: str, life: str) -> None:
        self._board, self._name, self._life = board, name, life
        self._secret: SecretSurface | None = None
        self._secret_run = ""
        """The run to which the secret patterns belong."""
        self._is_experiment = False

    def configure(self, body: m.Configure, run: str, seed: int) -> m.Configured:
        """Prepare to draw secret patterns; a second order to configure in the same run draws no new ones."""
        self._is_experiment = body.experiment_mode
        plan = body.surface
        if plan.is_secret and run != self._secret_run:
            shape, bits = self._board.shape, self._board.phase_bits
            self._secret = SecretSurface(plan.policy, plan.options, shape, bits, seed, self._life)
            self._secret_run = run
        elif not plan.is_secret:
            self._secret, self._secret_run = None, ""
        return m.Configured(accepted={})

    def apply_next(self, body: m.ApplyNext) -> m.Applied:
        """Draw the secret pattern of a round and hold it; its levels leave the node in experiment mode only."""
        if self._secret is None:
            raise InputError(f"{self._name} draws no patterns in this run")
        pattern = self._secret.pattern_for(body.round)
        applied = self._board.apply(pattern)
        return m.Applied(
            round=body.round, digest=self._secret.name_of(applied.digest), device_time_s=applied.time_s,
            levels=pattern.levels.tobytes() if self._is_experiment else None, shape=self._board.shape,
            phase_bits=pattern.phase_bits,
        )  # fmt: skip

    def apply(self, body: m.Apply) -> m.Applied:
        if self._secret is not None:
            raise InputError(f"{self._name} draws its own patterns in this run and accepts no other")
        levels = np.frombuffer(body.levels, dtype=np.uint8)
        if levels.size != body.shape[0] * body.shape[1]:
            raise InputError(f"{levels.size} levels for a surface of shape {body.shape}")
        applied = self._board.apply(SurfacePattern(levels.reshape(body.shape), body.phase_bits))
        return m.Applied(round=body.round, digest=applied.digest, device_time_s=applied.time_s)

    def read_surface(self, body: m.ReadSurface) -> m.SurfaceHeld:
        digest = self._board.readback().digest
        return m.SurfaceHeld(round=body.round, digest=digest if self._secret is None else self._secret.name_of(digest))
