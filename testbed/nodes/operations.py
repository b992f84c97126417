"""A node's device operations, as the coordinator orders them: rounds with a radio, patterns with a board.

An order that a device or its settings refuse raises DeviceError or InputError; the daemon reports it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core import registry
from testbed.core.config import NodePlace
from testbed.core.errors import DeviceError, InputError, LateTransmit, ProbeRejected, Reject
from testbed.core.gate import LONGEST_SPAN_S
from testbed.core.radio import Radio, RadioSettings, Window
from testbed.core.ris import Board
from testbed.core.stages import CsiEstimator
from testbed.core.types import C64, F64, CsiFrame, IqBlock, SoundingFrame, SurfacePattern
from testbed.core.windows import LONGEST_CAPTURE, PERIODS, FrameTrain, repeated_windows
from testbed.net import messages as m
from testbed.nodes import chains
from testbed.nodes import events as e
from testbed.nodes.antennas import Antennas
from testbed.nodes.carrier import CarrierTracker
from testbed.nodes.secret_surface import UNKNOWN, SecretSurface

_COARSE_S = 0.5e-6
"""Resolution of the arrival times that a node in private mode reports: fine enough to track clocks, and too coarse to
reveal delays of the channel."""
MAX_TRAIN_SAMPLES = 1 << 26
"""Largest number of samples in all windows of a train, over all antennas."""
MOST_AHEAD_S = 86_400.0 + 3600.0
"""Longest time from now to the end of a train: the longest interval of rounds, and the longest turn-around."""
MOST_CAPTURES = 64
"""Largest number of receptions of a round that is ordered step by step; as many as a round has slots at most."""
_REPORT_BYTES = 1 << 22
"""Largest number of bytes of CSI in one message; larger reports are divided."""
_SLICE_S = 0.03
"""On the wall clock, largest number of rounds that are received in one go; between two of these parts, further
transmissions are queued."""
_AHEAD_S = 0.02
"""On the wall clock, how long before a train its first reception is ordered from the device …"""
_LOOK_S = 0.02
"""… and how often is looked until then whether the node is halted."""
_ACCEPTED = ("carrier_hz", "sample_rate_hz", "tx_gain_db", "rx_gain_db")


_Estimate = CsiFrame | ProbeRejected
_Found = tuple[IqBlock, _Estimate]
"""A window, and the estimate from it."""
_Link = tuple[m.LinkResult, CsiFrame | None]
"""The report of one transmission, and its CSI for this node."""


@dataclass(frozen=True, slots=True)
class _Tuned:
    """A configured radio, with everything that is needed to carry out orders and to estimate channels."""

    settings: RadioSettings
    frame: SoundingFrame
    estimator: CsiEstimator
    antennas: Antennas
    is_experiment: bool
    iq_folder: Path | None
    """Folder into which the captured samples are written; None if they are not."""
    carrier: CarrierTracker
    ratio: C64 | None
    """(subcarrier,) this device's T/R, by which CSI is multiplied; None without a correction."""


@dataclass(slots=True, eq=False)
class Capture:
    """What this node's radio received in a train of rounds."""

    order: m.Probe
    heard: list[tuple[m.RoundPlan, m.SlotPlan, IqBlock]] = field(default_factory=list)
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Round → (reason, detail) where the radio could not do its part; the first one counts."""
    queued: int = 0
    """Number of its rounds whose transmissions were queued in the device, or refused by it."""
    received: int = 0
    """Number of its rounds that are over."""
    ordinal: int = 0
    """Number of trains that were expected before this one."""
    correction_ppm: float | None = None
    """Correction of the carrier that the radio uses from this train on; None: the present one."""
    took_s: float = 0.0
    """How long it was captured."""

    def fail(self, round: int, exc: DeviceError) -> None:
        late = isinstance(exc, LateTransmit)
        fault = (Reject.LATE_TX.value, exc.detail) if late else (Reject.DEVICE.value, str(exc))
        self.faults.setdefault(round, fault)


@dataclass(slots=True)
class _Part:
    """This node's progress in a train of rounds that is ordered step by step."""

    round: int
    """Number of the first round."""
    rounds: int = 1
    period: int = 0
    """Samples from one frame to the next; 0: those of the frame."""
    captured: list[tuple[str, IqBlock]] = field(default_factory=list)
    """(role of the transmitter, samples)."""
    fault: str | None = None

    @property
    def numbers(self) -> range:
        return range(self.round, self.round + self.rounds)


class RadioWork:
    """One node's radio. `send` sends a message to the coordinator while an order is still being carried out; `now_s`
    is a monotonic clock in s, by which the node measures how long its work takes."""

    def __init__(
        self, radio: Radio, place: NodePlace, state_dir: Path, send: Callable[[Any], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._radio, self._place, self._state_dir, self._send = radio, place, state_dir, send
        self._now_s = now_s
        self._tuned: _Tuned | None = None
        self._has_failed = False
        """Whether the device failed in a round that was ordered in steps; it is then configured again before the next
        step."""
        self._part = _Part(-1)
        self._coming: deque[Capture] = deque()
        """Trains that were ordered and are not captured yet, in their order."""
        self._ordered = threading.Event()
        """Set where a further train was ordered."""
        self._expected = 0
        """Number of trains expected so far."""
        self._retune: float | None = None
        """The next correction in ppm by which the radio follows Alice's carrier."""
        self._read_s = -math.inf
        """The device's time when it was read last; it is read where an order may be too far ahead of it."""
        self._hears_from = 0
        """Number of the train from which it holds; offsets that are measured in earlier trains are not used again."""

    def configure(self, body: m.Configure, run: str, seed: int) -> m.Configured:
        self._tuned = None  # what one run may report must not be reported of another that the radio refuses
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
        self._retune, self._hears_from = None, self._expected
        sounder = registry.make_stage("probing", body.probing.waveform, body.probing.waveform_options)
        frame = sounder.frame(accepted.sample_rate_hz)
        response = self._response(accepted)
        several = self._radio.capabilities.n_antennas > 1
        estimator = registry.make_stage("csi", body.probing.estimator, body.probing.estimator_options)
        range_hz = estimator.range_hz(frame)
        self._tuned = _Tuned(
            settings=settings,
            frame=frame,
            estimator=estimator,
            ratio=response.ratio(frame.subcarrier_hz) if response is not None and not several else None,
            carrier=CarrierTracker(settings.carrier_hz, range_hz, self._radio.correction_ppm),
            antennas=Antennas(
                self._place.role,
                body.antennas,
                body.beams,
                frame,
                seed,
                chains.Leveller(response) if response is not None and several else None,
            ),
            is_experiment=body.experiment_mode,
            iq_folder=self._state_dir / "iq" / run if body.record_iq and body.experiment_mode else None,
        )
        self._warm_up(self._tuned)
        return m.Configured(accepted={k: float(getattr(accepted, k)) for k in _ACCEPTED})

    @staticmethod
    def _warm_up(tuned: _Tuned) -> None:
        """Estimate a channel from the bare frame, before the first round: the first estimate of a process takes a
        hundred times as long as later ones, and a round on the wall clock has no time for that."""
        block = IqBlock(np.pad(tuned.frame.samples, tuned.frame.n_cp)[None, :], tuned.frame.sample_rate_hz, 0.0)
        tuned.estimator.estimate_many([block], tuned.frame)

    def _response(self, accepted: RadioSettings) -> chains.ChainResponse | None:
        """Return the measured response of the radio's own chains; None if the lab file does not want it to be used."""
        if not self._place.calibrated:
            return None
        return chains.find(
            self._state_dir, self._radio.identity(), accepted.carrier_hz, accepted.sample_rate_hz,
            self._radio.capabilities.n_antennas,
        )  # fmt: skip

    def _ready(self) -> _Tuned:
        if self._tuned is None:
            raise InputError("no configured radio")
        return self._tuned

    # -- rounds with timed samples

    @property
    def is_blind(self) -> bool:
        """Whether no transmission depends on earlier CSI, so that a train may be captured while the one before is still
        being estimated."""
        return self._tuned is None or not self._tuned.antennas.learns

    def expect(self, body: m.Probe) -> Capture:
        """Take note of a train that will be captured; called in the order of the trains, always from one thread."""
        found = Capture(body, ordinal=self._expected)
        self._expected += 1
        if self._retune is not None and found.ordinal >= self._hears_from:
            found.correction_ppm, self._retune = self._retune, None
        self._coming.append(found)
        self._ordered.set()
        return found

    def capture(self, found: Capture) -> Capture:
        """Do this node's part in each slot of a train. The device's own thread calls it.

        The transmissions of the coming rounds are queued in the device while earlier rounds are received, as many as it
        can hold. On the wall clock these may be rounds of the next train, which can then begin when this one ends.
        """
        tuned, rounds = self._ready(), found.order.rounds
        began_s = self._now_s()
        try:
            self._check_size(tuned, found.order)
            self._check_time(found.order)
            if found.correction_ppm is not None:
                self._radio.correction_ppm = found.correction_ppm
                self._radio.configure(tuned.settings)
            begins_s = self._begins_s(found)  # before anything is queued, behind which a device may place its present
            while found.received < len(rounds) and not self._radio.is_interrupted:
                self._queue(tuned)
                self._await(tuned, begins_s)
                part = self._next_part(found)
                self._promise(part, found)  # tells the air until when this node transmits nothing more
                self._receive(tuned, part, found)
                found.received += len(part)
                self._hear_of_failures()
        finally:
            self._coming.remove(found)
            found.took_s = self._since(began_s)
        if self._radio.is_interrupted:  # transmissions may have been queued while another thread silenced it
            self._radio.silence()
            raise DeviceError(self._radio.name, "receive", self._radio.state, "interrupted: the node is halted")
        return found

    def _begins_s(self, found: Capture) -> float:
        """Return when a train begins, by this node's own clock: on the wall clock, shortly before its first slot."""
        if not found.order.paced:
            return -math.inf
        first_s = min(slot.start_s for slot in found.order.rounds[0].slots)
        try:
            return self._now_s() + first_s - self._radio.now_s() - _AHEAD_S
        except DeviceError:  # it is reported by the reception that fails
            return -math.inf

    def _await(self, tuned: _Tuned, begins_s: float) -> None:
        """Wait until a train begins, and queue the transmissions of the next one as soon as it is ordered: a reception
        ends with its last sample, which may be too late for the next train's first round."""
        while (left_s := begins_s - self._now_s()) > 0 and not self._radio.is_interrupted:
            if self._ordered.wait(min(left_s, _LOOK_S)):
                self._ordered.clear()
                self._queue(tuned)

    def _since(self, began_s: float) -> float:
        """Return the time since an instant, as a message may contain it."""
        return min(max(self._now_s() - began_s, 0.0), LONGEST_SPAN_S)

    @staticmethod
    def _next_part(found: Capture) -> Sequence[m.RoundPlan]:
        """Return the rounds to receive next: those that are queued, but on the wall clock only a few at a time."""
        rounds = found.order.rounds[found.received : max(found.queued, found.received + 1)]
        if not found.order.paced:
            return rounds
        if found.queued < len(found.order.rounds):  # the queue is full: it is refilled when half of it is received
            rounds = rounds[: (len(rounds) + 1) // 2]
        soon_s = rounds[0].end_s + _SLICE_S
        return [plan for plan in rounds if plan is rounds[0] or plan.end_s < soon_s]

    def _queue(self, tuned: _Tuned) -> None:
        """Queue the transmissions of the coming rounds, as long as the device has room for them."""
        for found in list(self._coming):
            later = found is not self._coming[0]
            if later and (not found.order.paced or found.correction_ppm is not None):
                return
            per_round = max(sum(s.tx == self._place.role for s in x.slots) for x in found.order.rounds)
            waiting = sum(x.queued - x.received for x in self._coming)
            # One round less than the queue holds: of the round received last, a transmission may still be in it.
            room = max(1, self._radio.capabilities.queue // max(1, per_round) - 1) - waiting
            part = found.order.rounds[found.queued : found.queued + max(0, room)]
            self._transmit(tuned, part, found)
            found.queued += len(part)
            if found.queued < len(found.order.rounds):
                return

    def _check_size(self, tuned: _Tuned, body: m.Probe) -> None:
        n = sum(self._n_samples(tuned, x, s, body.sounding) for x in body.rounds for s in x.slots)
        n *= self._radio.capabilities.n_antennas
        if n > MAX_TRAIN_SAMPLES:
            raise InputError(
                f"a train of {len(body.rounds)} rounds with {n} samples, accepted up to {MAX_TRAIN_SAMPLES}"
            )

    def _check_time(self, body: m.Probe) -> None:
        """Raise InputError for a train that is over later than `MOST_AHEAD_S` from now: until then the device would do
        nothing else, and end neither by an order nor because the coordinator is silent."""
        over_s = max(max((x.end_s, *(slot.start_s for slot in x.slots))) for x in body.rounds)
        if over_s > self._read_s + MOST_AHEAD_S:
            self._read_s = self._radio.now_s()
        if over_s > self._read_s + MOST_AHEAD_S:
            raise InputError(f"a train that is over in {over_s - self._read_s:g} s, accepted up to {MOST_AHEAD_S:g} s")

    @staticmethod
    def _n_samples(tuned: _Tuned, plan: m.RoundPlan, slot: m.SlotPlan, sounding: bool) -> int:
        """Return the length of a slot's window."""
        return tuned.antennas.n_samples(slot.tx, sounding) + 2 * int(
            np.ceil(plan.margin_s * tuned.frame.sample_rate_hz)
        )

    def _transmit(self, tuned: _Tuned, part: Sequence[m.RoundPlan], found: Capture) -> None:
        """Queue this node's transmissions, before anything is received.

        To queue a transmission takes no time, whereas a reception returns when it is over; there would be too little
        time to order the transmission of the next slot after that.
        """
        rounds, blocks = [], []
        for plan in part:
            for slot in plan.slots:
                if slot.tx == self._place.role:
                    samples = tuned.antennas.outgoing(plan.round, found.order.sounding)
                    rounds.append(plan.round)
                    blocks.append(IqBlock(samples, tuned.frame.sample_rate_hz, slot.start_s + plan.margin_s))
        try:
            failures = self._radio.transmit_many(blocks)
        except DeviceError as exc:
            failures = [exc] * len(blocks)
        for number, failure in zip(rounds, failures, strict=True):
            if failure is not None:
                found.fail(number, failure)

    def _hear_of_failures(self) -> None:
        """Reject the rounds whose transmissions the device could not send, as it reported after they were queued."""
        for at_s, exc in self._radio.failed_transmissions():
            for found in self._coming:
                for plan in found.order.rounds:
                    if any(s.tx == self._place.role and s.start_s + plan.margin_s == at_s for s in plan.slots):
                        found.fail(plan.round, exc)

    def _promise(self, part: Sequence[m.RoundPlan], found: Capture) -> None:
        try:
            self._radio.idle_until(part[-1].end_s)
        except DeviceError as exc:
            for plan in part:
                found.fail(plan.round, exc)

    def _receive(self, tuned: _Tuned, part: Sequence[m.RoundPlan], found: Capture) -> None:
        sounding = found.order.sounding
        slots = [(x, slot) for x in part for slot in x.slots if tuned.antennas.listens(slot.rx, sounding)]
        windows = [Window(self._n_samples(tuned, x, slot, sounding), slot.start_s) for x, slot in slots]
        blocks: Sequence[IqBlock | DeviceError]
        try:
            blocks = self._radio.receive_many(windows)
        except DeviceError as exc:
            blocks = [exc] * len(windows)
        for (plan, slot), block in zip(slots, blocks, strict=True):
            if isinstance(block, DeviceError):
                found.fail(plan.round, block)
            else:
                found.heard.append((plan, slot, block))

    def estimate(self, found: Capture) -> e.ProbeDone:
        """Estimate the channels of a captured train: returns reports for the coordinator, and the CSI for this node."""
        tuned, order = self._ready(), found.order
        began_s = self._now_s()
        for plan, slot, block in found.heard:
            self._write_iq(tuned, plan.round, slot.tx, block)
        follows = found.ordinal >= self._hears_from
        links: dict[int, list[m.LinkResult]] = {plan.round: [] for plan in order.rounds}
        csi: dict[int, dict[str, CsiFrame]] = {plan.round: {} for plan in order.rounds}
        for (plan, slot, _), estimate in zip(found.heard, _estimates(tuned, found), strict=True):
            due_s = slot.start_s + plan.margin_s
            links[plan.round].append(_link_result(tuned, slot.tx, estimate, due_s, order.sounding))
            if isinstance(estimate, CsiFrame):
                csi[plan.round][slot.tx] = estimate
            if follows:
                _follow(tuned, slot.tx, estimate)
        if order.sounding:  # only the beams use its CSI
            for number, frames in csi.items():
                tuned.antennas.hear(number, frames)
            csi = {}
        results = [_result(number, links[number], found.faults.get(number)) for number in links]
        parts = list(_messages(results))
        wanted_ppm = self._follow_carrier(tuned, found)
        reports = [m.Probed(rounds=part) for part in parts[:-1]]
        took = {"air_s": found.took_s, "estimate_s": self._since(began_s)}
        return e.ProbeDone([*reports, m.Probed(rounds=parts[-1], correction_ppm=wanted_ppm, **took)], csi)

    def _follow_carrier(self, tuned: _Tuned, found: Capture) -> float | None:
        """Return the new correction if Alice's carrier has moved too far away; None where the present one will do.

        The new one holds from the train after the next. The coordinator orders that train only after it has the report
        of this one, so that the order of events, and with it the whole run, follows from the seed.
        """
        wanted_ppm = tuned.carrier.wanted_ppm()
        if wanted_ppm is not None:
            self._retune, self._hears_from = wanted_ppm, found.ordinal + 2
        return wanted_ppm

    # -- rounds step by step

    def step(self, body: m.Step) -> e.DeviceDone | e.ProbeDone:
        """Do one step of a train of rounds without timing; after the last one, report the measurements.

        If the device fails, the rounds are rejected, but their remaining steps are still ordered. The other nodes go
        on, and this node configures its device again before its next step.
        """
        tuned = self._ready()
        if self._part.round != body.round:
            self._part = _Part(body.round, body.rounds, body.period)
        part, began_s = self._part, self._now_s()
        try:
            if self._has_failed:
                self._radio.configure(tuned.settings)
                self._has_failed = False
            self._act(tuned, body, part)
        except DeviceError as exc:
            part.fault = part.fault or str(exc)
            self._has_failed = True
        done = m.Stepped(round=body.round, step=body.step, air_s=self._since(began_s))
        if not body.last:
            return e.DeviceDone(done)
        self._send(done)  # the air is free, so the others do not wait for the estimates
        began_s = self._now_s()
        csi: dict[int, dict[str, CsiFrame]] = {number: {} for number in part.numbers}
        links: dict[int, list[m.LinkResult]] = {number: [] for number in part.numbers}
        for tx, block in part.captured:
            for number, (link, found) in zip(
                part.numbers, self._estimate_repeated(tuned, part, tx, block), strict=True
            ):
                links[number].append(link)
                if found is not None:
                    csi[number][tx] = found
        took_s = self._since(began_s)
        fault = (Reject.DEVICE.value, part.fault) if part.fault else None
        results = [_result(number, links[number], fault) for number in part.numbers]
        return e.ProbeDone(self._retuned(tuned, results, took_s), csi)

    def _retuned(self, tuned: _Tuned, results: list[m.RoundResult], estimate_s: float) -> list[m.Probed]:
        """Return the reports of rounds without timing. If Alice's carrier has moved too far away, the radio is tuned
        first; if that fails, the error is reported with the next order, which fails as well.
        """
        wanted_ppm = tuned.carrier.wanted_ppm()
        if wanted_ppm is not None:
            self._radio.correction_ppm = wanted_ppm
            try:
                self._radio.configure(tuned.settings)
            except DeviceError as exc:
                results = [_result(x.round, x.links, (Reject.DEVICE.value, str(exc))) for x in results]
        *parts, last = _messages(results)
        reports = [m.Probed(rounds=part) for part in parts]
        return [*reports, m.Probed(rounds=last, correction_ppm=wanted_ppm, estimate_s=estimate_s)]

    def _act(self, tuned: _Tuned, body: m.Step, part: _Part) -> None:
        match body.action:
            case "transmit":
                samples = self._repeated(tuned, part)
                self._radio.transmit(IqBlock(samples, tuned.frame.sample_rate_hz, 0.0))
            case "receive":
                if len(part.captured) >= MOST_CAPTURES:
                    raise InputError(f"round {body.round}: {MOST_CAPTURES} receptions were ordered already")
                part.captured.append((body.tx, self._radio.receive(self._n_repeated(tuned, part))))
            case "silence":
                self._radio.silence()

    @staticmethod
    def _train(tuned: _Tuned, part: _Part) -> FrameTrain:
        """Return where the frames of a train are in a capture; raises InputError for a train that cannot be."""
        size = tuned.frame.samples.size
        train = FrameTrain(size, part.period or size, part.rounds)
        if train.period < size:
            raise InputError(f"round {part.round}: a frame every {train.period} samples, accepted from {size}, its own")
        if train.n_samples > LONGEST_CAPTURE:
            raise InputError(
                f"round {part.round}: {train.n_samples} samples of one reception, accepted up to {LONGEST_CAPTURE}"
            )
        return train

    def _repeated(self, tuned: _Tuned, part: _Part) -> C64:
        """Return the samples that are repeated, (antenna, sample): those of the frame, and zeros up to a period."""
        samples, train = tuned.antennas.outgoing(part.round, sounding=False), self._train(tuned, part)
        return np.pad(samples, ((0, 0), (0, train.period - train.frame))) if train.period > train.frame else samples

    def _n_repeated(self, tuned: _Tuned, part: _Part) -> int:
        """Return the length of a reception, and raise InputError where this node would hold too many samples."""
        n_samples = PERIODS * tuned.frame.samples.size if part.rounds == 1 else self._train(tuned, part).n_samples
        held = sum(block.samples.size for _, block in part.captured)
        if held + n_samples * self._radio.capabilities.n_antennas > MAX_TRAIN_SAMPLES:
            raise InputError(
                f"round {part.round}: more than {MAX_TRAIN_SAMPLES} samples of one train, accepted: no more"
            )
        return n_samples

    def _estimate_repeated(self, tuned: _Tuned, part: _Part, tx: str, block: IqBlock) -> list[_Link]:
        """Return, for each round of a train, what was found in one capture of a repeated frame."""
        found = self._single(tuned, part, block) if part.rounds == 1 else self._several(tuned, part, block)
        out: list[_Link] = []
        for number, (window, estimate) in zip(part.numbers, found, strict=True):
            self._write_iq(tuned, number, tx, block if part.rounds == 1 else window)
            csi = estimate if isinstance(estimate, CsiFrame) else None
            out.append((_link_result(tuned, tx, estimate, window.time_s), csi))
            _follow(tuned, tx, estimate)
        # Eve misses no round whose neighbour she received: a channel changes little within a train.
        return _filled(out) if self._place.role == "eve" else out

    def _single(self, tuned: _Tuned, part: _Part, block: IqBlock) -> list[_Found]:
        """Estimate from a block of `PERIODS` periods of a repeated frame, which begins anywhere in it."""
        for window in repeated_windows(block, tuned.frame.samples.size):
            (estimate,) = self._estimates_of(tuned, [part.round], [window])
            if isinstance(estimate, CsiFrame) or estimate.reason not in (Reject.TRUNCATED, Reject.NO_PREAMBLE):
                break
        return [(window, estimate)]

    def _several(self, tuned: _Tuned, part: _Part, block: IqBlock) -> list[_Found]:
        """Estimate from all frames of a train in one capture, which begins anywhere in their repetition.

        One frame is searched for; the others follow from its arrival and the known period. Where none is found, round i
        is rejected for the reason why the i-th period contains none.
        """
        train = self._train(tuned, part)
        missed: list[_Found] = []
        for window in train.searched(block):
            (estimate,) = self._estimates_of(tuned, [part.round], [window])
            if isinstance(estimate, CsiFrame):
                return self._by_period(tuned, part, train, block, _arrival(block, estimate))
            missed.append((window, estimate))
        return missed[::2]

    def _by_period(self, tuned: _Tuned, part: _Part, train: FrameTrain, block: IqBlock, arrival: float) -> list[_Found]:
        """Estimate from the frames of a train, of which one arrives at `arrival`, in samples of the capture."""
        known, found_at = train.first_of(arrival)
        out: dict[int, _Found] = {}
        first = found_at  # when the first frame should have arrived, by the frame that was found last
        for numbers in train.runs(known):
            if numbers[0] == known - 1:  # from here on backwards
                first = found_at
            windows = [train.window(block, first + n * train.period) for n in numbers]
            estimates = self._estimates_of(tuned, [part.round + n for n in numbers], windows)
            out.update(zip(numbers, zip(windows, estimates, strict=True), strict=True))
            for n, estimate in zip(numbers, estimates, strict=True):
                if isinstance(estimate, CsiFrame):
                    first = _arrival(block, estimate) - n * train.period
        return [out[n] for n in range(train.count)]

    @staticmethod
    def _estimates_of(
        tuned: _Tuned, rounds: Sequence[int], windows: Sequence[IqBlock]
    ) -> list[CsiFrame | ProbeRejected]:
        return _levelled(tuned, tuned.antennas.estimate_many(tuned.estimator, rounds, windows))

    def _write_iq(self, tuned: _Tuned, number: int, tx: str, block: IqBlock) -> None:
        if tuned.iq_folder is None:
            return
        from testbed.records import sigmf

        tuned.iq_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stem = tuned.iq_folder / f"round-{number:06d}-{tx}-{self._place.role}"
        sigmf.write(stem, block, self._radio.settings.carrier_hz, [])


def _estimates(tuned: _Tuned, found: Capture) -> list[CsiFrame | ProbeRejected]:
    """Return the estimate from each window of a train, or why there is none."""
    if found.order.sounding:
        return [tuned.antennas.estimate_sounding(tuned.estimator, slot.tx, x) for _, slot, x in found.heard]
    rounds = [plan.round for plan, _, _ in found.heard]
    blocks = [block for _, _, block in found.heard]
    return _levelled(tuned, tuned.antennas.estimate_many(tuned.estimator, rounds, blocks))


def _arrival(block: IqBlock, found: CsiFrame) -> float:
    """Return when a frame arrived, in samples of the capture."""
    return (found.time_s - block.time_s) * block.sample_rate_hz


def _filled(links: list[_Link]) -> list[_Link]:
    """Return what was found of one transmitter in a train; for a round in which its frame was rejected, the nearest one
    that was not, the earlier one of two.

    Where most frames were rejected, only those of the rounds beside it are taken. That is still more than she has in
    single rounds, of which each has two whole frames; with more, an Eve who receives a frame now and then would be
    taken for one who measured all rounds.
    """
    good = [i for i, (_, csi) in enumerate(links) if csi is not None]
    reach = len(links) if 2 * len(good) >= len(links) else 1

    def at(i: int) -> int:
        nearest = min(good, key=lambda n: abs(n - i), default=i)
        return nearest if abs(nearest - i) <= reach else i

    return [links[at(i)] for i in range(len(links))]


def _levelled(tuned: _Tuned, found: list[CsiFrame | ProbeRejected]) -> list[CsiFrame | ProbeRejected]:
    """Return the estimates corrected by this device's T/R (`chains`), where it is calibrated."""
    if tuned.ratio is None:
        return found
    return [chains.levelled(x, tuned.ratio) if isinstance(x, CsiFrame) else x for x in found]


def _result(number: int, links: list[m.LinkResult], fault: tuple[str, str] | None) -> m.RoundResult:
    reason, detail = fault if fault else (None, "")
    return m.RoundResult(round=number, links=links, fault=reason, detail=detail)


def _messages(results: list[m.RoundResult]) -> Iterator[list[m.RoundResult]]:
    """Yield the results in parts that are not too large for a message."""
    part: list[m.RoundResult] = []
    n_bytes = 0
    for result in results:
        size = sum(len(link.csi) for link in result.links if link.csi is not None)
        if part and n_bytes + size > _REPORT_BYTES:
            yield part
            part, n_bytes = [], 0
        part.append(result)
        n_bytes += size
    yield part


def _link_result(
    tuned: _Tuned, tx: str, found: CsiFrame | ProbeRejected, due_s: float, sounding: bool = False
) -> m.LinkResult:
    """Return the report of one slot, whose frame was due at `due_s`."""
    if isinstance(found, ProbeRejected):
        if not tuned.is_experiment:  # details state levels and SNR, which resemble those of kept rounds
            return m.LinkResult(tx=tx, reason=found.reason.value)
        return m.LinkResult(tx=tx, reason=found.reason.value, detail=found.detail, cfo_hz=found.cfo_hz or 0.0)
    timing_error_s = found.time_s - due_s
    if not tuned.is_experiment:
        # Level, SNR and exact arrival time depend on the channel, as the key does; the scheduler needs a coarse time.
        return m.LinkResult(tx=tx, reason=None, timing_error_s=round(timing_error_s / _COARSE_S) * _COARSE_S)
    shape = (found.h.shape[0], found.h.shape[1], found.h.shape[2]) if not sounding else (0, 0, 0)
    return m.LinkResult(
        tx=tx,
        reason=None,
        timing_error_s=timing_error_s,
        device_time_s=found.time_s,
        # The SNR of a channel without noise is infinite, and messages contain finite numbers only.
        snr_db=min(max(_median(found.snr_db), -300.0), 300.0),
        cfo_hz=found.cfo_hz,
        rssi_dbfs=found.rssi_dbfs,
        shape=shape,
        csi=np.ascontiguousarray(found.h).tobytes() if not sounding else None,
    )


def _median(values: F64) -> float:
    """Return the median of (value,). numpy's function takes longer than the whole channel estimate."""
    ordered = np.sort(values)
    return float(ordered[(ordered.size - 1) // 2] + ordered[ordered.size // 2]) / 2


def _follow(tuned: _Tuned, tx: str, found: CsiFrame | ProbeRejected) -> None:
    if tx == "alice" and found.cfo_hz is not None:
        tuned.carrier.hear(found.cfo_hz)


def life_of(incarnation: str) -> str:
    """Return a word that identifies one process of a node: the random part of its incarnation, because successive
    processes have similar numbers."""
    return incarnation.rpartition("-")[2][:6]


class BoardWork:
    """One node's surface, called `name` in messages. `life` marks the names of patterns that this process has drawn."""

    def __init__(self, board: Board, name: str, life: str) -> None:
        self._board, self._name, self._life = board, name, life
        self._secret: SecretSurface | None = None
        self._secret_run = ""
        """The run to which the secret patterns belong."""
        self._run = ""
        self._ordered: deque[set[str]] = deque(maxlen=2)
        """Digests of the public patterns of the latest two orders in this run."""
        self._is_experiment = False

    def configure(self, body: m.Configure, run: str, seed: int) -> m.Configured:
        """Prepare to draw secret patterns; a second order to configure in the same run draws no new ones."""
        self._is_experiment = body.experiment_mode
        if run != self._run:
            self._run = run
            self._ordered.clear()
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

    def schedule(self, body: m.Schedule) -> m.Scheduled:
        """Have each pattern of a train latch at its time: the ordered patterns, or secret ones that are drawn here."""
        patterns = [self._pattern(body, plan) for plan in body.patterns]
        applied = self._board.schedule(patterns, [plan.at_s for plan in body.patterns])
        secret, told = self._secret, self._secret is not None and self._is_experiment
        self._ordered.append({x.digest for x in applied if secret is None})
        found = [
            m.PatternSet(
                round=plan.round, digest=x.digest if secret is None else secret.name_of(x.digest),
                device_time_s=x.time_s, levels=pattern.levels.tobytes() if told else None,
            )
            for plan, pattern, x in zip(body.patterns, patterns, applied, strict=True)
        ]  # fmt: skip
        return m.Scheduled(
            patterns=found,
            device_time_s=self._board.now_s(),
            shape=self._board.shape,
            phase_bits=self._board.phase_bits,
        )

    def _pattern(self, body: m.Schedule, plan: m.PatternPlan) -> SurfacePattern:
        if (self._secret is None) != (plan.levels is not None):
            draws = "draws its own patterns in this run and accepts no other"
            raise InputError(f"{self._name} {draws if self._secret else 'draws no patterns in this run'}")
        if self._secret is not None:
            return self._secret.pattern_for(plan.round)
        assert plan.levels is not None
        return SurfacePattern(np.frombuffer(plan.levels, np.uint8).reshape(body.shape), body.phase_bits)

    def apply(self, body: m.Apply) -> m.Applied:
        if self._secret is not None:
            raise InputError(f"{self._name} draws its own patterns in this run and accepts no other")
        levels = np.frombuffer(body.levels, dtype=np.uint8)
        if levels.size != body.shape[0] * body.shape[1]:
            raise InputError(f"{levels.size} levels for a surface of shape {body.shape}")
        applied = self._board.apply(SurfacePattern(levels.reshape(body.shape), body.phase_bits))
        self._ordered.append({applied.digest})
        return m.Applied(round=body.round, digest=applied.digest, device_time_s=applied.time_s)

    def read_surface(self, body: m.ReadSurface) -> m.SurfaceHeld:
        """Report the pattern that the board holds. Of one that nobody ordered, the digest is not reported: it may be a
        secret pattern of an earlier run, and those of a small surface can be tried one by one."""
        digest = self._board.readback().digest
        if self._secret is not None:
            name = self._secret.name_of(digest)
        else:
            name = digest if any(digest in ordered for ordered in self._ordered) else UNKNOWN
        return m.SurfaceHeld(round=body.round, digest=name)
