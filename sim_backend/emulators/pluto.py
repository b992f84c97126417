"""An emulated PlutoSDR: a front of the World that speaks IIO.

It stands on the air as two free-running stations at one place, `NAME` receiving and `NAME-tx` sending: full duplex, two
local oscillators on one crystal. Time is the World's: a block is captured when the driver queues it, from the World's
present on, so that reading samples is what makes time pass; nobody ever waits for this radio to declare anything.

What a Pluto does to those who do not expect it is always on: a ring of four blocks filled at once when a buffer is
opened, an automatic gain unless told otherwise, a transmit gain that a change of rate resets, tones and a leaking
carrier after the buffer is gone. What breaks is in `Faults`, off by default and changed while it runs.
"""

from __future__ import annotations

import errno
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct, field

from sim_backend.emulators._options import emulator_options
from sim_backend.emulators.iio_tree import Device, Key
from sim_backend.emulators.iiod import IiodServer, Stream
from sim_backend.emulators.pluto_tree import ADC, DAC, LO_RANGES_HZ, PHY, RATE_FILES, XADC, pluto_tree, tone_file
from sim_backend.impairments import OneAntenna
from sim_backend.link import ANSWER_S, OffAir
from sim_backend.messages import MAX_SAMPLES, Silence
from sim_backend.radio import SimRadio
from testbed.core.errors import DeviceError, DeviceTimeout, InputError
from testbed.core.radio import RadioCapabilities, RadioSettings
from testbed.core.seeds import generator
from testbed.core.types import C64, IqBlock
from testbed.core.world import DriverContext, Emulator

log = logging.getLogger(__name__)

ADC_FULL_SCALE = 2048.0
"""12 bits, sign-extended to 16."""
DAC_FULL_SCALE = 32768.0
_LEAK = 10 ** (-50 / 20)
"""Carrier that leaks from the transmitter while its local oscillator runs, relative to full scale."""
_AGC_TARGET_DBFS = -15.0
_TX_QUEUE = 4
"""Blocks that may wait to be sent before a writer has to."""
_STANDSTILL = np.zeros(256, np.complex64)
_RESET_TX_GAIN_DB = -10.0
_TONE_SAMPLES = 4096

T = TypeVar("T")


class Faults(Struct, kw_only=True, forbid_unknown_fields=True):
    """What a Pluto does on a bad day."""

    early_requeue: bool = False
    """A block is queued, and filled, as soon as it was read, not when the next is asked for: always one old block."""
    overflow_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Chance that samples in the middle of a block are lost; nothing tells."""
    silent: bool = False
    """No samples come: reads end with a timeout after the remote's time."""
    hang_s: Annotated[float, Meta(ge=0)] = 0.0
    """Every read is answered this much later, whatever the timeout."""
    dribble_s: Annotated[float, Meta(ge=0)] = 0.0
    """Every read's samples come in pieces over this time, so that no single wait is long."""
    failing_reads: Annotated[int, Meta(ge=0)] = 0
    """So many reads fail with EIO."""
    busy_opens: Annotated[int, Meta(ge=0)] = 0
    """So many opens fail with EBUSY."""
    disconnect_reads: Annotated[int, Meta(ge=0)] = 0
    """So many reads end in the middle of the block with the connection dropped."""
    saturates_at: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """The receiver clips at this share of the converter's full scale."""


class PlutoOptions(OneAntenna, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An emulator's table in the lab file: OneAntenna, and"""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    serial: str | None = None
    """Default: made from the name."""
    model: Literal["ad9363a", "ad9364"] = "ad9364"
    """ad9363a: 325 MHz to 3.8 GHz, as sold; ad9364: 70 MHz to 6 GHz, unlocked."""
    firmware: str = "v0.38"
    drift_ppm: Annotated[float, Meta(ge=0)] = 0.0
    """The crystal swings by this much around its error …"""
    drift_period_s: Annotated[float, Meta(gt=0)] = 60.0
    """… with this period of world time."""
    canned: bool = False
    """Every block is the same noise, made once: to measure the wire instead of the air."""
    faults: Faults = field(default_factory=Faults)


class _Chain(SimRadio):
    """One direction of a Pluto on the air, with the ranges of its own controls."""

    tuned: RadioSettings | None = None
    sending: C64 | None = None
    """What it repeats."""

    @property
    def capabilities(self) -> RadioCapabilities:
        return replace(
            super().capabilities, sample_rate_hz=(520e3, 61.44e6), tx_gain_db=(-89.75, 0.0), rx_gain_db=(-3.0, 71.0)
        )

    def send_once(self, samples: C64, then: C64, queue_s: float) -> None:
        """Send after what is still being sent once, but let time pass until no more than `queue_s` of that is left.

        What is repeated makes way; `then` is repeated from the end on.
        """
        # while something is repeated there is no time at which anything else could begin
        self._link.ask(Silence(id=self._link.next_id(), session=self._link.session, repeated_only=True), self.state)
        self._receive(1, None, ANSWER_S, back_s=min(queue_s, 0.5))
        self._transmit(self._block(samples), None, cyclic=False)
        self._transmit(self._block(then), None, cyclic=True)

    def send_cyclic(self, samples: C64) -> None:
        self._do_transmit(self._block(samples), None)

    def leave(self) -> None:
        """Go off the air, whether or not there still is one."""
        self.state = "closed"
        self._link.leave(self.state)

    def detune(self, ppm: float) -> None:
        self._front_end().oscillator.offset_hz = self.settings.carrier_hz * ppm * 1e-6

    def _block(self, samples: C64) -> IqBlock:
        return IqBlock(samples[None, :], self.settings.sample_rate_hz, 0.0)


class EmulatedPluto(Emulator):
    """A PlutoSDR on a TCP port; `uri` says where. `options`: the fields of PlutoOptions."""

    options_type = PlutoOptions

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        self._options = emulator_options(name, options, PlutoOptions)
        o = self._options
        self.name, self.faults = name, o.faults
        self.serial = o.serial or f"104473{context.seed & 0xFFFFFFFF:08x}{name.encode().hex():0<20.20}"
        self.tree = pluto_tree(self.serial, o.model, o.firmware)
        self.blocks_captured = 0
        self._context = context
        self._chains: dict[str, _Chain] = {}
        self._stale = {"rx", "tx"}
        """Chains whose settings changed since they were last tuned."""
        # a chain belongs to one thread: its sockets do, and requests of several clients come one after the other
        self._workers = {side: ThreadPoolExecutor(1, f"{name}-{side}") for side in ("rx", "tx")}
        self._playing: C64 | None = None
        """What the open cyclic buffer repeats."""
        self._tx_used = False
        self._agc_db = 71.0
        self._profiles: dict[tuple[str, int], str] = {}
        """(local oscillator, number) → frequency that was stored there."""
        self._closed = False
        self._can = np.zeros((0, 2), "<i2")
        drawn_ppm = float(generator(context.seed, name, "crystal").uniform(-10, 10))
        self._cfo_ppm = drawn_ppm if o.cfo_ppm is None else o.cfo_ppm
        self._faults_rng = generator(context.seed, name, "pluto faults")
        try:
            self.server = IiodServer(self, o.host, o.port)
        except OSError as exc:
            raise InputError(f"emulator {name!r}: cannot listen on {o.host}:{o.port}: {exc.strerror}") from exc
        self.uri = self.server.uri
        self.tree.context |= {"uri": self.uri, "ip,ip-addr": o.host}

    def close(self) -> None:
        """Hang up on clients and leave the air."""
        if self._closed:
            return
        self._closed = True
        self.server.close()
        for side, worker in self._workers.items():
            worker.submit(self._leave, side)
            worker.shutdown(wait=True)

    def _leave(self, side: str) -> None:
        if side in self._chains:
            self._chains.pop(side).leave()

    # ---------------------------------------------------------------- attributes

    def read_attribute(self, key: Key) -> str:
        if key == (PHY, "in_voltage0_hardwaregain") and not self._manual_gain:
            return f"{self._agc_db:.6f} dB"
        return self.tree.values[key]

    def write_attribute(self, key: Key, value: str) -> None:
        """Check and take a value as the kernel drivers do; the radio follows."""
        device, file = key
        if file.endswith(("_available", "_rssi", "_input", "_raw_available", "path_rates", "data_available")):
            raise OSError(errno.EACCES, "read only")
        if device in (PHY, XADC) and file.endswith(("_raw", "_scale", "_offset")):
            raise OSError(errno.EACCES, "read only")
        if self.tree.refusals.get(key) in (errno.ENODEV, errno.EAGAIN):
            raise OSError(self.tree.refusals[key], "not there")
        # all channels of a kind share the list of what they accept
        accepted = self.tree.values.get((device, file.replace("voltage0_", "voltage_") + "_available"), "[").split()
        if (
            not accepted[0].startswith("[")
            and key not in RATE_FILES
            and value.split()[:1] not in ([a] for a in accepted)
        ):
            raise OSError(errno.EINVAL, value)
        if key in RATE_FILES:
            self._set_rate(_whole(value))
        elif file.endswith("_LO_frequency"):
            low, high = LO_RANGES_HZ[self._options.model]
            self.tree.values[key] = str(_within(_whole(value), low, high))
            self._changed("rx" if "RX_LO" in file else "tx")
        elif key == (PHY, "in_voltage0_hardwaregain"):
            if not self._manual_gain:
                raise OSError(errno.EOPNOTSUPP, "gain is automatic")
            self.tree.values[key] = f"{round(_within(_number(value), -3, 71)):.6f} dB"
            self._changed("rx")
        elif key == (PHY, "out_voltage0_hardwaregain"):
            self._set_tx_gain(_within(_number(value), -89.75, 0.0))
        elif file == "in_voltage0_gain_control_mode":
            self.tree.values[key] = value
            self._changed("rx")
        elif file.endswith(("_rf_bandwidth", "_powerdown", "_fir_en")) or (device == DAC and "/" not in file):
            number = _number(value)
            fraction = file.endswith(("_scale", "_calibscale", "_calibphase"))
            self.tree.values[key] = f"{number:.6f}" if fraction else str(round(number))
            if file.endswith("_fir_en"):
                for other in ("in_voltage_filter_fir_en", "out_voltage_filter_fir_en", "in_out_voltage_filter_fir_en"):
                    self.tree.values[PHY, other] = str(round(number))
            if device == DAC or "TX_LO" in file:
                self._changed("tx")
        elif "_LO_fastlock_" in file:
            self._fastlock(key, value)
        elif file == "filter_fir_config":
            self.tree.values[key] = _filter_summary(value)
        else:
            self.tree.values[key] = value

    def _fastlock(self, key: Key, value: str) -> None:
        """Keep a frequency under a number, or go back to it."""
        lo, action = key[1].split("_fastlock_")
        profile, frequency = _whole(value), (PHY, f"{lo}_frequency")
        if action == "store":
            self._profiles[lo, _within(profile, 0, 7)] = self.tree.values[frequency]
        elif action == "recall":
            if (lo, profile) not in self._profiles:
                raise OSError(errno.EINVAL, "nothing is stored there")
            self.tree.values[key] = str(profile)
            self.write_attribute(frequency, self._profiles[lo, profile])
        else:  # the synthesiser's registers, which are not emulated
            self.tree.values[key] = value

    def _set_rate(self, rate: int) -> None:
        fir = self.tree.values[PHY, "in_out_voltage_filter_fir_en"] != "0"
        _within(rate, 520_834 if fir else 2_083_333, 61_440_000)
        if rate == self._rate_hz:
            return
        for key in RATE_FILES:
            self.tree.values[key] = str(rate)
        for device, io in ((DAC, "out"), (ADC, "in")):
            self.tree.values[device, f"{io}_voltage_sampling_frequency_available"] = f"{rate} {rate // 8} "
        self._stale.add("rx")
        self._set_tx_gain(_RESET_TX_GAIN_DB)  # the calibration that follows a new rate leaves it there

    def _set_tx_gain(self, gain_db: float) -> None:
        self.tree.values[PHY, "out_voltage0_hardwaregain"] = f"{round(gain_db * 4) / 4:.6f} dB"
        self._changed("tx")

    @property
    def _manual_gain(self) -> bool:
        return self.tree.values[PHY, "in_voltage0_gain_control_mode"] == "manual"

    @property
    def _rate_hz(self) -> float:
        return float(self.tree.values[RATE_FILES[0]])

    def _settings(self, side: str) -> RadioSettings:
        values = self.tree.values
        lo = (PHY, "out_altvoltage0_RX_LO_frequency") if side == "rx" else (PHY, "out_altvoltage1_TX_LO_frequency")
        gain = {"tx_gain_db": -89.75, "rx_gain_db": 0.0}  # a chain does not care for the other's
        gain[f"{side}_gain_db"] = _number(
            self.read_attribute(_RX_GAIN if side == "rx" else (PHY, "out_voltage0_hardwaregain"))
        )
        return RadioSettings(carrier_hz=float(values[lo]), sample_rate_hz=self._rate_hz, **gain)

    # ---------------------------------------------------------------- buffers

    def open(self, device: Device, n_samples: int, mask: int, cyclic: bool, n_blocks: int) -> Stream:
        if self.faults.busy_opens:
            self.faults.busy_opens -= 1
            raise OSError(errno.EBUSY, "busy")
        if n_samples > MAX_SAMPLES:
            raise OSError(errno.ENOMEM, "buffer too large")
        parts = [part for part in (0, 1) if mask >> part & 1]
        if device.id == ADC:
            return _RxStream(self, n_samples, parts, n_blocks)
        if device.id == DAC:
            return _TxStream(self, parts, cyclic)
        raise OSError(errno.ENODEV, "no buffer")

    # ---------------------------------------------------------------- the air

    def capture(self, n_samples: int) -> np.ndarray:
        """Return (sample, 2) int16 from the World's present on."""
        if self._options.canned:
            if len(self._can) != n_samples:
                self._can = self._faults_rng.integers(-100, 100, (n_samples, 2)).astype("<i2")
            return self._can
        return self._on("rx", lambda chain: self._capture(chain, n_samples))

    def _capture(self, chain: _Chain, n_samples: int) -> np.ndarray:
        block = chain.receive(n_samples, timeout_s=5.0)
        self.blocks_captured += 1
        parts = block.samples[0].view(np.float32).reshape(-1, 2)
        power_dbfs = 10 * math.log10(float(np.mean(parts**2)) * 2 + 1e-12)
        self.tree.values[PHY, "in_voltage0_rssi"] = f"{_number(self.read_attribute(_RX_GAIN)) - power_dbfs:.2f} dB"
        if not self._manual_gain:
            self._agc_db = min(max(self._agc_db + round(_AGC_TARGET_DBFS - power_dbfs), -3.0), 71.0)
            self._stale.add("rx")
        limit = self.faults.saturates_at
        out = np.rint(np.clip(parts, -limit, limit) * ADC_FULL_SCALE)
        samples = np.clip(out, -ADC_FULL_SCALE, ADC_FULL_SCALE - 1).astype("<i2")
        if self._faults_rng.random() < self.faults.overflow_probability:
            at = n_samples // 2
            samples[at:] = np.roll(samples[at:], -min(64, n_samples - at), axis=0)
        return samples

    def play(self, samples: C64, cyclic: bool) -> None:
        """Send a block: once, after what is still being sent, or over and over until `stop`."""
        if cyclic:
            self._playing = samples
            self._on("tx", lambda _: None, refresh=True)
        else:
            # the converter is the buffer's as long as that is open: between blocks it stands at zero, without tones
            opened, self._playing = self._playing is None, _STANDSTILL
            self._on("tx", lambda chain: self._queue(chain, samples), refresh=opened)

    def stop(self) -> None:
        """The buffer is gone: the tones are heard again, and the carrier's leak."""
        self._playing = None
        self._changed("tx")

    def _queue(self, chain: _Chain, samples: C64) -> None:
        standing = self._radiated()
        if standing is None:
            return
        chain.send_once(_leaking(samples), standing, queue_s=_TX_QUEUE * len(samples) / self._rate_hz)
        chain.sending = standing

    def _changed(self, side: str) -> None:
        """A control was moved: the transmitter follows at once, the receiver before its next block."""
        self._stale.add(side)
        if side == "tx" and (self._tx_used or self._playing is not None or self._tones().any()):
            try:
                self._on("tx", lambda _: None)
            except OSError as exc:
                log.info("%s: not on the air yet: %s", self.name, exc)

    def _on(self, side: str, job: Callable[[_Chain], T], refresh: bool = False) -> T:
        """Do something with a chain, tuned as the attributes say, in the thread that owns it."""
        if refresh:
            self._stale.add(side)
        try:
            work = self._workers[side].submit(self._do, side, job)
        except RuntimeError as exc:  # a client's last words while this is being closed
            raise OSError(errno.ENODEV, "switched off") from exc
        try:
            return work.result()
        except DeviceTimeout as exc:
            raise OSError(errno.ETIMEDOUT, str(exc)) from exc
        except DeviceError as exc:
            log.warning("%s", exc)
            raise OSError(errno.EIO, str(exc)) from exc

    def _do(self, side: str, job: Callable[[_Chain], T]) -> T:
        chain = self._chains.get(side)
        if chain is None:
            chain = self._chains[side] = self._make(side)
        try:
            self._tune(side, chain)
            self._drift(chain)
            return job(chain)
        except OffAir:  # the World dropped this station, or is a new one
            self._stale.add(side)
            chain.tuned = chain.sending = None
            self._tune(side, chain)
            return job(chain)

    def _drift(self, chain: _Chain) -> None:
        """Let the crystal be where it is at this time: what starts now is off by that much."""
        if self._options.drift_ppm and chain.tuned is not None:
            turn = 2 * math.pi * chain.now_s() / self._options.drift_period_s
            chain.detune(self._cfo_ppm + self._options.drift_ppm * math.sin(turn))

    def _make(self, side: str) -> _Chain:
        known = {f.name for f in msgspec.structs.fields(OneAntenna)}
        own = {k: v for k, v in msgspec.structs.asdict(self._options).items() if k in known}
        # no turn-around: it sends and receives at once, block after block
        own |= {"timed": False, "turnaround_s": 0.0, "place": self._options.place or self.name}
        own["cfo_ppm"] = self._cfo_ppm  # one crystal for both
        return _Chain(self.name if side == "rx" else f"{self.name}-tx", self._context, **own)

    def _tune(self, side: str, chain: _Chain) -> None:
        """Make the chain do what the attributes say, with as few words to the World as that takes."""
        if side not in self._stale:
            return
        self._stale.discard(side)
        settings = self._settings(side)
        try:
            if settings != chain.tuned:
                chain.configure(settings)
                chain.tuned, chain.sending = settings, None  # being retuned ends what was sent
            if side == "tx":
                self._tx_used = True
                wave = self._radiated()
                if chain.sending is not None:
                    chain.silence()
                    chain.sending = None
                if wave is not None:
                    chain.send_cyclic(wave)
                    chain.sending = wave
        except DeviceError:
            self._stale.add(side)
            raise

    def _radiated(self) -> C64 | None:
        """Return one period of what leaves the transmitter while nothing is sent once; None where it is off."""
        values = self.tree.values
        if values[_TX_POWERDOWN] != "0":
            return None
        return _leaking(self._playing if self._playing is not None else self._tones())

    def _tones(self) -> C64:
        n, rate = _TONE_SAMPLES, self._rate_hz
        out = np.zeros((2, n))
        for i in range(4):
            frequency, phase, raw, scale = (
                _number(self.tree.values[tone_file(i, a)]) for a in ("frequency", "phase", "raw", "scale")
            )
            if raw and scale:
                turns = round(frequency * n / rate) / n  # whole periods in the block that is repeated
                out[i // 2] += scale * np.cos(2 * np.pi * turns * np.arange(n) + np.deg2rad(phase / 1000))
        if not out.any():
            return _STANDSTILL
        return np.clip(out[0] + 1j * out[1], -2, 2).astype(np.complex64)


class _RxStream(Stream):
    """Reception through a ring of blocks, each filled when it is queued."""

    def __init__(self, pluto: EmulatedPluto, n_samples: int, parts: list[int], n_blocks: int) -> None:
        self._pluto, self._n, self._parts = pluto, n_samples, parts
        self._ring = deque(pluto.capture(n_samples) for _ in range(n_blocks))
        self._spent = False
        """The block that was read last has not been queued again."""

    def read(self, n_bytes: int, timeout_s: float) -> memoryview | None:
        faults = self._pluto.faults
        if faults.hang_s:
            time.sleep(faults.hang_s)
        if faults.silent:
            time.sleep(timeout_s)
            raise OSError(errno.ETIMEDOUT, "no samples")
        self.dribble_s = faults.dribble_s
        if faults.failing_reads:
            faults.failing_reads -= 1
            raise OSError(errno.EIO, "failed")
        if faults.disconnect_reads:
            faults.disconnect_reads -= 1
            return None
        if self._spent:
            self._queue()
        block = self._ring.popleft()
        self._spent = not faults.early_requeue
        if faults.early_requeue:
            self._queue()
        part = block if len(self._parts) == 2 else block[:, self._parts]
        return np.ascontiguousarray(part).data.cast("B")[:n_bytes]

    def _queue(self) -> None:
        self._ring.append(self._pluto.capture(self._n))

    def close(self) -> None:
        self._ring.clear()


class _TxStream(Stream):
    """Transmission; closing it, or the client's going, ends what is repeated."""

    def __init__(self, pluto: EmulatedPluto, parts: list[int], cyclic: bool) -> None:
        self._pluto, self._parts, self._cyclic = pluto, parts, cyclic

    def write(self, data: bytes) -> None:
        width = 2 * len(self._parts)
        if len(data) % width:
            raise OSError(errno.EINVAL, "not whole samples")
        levels = np.zeros((len(data) // width, 2), np.float32)
        levels[:, self._parts] = np.frombuffer(data, "<i2").reshape(-1, len(self._parts)) / DAC_FULL_SCALE
        self._pluto.play(levels.view(np.complex64)[:, 0], self._cyclic)

    def close(self) -> None:
        self._pluto.stop()


_RX_GAIN: Key = (PHY, "in_voltage0_hardwaregain")
_TX_POWERDOWN: Key = (PHY, "out_altvoltage1_TX_LO_powerdown")


def _leaking(wave: C64) -> C64:
    """Return what leaves the transmitter when the converter plays this."""
    return np.clip((wave + _LEAK).view(np.float32), -1.0, 1.0).view(np.complex64)


def _number(value: str) -> float:
    try:
        return float(value.split()[0])
    except (ValueError, IndexError) as exc:
        raise OSError(errno.EINVAL, f"{value!r} is no number") from exc


def _filter_summary(config: str) -> str:
    """Return what the driver answers after a filter was loaded: taps and rate change of either side."""
    lines = config.splitlines()
    changes = [line.split()[-1] for line in lines if line.startswith(("RX", "TX"))]
    taps = sum("," in line for line in lines)
    if len(changes) != 2 or not 16 <= taps <= 128:
        raise OSError(errno.EINVAL, "no filter")
    return f"FIR Rx: {taps},{changes[0]} Tx: {taps},{changes[1]}"


def _whole(value: str) -> int:
    return round(_number(value))


def _within(value: Any, low: float, high: float) -> Any:
    if not low <= value <= high:
        raise OSError(errno.EINVAL, f"{value} is not within {low} to {high}")
    return value
