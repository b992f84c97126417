"""ADALM-PLUTO (PlutoSDR) through libiio, by pyadi-iio.

A stock Pluto cannot time its samples: it repeats a transmission until it is silenced, and a reception starts when the
host requests it. Comments mark the measures against its other pitfalls; each measure has a test in
`tests/system/test_pluto_traps.py` that fails without it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from msgspec import Meta, Struct

from testbed.core.errors import DeviceError, DeviceTimeout
from testbed.core.options import driver_options
from testbed.core.radio import FoundRadio, Limits, Radio, RadioCapabilities, RadioSettings
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext

log = logging.getLogger("testbed.node")
_ADC_FULL_SCALE = np.float32(1 / 2048)
"""12 bits, sign-extended to 16."""
_DAC_FULL_SCALE = np.float32(32767)
_LONGEST_CAPTURE = 1 << 22
"""The kernel's limit of 16 MiB for one buffer (`max_block_size` of industrialio-buffer-dma), at four bytes a sample."""
_LOWEST_RATE_HZ = 521e3
"""Lowest sample rate; below it pyadi-iio has no filter to load."""
_GRACE_S = 1.0
"""How much longer than its own timeout a call into libiio may take before it is given up."""
_CONNECTION_LOST = {
    errno.EPIPE, errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ENOTCONN, errno.ENODEV, errno.EBADF,
    errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ESHUTDOWN,
}  # fmt: skip
_MODELS = {
    "ad9363a": ("PlutoSDR as sold (ad9363a)", (325e6, 3.8e9), 20e6),
    "ad9364": ("PlutoSDR unlocked as ad9364", (70e6, 6e9), 40e6),
}
"""Model → name for messages, carriers, analogue bandwidth that both directions have."""
INSTALL = "apt-get install libiio0; pip install pyadi-iio==0.0.21 pylibiio==0.25"

T = TypeVar("T")


class PlutoOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `options` in a Pluto's lab table."""

    uri: str | None = None
    """Its address, `ip:192.168.2.1` or `usb:1.2.5`; default: the device with this serial number is searched for."""
    serial: str | None = None
    """Hardware serial number that the device must have; unlike an address, it cannot belong to another device later."""
    timeout_s: Annotated[float, Meta(gt=0)] = 3.0
    """Longest time of one exchange with the device."""
    variant: Literal["ad9363a", "ad9364"] | None = None
    """ad9363a: as sold; ad9364: unlocked. With this key, an experiment beyond its range is refused before anything
    starts."""


@dataclass(slots=True)
class _Device:
    """One connection, with the channels and attributes that were found in it."""

    sdr: Any
    adc: Any
    dac: Any
    tx_powerdown: Any


class Pluto(Radio):
    """A PlutoSDR. Options: the fields of `PlutoOptions`.

    When the connection is lost while the transmitter may be on, the driver silences it over a new one, at once if the
    device can still be reached; `configure` opens the device again.
    """

    options_type = PlutoOptions

    limits = Limits(
        carrier_hz=(70e6, 6e9), sample_rate_hz=(_LOWEST_RATE_HZ, 61.44e6), tx_gain_db=(-89.75, 0.0),
        rx_gain_db=(-3.0, 71.0), device="PlutoSDR",
    )  # fmt: skip

    @classmethod
    def limits_of(cls, options: Mapping[str, Any]) -> Limits:
        found = _MODELS.get(options.get("variant") or "")
        if found is None:
            return cls.limits
        return replace(cls.limits, device=found[0], carrier_hz=found[1], bandwidth_hz=found[2])

    @classmethod
    def discover(cls, addresses: Sequence[str] = ()) -> list[FoundRadio]:
        """Open all devices that libiio lists or that are at these addresses (`ip:…`, `usb:…`), each device once."""
        _, iio = _libraries("pluto")
        listed: dict[str, str] = {}
        with contextlib.suppress(OSError):  # without Avahi, libiio raises an error of another library
            listed = {u: text for u, text in iio.scan_contexts().items() if "PLUTO" in text.upper()}
        given = [a for a in addresses if a.partition(":")[0] in ("ip", "usb", "serial", "local")]
        # USB addresses come first, because all Plutos have the same IP address on the network that they create.
        uris = dict.fromkeys([*given, *sorted(listed, key=lambda uri: (not uri.startswith("usb:"), uri))])
        found: dict[str, FoundRadio] = {}
        for uri in uris:
            try:
                with cls("pluto", DriverContext(0, None, None, Path()), uri=uri) as radio:
                    one = radio._found(uri)
            except DeviceError as exc:
                log.warning("%s", exc)
                continue
            found.setdefault(one.serial or uri, one)
        return list(found.values())

    def _found(self, uri: str) -> FoundRadio:
        caps, serial = self.capabilities, str(self._identity.get("serial", ""))
        variant = "ad9363a" if caps.carrier_hz[0] > _MODELS["ad9364"][1][0] else "ad9364"
        options = {"uri": uri, **({"serial": serial} if serial else {}), "variant": variant}
        return FoundRadio(options, serial, f"{_MODELS[variant][0]} at {uri}", caps.tx_gain_db, caps.rx_gain_db)

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        super().__init__(name)
        checked = driver_options(options, PlutoOptions, name)
        self._adi, self._iio = _libraries(name)
        self._uri, self._serial, self._timeout_s = checked.uri, checked.serial, checked.timeout_s
        self._device: _Device | None = None
        self._rx_buffer: Any = None
        self._tx_buffer: Any = None
        """The cyclic buffer; it stays open, and repeats its samples, while the transmitter is powered down."""
        self._tx_levels = b""
        """The samples in it."""
        self._may_radiate = False
        """Whether its transmitter is on or in an unknown state."""
        self._ranges: dict[str, Any] = {}
        """Capabilities that the device reports once it is open."""
        self._bandwidth_hz = {"rx": (200e3, 20e6), "tx": (200e3, 20e6)}
        """Bandwidths of the analogue filters."""
        self._identity: dict[str, Any] = {}
        self._worker = _Worker(name)
        try:
            self._call("open", self._open)
        except BaseException:
            self._worker.stop()
            raise
        # libiio crashes where the interpreter deletes contexts before their buffers
        atexit.register(self._close_at_exit)

    # ---------------------------------------------------------------- Radio

    @property
    def capabilities(self) -> RadioCapabilities:
        return RadioCapabilities(
            timed=False, n_antennas=1, turnaround_s=5e-3, longest_capture=_LONGEST_CAPTURE, **self._ranges
        )

    def identity(self) -> dict[str, Any]:
        return {"driver": "pluto", **self._identity}

    def now_s(self) -> float:
        """Return the host's clock, because the device has no clock that can be read."""
        return time.monotonic()

    def interrupt(self) -> None:
        super().interrupt()
        buffer = self._rx_buffer
        if buffer is not None:  # that of a train lasts up to a second, and `silence` waits for its end
            buffer.cancel()

    def _do_configure(self, settings: RadioSettings) -> RadioSettings:
        known = self._device is not None
        try:
            return self._call("configure", lambda: self._retune(settings))
        except DeviceError:
            if not known or self._device is not None:
                raise
            # An idle connection may have dropped unnoticed, and the device may already be back.
            return self._call("configure", lambda: self._retune(settings))

    def _do_transmit(self, block: IqBlock, at_s: float | None) -> None:
        parts = np.ascontiguousarray(block.samples[0], np.complex64).view(np.float32)
        levels = np.rint(parts * _DAC_FULL_SCALE).astype("<i2")
        if block.samples.shape[1] % 2:  # the DMA engine moves eight bytes at a time
            levels = np.tile(levels, 2)
        self._call("transmit", lambda: self._play(levels.tobytes()))

    def _do_receive(self, n_samples: int, at_s: float | None, timeout_s: float) -> IqBlock:
        # allocated here, because memory that other threads free goes back to the system
        parts = np.empty(2 * n_samples, np.float32)
        time_s = self._call("receive", lambda: self._capture(parts), timeout_s)
        return IqBlock(parts.view(np.complex64)[None, :], self.settings.sample_rate_hz, time_s)

    def _do_silence(self) -> None:
        if self._device is not None:
            try:
                self._call("silence", self._mute)
            except DeviceError:
                if self._device is not None or self._may_radiate:
                    raise
        elif self._may_radiate:
            self._call("silence", self._mute_anew)

    def _do_close(self) -> None:
        atexit.unregister(self._close_at_exit)
        try:
            if self._device is not None:
                self._call("close", self._leave_quiet)
        finally:
            self._worker.stop()

    def _close_at_exit(self) -> None:
        try:
            self.close()
        except DeviceError as exc:
            log.error("%s", exc)

    # ---------------------------------------------------------------- in the worker's thread

    def _open(self) -> _Device:
        uri = self._uri or self._find()
        try:
            sdr = self._adi.Pluto(uri=uri)
        except Exception as exc:  # pyadi-iio raises plain Exceptions, and hides libiio's errors
            why = exc.__context__.strerror if isinstance(exc.__context__, OSError) else exc
            raise self._error(
                "open", f"no PlutoSDR at {uri} ({why}): check cable and address; `iio_info -s` lists what is there"
            ) from exc
        found = sdr.ctx.attrs.get("hw_serial", "")
        if self._serial is not None and found != self._serial:
            raise self._error(
                "open", f"the device at {uri} has serial number {found!r}, the lab file states {self._serial!r}: "
                f"correct uri or serial in [node.{self.name}.options]",
            )  # fmt: skip
        # the device gives up after half of the client's timeout
        sdr.ctx.set_timeout(int(2000 * self._timeout_s))
        # with the default of four, receptions are up to four buffers old
        sdr._rxadc.set_kernel_buffers_count(1)
        phy = sdr._ctrl
        rx, tx = phy.find_channel("voltage0", False), phy.find_channel("voltage0", True)
        los = [phy.find_channel(f"altvoltage{i}", True) for i in (0, 1)]
        lo_hz = [_range(lo, "frequency_available") for lo in los]
        ranges = {
            "sample_rate_hz": (_LOWEST_RATE_HZ, _range(rx, "sampling_frequency_available")[1]),
            "carrier_hz": (max(lo_hz[0][0], lo_hz[1][0]), min(lo_hz[0][1], lo_hz[1][1])),
            "tx_gain_db": _range(tx, "hardwaregain_available"),
            "rx_gain_db": _range(rx, "hardwaregain_available"),
        }
        for direction in (sdr._rxadc, sdr._txdac):
            for i in range(2):
                direction.find_channel(f"voltage{i}", direction is sdr._txdac).enabled = True
        device = _Device(sdr, sdr._rxadc, sdr._txdac, los[1].attrs["powerdown"])
        self._worker.require_heard("open")
        has_tdd = self._stop_tdd(sdr)
        self._ranges = ranges
        self._bandwidth_hz = {"rx": _range(rx, "rf_bandwidth_available"), "tx": _range(tx, "rf_bandwidth_available")}
        self._identity = {
            "serial": found,
            "firmware": sdr.ctx.attrs.get("fw_version", ""),
            "model": sdr.ctx.attrs.get("hw_model", ""),
            "libiio": ".".join(str(x) for x in self._iio.version[:2]),
            "uri": uri,
            "tdd_engine": has_tdd,
        }
        self._device, self._may_radiate = device, True
        return device

    def _stop_tdd(self, sdr: Any) -> bool:
        """Stop the FPGA's TDD engine (firmware from 0.39 on) if another program has left it enabled, because the
        receiver would wait for its frames. Returns whether there is one."""
        engine = sdr.ctx.find_device("iio-axi-tdd-0")
        if engine is not None and engine.attrs["enable"].value.strip() == "1":
            engine.attrs["enable"].value = "0"
            log.warning("%s: the TDD engine was enabled by another program, and is stopped", self.name)
        return engine is not None

    def _find(self) -> str:
        """Return the URI of the device with the serial number."""
        table = f"[node.{self.name}.options]"
        if self._serial is None:
            raise self._error("open", f"choose the device in {table}: uri = …, or serial = …")
        try:
            there = self._iio.scan_contexts()
        except OSError as exc:  # without Avahi, libiio raises an error of another library
            raise self._error(
                "open", f"libiio cannot look for serial number {self._serial!r} (no avahi-daemon here?): "
                f"give its uri in {table}, e.g. uri = \"ip:192.168.2.1\"",
            ) from exc  # fmt: skip
        for uri, description in there.items():
            if f"serial={self._serial}" in description:
                return str(uri)
        raise self._error(
            "open", f"no device with serial number {self._serial!r} among the {len(there)} that answer: check cable "
            f"and number, or give its uri in {table}",
        )  # fmt: skip

    def _retune(self, settings: RadioSettings) -> RadioSettings:
        device = self._device or self._open()  # a lost device may be back
        sdr = device.sdr
        self._mute()
        self._tx_buffer = None
        self._zero_tones()
        # A new rate resets gains, and a new carrier calibrates; hence the order: rate, carrier, gains.
        sdr.sample_rate = round(settings.sample_rate_hz)
        for side, (low, high) in self._bandwidth_hz.items():
            setattr(sdr, f"{side}_rf_bandwidth", round(min(max(settings.sample_rate_hz, low), high)))
        sdr.rx_lo = sdr.tx_lo = round(settings.carrier_hz)
        sdr.gain_control_mode_chan0 = "manual"  # otherwise pyadi-iio ignores the next line without an error
        sdr.rx_hardwaregain_chan0 = settings.rx_gain_db
        sdr.tx_hardwaregain_chan0 = settings.tx_gain_db
        return RadioSettings(
            carrier_hz=float(sdr.rx_lo),
            sample_rate_hz=float(sdr.sample_rate),
            tx_gain_db=float(sdr.tx_hardwaregain_chan0),
            rx_gain_db=float(sdr.rx_hardwaregain_chan0),
        )

    def _play(self, levels: bytes) -> None:
        device = self._here()
        if self._tx_buffer is None or levels != self._tx_levels:
            self._tx_buffer = None  # a cyclic buffer must be destroyed before the next one is made
            buffer = self._iio.Buffer(device.dac, len(levels) // 4, True)
            buffer.write(bytearray(levels))
            buffer.push()
            self._worker.require_heard("transmit")  # after a timeout, no caller would silence it
            self._tx_buffer, self._tx_levels = buffer, levels
        self._may_radiate = True
        device.tx_powerdown.value = "0"

    def _capture(self, parts: np.ndarray) -> float:
        """Fill `parts` (I, Q, I, Q, …; full scale 1) with samples from after the call; return the host's time of it."""
        adc = self._here().adc
        time_s = time.monotonic()
        buffer = self._rx_buffer = self._iio.Buffer(adc, parts.size // 2, False)
        try:
            self.check_interrupted()
            buffer.refill()
            # Not Pluto.rx(), which copies every channel and makes doubles of it. Nor Buffer.read(), which copies
            # everything.
            start, end = (f(buffer._buffer) for f in (self._iio._buffer_start, self._iio._buffer_end))
            raw = np.frombuffer((ctypes.c_char * (end - start)).from_address(start), "<i2", count=parts.size)
            np.multiply(raw, _ADC_FULL_SCALE, out=parts)
            return time_s
        finally:
            # The buffer is destroyed each time, because an open one contains an old block.
            if self._rx_buffer is buffer:
                self._rx_buffer = None

    def _mute(self) -> None:
        """Stop all emission from the antenna, the carrier's leak included.

        The local oscillator alone does it. The buffer stays open: in most rounds the same frame is sent again, and a
        new buffer takes several ms.
        """
        self._here().tx_powerdown.value = "1"
        self._worker.require_heard("silence")
        self._may_radiate = False

    def _mute_anew(self) -> None:
        """Silence the transmitter over a connection made for that; the device stays lost until it is configured."""
        self._open()
        self._leave_quiet()

    def _zero_tones(self) -> None:
        """Silence the tone generators, which transmit while no buffer is open."""
        for channel in self._here().dac.channels:
            if "scale" in channel.attrs and channel.attrs["scale"].value not in ("0", "0.000000"):
                channel.attrs["scale"].value = "0"

    def _leave_quiet(self) -> None:
        try:
            self._mute()
            self._tx_buffer = None  # without a buffer the tone generators take over, at once
            self._zero_tones()
        finally:
            self._release()

    def _release(self) -> None:
        """Release everything, buffers before their context."""
        self._worker.require_heard("close")
        self._tx_buffer = self._rx_buffer = None
        self._device = None

    def _here(self) -> _Device:
        assert self._device is not None  # ensured by _call and the jobs above
        return self._device

    # ---------------------------------------------------------------- around it

    def _call(self, operation: str, job: Callable[[], T], timeout_s: float | None = None) -> T:
        """Run a job in the worker's thread; libiio's errors become DeviceError, a job that hangs DeviceTimeout."""
        if self._device is None and operation in ("transmit", "receive"):
            raise self._error(operation, "the device was lost: configure() looks for it again")
        limit_s = (self._timeout_s if timeout_s is None else timeout_s) + _GRACE_S
        try:
            return self._worker.run(job, limit_s)
        except _GivenUp as exc:
            # libiio can block for good (a pulled cable): that thread is abandoned to it, and the next job gets a new
            # one
            told = self._lose(operation)
            detail = f"no answer from libiio within {limit_s:g} s: check cable and address; {told}"
            raise DeviceTimeout(self.name, operation, self.state, detail) from exc
        except DeviceError:
            raise
        except Exception as exc:  # OSError from libiio, bare Exceptions from pyadi-iio
            if operation == "receive":
                self.check_interrupted()  # which cancels it, as if the connection were lost
            number = exc.errno if isinstance(exc, OSError) else None
            if number == errno.ETIMEDOUT:
                # A late answer would be mistaken for that to the next request, so a new connection is made.
                detail = f"no samples in time ({exc}): {self._lose(operation)}"
                raise DeviceTimeout(self.name, operation, self.state, detail) from exc
            if number in _CONNECTION_LOST:
                told = self._lose(operation)
                raise self._error(operation, f"connection lost ({exc}): check the cable; {told}") from exc
            raise self._error(operation, str(exc)) from exc

    def _lose(self, operation: str) -> str:
        """Give a connection up, and silence its transmitter; return the result and the next step as text."""
        self._abandon()
        again = "configure() opens the device again"
        if not self._may_radiate or operation not in ("transmit", "receive", "silence"):
            return again
        try:
            self._worker.run(self._mute_anew, self._timeout_s + _GRACE_S)
        except Exception as exc:  # the first failure is the one to report
            log.info("%s: silencing it over a new connection: %s", self.name, exc)
            self._abandon()
            return f"{again}; its transmitter may still be on"
        return f"{again}; its transmitter was silenced"

    def _abandon(self) -> None:
        """Abandon device and thread; they end when libiio returns."""
        if self._rx_buffer is not None:
            self._rx_buffer.cancel()
        held = [self._device, self._rx_buffer, self._tx_buffer]  # cleared from its end: buffers before their context
        self._device = self._rx_buffer = self._tx_buffer = None
        self._worker.post(held.clear)
        self._worker.stop()
        self._worker = _Worker(self.name)

    def _error(self, operation: str, detail: str) -> DeviceError:
        return DeviceError(self.name, operation, self.state, detail)


class _GivenUp(Exception):
    """A job took too long. Not TimeoutError, which Python raises for libiio's own ETIMEDOUT."""


class _Worker:
    """A thread for calls from which libiio may never return, one job after the other."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"{name}-libiio", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def require_heard(self, operation: str) -> None:
        """Raise in a job that returned after its caller had given it up, because nothing waits for its result."""
        if threading.current_thread() is not self._thread:
            raise _GivenUp(operation)

    def post(self, job: Callable[[], Any]) -> None:
        self._jobs.put(job)

    def run(self, job: Callable[[], T], limit_s: float) -> T:
        """Return the job's result, or raise its error; _GivenUp where there is neither in time."""
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def do() -> None:
            try:
                answer.put((True, job()))
            except BaseException as exc:
                # The traceback would keep buffers alive. The next open would then be refused as busy, and the
                # interpreter would crash if it deleted a context before them.
                traceback.clear_frames(exc.__traceback__)
                answer.put((False, exc))

        self._jobs.put(do)
        try:
            good, value = answer.get(timeout=limit_s)
        except queue.Empty:
            raise _GivenUp from None
        if not good:
            raise value
        return value

    def stop(self) -> None:
        """End the thread after its present job."""
        self._jobs.put(None)


def _libraries(name: str) -> tuple[Any, Any]:
    """Import the libraries for a Pluto; raises DeviceError that says what to install."""
    try:
        import adi
        import iio
    except (ImportError, OSError, AttributeError) as exc:  # pylibiio raises the last two without the C library
        raise DeviceError(name, "open", "closed", f"a PlutoSDR needs libiio 0.2x ({exc}): {INSTALL}") from exc
    return adi, iio


def _range(channel: Any, attribute: str) -> tuple[float, float]:
    """Return the ends of `[lowest step highest]`."""
    low, _, high = channel.attrs[attribute].value.strip("[] ").split()
    return float(low), float(high)
