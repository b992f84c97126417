"""An emulated PlutoSDR: a front of the World that speaks IIO.

On the air it is two free-running stations at one place, `NAME` receiving and `NAME-tx` sending: full duplex, two local
oscillators on one crystal. Time is the World's. A block is captured from the World's present time on when the driver
queues it, so that reading samples makes time pass; no other radio waits for declarations of this one. In virtual time,
devices that are read while nothing else happens receive the same stretch of time (`world.Air.earliest`). Long blocks
are simulated and passed on in parts.

The pitfalls of a real Pluto are always present: a ring of four blocks that is filled at once when a buffer is opened,
an automatic gain by default, a transmit gain that a change of rate resets, tones and a leaking carrier after the buffer
is closed. Defects are in `Faults`, are off by default, and can be changed while it runs.
"""

from __future__ import annotations

import errno
import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct, field

from sim_backend.beside import link_beside
from sim_backend.emulators._options import emulator_options
from sim_backend.emulators.iio_tree import UNREADABLE, Device, Key
from sim_backend.emulators.iiod import IiodServer, Stream
from sim_backend.emulators.pluto_registers import OVERFLOW, UNDERFLOW, Patience, Registers
from sim_backend.emulators.pluto_streams import SLICE, Block, Ring, RxStream, TxStream
from sim_backend.emulators.pluto_tdd import TDD, TddEngine, has_tdd
from sim_backend.emulators.pluto_tree import ADC, DAC, LO_RANGES_HZ, PHY, RATE_FILES, XADC, pluto_tree, tone_file
from sim_backend.impairments import OneAntenna, device_clock
from sim_backend.link import ANSWER_S, Link, NewWorld, OffAir
from sim_backend.messages import MAX_SAMPLES, Receive, Silence
from sim_backend.radio import SimRadio
from sim_backend.ticks import duration
from testbed.core.errors import DeviceError, DeviceTimeout, InputError
from testbed.core.radio import RadioCapabilities, RadioSettings
from testbed.core.seeds import generator
from testbed.core.types import C64, IqBlock
from testbed.core.world import DriverContext, Emulator

log = logging.getLogger(__name__)

ADC_FULL_SCALE = 2048.0
"""12 bits, sign-extended to 16."""
_LEAK = 10 ** (-50 / 20)
"""Carrier that leaks from the transmitter while its local oscillator runs, relative to full scale."""
_AGC_TARGET_DBFS = -12.0
_TX_QUEUE = 4
"""Largest number of blocks that wait to be sent; then a writer has to wait."""
_STANDSTILL = np.zeros(256, np.complex64)
_RESET_TX_GAIN_DB = -10.0
_TONE_SAMPLES = 4096
_CHAIN_ECHOES = 3
"""Number of earlier samples that affect the receive chain."""
_LONGEST_VALUE = 256
_LONGEST_TABLE = 1 << 15
_TABLES = ("filter_fir_config", "gain_table_config")

T = TypeVar("T")


class Faults(Struct, kw_only=True, forbid_unknown_fields=True):
    """Defects of a Pluto."""

    early_requeue: bool = False
    """Whether a block is queued again as soon as it was read and not on the next request: one block is then always old.
    """
    overflow_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Probability that samples in the middle of a block are lost without a report."""
    silent: bool = False
    """No samples come: reads end with a timeout after the remote's time."""
    hang_s: Annotated[float, Meta(ge=0)] = 0.0
    """Delay of every answer to a read, even beyond the timeout."""
    dribble_s: Annotated[float, Meta(ge=0)] = 0.0
    """Time over which every read's samples come in parts, so that no single wait is long."""
    failing_reads: Annotated[int, Meta(ge=0)] = 0
    """Number of reads that fail with EIO."""
    busy_opens: Annotated[int, Meta(ge=0)] = 0
    """Number of opens that fail with EBUSY."""
    disconnect_reads: Annotated[int, Meta(ge=0)] = 0
    """Number of reads that end in the middle of the block with a dropped connection."""
    saturates_at: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """The receiver clips at this share of the converter's full scale."""


class PlutoOptions(OneAntenna, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An emulator's table in the lab file: the fields of OneAntenna, and those below."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    serial: str | None = None
    """Serial number; default: derived from the name."""
    model: Literal["ad9363a", "ad9364"] = "ad9363a"
    """ad9363a: 325 MHz to 3.8 GHz and 20 MHz of analogue bandwidth, as sold; ad9364: 70 MHz to 6 GHz and 56 MHz (sent:
    40 MHz), unlocked."""
    firmware: str = "v0.38"
    """From v0.39 on, it has the TDD engine (`pluto_tdd`)."""
    drift_ppm: Annotated[float, Meta(ge=0)] = 0.0
    """Amplitude by which the crystal's error varies around its mean."""
    drift_period_s: Annotated[float, Meta(gt=0)] = 60.0
    """Period of this variation, in world time."""
    canned: bool = False
    """Every block is the same noise, made once, to measure the wire instead of the air."""
    faults: Faults = field(default_factory=Faults)


class _Chain(SimRadio):
    """One direction of a Pluto on the air, with the ranges of the Pluto's controls."""

    tuned: RadioSettings | None = None
    sending: C64 | None = None
    """The repeated samples."""
    _next = _shift = 0
    """Tick after the last received sample, and by how much later than reported all of them are."""
    _tail = np.zeros((1, 0), np.complex64)
    """The last part of the received field."""

    @property
    def capabilities(self) -> RadioCapabilities:
        return replace(
            super().capabilities, sample_rate_hz=(520e3, 61.44e6), tx_gain_db=(-89.75, 0.0), rx_gain_db=(-3.0, 71.0),
            carrier_hz=(69e6, 6.01e9),  # the crystal's error may lead slightly beyond the range
        )  # fmt: skip

    def _make_link(self, context: DriverContext) -> Link:
        return link_beside(self.name, context)

    def send_once(self, samples: C64, then: C64, queue_s: float) -> None:
        """Send samples after those that are still being sent, but first let time pass until at most `queue_s` of the
        latter is left.

        Repeated samples are stopped; `then` is repeated after the end.
        """
        # While samples are repeated, no other transmission could begin.
        self._link.ask(Silence(id=self._link.next_id(), session=self._link.session, repeated_only=True), self.state)
        self._receive(1, None, ANSWER_S, back_s=min(queue_s, 0.5))
        self._transmit(self._block(samples), None, cyclic=False)
        self._transmit(self._block(then), None, cyclic=True)

    def listen(self, n_samples: int, goes_on: bool) -> C64:
        """Return the next (sample,): from now, or, if `goes_on`, directly after the last ones."""
        try:
            return self._listen(n_samples, goes_on)
        except NewWorld as exc:
            self._begin_again(exc.seed)
            return self._listen(n_samples, goes_on=False)

    def _listen(self, n_samples: int, goes_on: bool) -> C64:
        rate = self.settings.sample_rate_hz
        if not goes_on:
            self._next = self._now(receiving=True)
            self._shift = self._front_end().jitter("rx", self._next)
            self._tail = np.zeros((1, 0), np.complex64)
        front = self._front_end()
        request = Receive(
            id=self._link.next_id(), session=self._link.session, start=self._next, shift=self._shift,
            n_samples=n_samples, timeout_s=ANSWER_S, seed=self._world_seed,
        )  # fmt: skip
        reply, raw = self._link.ask(request, self.state, timeout_s=2 * ANSWER_S)
        self._heard_from(reply)
        field = np.concatenate([self._tail, np.frombuffer(raw, np.complex64)[None]], axis=1)
        before = self._tail.shape[1]
        heard, _ = front.hear(field, self._next + self._shift - duration(before, rate))
        self._next += duration(n_samples, rate)
        self._tail = field[:, -_CHAIN_ECHOES:]
        return heard[0, before:]

    def send_cyclic(self, samples: C64) -> None:
        self._do_transmit(self._block(samples), None)

    def leave(self) -> None:
        """Leave the air, whether or not it still exists."""
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
        self._tdd = TddEngine(self.tree) if has_tdd(o.firmware) else None
        self.blocks_captured = 0
        self.registers = {PHY: Registers(spi=True), ADC: Registers(spi=False), DAC: Registers(spi=False)}
        self._ring = Ring(self)
        self._rx_patience, self._tx_patience = Patience(), Patience()
        self._n_senders = 0
        """Open transmit buffers."""
        self._looped: deque[C64] = deque(maxlen=_TX_QUEUE)
        """Blocks that were sent once and are received again through the chip's own loopback."""
        self._looped_at = 0
        self._context = context
        self._chains: dict[str, _Chain] = {}
        self._stale = {"rx", "tx"}
        """Chains whose settings changed since they were last tuned."""
        self._turns = {side: threading.Lock() for side in ("rx", "tx")}
        """Side → held by whichever thread uses its chain. Who holds both has taken that of the receiver first."""
        self._filler = ThreadPoolExecutor(1, f"{name}-rx")
        """Fills blocks that are too large to be filled while a client waits."""
        self._playing: C64 | None = None
        """The samples of the open cyclic buffer."""
        self._tx_used = False
        self._agc_db = 71.0
        self._profiles: dict[tuple[str, int], str] = {}
        """(local oscillator, number) → the frequency stored there."""
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
        self._filler.shutdown(wait=True)
        for side, turn in self._turns.items():
            with turn:
                if side in self._chains:
                    self._chains.pop(side).leave()

    # ---------------------------------------------------------------- attributes

    def read_attribute(self, key: Key) -> str:
        if key == (PHY, "in_voltage0_hardwaregain") and not self._manual_gain:
            return f"{self._agc_db:.6f} dB"
        if key[1] == _REGISTER and key[0] in self.registers:
            self._note_idleness()
            return self.registers[key[0]].read()
        return self.tree.values[key]

    def write_attribute(self, key: Key, value: str) -> None:
        """Check and store a value as the kernel drivers do, and apply it to the radio. Raises OSError."""
        self._check_write(key, value)
        device, file = key
        if device == TDD and self._tdd is not None:
            self._tdd.write(key, value, self._rate_hz)
            self._changed("tx")
        elif key in RATE_FILES:
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
            self._set_number(key, _number(value))
        elif file == _REGISTER and device in self.registers:
            self.registers[device].write(value)
        elif file == "xo_correction":
            self.tree.values[key] = str(_whole(value))
            self._stale.add("rx")
            self._changed("tx", retune=True)
        elif key == _LOOPBACK:
            self.tree.values[key] = str(_within(_whole(value), 0, 2))
            self._looped.clear()
            self._changed("tx")
        elif "_LO_fastlock_" in file:
            self._fastlock(key, value)
        elif file == "filter_fir_config":
            self.tree.values[key] = _filter_summary(value)
        elif file == "gain_table_config":
            if not value.lstrip().startswith("<gaintable ") or not value.rstrip().endswith("</gaintable>"):
                raise OSError(errno.EINVAL, "no gain table")
        elif self.tree.values[key] != UNREADABLE:  # write-only attributes keep no value
            self.tree.values[key] = value

    def _check_write(self, key: Key, value: str) -> None:
        """Refuse a write to a read-only file, a value outside its list or range, or one of the wrong form."""
        device, file = key
        if file.endswith(("_available", "_rssi", "_input", "_raw_available", "path_rates", "data_available")):
            raise OSError(errno.EACCES, "read only")
        if device in (PHY, XADC) and file.endswith(("_raw", "_scale", "_offset")):
            raise OSError(errno.EACCES, "read only")
        if self.tree.refusals.get(key) in (errno.ENODEV, errno.EAGAIN):
            raise OSError(self.tree.refusals[key], "not there")
        table = file in _TABLES or "\n" in self.tree.values[key]
        if len(value) > (_LONGEST_TABLE if table else _LONGEST_VALUE):
            raise OSError(errno.E2BIG, "too long")
        if not all(" " <= c <= "~" or (table and c in "\t\r\n") for c in value) or not value.strip():
            raise OSError(errno.EINVAL, "not a value")
        # all channels of a kind share the list of what they accept
        accepted = self.tree.values.get((device, file.replace("voltage0_", "voltage_") + "_available"), "")
        if accepted.startswith("[") and key not in RATE_FILES:
            low, _, high = accepted.strip("[]").split()
            _within(_number(value), float(low), float(high))
        elif accepted and not accepted.startswith("[") and key not in RATE_FILES and value not in accepted.split():
            raise OSError(errno.EINVAL, value)
        elif not table and not accepted and _is_number(self.tree.values[key]):
            _number(value)

    def _set_number(self, key: Key, number: float) -> None:
        device, file = key
        if file.endswith("_frequency"):  # of a tone
            _within(number, 0, self._rate_hz / 2)
        for end, (low, high) in _RANGES.items():
            if file.endswith(end):
                _within(number, low, high)
        fraction = file.endswith(("_scale", "_calibscale", "_calibphase"))
        self.tree.values[key] = f"{number:.6f}" if fraction else str(round(number))
        if file.endswith("_fir_en"):
            for other in ("in_voltage_filter_fir_en", "out_voltage_filter_fir_en", "in_out_voltage_filter_fir_en"):
                self.tree.values[PHY, other] = str(round(number))
        if device == DAC or "TX_LO" in file:
            self._changed("tx")

    def _fastlock(self, key: Key, value: str) -> None:
        """Store a frequency under a number, or return to it."""
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
        self._set_tx_gain(_RESET_TX_GAIN_DB)  # the calibration after a new rate resets it

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
        gain = {"tx_gain_db": -89.75, "rx_gain_db": 0.0}  # a chain ignores the gain of the other
        gain[f"{side}_gain_db"] = _number(
            self.read_attribute(_RX_GAIN if side == "rx" else (PHY, "out_voltage0_hardwaregain"))
        )
        on_air_hz = float(values[lo]) * (1.0 + 1e-6 * self._cfo_ppm)
        return RadioSettings(carrier_hz=on_air_hz, sample_rate_hz=self._rate_hz, **gain)

    # ---------------------------------------------------------------- buffers

    def open(self, device: Device, n_samples: int, mask: int, cyclic: bool, n_blocks: int) -> Stream:
        if self.faults.busy_opens:
            self.faults.busy_opens -= 1
            raise OSError(errno.EBUSY, "busy")
        if n_samples > MAX_SAMPLES:
            raise OSError(errno.ENOMEM, "buffer too large")
        parts = [part for part in (0, 1) if mask >> part & 1]
        if device.id == ADC:
            return RxStream(self._ring, self.faults, n_samples, parts, n_blocks)
        if device.id == DAC:
            self._n_senders += 1
            return TxStream(self, n_samples, parts, cyclic)
        raise OSError(errno.ENODEV, "no buffer")

    # ---------------------------------------------------------------- flags

    def asked(self) -> None:
        """A client requests received samples."""
        if self._rx_patience.begin():
            self.registers[ADC].raise_flag(OVERFLOW)

    def took(self, duration_s: float, ring_s: float) -> None:
        """A client received samples of this duration; the ring contains `ring_s` of further samples."""
        self._rx_patience.end(duration_s, ring_s)

    def _note_idleness(self) -> None:
        """Raise the flags of converters whose client was too slow."""
        if self._rx_patience.over():
            self.registers[ADC].raise_flag(OVERFLOW)
        if self._tx_patience.over():
            self.registers[DAC].raise_flag(UNDERFLOW)

    # ---------------------------------------------------------------- the air

    @property
    def rate_hz(self) -> float:
        return self._rate_hz

    @property
    def holds_back(self) -> bool:
        return self._tdd is not None and self._tdd.holds_back

    @property
    def early_requeue(self) -> bool:
        return self.faults.early_requeue

    def capture(self, block: Block) -> None:
        """Fill a block, from the World's present time on or once earlier blocks are full."""
        if block.at_once:
            self._fill(block)
            return
        try:
            self._filler.submit(self._fill, block)
        except RuntimeError:  # a client's last request during `close`
            block.fail(OSError(errno.ENODEV, "switched off"))

    def _fill(self, block: Block) -> None:
        try:
            if self._options.canned:
                if len(self._can) != len(block.samples):
                    self._can = self._faults_rng.integers(-100, 100, block.samples.shape).astype("<i2")
                block.add(self._can)
            elif self.tree.values[_LOOPBACK] == "1":
                block.add(self._loop(len(block.samples)))
            else:
                self._on("rx", lambda chain: self._capture(chain, block))
        except Exception as exc:  # any error must reach the reader, which would otherwise wait without end
            block.fail(_refusal(exc))

    def _loop(self, n_samples: int) -> np.ndarray:
        """Return (sample, 2) int16 of the converter's output: the chip's own loopback, sixteen bits cut to twelve."""
        out = np.zeros(0, np.complex64)
        while self._looped and out.size < n_samples:
            out = np.concatenate([out, self._looped.popleft()])
        if out.size > n_samples:
            self._looped.appendleft(out[n_samples:])
        wave = self._playing if self._playing is not None else self._tones()
        rest = max(0, n_samples - out.size)
        out = np.concatenate([out[:n_samples], wave[(self._looped_at + np.arange(rest)) % wave.size]])
        self._looped_at += rest
        levels = np.floor(out.view(np.float32).reshape(-1, 2) * ADC_FULL_SCALE)
        return np.clip(levels, -ADC_FULL_SCALE, ADC_FULL_SCALE - 1).astype("<i2")

    def _capture(self, chain: _Chain, block: Block) -> None:
        n_samples, energy = len(block.samples), 0.0
        loses = self._faults_rng.random() < self.faults.overflow_probability
        while not block.whole:
            if not block.wanted:
                raise OSError(errno.EBADF, "closed")
            goes_on = block.filled > 0
            heard = chain.listen(min(SLICE, n_samples - block.filled), goes_on)
            parts = heard.view(np.float32).reshape(-1, 2)
            energy += float(np.sum(parts**2))
            limit = self.faults.saturates_at
            out = np.rint(np.clip(parts, -limit, limit) * ADC_FULL_SCALE)
            samples = np.clip(out, -ADC_FULL_SCALE, ADC_FULL_SCALE - 1).astype("<i2")
            if loses and not goes_on:
                at = len(samples) // 2
                samples[at:] = np.roll(samples[at:], -min(64, len(samples) - at), axis=0)
                self.registers[ADC].raise_flag(OVERFLOW)
            if self.tree.values[_LOOPBACK] == "2":
                back = np.ascontiguousarray(heard)
                self._on("tx", partial(self._queue, samples=back))
            if block.filled + len(samples) == n_samples:
                self._measure(energy / n_samples)
            block.add(samples)

    def _measure(self, power: float) -> None:
        """Record the power of a whole block, and let the automatic gain follow."""
        self.blocks_captured += 1
        power_dbfs = 10 * math.log10(power + 1e-12)
        self.tree.values[PHY, "in_voltage0_rssi"] = f"{_number(self.read_attribute(_RX_GAIN)) - power_dbfs:.2f} dB"
        if not self._manual_gain:
            self._agc_db = min(max(self._agc_db + round(_AGC_TARGET_DBFS - power_dbfs), -3.0), 71.0)
            self._stale.add("rx")

    def play(self, samples: C64, cyclic: bool) -> None:
        """Send a block: once, after the blocks that are still being sent, or repeatedly until `stop`."""
        if cyclic:
            self._playing = samples
            self._on("tx", lambda _: None, refresh=True)
        else:
            if self._tx_patience.begin():
                self.registers[DAC].raise_flag(UNDERFLOW)
            if self.tree.values[_LOOPBACK] == "1":
                self._looped.append(samples)
            # an open buffer owns the converter: between blocks it outputs zero, without tones
            opened, self._playing = self._playing is None, _STANDSTILL
            self._on("tx", lambda chain: self._queue(chain, samples), refresh=opened)
            lasts_s = len(samples) / self._rate_hz
            self._tx_patience.end(lasts_s, _TX_QUEUE * lasts_s)

    def stop(self) -> None:
        """A buffer was closed: after the last one, the tones and the carrier's leak are on the air again."""
        self._n_senders -= 1
        if self._n_senders:
            return
        self._tx_patience.stop()
        self._playing = None
        self._changed("tx")

    def _queue(self, chain: _Chain, samples: C64) -> None:
        standing = self._radiated()
        if standing is None:
            return
        chain.send_once(_leaking(samples), standing, queue_s=_TX_QUEUE * len(samples) / self._rate_hz)
        chain.sending = standing

    def _changed(self, side: str, retune: bool = False) -> None:
        """A control was changed: the transmitter follows at once, the receiver before its next block."""
        self._stale.add(side)
        if retune and side in self._chains:
            self._chains[side].tuned = None
        if side == "tx" and (self._tx_used or self._playing is not None or self._tones().any()):
            try:
                self._on("tx", lambda _: None)
            except OSError as exc:
                log.info("%s: not on the air yet: %s", self.name, exc)

    def _on(self, side: str, job: Callable[[_Chain], T], refresh: bool = False) -> T:
        """Run `job` with a chain that is tuned to the attributes."""
        with self._turns[side]:
            if self._closed:  # a client's last request
                raise OSError(errno.ENODEV, "switched off")
            if refresh:
                self._stale.add(side)
            try:
                return self._do(side, job)
            except DeviceError as exc:
                raise _refusal(exc) from exc

    def _do(self, side: str, job: Callable[[_Chain], T]) -> T:
        chain = self._chains.get(side)
        if chain is None:
            chain = self._chains[side] = self._make(side)
        try:
            self._tune(side, chain)
            self._drift(chain)
            return job(chain)
        except OffAir:  # the World dropped this station, or was restarted
            self._stale.add(side)
            chain.tuned = chain.sending = None
            self._tune(side, chain)
            return job(chain)

    def _drift(self, chain: _Chain) -> None:
        """Set the crystal to its error at this time, less the correction that the driver applied."""
        told_ppm = 1e6 * (float(self.tree.values[PHY, "xo_correction"]) / 40e6 - 1)
        if chain.tuned is None:
            return
        drift_ppm = 0.0
        if self._options.drift_ppm:
            turn = 2 * math.pi * chain.now_s() / self._options.drift_period_s
            drift_ppm = self._options.drift_ppm * math.sin(turn)
        chain.detune(drift_ppm - told_ppm)

    def _make(self, side: str) -> _Chain:
        known = {f.name for f in msgspec.structs.fields(OneAntenna)}
        own = {k: v for k, v in msgspec.structs.asdict(self._options).items() if k in known}
        # no turn-around: it sends and receives at once, block after block
        own |= {"timed": False, "turnaround_s": 0.0, "place": self._options.place or self.name}
        # Both chains have the same crystal for their oscillators and their clocks.
        clock = device_clock(self.name, self._options, self._context.seed)
        # The oscillators' error is included in the carrier to which a chain is tuned, so that repetition is continuous.
        own |= {"cfo_ppm": 0.0, "clock_offset_s": clock.offset_s}
        if self._options.clock_ppm is None:
            own["clock_ppm"] = self._cfo_ppm
        return _Chain(self.name if side == "rx" else f"{self.name}-tx", self._context, **own)

    def _tune(self, side: str, chain: _Chain) -> None:
        """Tune the chain to the attributes, with as few requests to the World as possible."""
        if side not in self._stale:
            return
        self._stale.discard(side)
        settings = self._settings(side)
        try:
            if settings != chain.tuned:
                chain.configure(settings)
                chain.tuned, chain.sending = settings, None  # retuning ends a transmission
                self._drift(chain)
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
        """Return one period of the transmitter's output while nothing is sent once; None where it is off."""
        values = self.tree.values
        if values[_TX_POWERDOWN] != "0":
            return None
        if values[_LOOPBACK] == "2":  # received samples are sent; between blocks there are none
            return _leaking(_STANDSTILL)
        if self._playing is None:
            return _leaking(self._tones())
        return _leaking(self._playing if self._tdd is None else self._tdd.burst(self._playing))

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


_RX_GAIN: Key = (PHY, "in_voltage0_hardwaregain")
_TX_POWERDOWN: Key = (PHY, "out_altvoltage1_TX_LO_powerdown")
_LOOPBACK: Key = (PHY, "debug/loopback")
"""0: off; 1: in the chip, sent samples are received; 2: in the FPGA, received samples are sent."""
_REGISTER = "debug/direct_reg_access"


_RANGES = {
    "_calibscale": (-2, 2), "_calibphase": (-2, 2), "_phase": (0, 360_000), "_raw": (0, 1), "_scale": (0, 2),
    "_powerdown": (0, 1), "_fir_en": (0, 1),
}  # fmt: skip
"""What the kernel's drivers take for the converter's tones (phase in millidegrees), its corrections and switches."""


def _refusal(exc: Exception) -> OSError:
    """Return the error that a client gets for an error on the air."""
    if isinstance(exc, DeviceTimeout):
        return OSError(errno.ETIMEDOUT, str(exc))
    if isinstance(exc, OSError) and exc.errno:
        return exc
    if isinstance(exc, DeviceError):
        log.warning("%s", exc)
    else:
        log.error("emulated Pluto: %s", exc, exc_info=exc)
    return OSError(errno.EIO, str(exc))


def _leaking(wave: C64) -> C64:
    """Return the transmitter's output when the converter plays this."""
    return np.clip((wave + _LEAK).view(np.float32), -1.0, 1.0).view(np.complex64)


def _number(value: str) -> float:
    try:
        number = float(value.split()[0])
    except (ValueError, IndexError) as exc:
        raise OSError(errno.EINVAL, f"{value!r} is no number") from exc
    if not math.isfinite(number):
        raise OSError(errno.EINVAL, f"{value!r} is no finite number")
    return number


def _is_number(value: str) -> bool:
    try:
        _number(value)
    except OSError:
        return False
    return True


def _filter_summary(config: str) -> str:
    """Return the driver's answer after a filter was loaded: taps and rate change of either side."""
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
