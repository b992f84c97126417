"""Ettus USRPs through UHD's Python API: timed bursts out, timed captures in, one channel, one antenna port.

Commands are never timed (`set_command_time`): a radio has one command FIFO, and a command that waits for its time
blocks everything behind it, even reading the clock. Only samples carry times.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from testbed.core.errors import DeviceError, DeviceTimeout, LateTransmit
from testbed.core.options import driver_options
from testbed.core.radio import FoundRadio, Radio, RadioCapabilities, RadioSettings, Window
from testbed.core.types import C64, IqBlock
from testbed.core.world import DriverContext

log = logging.getLogger("testbed.node")

_SLICE_S = 0.05
"""Longest single wait inside UHD, which neither Ctrl-C nor a halt can interrupt."""
_SPARE_BUFFERS = 16
"""Number of send buffers that UHD gets in addition to one for each queued transmission."""
_QUEUED_CAPTURES = 8
"""Largest number of stream commands that wait in the device: a B210 takes as many."""
_AFTER_LOSS_S = 0.1
"""Time for the rest of a capture after the device reported that samples were lost."""
_POLL_S = 0.005
_LOOKS = 40
"""Least number of looks before something that is awaited is given up, however slow the machine is."""
_PPS_S = 1.5
"""Time to wait for a PPS edge, of which one comes every second."""
_LONGEST_DRAIN_S = 10.0
"""Longest wait for a silenced transmission that is still queued in the device."""

Source = Literal["internal", "external", "gpsdo"]


class UsrpOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `options` in a USRP's lab table."""

    addr: str = ""
    """UHD device arguments, e.g. `type=b200` or `addr=192.168.10.2`."""
    serial: str | None = None
    """Motherboard serial number; a device with another one is refused."""
    clock_source: Source = "internal"
    time_source: Source = "internal"
    pps: bool = False
    """Whether the device time is set to 0 at the next PPS edge, which all radios on the cable receive at the same time;
    their clocks then differ by whole seconds at most. Without it, the time is set to 0 at once."""
    master_clock_rate_hz: Annotated[float, Meta(gt=0)] | None = None
    channel: Annotated[int, Meta(ge=0)] = 0
    """Number of the channel, in the order of `subdev`."""
    subdev: str | None = None
    """Frontend specification for both directions, e.g. `A:A`."""
    antenna: str = "TX/RX"
    """Antenna port for both directions; with two antennas, the two directions would have different channels."""
    rx_delay_samples: float | dict[str, float] = 0.0
    """Number of samples by which received samples are later than their time stamp; it is subtracted from every
    reception's time. On a B210, 46 to 165 were measured (gr-plasma #13). It depends on the sample rate: give a table of
    rates in Hz, such as { "4e6" = 52.0, "20e6" = 71.5 }, or one number for all rates."""
    queued_bursts: Annotated[int, Meta(ge=2, le=1024)] = 128
    """Largest number of transmissions that wait in the device and in UHD's send buffers; UHD gets as many buffers as
    they need if each fits into one (`num_send_frames`, unless `addr` gives it). Where it is too small, a host that is
    busy for a few rounds transmits too late; where the device takes fewer, `send` waits until one has left."""
    turnaround_s: Annotated[float, Meta(ge=0)] = 24e-6
    """Time between transmission and reception; the default is the transmit advance of a published TDD prober
    (4C6C/channel_measurement_for_PLKG)."""
    lock_timeout_s: Annotated[float, Meta(gt=0)] = 5.0
    """Time for the reference and the oscillators to lock."""

    def __post_init__(self) -> None:
        for rate in self.rx_delay_samples if isinstance(self.rx_delay_samples, dict) else ():
            try:
                float(rate)
            except ValueError:
                raise ValueError(f'rx_delay_samples: rate {rate!r}, accepted: numbers in Hz, as "20e6"') from None


def load_uhd() -> Any:
    """Import and return UHD's Python module; raises ImportError that says in one line what to install or change.

    Tests replace this function by one that returns an emulated module.
    """
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            module = importlib.import_module("uhd")
    except ImportError as exc:
        raise ImportError(
            f"Python module 'uhd' cannot be imported ({exc}): apt-get install python3-uhd, and run in an environment "
            "made by /usr/bin/python3 -m venv --system-site-packages, with 'numpy<2' (docs/troubleshooting.md)"
        ) from exc
    # A module built for NumPy 1 imports under NumPy 2 with only a printed warning, and then crashes at the first
    # recv().
    if "_ARRAY_API" in complaints.getvalue():
        raise ImportError(
            f"Python module 'uhd' ({module.__file__}) was built for NumPy 1 and would crash under NumPy "
            f"{np.__version__}: pip install 'numpy<2' in this environment (docs/troubleshooting.md)"
        )
    return module


class Usrp(Radio):
    """A USRP. Options: the fields of `UsrpOptions`.

    Device time is 0 when the device is opened or, with `pps`, at the following edge. UHD cannot cancel queued samples,
    so `silence` sets the transmit gain to its minimum until they have been sent.
    """

    options_type = UsrpOptions

    @classmethod
    def discover(cls, addresses: Sequence[str] = ()) -> list[FoundRadio]:
        """Open what UHD finds by itself and with `addresses` that are its arguments, as `addr=192.168.10.2`."""
        try:
            uhd = load_uhd()
        except ImportError as exc:
            raise DeviceError("usrp", "open", "closed", str(exc)) from exc
        hints = ["", *(a for a in addresses if a.startswith(("addr=", "type=", "serial=")))]
        listed = [dict(found.to_dict()) for hint in hints for found in uhd.find(hint)]
        out = []
        for serial in dict.fromkeys(d["serial"] for d in listed if d.get("serial")):
            try:
                with cls("usrp", DriverContext(0, None, None, Path()), serial=serial) as radio:
                    caps, who = radio.capabilities, radio.identity()
            except DeviceError as exc:
                log.warning("%s", exc)
                continue
            out.append(
                FoundRadio({"serial": serial}, serial, f"USRP {who['product']}", caps.tx_gain_db, caps.rx_gain_db)
            )
        return out

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        super().__init__(name)
        self._options = driver_options(options, UsrpOptions, name)
        self._rx: Any = None
        self._tx: Any = None
        self._gain_range: tuple[float, float] = (0.0, 0.0)
        self._queued_until_s = -np.inf
        """Device time at which all samples sent so far have left the device."""
        self._muted = False
        self._sent: deque[float] = deque()
        """Starts of the bursts of which the device has not reported yet; its reports have their order."""
        self._lost: list[tuple[float, str]] = []
        """(start of the burst, why) of failed transmissions that were reported, and that no caller knows of yet."""
        try:
            self._uhd = load_uhd()
        except ImportError as exc:
            raise DeviceError(name, "open", "closed", str(exc)) from exc
        self._failures = _failures(self._uhd.types.TXMetadataEventCode)
        self._usrp: Any = self._open()

    # ---------------------------------------------------------------- what it is

    @property
    def capabilities(self) -> RadioCapabilities:
        return self._capabilities

    def identity(self) -> dict[str, Any]:
        return {"driver": "usrp", **self._identity}

    def now_s(self) -> float:
        """Return the device's clock in seconds."""
        with self._uhd_errors("now_s"):
            return float(self._device("now_s").get_time_now().get_real_secs())

    # ---------------------------------------------------------------- opening

    def _open(self) -> Any:
        options = self._options
        parts = [options.addr]
        if options.serial is not None:
            parts.append(f"serial={options.serial}")
        if options.master_clock_rate_hz is not None:
            parts.append(f"master_clock_rate={options.master_clock_rate_hz:.0f}")
        args = ",".join(p for p in parts if p)
        buffers = f"num_send_frames={options.queued_bursts + _SPARE_BUFFERS}"
        with self._uhd_errors("open"):
            try:
                usrp = self._uhd.usrp.MultiUSRP(args if "num_send_frames" in args else f"{args},{buffers}".lstrip(","))
            except RuntimeError as exc:
                if "No devices found" in str(exc):
                    raise DeviceError(
                        self.name, "open", self.state, f"no USRP answers to {args!r}; {self._seen()}"
                    ) from exc
                raise
            info = dict(usrp.get_usrp_rx_info(0))
            found = info.get("mboard_serial", "")
            if options.serial is not None and found != options.serial:
                raise self._failed("open", f"serial {found!r} answers where {options.serial!r} was asked for")
            self._set_up(usrp)
            self._identity = {
                "serial": found,
                "product": info.get("mboard_id", ""),
                "firmware": _text(usrp, "/mboards/0/fw_version"),
                "fpga": _text(usrp, "/mboards/0/fpga_version"),
                "clock_source": options.clock_source,
                "time_source": options.time_source,
                "master_clock_rate_hz": float(usrp.get_master_clock_rate()),
            }
            self._capabilities = self._ranges(usrp)
        return usrp

    def _seen(self) -> str:
        """Return which USRPs UHD finds, for the message that the requested one is not among them."""
        seen = [dict(addr.to_dict()) for addr in self._uhd.find("")]
        listed = ", ".join(f"{d.get('product', d.get('type', 'USRP'))} serial={d.get('serial', '?')}" for d in seen)
        return f"found: {listed}" if seen else "no device was found: check power and its cable"

    def _set_up(self, usrp: Any) -> None:
        """Choose front end, reference and time source, wait for the lock, then set the time."""
        options = self._options
        if options.subdev is not None:
            spec = self._uhd.usrp.SubdevSpec(options.subdev)
            usrp.set_rx_subdev_spec(spec)
            usrp.set_tx_subdev_spec(spec)
        n_channels = min(usrp.get_rx_num_channels(), usrp.get_tx_num_channels())
        if options.channel >= n_channels:
            raise self._failed("open", f"channel = {options.channel}, accepted 0 to {n_channels - 1}")
        ports = [a for a in usrp.get_rx_antennas(options.channel) if a in usrp.get_tx_antennas(options.channel)]
        if options.antenna not in ports:
            raise self._failed("open", f"antenna {options.antenna!r}, accepted for both directions: {', '.join(ports)}")
        wanted_hz = options.master_clock_rate_hz
        if wanted_hz is not None and abs(usrp.get_master_clock_rate() - wanted_hz) > 1.0:
            raise self._failed(
                "open", f"master clock runs at {usrp.get_master_clock_rate():.0f} Hz, not {wanted_hz:.0f} Hz"
            )
        for what, wanted, offered in (
            ("clock_source", options.clock_source, usrp.get_clock_sources(0)),
            ("time_source", options.time_source, usrp.get_time_sources(0)),
        ):
            if wanted not in offered:
                raise self._failed("open", f"{what} {wanted!r}, accepted by this device: {', '.join(offered)}")
        usrp.set_clock_source(options.clock_source)
        usrp.set_time_source(options.time_source)
        if options.clock_source != "internal" and "ref_locked" in usrp.get_mboard_sensor_names(0):
            self._wait_or_fail(
                "open",
                lambda: usrp.get_mboard_sensor("ref_locked").to_bool(),
                options.lock_timeout_s,
                f"the {options.clock_source} reference is not locked after {options.lock_timeout_s:g} s: check the "
                "10 MHz cable, its level, and clock_source in the lab file",
            )
        self._set_time(usrp)

    def _set_time(self, usrp: Any) -> None:
        zero = self._uhd.types.TimeSpec(0.0)
        if not self._options.pps:
            usrp.set_time_now(zero)
            return

        def last_edge_s() -> float:
            return float(usrp.get_time_last_pps().get_real_secs())

        def await_edge() -> None:
            before_s = last_edge_s()
            self._wait_or_fail(
                "open",
                lambda: last_edge_s() != before_s,
                _PPS_S,
                f"no PPS edge within {_PPS_S:g} s: check the cable and time_source ({self._options.time_source})",
            )

        await_edge()  # after an edge, a whole second is left to set the time for the next one
        usrp.set_time_next_pps(zero)
        await_edge()
        if abs(last_edge_s()) > 1e-6:
            raise self._failed("open", f"the last PPS edge was at {last_edge_s():g} s of device time, not at 0")

    def _ranges(self, usrp: Any) -> RadioCapabilities:
        channel = self._options.channel

        def both(rx: Any, tx: Any) -> tuple[float, float]:
            return max(rx.start(), tx.start()), min(rx.stop(), tx.stop())

        def one(found: Any) -> tuple[float, float]:
            return found.start(), found.stop()

        self._gain_range = one(usrp.get_tx_gain_range(channel))
        return RadioCapabilities(
            timed=True,
            n_antennas=1,
            sample_rate_hz=both(usrp.get_rx_rates(channel), usrp.get_tx_rates(channel)),
            carrier_hz=both(usrp.get_rx_freq_range(channel), usrp.get_tx_freq_range(channel)),
            tx_gain_db=self._gain_range,
            rx_gain_db=one(usrp.get_rx_gain_range(channel)),
            turnaround_s=self._options.turnaround_s,
            queue=self._options.queued_bursts,
        )

    # ---------------------------------------------------------------- configuring

    def _do_configure(self, settings: RadioSettings) -> RadioSettings:
        if self._usrp is None:
            self._usrp = self._open()
        if self._tx is not None:
            self._do_silence()
            self._let_queue_pass("configure")
        usrp, channel = self._usrp, self._options.channel
        self._rx = self._tx = None  # a streamer keeps the rate for which it was made
        with self._uhd_errors("configure"):
            # rate first (it may move the master clock, which recalibrates), gains last
            usrp.set_rx_rate(settings.sample_rate_hz, channel)
            usrp.set_tx_rate(settings.sample_rate_hz, channel)
            usrp.set_rx_freq(self._uhd.types.TuneRequest(settings.carrier_hz), channel)
            usrp.set_tx_freq(self._uhd.types.TuneRequest(settings.carrier_hz), channel)
            usrp.set_rx_antenna(self._options.antenna, channel)
            usrp.set_tx_antenna(self._options.antenna, channel)
            usrp.set_rx_gain(settings.rx_gain_db, channel)
            usrp.set_tx_gain(settings.tx_gain_db, channel)
            self._await_oscillators(usrp, channel)
            accepted = self._read_back(usrp, channel)
            args = self._uhd.usrp.StreamArgs("fc32", "sc16")
            args.channels = [channel]
            self._rx, self._tx = usrp.get_rx_stream(args), usrp.get_tx_stream(args)
        self._muted, self._queued_until_s = False, -np.inf
        self._sent.clear()
        self._delay_samples = self._delay_at(accepted.sample_rate_hz)
        return accepted

    def _delay_at(self, rate_hz: float) -> float:
        """Return the calibrated delay in samples at the rate that the device took."""
        given = self._options.rx_delay_samples
        if not isinstance(given, dict):
            return given
        for rate, samples in given.items():
            if abs(float(rate) - rate_hz) < 1.0:
                return samples
        raise self._failed(
            "configure", f"rx_delay_samples has no value for {rate_hz:g} Hz, only for {', '.join(given)}: measure it "
            f"there (`testbed doctor --cable --rate-hz {rate_hz:g}`) and add it in [node.{self.name}.options]",
        )  # fmt: skip

    def _await_oscillators(self, usrp: Any, channel: int) -> None:
        for side, names, sensor in (
            ("receive", usrp.get_rx_sensor_names, usrp.get_rx_sensor),
            ("transmit", usrp.get_tx_sensor_names, usrp.get_tx_sensor),
        ):
            if "lo_locked" in names(channel):
                self._wait_or_fail(
                    "configure",
                    lambda sensor=sensor: sensor("lo_locked", channel).to_bool(),  # type: ignore[misc]
                    self._options.lock_timeout_s,
                    f"the {side} oscillator is not locked after {self._options.lock_timeout_s:g} s",
                )

    def _read_back(self, usrp: Any, channel: int) -> RadioSettings:
        rates = usrp.get_rx_rate(channel), usrp.get_tx_rate(channel)
        carriers = usrp.get_rx_freq(channel), usrp.get_tx_freq(channel)
        for what, (rx, tx) in (("sample rate", rates), ("carrier", carriers)):
            if abs(rx - tx) > 1.0:
                raise self._failed("configure", f"{what}: the receiver took {rx:.1f} Hz, the transmitter {tx:.1f} Hz")
        return RadioSettings(
            carrier_hz=float(carriers[0]),
            sample_rate_hz=float(rates[0]),
            tx_gain_db=float(usrp.get_tx_gain(channel)),
            rx_gain_db=float(usrp.get_rx_gain(channel)),
        )

    # ---------------------------------------------------------------- transmitting

    def _do_transmit(self, block: IqBlock, at_s: float | None) -> None:
        self._require_stream("transmit")
        self._tell_reports("transmit")
        self._unmute()
        self._send(block, at_s, self.now_s())
        self._tell_reports("transmit")

    def _do_transmit_many(self, blocks: Sequence[IqBlock]) -> list[DeviceError | None]:
        """Queue one after the other. The clock is read once for all of them, because reading it may take as long as a
        round; the device itself reports a burst that becomes late meanwhile (`failed_transmissions`)."""
        out: list[DeviceError | None] = []
        now_s: float | None = None
        for block in blocks:
            try:
                self._require_stream("transmit")
                self.check_interrupted("transmit")
                if now_s is None:
                    self._unmute()
                    now_s = self.now_s()
                self._send(block, block.time_s, now_s)
                out.append(None)
            except DeviceError as exc:
                out.append(exc)
        if self._tx is not None:
            self._hear_reports("transmit")
        lost = dict(self._lost)  # some may be known already
        for i, block in enumerate(blocks):
            why = lost.pop(block.time_s, None)
            out[i] = out[i] if why is None else self._failure("transmit", [why])
        self._lost = list(lost.items())
        return out

    def failed_transmissions(self) -> list[tuple[float, DeviceError]]:
        lost, self._lost = self._lost, []
        return [(start_s, self._failure("transmit", [why])) for start_s, why in lost]

    def _send(self, block: IqBlock, at_s: float | None, now_s: float) -> None:
        """Send a burst; `now_s`: a recent reading of the device's clock."""
        with self._uhd_errors("transmit"):
            if at_s is not None and at_s < now_s:
                raise LateTransmit(self.name, "transmit", self.state, f"{(now_s - at_s) * 1e6:.1f} µs too late")
            meta = self._uhd.types.TXMetadata()
            meta.start_of_burst = meta.end_of_burst = True
            meta.has_time_spec = at_s is not None
            if at_s is not None:
                meta.time_spec = self._uhd.types.TimeSpec(at_s)
            samples = np.ascontiguousarray(block.samples, np.complex64)
            start_s, n = now_s if at_s is None else at_s, samples.shape[1]
            end_s = start_s + n / block.sample_rate_hz
            self._queued_until_s = max(self._queued_until_s, end_s)
            # samples that do not fit into the device's buffer are accepted only while the burst is sent
            sent = self._tx.send(samples, meta, end_s - now_s + 1.0)
            self._sent.append(start_s)
            if sent < n:
                self._end_burst()
                raise DeviceTimeout(self.name, "transmit", self.state, f"the device took {sent} of {n} samples")

    def _end_burst(self) -> None:
        meta = self._uhd.types.TXMetadata()
        meta.end_of_burst = True
        self._tx.send(np.zeros((1, 0), np.complex64), meta, _SLICE_S)

    def _hear_reports(self, operation: str) -> None:
        """Take what the device has reported: one event for each burst, in their order."""
        with self._uhd_errors(operation):
            meta = self._uhd.types.TXAsyncMetadata()
            while self._tx.recv_async_msg(meta, 0.0):
                start_s = self._sent.popleft() if self._sent else -np.inf
                if meta.event_code in self._failures:
                    self._lost.append((start_s, self._failures[meta.event_code]))

    def _tell_reports(self, operation: str) -> None:
        """Raise the transmission errors that the device has reported since the last call."""
        self._hear_reports(operation)
        if self._lost:
            lost, self._lost = self._lost, []
            raise self._failure(operation, [why for _, why in lost])

    def _failure(self, operation: str, told: list[str]) -> DeviceError:
        kind = LateTransmit if "late" in told else DeviceError
        return kind(self.name, operation, self.state, "an earlier transmission failed: " + "; ".join(told))

    def _do_silence(self) -> None:
        if self._tx is None or self._muted or self._queued_until_s == -np.inf:
            return
        with self._uhd_errors("silence"):
            self._usrp.set_tx_gain(self._gain_range[0], self._options.channel)
            self._muted = True
            self._end_burst()

    def _unmute(self) -> None:
        self.check_interrupted("transmit")
        if self._muted:
            self._let_queue_pass("transmit")
            with self._uhd_errors("transmit"):
                self._usrp.set_tx_gain(self.settings.tx_gain_db, self._options.channel)
            self._muted = False

    def _let_queue_pass(self, operation: str) -> None:
        """Wait until silenced samples have left the device, because a higher gain would make them audible."""
        left_s = self._queued_until_s - self.now_s()
        if left_s > _LONGEST_DRAIN_S:
            raise self._failed(operation, f"a silenced transmission stays queued for {left_s:.1f} s: close and reopen")
        self._wait_or_fail(
            operation,
            lambda: self.now_s() >= self._queued_until_s - 1e-9,  # both times have rounding errors
            max(left_s, 0.0) + 1.0,
            "the device clock does not advance",
        )

    # ---------------------------------------------------------------- receiving

    def _do_receive(self, n_samples: int, at_s: float | None, timeout_s: float) -> IqBlock:
        self._require_stream("receive")
        self._tell_reports("receive")
        self._ask_for(n_samples, at_s)
        block = self._fetch(n_samples, at_s, timeout_s)
        self._tell_reports("receive")
        return block

    def _do_receive_many(self, windows: Sequence[Window], timeout_s: float) -> list[IqBlock | DeviceError]:
        """Queue several windows in the device, because the host is too slow to order one in the gap before it."""
        out: list[IqBlock | DeviceError] = []
        asked = 0
        for i, window in enumerate(windows):
            try:
                self.check_interrupted()
                for later in windows[asked : i + _QUEUED_CAPTURES]:
                    self._ask_for(later.n_samples, later.at_s)
                    asked += 1
                block = self._fetch(window.n_samples, window.at_s, timeout_s)
                out.append(block)
                if block.overflow:  # the windows that waited in the device were dropped as well
                    asked = i + 1
            except DeviceError as exc:
                out.append(exc)
                if self._rx is not None:
                    self._flush()
                asked = i + 1
        if self._tx is not None:
            self._hear_reports("receive")
        return out

    def _ask_for(self, n_samples: int, at_s: float | None) -> None:
        """Order a capture."""
        self._require_stream("receive")
        types = self._uhd.types
        command = types.StreamCMD(types.StreamMode.num_done)
        command.num_samps = n_samples
        command.stream_now = at_s is None
        if at_s is not None:
            command.time_spec = types.TimeSpec(at_s + self._delay_samples / self.settings.sample_rate_hz)
        with self._uhd_errors("receive"):
            self._rx.issue_stream_cmd(command)

    def _fetch(self, n_samples: int, at_s: float | None, timeout_s: float) -> IqBlock:
        """Return the samples of the capture that was ordered first."""
        rate_hz = self.settings.sample_rate_hz
        delay_s = self._delay_samples / rate_hz
        whole = False
        with self._uhd_errors("receive"):
            try:
                stamp_s, samples, lost = self._collect(n_samples, None if at_s is None else at_s + delay_s, timeout_s)
                whole = not lost
            finally:
                if not whole and self._rx is not None:
                    self._flush()
        # UHD scales by 1/32767, so that the lowest code is slightly beyond full scale
        np.clip(samples.view(np.float32), -1.0, 1.0, out=samples.view(np.float32))
        return IqBlock(samples, rate_hz, stamp_s - delay_s, lost)

    def _collect(self, n_samples: int, start_s: float | None, timeout_s: float) -> tuple[float, C64, bool]:
        """Return (time stamp of the first sample, (1, sample), whether any are missing); gaps are zeros.

        Every chunk is placed by its time stamp, so that neither a gap nor the rest of an abandoned capture can shift
        anything.
        """
        codes, rate_hz = self._uhd.types.RXMetadataErrorCode, self.settings.sample_rate_hz
        out, chunk = np.zeros((1, n_samples), np.complex64), np.empty((1, n_samples), np.complex64)
        meta = self._uhd.types.RXMetadata()
        deadline = time.monotonic() + timeout_s
        placed, lost, stamp_s = 0, False, start_s
        while placed < n_samples:
            self.check_interrupted()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                if lost:
                    break
                raise DeviceTimeout(
                    self.name, "receive", self.state, f"{placed} of {n_samples} samples within {timeout_s:g} s"
                )
            count = self._rx.recv(chunk, meta, min(left_s, _SLICE_S))
            code = meta.error_code
            if count:
                chunk_s = meta.time_spec.get_real_secs()
                if start_s is None:
                    start_s = stamp_s = chunk_s
                first = round((chunk_s - start_s) * rate_hz)
                if first == 0:
                    stamp_s = chunk_s
                low, high = max(first, 0), min(first + count, n_samples)
                if high > low:
                    out[:, low:high] = chunk[:, low - first : high - first]
                lost = lost or low > placed
                placed = max(placed, first + count)
            if code == codes.overflow:
                lost = True
                deadline = min(deadline, time.monotonic() + _AFTER_LOSS_S)
            elif code == codes.late:
                raise self._failed("receive", f"the reception was asked for too late; device time {self.now_s():.6f} s")
            elif code not in (codes.none, codes.timeout):
                raise self._failed("receive", f"UHD reports {meta.strerror()}")
        if stamp_s is None:  # samples were lost before the first arrived
            raise self._failed("receive", "overflow: no sample arrived")
        return stamp_s, out, lost

    def _flush(self) -> None:
        """Stop the stream and read the samples that are left in it, so that the next reception does not begin with
        them.
        """
        types = self._uhd.types
        meta, rest = types.RXMetadata(), np.empty((1, self._rx.get_max_num_samps()), np.complex64)
        self._rx.issue_stream_cmd(types.StreamCMD(types.StreamMode.stop_cont))
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            if self._rx.recv(rest, meta, 0.01) == 0 and meta.error_code == types.RXMetadataErrorCode.timeout:
                return

    # ---------------------------------------------------------------- closing and failing

    def _do_close(self) -> None:
        self._rx = self._tx = self._usrp = None  # UHD closes a device when there is no reference to it

    def _device(self, operation: str) -> Any:
        if self._usrp is None:
            lost = "the radio is closed" if self.state == "closed" else "the device was lost: configure() reopens it"
            raise self._failed(operation, lost)
        return self._usrp

    def _require_stream(self, operation: str) -> None:
        self._device(operation)
        if self._rx is None or self._tx is None:
            raise self._failed(operation, "the last configure() failed: call it again")

    @contextlib.contextmanager
    def _uhd_errors(self, operation: str) -> Iterator[None]:
        """Turn UHD's exceptions, all of which are RuntimeErrors, into DeviceError; the next `configure` reopens the
        device."""
        try:
            yield
        except RuntimeError as exc:
            self._rx = self._tx = self._usrp = None
            text = " ".join(str(exc).split()) or type(exc).__name__
            raise self._failed(operation, f"UHD: {text}") from exc

    def _failed(self, operation: str, detail: str) -> DeviceError:
        return DeviceError(self.name, operation, self.state, detail)

    def _wait_or_fail(self, operation: str, done: Callable[[], bool], timeout_s: float, detail: str) -> None:
        deadline, looks = time.monotonic() + timeout_s, 0
        while not done():
            looks += 1
            if looks >= _LOOKS and time.monotonic() >= deadline:
                raise self._failed(operation, detail)
            time.sleep(_POLL_S)


def _failures(codes: Any) -> dict[Any, str]:
    """Return what is said of each event that the device reports of a failed transmission."""
    return {
        codes.time_error: "late",
        codes.underflow: "underflow: the host was too slow",
        codes.underflow_in_packet: "underflow inside a packet: the host was too slow",
        codes.seq_error: "packets were lost on the way to the device",
        codes.seq_error_in_packet: "packets were lost on the way to the device",
    }


def _text(usrp: Any, path: str) -> str:
    """Return a string property, empty where this kind of device has none."""
    tree = usrp.get_tree()
    return str(tree.access_str(path).get()) if tree.exists(path) else ""
