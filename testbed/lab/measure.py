"""Measures several radios from one process: silence, gain, turn-around, and what each receives of the others.

All times are planned on one reference timeline, as the scheduler does: a radio's device time is `base + reference`.
A reception on simulated air completes when every transmitter has declared what it sends until its end, so all radios
declare silence before anything is received.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from testbed.core import registry
from testbed.core.config import ProbingPlan
from testbed.core.errors import DeviceError, LateTransmit, ProbeRejected
from testbed.core.radio import Radio, RadioSettings
from testbed.core.stages import first_antenna
from testbed.core.types import C64, AntennaFrame, CsiFrame, IqBlock
from testbed.core.windows import PERIODS, repeated_windows
from testbed.nodes.calibration import Delay, GainStep, Heard

T = TypeVar("T")
_ATTEMPTS = 3
_LEAD_S = 0.05
"""On the wall clock, an order must be given at least this long before its first sample is due."""
_SPACING_S = 5e-3
"""Time between operations: long enough to resolve 0.1 ppm between clocks, too short for crystals to drift."""
_HOLD_S = 20e-3
"""Timed radios declare silence for this long at a time while untimed ones operate."""
_MARGIN_S = 20e-6
_DRIFT = 50e-6
"""Largest difference between the rates of two clocks."""
_SILENT_SAMPLES = 16384
_READINGS = 5
_TURNAROUNDS = 5
_TONE_ABOVE = 1e3
"""A tone is found where it exceeds the median of the spectrum by this factor (30 dB)."""
_GAIN_STEPS_DB = (-10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)


@dataclass(frozen=True, slots=True)
class Sounding:
    """One frame from one radio to another."""

    block: IqBlock
    found: CsiFrame | None
    reason: str
    """Why nothing was found."""
    at_s: float
    """Reference time at which it was sent."""
    error_s: float | None
    """Arrival minus schedule; None where a radio cannot time its samples."""


@dataclass(frozen=True, slots=True)
class Silence:
    dc_offset_dbfs: float
    noise_dbfs: float
    clipped: float


def _db(power: float) -> float:
    return 10.0 * float(np.log10(max(power, 1e-20)))


def _clipped(block: IqBlock) -> float:
    """Return the share of samples at full scale."""
    parts = block.samples
    return float(np.mean((np.abs(parts.real) >= 0.999) | (np.abs(parts.imag) >= 0.999)))


def _in_time(job: Callable[[], T]) -> T:
    """Repeat an operation that was too late: a busy host may miss a time. If it fails every time, raise the error."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return job()
        except LateTransmit:
            pass
    return job()


class Bench:
    """Radios within range of one another, each with its settings of the lab file. The constructor configures them and
    reads their clocks."""

    def __init__(
        self, radios: Mapping[str, Radio], settings: Mapping[str, RadioSettings], virtual: bool, probing: ProbingPlan
    ) -> None:
        self._radios, self._settings, self._virtual = radios, settings, virtual
        self._sounder = registry.make_stage("probing", probing.waveform, probing.waveform_options)
        self._estimator = registry.make_stage("csi", probing.estimator, probing.estimator_options)
        rates = {settings[name].sample_rate_hz for name in radios}
        assert len(rates) == 1, "one plan tunes all radios"
        self.frame = self._sounder.frame(rates.pop())
        self._base_s: dict[str, float] = {}
        self.reading_s: dict[str, float] = {}
        """Largest error of a clock's reading, s (half of its round trip; 0 in virtual time, which does not pass
        meanwhile)."""
        self._origin_s = time.monotonic()
        self._t_s = _SPACING_S
        for name, radio in radios.items():
            self._read_clock(name, radio)

    def _read_clock(self, name: str, radio: Radio) -> None:
        best_s = np.inf
        for _ in range(_READINGS):
            before_s = time.monotonic()
            device_s = radio.now_s()
            after_s = time.monotonic()
            if after_s - before_s < best_s:
                best_s = after_s - before_s
                middle_s = 0.0 if self._virtual else (before_s + after_s) / 2 - self._origin_s
                self._base_s[name] = device_s - middle_s
        self.reading_s[name] = 0.0 if self._virtual else best_s / 2

    # ---------------------------------------------------------------- time

    def _soon(self) -> float:
        """Return the reference time at which the next operation may begin."""
        if not self._virtual:
            self._t_s = max(self._t_s, time.monotonic() - self._origin_s + _LEAD_S)
        return self._t_s

    def _quiet_until(self, end_s: float) -> None:
        """Declare the silence of all timed radios until `end_s`; the next operation begins after it."""
        self._t_s = max(self._t_s, end_s + _SPACING_S)
        for name, radio in self._radios.items():
            if radio.capabilities.timed and radio.state == "configured":
                radio.idle_until(self._base_s[name] + end_s)

    def _margin_s(self, *names: str) -> float:
        return _MARGIN_S + sum(self.reading_s[n] for n in names) + _DRIFT * self._t_s

    # ---------------------------------------------------------------- single operations

    def _capture(self, name: str, n_samples: int) -> IqBlock:
        """Receive while no radio transmits."""
        radio, at_s = self._radios[name], self._soon()
        if not radio.capabilities.timed:
            self._quiet_until(at_s + _HOLD_S)
            return radio.receive(n_samples)
        margin_s = self._margin_s(name) + radio.capabilities.turnaround_s
        self._quiet_until(at_s + n_samples / self.frame.sample_rate_hz + 2 * margin_s)
        return radio.receive(n_samples, self._base_s[name] + at_s)

    def _block(self, radio: Radio, time_s: float, samples: C64 | None = None) -> IqBlock:
        """Return what the first antenna sends, or all of them where `samples` is (antenna, sample)."""
        wave = self.frame.samples if samples is None else samples
        rows = wave if wave.ndim == 2 else np.outer(first_antenna(radio.capabilities.n_antennas), wave)
        return IqBlock(rows, self.frame.sample_rate_hz, time_s)

    def sound(self, tx: str, rx: str) -> Sounding:
        """Send one frame and look for it; raises DeviceError."""
        sender, listener = self._radios[tx], self._radios[rx]
        if sender.capabilities.timed and not listener.capabilities.timed:
            raise DeviceError(
                tx, "sound", sender.state, f"sends a frame once, at a set time, and {rx} cannot time its reception"
            )
        if not sender.capabilities.timed:
            return self._sound_repeated(tx, rx)
        return _in_time(lambda: self._sound_timed(tx, rx))

    def sound_antennas(self, tx: str, rx: str, error_s: float = 0.0) -> Sounding:
        """Sound every antenna of the transmitter in turn; otherwise as `sound`. Both radios must time their samples.

        `error_s`: the timing error of an earlier sounding. The window is short, because a part of the second antenna's
        frame in it could be taken for the first antenna's.
        """
        sender = self._radios[tx]
        if not (sender.capabilities.timed and self._radios[rx].capabilities.timed):
            raise DeviceError(tx, "sound", sender.state, "several antennas, but the samples cannot be timed")
        frame = AntennaFrame.of(self.frame, sender.capabilities.n_antennas)
        spare_s = (frame.stride - self.frame.samples.size) / 2 / self.frame.sample_rate_hz
        sounding = _in_time(lambda: self._sound_timed(tx, rx, frame.samples, spare_s, error_s))
        try:
            return replace(sounding, found=self._estimator.estimate_antennas(sounding.block, frame), reason="")
        except ProbeRejected as exc:
            return replace(sounding, found=None, reason=str(exc).rstrip(": "))

    def offset_hz(self, tx: str, rx: str) -> float | None:
        """Return by how much the carrier of `tx` is higher than that of `rx`, measured with a tone, for offsets within
        ± 3/8 of the sample rate. None where no tone is found. Raises DeviceError.
        """
        rate, n = self.frame.sample_rate_hz, self.frame.samples.size
        cycles = max(1, round(n / 8))  # whole cycles, because untimed radios repeat the block
        tone = (0.5 * np.exp(2j * np.pi * cycles / n * np.arange(n))).astype(np.complex64)
        if self._radios[tx].capabilities.timed:
            block = _in_time(lambda: self._sound_timed(tx, rx, tone)).block
        else:
            block = self._sound_repeated(tx, rx, tone).block
        samples = block.samples[0] - block.samples[0].mean()
        size = 1 << int(np.ceil(np.log2(8 * samples.size)))
        power = np.abs(np.fft.fft(samples * np.hanning(samples.size), size)) ** 2
        peak = int(np.argmax(power))
        if power[peak] < _TONE_ABOVE * np.median(power):
            return None
        sent_hz = cycles / n * rate
        return float((np.fft.fftfreq(size, 1 / rate)[peak] - sent_hz + rate / 2) % rate - rate / 2)

    def correct(self, name: str, ppm: float) -> None:
        """Have a radio correct its carrier by `ppm`, and tune it anew. Raises DeviceError."""
        self._radios[name].correction_ppm = ppm
        self._radios[name].configure(self._settings[name])

    def _sound_timed(
        self, tx: str, rx: str, samples: C64 | None = None, most_s: float = np.inf, late_s: float = 0.0
    ) -> Sounding:
        """`most_s`: longest margin of the window, which begins `late_s` later than the clocks' readings say."""
        sender, listener, rate = self._radios[tx], self._radios[rx], self.frame.sample_rate_hz
        at_s, margin_s = self._soon(), min(self._margin_s(tx, rx), most_s)
        length = self.frame.samples.size if samples is None else samples.shape[-1]
        n_samples = length + 2 * int(np.ceil(margin_s * rate))
        turnaround_s = max(sender.capabilities.turnaround_s, listener.capabilities.turnaround_s)
        sent_s = at_s + margin_s
        try:
            sender.transmit(self._block(sender, sent_s, samples), self._base_s[tx] + sent_s)
        finally:  # even after an error, no radio may be left waiting for this transmitter
            self._quiet_until(at_s + n_samples / rate + margin_s + turnaround_s + abs(late_s))
        block = listener.receive(n_samples, self._base_s[rx] + at_s + late_s)
        found, reason = self._find([block])
        error_s = found.time_s - (self._base_s[rx] + sent_s) if found is not None else None
        return Sounding(block, found, reason, sent_s, error_s)

    def _sound_repeated(self, tx: str, rx: str, samples: C64 | None = None) -> Sounding:
        sender, listener = self._radios[tx], self._radios[rx]
        n_samples = PERIODS * self.frame.samples.size
        try:
            sender.transmit(self._block(sender, 0.0, samples))
            at_s = self._soon()
            self._quiet_until(at_s + _HOLD_S)
            start_s = self._base_s[rx] + at_s + _HOLD_S / 2 if listener.capabilities.timed else None
            block = listener.receive(n_samples, start_s)
        finally:
            sender.silence()
        return Sounding(block, *self._find(repeated_windows(block, self.frame.samples.size)), at_s, None)

    def _find(self, blocks: Iterable[IqBlock]) -> tuple[CsiFrame | None, str]:
        reason = ""
        for block in blocks:
            try:
                return self._estimator.estimate(block, self.frame), ""
            except ProbeRejected as exc:
                reason = str(exc).rstrip(": ")
        return None, reason

    def is_mirrored(self, sounding: Sounding) -> bool:
        """Return whether the frame is there with its spectrum mirrored: I and Q are exchanged at one end."""
        block = replace(sounding.block, samples=sounding.block.samples.conj())
        windows = repeated_windows(block, self.frame.samples.size) if sounding.error_s is None else []
        return self._find([block, *windows])[0] is not None

    # ---------------------------------------------------------------- measurements

    def silence(self, name: str) -> Silence:
        """Measure DC offset and noise while no radio transmits; raises DeviceError."""
        block = self._capture(name, _SILENT_SAMPLES)
        mean = block.samples.mean(axis=1, keepdims=True)
        return Silence(
            _db(float(np.mean(np.abs(mean) ** 2))),
            _db(float(np.mean(np.abs(block.samples - mean) ** 2))),
            _clipped(block),
        )

    def gain_table(self, name: str, source: str) -> list[GainStep]:
        """Receive `source` at several gains about the nominal one; the nominal one is set again. Raises DeviceError."""
        radio, nominal = self._radios[name], self._settings[name]
        low, high = radio.capabilities.rx_gain_db
        steps: list[GainStep] = []
        try:
            for step_db in _GAIN_STEPS_DB:
                gain_db = nominal.rx_gain_db + step_db
                if low <= gain_db <= high:
                    radio.configure(replace(nominal, rx_gain_db=gain_db))
                    block = self.sound(source, name).block
                    steps.append(
                        GainStep(rx_gain_db=gain_db, rssi_dbfs=self._loudest_dbfs(block), clipped=_clipped(block))
                    )
        finally:
            radio.configure(nominal)
        return steps

    def _loudest_dbfs(self, block: IqBlock) -> float:
        """Return the power of the loudest stretch of a frame's length, since the frame's position is unknown."""
        power = np.mean(np.abs(block.samples) ** 2, axis=0, dtype=np.float64)
        n = min(self.frame.samples.size, power.size)
        sums = np.concatenate([[0.0], np.cumsum(power)])
        return _db(float((sums[n:] - sums[:-n]).max()) / n)

    def turnaround_s(self, name: str) -> float:
        """Return the host's time for transmitting, then receiving with the same radio (`Calibration.turnaround_s`)."""
        return float(np.median([_in_time(lambda: self._turn(name)) for _ in range(_TURNAROUNDS)]))

    def _turn(self, name: str) -> float:
        radio, rate = self._radios[name], self.frame.sample_rate_hz
        n_samples = self.frame.samples.size
        at_s = self._soon()
        if not radio.capabilities.timed:
            self._quiet_until(at_s + _HOLD_S)
            began_s = time.monotonic()
            radio.transmit(self._block(radio, 0.0))
            radio.silence()
            radio.receive(n_samples)
            took_s = time.monotonic() - began_s
            return max(took_s - (0.0 if self._virtual else n_samples / rate), 0.0)
        listen_s = at_s + n_samples / rate + radio.capabilities.turnaround_s
        over_s = listen_s + n_samples / rate
        began_s = time.monotonic()
        try:
            radio.transmit(self._block(radio, at_s), self._base_s[name] + at_s)
            ordered_s = time.monotonic()
        finally:
            self._quiet_until(over_s + radio.capabilities.turnaround_s + self._margin_s(name))
        radio.receive(n_samples, self._base_s[name] + listen_s)
        ended_s = time.monotonic()
        if self._virtual:
            return ended_s - began_s
        # The sum of the time to give the order and the time from the last sample until the host has the samples.
        return ordered_s - began_s + max(ended_s - self._origin_s - over_s - self.reading_s[name], 0.0)


def crystals_ppm(offsets_ppm: Mapping[tuple[str, str], float], reference: str) -> dict[str, float]:
    """Return by how much each radio's crystal is faster than the reference's, in ppm, by least squares.

    `offsets_ppm`: (tx, rx) → carrier of tx minus that of rx. Only radios that are linked to the reference, directly or
    through others, are in the answer; the reference itself is in it, with 0.
    """
    linked = {reference}
    while more := {x for pair in offsets_ppm if linked & set(pair) for x in pair} - linked:
        linked |= more
    others = sorted(linked - {reference})
    if not others:
        return {}
    pairs = [pair for pair in offsets_ppm if set(pair) <= linked]
    design = np.array([[float(tx == n) - float(rx == n) for n in others] for tx, rx in pairs])
    answer, *_ = np.linalg.lstsq(design, np.array([offsets_ppm[pair] for pair in pairs]), rcond=None)
    return {reference: 0.0, **{n: float(x) for n, x in zip(others, answer, strict=True)}}


def two_way(
    there: list[tuple[float, float]], back: list[tuple[float, float]]
) -> tuple[Delay, float, float] | tuple[None, None, None]:
    """Separate delay, clock offset and clock rate from the (time, timing error) pairs of two directions.

    The timing errors are D + o + r·t in one direction and D − o − r·t in the other (two-way time transfer). Least
    squares gives the delay D, the receiver's offset o in seconds and its rate r against the transmitter's, in ppm.
    Without frames in the return direction D and o cannot be separated: o is then returned as 0, and D as their sum at
    time 0, when the clocks were read. With too few frames, the result is (None, None, None).
    """
    n_unknown = 3 if back else 2
    if len(there) < 2 or len(there) + len(back) <= n_unknown:
        return None, None, None
    t = np.array([x[0] for x in there + back])
    error_s = np.array([x[1] for x in there + back])
    side = np.array([1.0] * len(there) + [-1.0] * len(back))
    first_s = float(t.min()) if back else 0.0
    columns = [np.ones_like(t), side * (t - first_s)] + ([side] if back else [])
    design = np.stack(columns, axis=1)
    answer, *_ = np.linalg.lstsq(design, error_s, rcond=None)
    rest = error_s - design @ answer
    spread_s = float(np.sqrt(np.sum(rest**2) / (len(t) - n_unknown)))
    offset_s = float(answer[2]) if back else 0.0
    return Delay(mean_s=float(answer[0]), std_s=spread_s), offset_s, 1e6 * float(answer[1])


def heard(soundings: list[Sounding], back: list[Sounding], asked: int) -> tuple[Heard, float]:
    """Sum up the frames that were found (at least one); returns them and the mean carrier offset in Hz."""
    good = [s.found for s in soundings if s.found is not None]
    delay, offset_s, ppm = two_way(
        *([(s.at_s, s.error_s) for s in side if s.error_s is not None] for side in (soundings, back))
    )
    return Heard(
        snr_db=float(np.mean([np.median(f.snr_db) for f in good])),
        frames=len(good),
        asked=asked,
        delay_s=delay,
        clock_ppm=ppm,
        clock_offset_s=offset_s if back else None,
        two_way=bool(back) and delay is not None,
    ), float(np.mean([f.cfo_hz for f in good]))
