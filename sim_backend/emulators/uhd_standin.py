"""Stands in for the part of UHD's Python module `uhd` that a driver of a USRP uses; the devices live in the World.

Names, parameters, enum values and metadata fields are those of UHD 4 (a contract test compares them with the real
module where it is installed), so parameters called `arg0` are UHD's own. The module behaves like UHD where drivers make
mistakes: a late burst is accepted and reported afterwards, the rest of an abandoned capture is delivered to the next
one, a command time in the future blocks all later commands, arrays are written in place, settings are coerced, and
queued samples cannot be cancelled. There is one difference: in virtual time a radio's present time is the end of what
it has declared, so a reception that begins up to a second before it is served and not refused as late.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import numpy as np

from sim_backend.emulators._options import emulator_options
from sim_backend.emulators.uhd_types import (
    DeviceAddr,
    MetaRange,
    RXMetadata,
    RXMetadataErrorCode,
    SensorValue,
    StreamArgs,
    StreamCMD,
    StreamMode,
    SubdevSpec,
    TimeSpec,
    TuneRequest,
    TuneResult,
    TXAsyncMetadata,
    TXMetadata,
    TXMetadataEventCode,
)
from sim_backend.impairments import OneAntenna, RadioOptions, device_clock
from sim_backend.link import OffAir
from sim_backend.radio import SimRadio
from sim_backend.ticks import TICKS_PER_S, to_seconds
from testbed.core.errors import DeviceError, DeviceTimeout, LateTransmit
from testbed.core.options import driver_options
from testbed.core.radio import RadioSettings, Window
from testbed.core.types import C64, IqBlock
from testbed.core.world import DriverContext, Emulator, Equipment

ALL = (1 << 64) - 1
"""UHD's "every motherboard" and "every channel"."""
_TOGETHER_S = 0.02
"""Captures that begin within this time are delivered together: asking the air for each costs more than its samples."""
_PPS_POLL_S = 0.05
"""Virtual time that reading the time of the last PPS edge takes, so that time passes for a caller that waits for
one."""
_MASTER_HZ = 61.44e6
Product = Literal["B210", "X310"]
TxFault = Literal["", "late", "underflow", "seq_error", "timeout"]
RxFault = Literal[
    "", "timeout", "late", "broken_chain", "overflow", "alignment", "bad_packet", "dropped", "abandoned"
]  # fmt: skip

# ---------------------------------------------------------------- the device behind it

TX_GAIN = MetaRange(0.0, 89.75, 0.25)
RX_GAIN = MetaRange(0.0, 70.0, 1.0)
PRODUCTS = {
    "B210": ("b200", MetaRange(5e6, 61.44e6, 0.0), (), 512, 61.44e6),
    "X310": ("x300", MetaRange(184.32e6, 200e6, 15.68e6), (200e6, 184.32e6), 1024, 200e6),
}
"""Product → UHD's type, range of master clocks, the only ones possible (none: any in the range), largest
division, highest rate."""
CARRIERS = MetaRange(70e6, 6e9, 1.0)
TX_TOP_DB = 10.0
"""Transmit gain of the simulated radio (dBm at full scale) at the top of the range, as a B210 gives."""


@dataclass
class Device:
    """An emulated USRP: its properties, its faults, and the commands that it received."""

    serial: str
    name: str
    """Name of its radio in the World, and of its place in the scene unless `options` give another."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the simulated radio (`impairments.RadioOptions`)."""
    product: Product = "B210"
    """B210: its master clock follows the rate unless it is set. X310: two master clocks, and the rates divided from
    them."""
    rx_delay_samples: float | dict[str, float] = 0.0
    """How much older than their time stamp received samples are, at any rate or by rate in Hz."""
    ref_locked: bool = True
    lo_locked: bool = True
    pps: bool = True
    """Whether a PPS edge comes at every whole second of the World."""
    unplugged: bool = False
    tx_faults: deque[str] = field(default_factory=deque)
    """Faults of the coming bursts: "", late, underflow, seq_error, timeout."""
    rx_faults: deque[str] = field(default_factory=deque)
    """Faults of the coming captures: "", timeout, late, broken_chain, overflow, alignment, bad_packet, dropped (some
    packets never arrive), abandoned (nothing arrives in time, all of it later)."""
    calls: list[str] = field(default_factory=list)
    """Commands, in the order of their arrival."""
    context: DriverContext | None = None
    """Context of its node; default: that of the stand-in."""
    _core: weakref.ref[_Core] | None = None

    def delay_samples(self, rate_hz: float) -> float:
        if not isinstance(self.rx_delay_samples, dict):
            return self.rx_delay_samples
        return next((n for rate, n in self.rx_delay_samples.items() if abs(float(rate) - rate_hz) < 1.0), 0.0)

    @property
    def core(self) -> _Core | None:
        """Its state while it is open; None otherwise."""
        return None if self._core is None else self._core()

    def idle_until(self, time_s: float) -> None:
        """Promise for the driver that it sends nothing before device time `time_s`: simulated air waits for this."""
        core = self.core
        if core is not None and core.tuned is not None:
            core.on_air().idle_until(core.sim_s(TimeSpec(time_s)))


class _Core:
    """An opened device, which lives as long as UHD would keep it alive."""

    def __init__(self, device: Device, context: DriverContext, master_hz: float | None) -> None:
        if device.core is not None:
            raise RuntimeError("LookupError: KeyError: No devices found for ----->\nDevice Address:\n    it is in use")
        self.device, self._context = device, context
        _, masters, fixed, self._most, _ = PRODUCTS[device.product]
        self.fixed_master = master_hz is not None or bool(fixed)
        if fixed:  # UHD takes the nearest one, and reports it in its log only
            master_hz = min(fixed, key=lambda hz: abs(hz - (master_hz or fixed[0])))
        self.master_hz = masters.clip(master_hz or 32e6)
        self.reference = self.time_source = "internal"
        self.settings = RadioSettings(CARRIERS.start(), 1e6, 0.0, 0.0)
        self.tuned: RadioSettings | None = None
        self.events: deque[TXMetadataEventCode] = deque()
        self.lock: Any = threading.RLock()
        """Held by whoever takes or passes on bursts, or retunes: several threads may use a device, and one may silence
        it while another waits for samples."""
        self._bursts: list[tuple[IqBlock | None, TXMetadataEventCode]] = []
        """Timed bursts on their way to the air, which gets them together, and what is reported of each; None: a burst
        that was lost."""
        self._offset_s = 0.0
        self._pending: tuple[int, float] | None = None
        self._passed_s = 0.0
        self._blocked_until_s = -math.inf
        self.command_time_s: float | None = None
        self.release: weakref.finalize[Any, _Core] | None = None
        """Leaves the World; called at the latest when the last reference is gone."""
        self.attach()
        device._core = weakref.ref(self)

    def attach(self) -> None:
        """Enter the World; on an external reference the radio's clock is the World's."""
        options = dict(self.device.options)
        if self.reference != "internal":
            options |= {"clock_ppm": 0.0, "cfo_ppm": 0.0}
        if self.release is not None:
            self.release()
        self.tuned = None
        self.sim = SimRadio(self.device.name, self._context, **options)
        # __del__ is not used: in a reference cycle (a traceback), the radio's sockets could already be closed.
        self.release = weakref.finalize(self, self.sim.close)
        self._clock = device_clock(
            self.device.name, driver_options(options, RadioOptions, self.device.name), self._context.seed
        )

    # -- bursts
    def launch(self, burst: IqBlock | None, report: TXMetadataEventCode) -> None:
        """Take a timed burst; its time is on the simulated radio's clock."""
        with self.lock:
            self._bursts.append((burst, report))

    def flush(self) -> None:
        """Put the bursts on the air, also those of other threads; they are on it when this returns."""
        with self.lock:
            bursts, self._bursts = self._bursts, []
            blocks = [burst for burst, _ in bursts if burst is not None]
            failures = iter(self._tuned_sim().transmit_many(blocks) if blocks else [])
            for burst, report in bursts:
                failure = None if burst is None else next(failures)
                if failure is not None and not isinstance(failure, LateTransmit):
                    raise RuntimeError(f"RuntimeError: {failure}") from failure
                self.events.append(report if failure is None else TXMetadataEventCode.time_error)

    # -- commands
    def touch(self, call: str) -> None:
        """Called by every command: fails on a lost device and blocks behind a timed command."""
        self.device.calls.append(call)
        if self.device.unplugged:
            raise RuntimeError("RuntimeError: usb rx6 transfer status: LIBUSB_TRANSFER_NO_DEVICE")
        # asking the air for its time takes longer than the command
        if self._blocked_until_s > -math.inf and self.now_s() < self._blocked_until_s:
            raise RuntimeError(
                "EnvironmentError: IOError: Radio ctrl (0) packet parse error - timed out behind a timed command"
            )
        if self.command_time_s is not None and call.startswith("set_") and call != "set_command_time":
            self._blocked_until_s = self.command_time_s

    # -- time
    def _sim_now_s(self) -> float:
        self.flush()
        return self.sim.now_s() + self._passed_s

    def _world_s(self) -> float:
        return to_seconds(self._clock.world_ticks(self._sim_now_s()))

    def _edge_s(self, second: int) -> float:
        """Return the radio's own clock at a whole second of the World."""
        return self._clock.reading_s(second * TICKS_PER_S)

    def now_s(self) -> float:
        if self._pending is not None and self._world_s() >= self._pending[0]:
            second, time_s = self._pending
            self._offset_s, self._pending = time_s - self._edge_s(second), None
        return self._sim_now_s() + self._offset_s

    def set_now(self, time_s: float) -> None:
        self._offset_s, self._pending = time_s - self._sim_now_s(), None

    def set_at_next_edge(self, time_s: float) -> None:
        if self.device.pps:
            self._pending = (math.floor(self._world_s()) + 1, time_s)

    def last_edge_s(self) -> float:
        self._passed_s += _PPS_POLL_S
        self.now_s()
        return self._edge_s(math.floor(self._world_s())) + self._offset_s if self.device.pps else 0.0

    def device_s(self, sim_s: float) -> float:
        return sim_s + self._offset_s

    def sim_s(self, time: TimeSpec) -> float:
        """Return the radio's own time of a time stamp, which counts ticks of the master clock."""
        return round(time.get_real_secs() * self.master_hz) / self.master_hz - self._offset_s

    # -- air
    def on_air(self) -> SimRadio:
        """Return the radio in the World, with everything that was sent so far, retuned if settings changed since it was
        used."""
        with self.lock:
            self.flush()
            return self._tuned_sim()

    def _tuned_sim(self) -> SimRadio:
        if self.tuned != self.settings:
            s = self.settings
            tx_db = s.tx_gain_db - TX_GAIN.stop() + TX_TOP_DB
            self.sim.configure(RadioSettings(s.carrier_hz, s.sample_rate_hz, tx_db, s.rx_gain_db))
            self.tuned = s
            if self._passed_s > 0:
                self.sim.idle_until(self._sim_now_s())
                self._passed_s = 0.0
        return self.sim

    def change(self, **values: float) -> None:
        with self.lock:
            self.flush()
            s = self.settings
            self.settings = RadioSettings(
                **{
                    k: values.get(k, getattr(s, k))
                    for k in ("carrier_hz", "sample_rate_hz", "tx_gain_db", "rx_gain_db")
                }
            )

    def rates(self) -> MetaRange:
        """Return the rates of this master clock, or of all that a free one can take."""
        if self.fixed_master:
            return MetaRange(self.master_hz / self._most, self.master_hz, 0.0)
        return MetaRange(0.2e6, PRODUCTS[self.device.product][4], 1.0)

    def coerce_rate(self, rate_hz: float) -> float:
        """Return the nearest rate that the master clock divides down to; a free master clock follows the rate."""
        if not self.fixed_master:
            self.master_hz = rate_hz * max(1, math.floor(_MASTER_HZ / rate_hz))
        return self.master_hz / min(max(1, round(self.master_hz / rate_hz)), self._most)


class TXStreamer:
    """A burst goes on the air when its end has been sent."""

    def __init__(self, core: _Core) -> None:
        self._core = core
        self._parts: list[C64] = []
        self._start: TimeSpec | None = None
        core.on_air()

    def get_max_num_samps(self) -> int:
        return 2040

    def send(self, np_array: Any, metadata: TXMetadata, timeout: float = 0.1) -> int:
        self._core.touch("send")
        samples = _one_channel(np_array)
        n = samples.size
        if not self._parts:
            self._start = metadata.time_spec if metadata.has_time_spec else None
        if n and self._core.device.tx_faults and self._core.device.tx_faults[0] == "timeout":
            self._core.device.tx_faults.popleft()
            n //= 2
            self._parts.append(samples[:n].copy())
            return n
        if n:
            self._parts.append(samples.copy())
        if metadata.end_of_burst and self._parts:
            burst, self._parts = np.concatenate(self._parts), []
            self._launch(burst)
        return n

    def _launch(self, burst: C64) -> None:
        core, codes = self._core, TXMetadataEventCode
        fault = core.device.tx_faults.popleft() if core.device.tx_faults else ""
        if fault == "late":
            core.launch(None, codes.time_error)
            return
        if fault in ("underflow", "seq_error"):
            burst = burst[: max(1, burst.size // 2)]
        report = codes[fault] if fault else codes.burst_ack
        block = IqBlock(burst[None, :], core.settings.sample_rate_hz, 0.0)
        if self._start is not None:
            core.launch(replace(block, time_s=core.sim_s(self._start)), report)
            return
        try:
            core.on_air().transmit(block)
        except OffAir as exc:
            raise RuntimeError(f"RuntimeError: {exc}") from exc
        core.events.append(report)

    def recv_async_msg(self, async_metadata: TXAsyncMetadata, timeout: float = 0.1) -> bool:
        self._core.flush()
        if not self._core.events:
            return False
        async_metadata._event = self._core.events.popleft()
        return True


class RXStreamer:
    """Captures of a given number of samples, each from its time; samples that are not fetched stay in the queue."""

    def __init__(self, core: _Core) -> None:
        self._core = core
        self._commands: deque[StreamCMD] = deque()
        self._queue: deque[tuple[C64, float | None, RXMetadataErrorCode, bool]] = deque()
        self._later: list[tuple[C64, float | None, RXMetadataErrorCode, bool]] = []
        core.on_air()

    def get_max_num_samps(self) -> int:
        return 2040

    def issue_stream_cmd(self, arg0: StreamCMD, /) -> None:
        self._core.touch("issue_stream_cmd")
        if arg0._mode is StreamMode.stop_cont:
            self._commands.clear()
        elif arg0._mode is StreamMode.num_done:
            self._commands.append(arg0)
        else:
            raise NotImplementedError(f"the stand-in does not stream in mode {arg0._mode.name}")
        self._queue.extend(self._later)
        self._later.clear()

    def recv(self, np_array: Any, metadata: RXMetadata, timeout: float = 0.1) -> int:
        self._core.touch("recv")
        codes = RXMetadataErrorCode
        if not np_array.flags.writeable:
            raise RuntimeError("Array is not writable")
        if not self._queue and self._commands:
            self._capture(timeout)
        if not self._queue:
            time.sleep(0.0 if self._commands else timeout)  # a capture has already waited for the timeout
            metadata._fill(codes.timeout)
            return 0
        samples, time_s, code, out_of_sequence = self._queue.popleft()
        n = min(samples.size, np_array.shape[-1])
        if n < samples.size and time_s is not None:
            rest_s = time_s + n / self._core.settings.sample_rate_hz
            self._queue.appendleft((samples[n:], rest_s, code, out_of_sequence))
            code, out_of_sequence = codes.none, False
        # UHD converts what is not one contiguous complex64 block to a copy, and writes into that
        if n and np_array.flags.c_contiguous and np_array.dtype == np.complex64:
            np_array.reshape(-1)[:n] = samples[:n]
        metadata._fill(code, time_s, out_of_sequence)
        return n

    def _capture(self, timeout_s: float) -> None:
        """Serve the first command: queue what the device would deliver, faults included."""
        core, command = self._core, self._commands[0]
        fault = core.device.rx_faults[0] if core.device.rx_faults else ""
        if fault == "timeout":
            time.sleep(timeout_s)
            return
        together = self._together()
        if len(together) > 1:
            self._capture_together(together, timeout_s)
            return
        n, lead_s = command.num_samps, self._older_s()
        sim = core.on_air()
        try:
            at_s = (sim.now_s() if command.stream_now else core.sim_s(command.time_spec)) - lead_s
            block: IqBlock | None = sim.receive(n, None if command.stream_now else at_s, max(timeout_s, 1e-3))
        except DeviceTimeout:
            return
        except OffAir as exc:
            raise RuntimeError(f"RuntimeError: {exc}") from exc
        except DeviceError:
            block = None
        if core.device.rx_faults:
            core.device.rx_faults.popleft()
        self._deliver(block, fault)

    def _older_s(self) -> float:
        """Return by how much samples are older than their time stamps."""
        rate_hz = self._core.settings.sample_rate_hz
        return self._core.device.delay_samples(rate_hz) / rate_hz

    def _together(self) -> list[Window]:
        """Return the windows of the commands that are soon over, which the air is asked for together; none where the
        device has faults to show."""
        core, out = self._core, list[Window]()
        rate_hz, lead_s = core.settings.sample_rate_hz, self._older_s()
        if core.device.rx_faults:
            return out
        for command in self._commands:
            if command.stream_now:
                break
            window = Window(command.num_samps, core.sim_s(command.time_spec) - lead_s)
            if out and not out[-1].at_s + out[-1].n_samples / rate_hz <= window.at_s <= out[0].at_s + _TOGETHER_S:
                break
            out.append(window)
        return out

    def _capture_together(self, windows: list[Window], timeout_s: float) -> None:
        try:
            found = self._core.on_air().receive_many(windows, max(timeout_s, 1e-3))
        except OffAir as exc:
            raise RuntimeError(f"RuntimeError: {exc}") from exc
        except DeviceError as exc:
            found = [exc] * len(windows)
        for block in found:
            if isinstance(block, DeviceTimeout):  # this command, and those behind it, wait on
                return
            self._deliver(block if isinstance(block, IqBlock) else None, "")

    def _deliver(self, block: IqBlock | None, fault: str) -> None:
        """Queue what the first command brings; None: the air refused its samples as too old."""
        core, codes = self._core, RXMetadataErrorCode
        rate_hz, n = core.settings.sample_rate_hz, self._commands.popleft().num_samps
        nothing = np.zeros(0, np.complex64)
        if block is None:
            fault, block = fault or "late", IqBlock(np.zeros((1, n), np.complex64), rate_hz, 0.0)
        # UHD scales 16 bit integers by 1/32767: the lowest lands beyond full scale
        heard = block.samples[0] * np.float32(32768 / 32767)
        stamp_s = core.device_s(block.time_s + self._older_s())
        if fault == "" and not block.overflow:
            self._queue.append((heard, stamp_s, codes.none, False))
        elif fault == "abandoned":
            self._later.append((heard, stamp_s, codes.none, False))
        elif fault == "overflow":  # the rest of the capture never arrives
            self._queue += [(heard[: n // 2], stamp_s, codes.none, False), (nothing, None, codes.overflow, False)]
        elif fault == "dropped" or block.overflow:
            a, b = n // 3, n // 2
            self._queue += [
                (heard[:a], stamp_s, codes.none, False),
                (nothing, None, codes.overflow, True),
                (heard[b:], stamp_s + b / rate_hz, codes.none, False),
            ]
        else:
            self._queue.append((nothing, None, codes[fault], False))


def _one_channel(array: Any) -> C64:
    """Return (sample,) of the array that a streamer of one channel got."""
    if array.dtype != np.complex64:
        raise TypeError(f"{array.dtype} array of shape {array.shape}: UHD would read it as complex64 (1, sample)")
    return np.asarray(array[0] if array.ndim > 1 else array)


class StringProperty:
    def __init__(self, value: str) -> None:
        self._value = value

    def get(self) -> str:
        return self._value


class PropertyTree:
    _VALUES = {"/mboards/0/fw_version": "8.0", "/mboards/0/fpga_version": "16.0"}  # noqa: RUF012 - constant

    def exists(self, path: str) -> bool:
        return path in self._VALUES

    def access_str(self, arg0: str, /) -> StringProperty:
        return StringProperty(self._VALUES[arg0])


class MultiUSRP:
    """One of the emulated devices, chosen by its serial number."""

    _shelf: UhdStandIn

    def __init__(self, args: str = "") -> None:
        wanted = DeviceAddr(args).to_dict()
        for device in self._shelf.devices.values():
            if not device.unplugged and wanted.get("serial", device.serial) == device.serial:
                break
        else:
            listed = "".join(f"    {k}: {v}\n" for k, v in wanted.items())
            raise RuntimeError(f"LookupError: KeyError: No devices found for ----->\nDevice Address:\n{listed}")
        rate = wanted.get("master_clock_rate")
        self._core = _Core(device, device.context or self._shelf.context, float(rate) if rate else None)

    # -- what it is
    def get_usrp_rx_info(self, chan: int = 0) -> dict[str, str]:
        device = self._core.device
        return {"mboard_id": device.product, "mboard_serial": device.serial, "rx_antenna": "TX/RX"}

    def get_tree(self) -> PropertyTree:
        return PropertyTree()

    def get_rx_num_channels(self) -> int:
        return 1

    def get_tx_num_channels(self) -> int:
        return 1

    def set_rx_subdev_spec(self, spec: SubdevSpec, mboard: int = ALL) -> None:
        self._subdev(spec, "set_rx_subdev_spec")

    def set_tx_subdev_spec(self, spec: SubdevSpec, mboard: int = ALL) -> None:
        self._subdev(spec, "set_tx_subdev_spec")

    def _subdev(self, spec: SubdevSpec, call: str) -> None:
        self._core.touch(call)
        if spec.to_string() != "A:A":
            raise RuntimeError(f"LookupError: IndexError: there is no subdevice {spec.to_string()!r}")

    # -- clocks
    def get_master_clock_rate(self, mboard: int = 0) -> float:
        return self._core.master_hz

    def get_clock_sources(self, arg0: int, /) -> list[str]:
        return ["internal", "external", "gpsdo"]

    def get_time_sources(self, arg0: int, /) -> list[str]:
        return ["none", "internal", "external", "gpsdo"]

    def set_clock_source(self, source: str, mboard: int = ALL) -> None:
        self._core.touch("set_clock_source")
        if source != self._core.reference:
            self._core.reference = source
            self._core.attach()

    def set_time_source(self, source: str, mboard: int = ALL) -> None:
        self._core.touch("set_time_source")
        self._core.time_source = source

    def get_mboard_sensor_names(self, mboard: int = 0) -> list[str]:
        return ["ref_locked"]

    def get_mboard_sensor(self, name: str, mboard: int = 0) -> SensorValue:
        self._core.touch("get_mboard_sensor")
        return SensorValue("Ref", self._core.device.ref_locked, "locked", "unlocked")

    def get_time_now(self, mboard: int = 0) -> TimeSpec:
        self._core.touch("get_time_now")
        return TimeSpec(self._core.now_s())

    def get_time_last_pps(self, mboard: int = 0) -> TimeSpec:
        self._core.touch("get_time_last_pps")
        return TimeSpec(self._core.last_edge_s())

    def set_time_now(self, time_spec: TimeSpec, mboard: int = ALL) -> None:
        self._core.touch("set_time_now")
        self._core.set_now(time_spec.get_real_secs())

    def set_time_next_pps(self, time_spec: TimeSpec, mboard: int = ALL) -> None:
        self._core.touch("set_time_next_pps")
        self._core.set_at_next_edge(time_spec.get_real_secs())

    def set_command_time(self, time_spec: TimeSpec, mboard: int = ALL) -> None:
        self._core.touch("set_command_time")
        self._core.command_time_s = time_spec.get_real_secs()

    def clear_command_time(self, mboard: int = ALL) -> None:
        """Further commands are not timed; those that already wait still block."""
        self._core.command_time_s = None

    # -- tuning
    def get_rx_rates(self, chan: int = 0) -> MetaRange:
        return self._core.rates()

    def get_tx_rates(self, chan: int = 0) -> MetaRange:
        return self._core.rates()

    def get_rx_freq_range(self, chan: int = 0) -> MetaRange:
        return CARRIERS

    def get_tx_freq_range(self, chan: int = 0) -> MetaRange:
        return CARRIERS

    def get_rx_gain_range(self, chan: int = 0) -> MetaRange:
        return RX_GAIN

    def get_tx_gain_range(self, chan: int = 0) -> MetaRange:
        return TX_GAIN

    def set_rx_rate(self, rate: float, chan: int = ALL) -> None:
        self._core.touch("set_rx_rate")
        self._core.change(sample_rate_hz=self._core.coerce_rate(rate))

    def set_tx_rate(self, rate: float, chan: int = ALL) -> None:
        self._core.touch("set_tx_rate")
        self._core.change(sample_rate_hz=self._core.coerce_rate(rate))

    def get_rx_rate(self, chan: int = 0) -> float:
        return self._core.settings.sample_rate_hz

    def get_tx_rate(self, chan: int = 0) -> float:
        return self._core.settings.sample_rate_hz

    def set_rx_freq(self, tune_request: TuneRequest, chan: int = 0) -> TuneResult:
        self._core.touch("set_rx_freq")
        return self._tune(tune_request)

    def set_tx_freq(self, tune_request: TuneRequest, chan: int = 0) -> TuneResult:
        self._core.touch("set_tx_freq")
        return self._tune(tune_request)

    def _tune(self, request: TuneRequest) -> TuneResult:
        result = TuneResult()
        result.target_rf_freq = request.target_freq
        result.clipped_rf_freq = result.actual_rf_freq = CARRIERS.clip(request.target_freq)
        self._core.change(carrier_hz=result.actual_rf_freq)
        return result

    def get_rx_freq(self, chan: int = 0) -> float:
        return self._core.settings.carrier_hz

    def get_tx_freq(self, chan: int = 0) -> float:
        return self._core.settings.carrier_hz

    def set_rx_gain(self, gain: float, chan: int = 0) -> None:
        self._core.touch("set_rx_gain")
        self._core.change(rx_gain_db=RX_GAIN.clip(gain, True))

    def set_tx_gain(self, gain: float, chan: int = 0) -> None:
        """At the lowest gain the output is about 90 dB lower, and the World neglects it."""
        self._core.touch("set_tx_gain")
        self._core.change(tx_gain_db=TX_GAIN.clip(gain, True))
        if self._core.settings.tx_gain_db == TX_GAIN.start():
            self._core.sim.silence()

    def get_rx_gain(self, chan: int = 0) -> float:
        return self._core.settings.rx_gain_db

    def get_tx_gain(self, chan: int = 0) -> float:
        return self._core.settings.tx_gain_db

    def get_rx_antennas(self, chan: int = 0) -> list[str]:
        return ["TX/RX", "RX2"]

    def get_tx_antennas(self, chan: int = 0) -> list[str]:
        return ["TX/RX"]

    def set_rx_antenna(self, ant: str, chan: int = 0) -> None:
        self._core.touch("set_rx_antenna")

    def set_tx_antenna(self, ant: str, chan: int = 0) -> None:
        self._core.touch("set_tx_antenna")

    def get_rx_sensor_names(self, chan: int = 0) -> list[str]:
        return ["lo_locked"]

    def get_tx_sensor_names(self, chan: int = 0) -> list[str]:
        return ["lo_locked"]

    def get_rx_sensor(self, name: str, chan: int = 0) -> SensorValue:
        return SensorValue("LO", self._core.device.lo_locked, "locked", "unlocked")

    def get_tx_sensor(self, name: str, chan: int = 0) -> SensorValue:
        return SensorValue("LO", self._core.device.lo_locked, "locked", "unlocked")

    # -- streams
    def get_rx_stream(self, arg0: StreamArgs, /) -> RXStreamer:
        self._core.touch("get_rx_stream")
        return RXStreamer(self._core)

    def get_tx_stream(self, arg0: StreamArgs, /) -> TXStreamer:
        self._core.touch("get_tx_stream")
        return TXStreamer(self._core)


class UhdStandIn:
    """The module that `import uhd` returns, with the emulated devices."""

    def __init__(self, context: DriverContext, *devices: Device) -> None:
        self.context = context
        self.devices = {d.serial: d for d in devices}
        self.types = SimpleNamespace(
            DeviceAddr=DeviceAddr,
            MetaRange=MetaRange,
            RXMetadata=RXMetadata,
            RXMetadataErrorCode=RXMetadataErrorCode,
            SensorValue=SensorValue,
            StreamCMD=StreamCMD,
            StreamMode=StreamMode,
            TXAsyncMetadata=TXAsyncMetadata,
            TXMetadata=TXMetadata,
            TXMetadataEventCode=TXMetadataEventCode,
            TimeSpec=TimeSpec,
            TuneRequest=TuneRequest,
            TuneResult=TuneResult,
        )
        self.usrp = SimpleNamespace(
            MultiUSRP=type("MultiUSRP", (MultiUSRP,), {"_shelf": self}),
            RXStreamer=RXStreamer,
            StreamArgs=StreamArgs,
            SubdevSpec=SubdevSpec,
            TXStreamer=TXStreamer,
        )

    def power_off(self) -> None:
        """Take every device off the air, even if it is in use."""
        for device in self.devices.values():
            core = device.core
            if core is not None and core.release is not None:
                core.release()

    def find(self, arg0: str, /) -> list[DeviceAddr]:
        return [
            DeviceAddr(f"type={PRODUCTS[d.product][0]},product={d.product},serial={d.serial}")
            for d in self.devices.values()
            if not d.unplugged
        ]


# ---------------------------------------------------------------- for a lab


class StandInOptions(OneAntenna, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A USRP's table [world.emulators.NAME]: OneAntenna, and the fields of `Device` of the same names."""

    serial: str | None = None
    """Serial number; default: derived from the name."""
    product: Product = "B210"
    rx_delay_samples: float | dict[str, float] = 0.0
    ref_locked: bool = True
    lo_locked: bool = True
    pps: bool = True
    tx_faults: tuple[TxFault, ...] = ()
    rx_faults: tuple[RxFault, ...] = ()


def put_in_place(name: str, context: DriverContext, options: Mapping[str, Any]) -> Equipment:
    """Make a device, and let `import uhd` in this process return the stand-in instead of an installed UHD."""
    o = emulator_options(name, options, StandInOptions)
    known = {f.name for f in msgspec.structs.fields(OneAntenna)}
    device = Device(
        serial=o.serial or f"{context.seed & 0xFFFFFFFF:08X}",
        name=name,
        options={k: v for k, v in options.items() if k in known},
        product=o.product,
        rx_delay_samples=o.rx_delay_samples,
        ref_locked=o.ref_locked,
        lo_locked=o.lo_locked,
        pps=o.pps,
        tx_faults=deque(o.tx_faults),
        rx_faults=deque(o.rx_faults),
        context=context,
    )
    shelf: Any = sys.modules.get("uhd")
    if not isinstance(shelf, UhdStandIn):
        shelf = sys.modules["uhd"] = UhdStandIn(context)  # type: ignore[assignment]
    shelf.devices[device.serial] = device
    return Equipment({"serial": device.serial}, device.idle_until)


class EmulatedUsrp(Emulator):
    """A USRP's protocol is private to UHD, so its emulator replaces UHD in the driver's process."""

    options_type = StandInOptions
    in_process = True

    def close(self) -> None:
        """Nothing was opened here: what `equip` installs belongs to the driver's process."""

    @classmethod
    def equip(cls, name: str, context: DriverContext, options: Mapping[str, Any]) -> Equipment:
        return put_in_place(name, context, options)
