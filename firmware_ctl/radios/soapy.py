"""Radios behind SoapySDR: LimeSDR, bladeRF, HackRF, RTL-SDR and all others with a SoapySDR module.

The driver follows the device's reported capabilities: with a hardware time its samples are timed; without one it
repeats its transmission from a thread of this driver until silenced; without a transmit channel it only receives and is
accepted for Eve. Needs Debian's python3-soapysdr and the module of the device (`SoapySDRUtil --find` lists devices).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from testbed.core.errors import DeviceError, DeviceTimeout, LateTransmit
from testbed.core.options import driver_options
from testbed.core.radio import FoundRadio, Radio, RadioCapabilities, RadioSettings
from testbed.core.types import C64, IqBlock
from testbed.core.world import DriverContext

log = logging.getLogger("testbed.node")
_SLICE_US = 100_000
"""Longest wait within one call of the library."""
_UNITS = (("NONE", 0), ("TIMEOUT", -1), ("STREAM_ERROR", -2), ("CORRUPTION", -3), ("OVERFLOW", -4),
          ("NOT_SUPPORTED", -5), ("TIME_ERROR", -6), ("UNDERFLOW", -7))  # fmt: skip
_CODES = {code: name.lower().replace("_", " ") for name, code in _UNITS}
"""SoapySDR's return values, from its Errors.h."""
_OVERFLOW, _TIMEOUT, _TIME_ERROR, _UNDERFLOW = -4, -1, -6, -7
_FIRST_S = 2.0
"""Longest time for a device to accept the first samples of a repeated frame."""
_AHEAD_S = 0.05
"""Length of a repeated frame written at a time: short enough to stop, long enough for the host to keep up."""
INSTALL = "apt-get install python3-soapysdr, and an environment made with --system-site-packages"


class SoapyOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `options` in the lab table of a radio behind SoapySDR."""

    args: str = ""
    """Device arguments of SoapySDR: `driver=lime`, `driver=rtlsdr,serial=00000001`."""
    serial: str | None = None
    """Serial number; another device than this one is refused."""
    channel: Annotated[int, Meta(ge=0, le=15)] = 0
    rx_antenna: str | None = None
    """Default: the device's own choice."""
    tx_antenna: str | None = None
    turnaround_s: Annotated[float, Meta(gt=0, le=1)] = 2e-3
    settle_s: Annotated[float, Meta(ge=0, le=5)] = 5e-3
    """Samples received for this long after a retune are discarded: oscillators settle, and buffers contain old
    samples."""


def load_soapy() -> Any:
    """Import SoapySDR's module, which comes with the operating system; raises ImportError."""
    import SoapySDR

    return SoapySDR


class Soapy(Radio):
    """A radio behind SoapySDR. Options: the fields of `SoapyOptions`."""

    options_type = SoapyOptions

    @classmethod
    def discover(cls, addresses: Sequence[str] = ()) -> list[FoundRadio]:
        """Open the devices that SoapySDR finds; `addresses` with an `=` are its arguments, as `driver=rtlsdr`."""
        lib = _library("soapy")
        listed = [dict(found) for found in lib.Device.enumerate("")]
        wanted = [
            _args({k: d[k] for k in ("driver", "serial") if k in d}) for d in listed if d.get("driver") != "audio"
        ]
        found: dict[str, FoundRadio] = {}
        for args in dict.fromkeys([*wanted, *(a for a in addresses if "=" in a)]):
            try:
                with cls("soapy", DriverContext(0, None, None, Path()), args=args) as radio:
                    caps, who = radio.capabilities, radio.identity()
            except DeviceError as exc:
                log.warning("%s", exc)
                continue
            options = {"args": args, **({"serial": who["serial"]} if who["serial"] else {})}
            one = FoundRadio(
                options, who["serial"], f"{who['product']} through SoapySDR", caps.tx_gain_db, caps.rx_gain_db,
                caps.can_transmit,
            )  # fmt: skip
            found.setdefault(who["serial"] or args, one)
        return list(found.values())

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        super().__init__(name)
        self._options = driver_options(options, SoapyOptions, name)
        self._lib = _library(name)
        self._rx: Any = None
        self._tx: Any = None
        self._tx_active = False
        self._fresh = False
        """Whether no sample was received since the last retune."""
        self._repeater: _Repeater | None = None
        self._timed = False
        self._device: Any = self._open()

    # ---------------------------------------------------------------- Radio

    @property
    def capabilities(self) -> RadioCapabilities:
        return self._capabilities

    def identity(self) -> dict[str, Any]:
        return {"driver": "soapy", **self._identity}

    def now_s(self) -> float:
        """Return the device's clock, or the host's where the device has none."""
        return self._device.getHardwareTime("") * 1e-9 if self._timed else time.monotonic()

    def use_timing(self, timed: bool) -> None:
        if timed and not self._has_time:
            super().use_timing(timed)
        self._timed = timed
        self._capabilities = self._ranges()

    def _open(self) -> Any:
        o, lib = self._options, self._lib
        args = o.args if o.serial is None or "serial=" in o.args else f"{o.args},serial={o.serial}".strip(",")
        try:
            device = lib.Device(args)
        except RuntimeError as exc:
            seen = ", ".join(_args(dict(d)) for d in lib.Device.enumerate("")) or "no device"
            raise self._failed("open", f"no device for args = {args!r} ({exc}); SoapySDR finds: {seen}") from exc
        info = {str(k): str(v) for k, v in dict(device.getHardwareInfo()).items()}
        serial = info.get("serial", "")
        if o.serial is not None and serial and serial != o.serial:
            raise self._failed("open", f"serial number {serial!r} answers instead of {o.serial!r}")
        self._can_transmit = device.getNumChannels(lib.SOAPY_SDR_TX) > o.channel
        if device.getNumChannels(lib.SOAPY_SDR_RX) <= o.channel:
            raise self._failed("open", f"channel = {o.channel}; this device has fewer receive channels")
        self._has_time = self._timed = bool(device.hasHardwareTime(""))
        self._identity = {
            "serial": serial or (o.serial or ""),
            "product": device.getHardwareKey() or device.getDriverKey(),
            "module": device.getDriverKey(),
            **{f"hardware_{k}": v for k, v in sorted(info.items()) if k != "serial"},
        }
        self._device = device
        self._capabilities = self._ranges()
        return device

    def _ranges(self) -> RadioCapabilities:
        device, channel = self._device, self._options.channel
        rx, tx = self._lib.SOAPY_SDR_RX, self._lib.SOAPY_SDR_TX

        def both(ask: Any) -> tuple[float, float]:
            ranges = [_span(ask(side, channel)) for side in ((rx, tx) if self._can_transmit else (rx,))]
            return max(low for low, _ in ranges), min(high for _, high in ranges)

        return RadioCapabilities(
            timed=self._timed,
            n_antennas=1,
            sample_rate_hz=both(device.getSampleRateRange),
            carrier_hz=both(device.getFrequencyRange),
            tx_gain_db=_span([device.getGainRange(tx, channel)]) if self._can_transmit else (0.0, 0.0),
            rx_gain_db=_span([device.getGainRange(rx, channel)]),
            turnaround_s=self._options.turnaround_s,
            can_transmit=self._can_transmit,
        )

    # ---------------------------------------------------------------- configuring

    def _do_configure(self, settings: RadioSettings) -> RadioSettings:
        self._do_silence()
        self._close_streams()
        device, lib, o = self._device, self._lib, self._options
        sides = [(lib.SOAPY_SDR_RX, settings.rx_gain_db, o.rx_antenna)]
        if self._can_transmit:
            sides.append((lib.SOAPY_SDR_TX, settings.tx_gain_db, o.tx_antenna))
        try:
            for side, gain_db, antenna in sides:
                if antenna is not None:
                    device.setAntenna(side, o.channel, antenna)
                if device.hasGainMode(side, o.channel):
                    device.setGainMode(side, o.channel, False)  # automatic gain would destroy reciprocity
                device.setSampleRate(side, o.channel, settings.sample_rate_hz)
                device.setFrequency(side, o.channel, settings.carrier_hz)
                device.setGain(side, o.channel, gain_db)
            accepted = [
                (device.getFrequency(s, o.channel), device.getSampleRate(s, o.channel), device.getGain(s, o.channel))
                for s, _, _ in sides
            ]
            self._rx = device.setupStream(lib.SOAPY_SDR_RX, lib.SOAPY_SDR_CF32, [o.channel])
            if self._can_transmit:
                self._tx = device.setupStream(lib.SOAPY_SDR_TX, lib.SOAPY_SDR_CF32, [o.channel])
        except RuntimeError as exc:
            raise self._failed("configure", f"SoapySDR: {exc}") from exc
        for what, place in (("carrier", 0), ("sample rate", 1)):
            if abs(accepted[0][place] - accepted[-1][place]) > 1.0:
                raise self._failed(
                    "configure", f"{what}: the receiver took {accepted[0][place]:.1f} Hz, the transmitter "
                    f"{accepted[-1][place]:.1f} Hz",
                )  # fmt: skip
        self._fresh = True
        return RadioSettings(
            carrier_hz=float(accepted[0][0]),
            sample_rate_hz=float(accepted[0][1]),
            tx_gain_db=float(accepted[1][2]) if self._can_transmit else settings.tx_gain_db,
            rx_gain_db=float(accepted[0][2]),
        )

    def _close_streams(self) -> None:
        for stream in (self._rx, self._tx):
            if stream is not None:
                self._device.closeStream(stream)
        self._rx = self._tx = None
        self._tx_active = False

    # ---------------------------------------------------------------- transmitting

    def _do_transmit(self, block: IqBlock, at_s: float | None) -> None:
        self._stop_repeating()
        self._tell_reports("transmit")
        if at_s is not None and at_s < self.now_s():
            late_s = self.now_s() - at_s
            raise LateTransmit(self.name, "transmit", self.state, f"{1e6 * late_s:.1f} µs too late")
        samples = np.ascontiguousarray(block.samples[0], np.complex64)
        self._activate_tx()
        if self._timed:
            start_s = self.now_s() if at_s is None else at_s
            end_s = start_s + samples.size / block.sample_rate_hz
            flags = self._lib.SOAPY_SDR_END_BURST | (0 if at_s is None else self._lib.SOAPY_SDR_HAS_TIME)
            self._write(samples, flags, 0 if at_s is None else round(at_s * 1e9), end_s - self.now_s() + 1.0)
            self._tell_reports("transmit")
            return
        self._repeater = _Repeater(self._device, self._tx, samples, block.sample_rate_hz, self.name)
        if not self._repeater.on_air.wait(_FIRST_S):
            self._do_silence()
            raise DeviceTimeout(self.name, "transmit", self.state, f"no sample was taken within {_FIRST_S:g} s")

    def _activate_tx(self) -> None:
        if not self._tx_active:
            code = self._device.activateStream(self._tx)
            if code:
                raise self._failed("transmit", f"SoapySDR: {_CODES.get(code, code)}")
            self._tx_active = True

    def _write(self, samples: C64, flags: int, time_ns: int, timeout_s: float) -> None:
        """Give the device a burst; its first part has the start time, its last part the end mark."""
        lib, deadline, done = self._lib, time.monotonic() + timeout_s, 0
        while done < samples.size:
            piece = samples[done:]
            own = flags if not done else flags & ~lib.SOAPY_SDR_HAS_TIME
            wrote = self._device.writeStream(self._tx, [piece], piece.size, own, time_ns if not done else 0, _SLICE_US)
            if wrote.ret == _TIME_ERROR:
                raise LateTransmit(self.name, "transmit", self.state, "the device reports that the time has passed")
            if wrote.ret < 0 and wrote.ret != _TIMEOUT:
                raise self._failed("transmit", f"SoapySDR: {_CODES.get(wrote.ret, wrote.ret)}")
            done += max(wrote.ret, 0)
            if done < samples.size and time.monotonic() > deadline:
                self._do_silence()
                raise DeviceTimeout(
                    self.name, "transmit", self.state, f"the device took {done} of {samples.size} samples"
                )

    def _tell_reports(self, operation: str) -> None:
        """Raise what the device reported of earlier transmissions; many modules never report anything."""
        if self._tx is None or not self._timed:
            return
        told = set()
        for _ in range(64):
            status = self._device.readStreamStatus(self._tx, 0)
            if status.ret in (_TIME_ERROR, _UNDERFLOW):
                told.add(status.ret)
            elif status.ret:
                break
        if told:
            kind = LateTransmit if _TIME_ERROR in told else DeviceError
            words = "; ".join(_CODES[code] for code in sorted(told))
            raise kind(self.name, operation, self.state, f"an earlier transmission failed: {words}")

    def _do_silence(self) -> None:
        self._stop_repeating()
        if self._tx_active and self._tx is not None:
            self._device.deactivateStream(self._tx)
            self._tx_active = False

    def _stop_repeating(self) -> None:
        if self._repeater is not None:
            failure = self._repeater.stop()
            self._repeater = None
            if failure:
                log.warning("%s: while it repeated its transmission: %s", self.name, failure)

    # ---------------------------------------------------------------- receiving

    def _do_receive(self, n_samples: int, at_s: float | None, timeout_s: float) -> IqBlock:
        self._tell_reports("receive")
        lib, rate_hz = self._lib, self.settings.sample_rate_hz
        if at_s is not None and at_s < self.now_s():
            raise self._failed("receive", f"asked for {1e6 * (self.now_s() - at_s):.1f} µs too late")
        drop = round(self._options.settle_s * rate_hz) if self._fresh and at_s is None else 0
        self._fresh = False
        flags = 0 if at_s is None else lib.SOAPY_SDR_HAS_TIME | lib.SOAPY_SDR_END_BURST
        began_s = time.monotonic()
        code = self._device.activateStream(
            self._rx, flags, 0 if at_s is None else round(at_s * 1e9), 0 if at_s is None else n_samples
        )
        if code:
            raise self._failed("receive", f"SoapySDR: {_CODES.get(code, code)}")
        try:
            samples, first_ns, lost = self._collect(n_samples, drop, at_s, timeout_s)
        finally:
            self._device.deactivateStream(self._rx)
        np.clip(samples.view(np.float32), -1.0, 1.0, out=samples.view(np.float32))
        if self._timed and first_ns is not None:
            return IqBlock(samples[None, :], rate_hz, first_ns * 1e-9, lost)
        # A device may deliver samples before the host's clock has reached the time of the last one.
        time.sleep(max(0.0, began_s + n_samples / rate_hz - time.monotonic()))
        return IqBlock(samples[None, :], rate_hz, began_s, lost)

    def _collect(self, n_samples: int, drop: int, at_s: float | None, timeout_s: float) -> tuple[C64, int | None, bool]:
        """Return (sample,) after `drop` others, the first one's time where the device states it, and losses.

        Timed samples are placed by their time stamps; missing ones are zero.
        """
        rate_hz, has_time = self.settings.sample_rate_hz, self._lib.SOAPY_SDR_HAS_TIME
        out = np.zeros(n_samples, np.complex64)
        piece = np.empty(max(1, min(n_samples + drop, self._device.getStreamMTU(self._rx))), np.complex64)
        deadline, placed, lost = time.monotonic() + timeout_s, -drop, False
        start_ns = None if at_s is None else round(at_s * 1e9)
        first_ns = start_ns
        while placed < n_samples:
            if time.monotonic() > deadline:
                raise DeviceTimeout(
                    self.name, "receive", self.state, f"{max(placed, 0)} of {n_samples} samples within {timeout_s:g} s"
                )
            size = min(piece.size, n_samples - placed)
            got = self._device.readStream(self._rx, [piece[:size]], size, 0, _SLICE_US)
            if got.ret == _OVERFLOW:
                lost = True
                continue
            if got.ret == _TIMEOUT:
                continue
            if got.ret < 0:
                raise self._failed("receive", f"SoapySDR: {_CODES.get(got.ret, got.ret)}")
            at = placed
            if got.flags & has_time:
                if start_ns is None:
                    start_ns = first_ns = got.timeNs - round(1e9 * placed / rate_hz)
                at = round((got.timeNs - start_ns) * 1e-9 * rate_hz)
                lost = lost or at > placed
            low, high = max(at, 0), min(at + got.ret, n_samples)
            if high > low:
                out[low:high] = piece[low - at : high - at]
            placed = max(placed, at + got.ret)
        return out, first_ns, lost

    # ---------------------------------------------------------------- closing and failing

    def _do_close(self) -> None:
        self._close_streams()
        self._device.close()

    def _failed(self, operation: str, detail: str) -> DeviceError:
        return DeviceError(self.name, operation, self.state, detail)


class _Repeater(threading.Thread):
    """Writes a frame again and again until it is stopped: SoapySDR has no function for this."""

    def __init__(self, device: Any, stream: Any, samples: C64, rate_hz: float, name: str) -> None:
        super().__init__(name=f"{name}-repeats", daemon=True)
        copies = max(1, round(_AHEAD_S * rate_hz / samples.size))
        self._device, self._stream, self._samples = device, stream, np.tile(samples, copies)
        self._over = threading.Event()
        self.on_air = threading.Event()
        """Set once the device has taken the first samples."""
        self._failure = ""
        self.start()

    def run(self) -> None:
        at = 0
        while not self._over.is_set():
            piece = self._samples[at:]
            wrote = self._device.writeStream(self._stream, [piece], piece.size, 0, 0, _SLICE_US)
            if wrote.ret < 0 and wrote.ret not in (_TIMEOUT, _UNDERFLOW):
                self._failure = f"SoapySDR: {_CODES.get(wrote.ret, wrote.ret)}"
                return
            if wrote.ret > 0:
                self.on_air.set()
                at = (at + wrote.ret) % self._samples.size

    def stop(self) -> str:
        """End the repetition; return the reason if it had ended before, else ''."""
        self._over.set()
        self.join(timeout=2.0)
        return self._failure


def _library(name: str) -> Any:
    try:
        return load_soapy()
    except ImportError as exc:
        raise DeviceError(
            name, "open", "closed", f"this radio needs SoapySDR's Python module ({exc}): {INSTALL}"
        ) from exc


def _span(ranges: Any) -> tuple[float, float]:
    """Return the lowest and the highest value of SoapySDR's list of ranges."""
    found = list(ranges)
    return min(float(r.minimum()) for r in found), max(float(r.maximum()) for r in found)


def _args(found: dict[str, str]) -> str:
    return ",".join(f"{k}={v}" for k, v in found.items())
