"""The Radio contract. A driver subclasses `Radio` and overrides the `_do_…` methods; nothing else.

The public methods validate arguments and keep the state, so that all drivers report errors in the same words.
`testbed.testing.radio` is the conformance suite of this contract.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from msgspec import Struct

from testbed.core.errors import DeviceError, LateTransmit
from testbed.core.types import IqBlock


@dataclass(frozen=True, slots=True)
class RadioCapabilities:
    """Capabilities of the device, from which the scheduler plans rounds."""

    timed: bool
    """It can start a transmission or reception at a given device time. Where False, `at_s` must be None, transmissions
    are cyclic until `silence()`, and the scheduler widens the guard."""
    n_antennas: int
    sample_rate_hz: tuple[float, float]
    carrier_hz: tuple[float, float]
    tx_gain_db: tuple[float, float]
    rx_gain_db: tuple[float, float]
    turnaround_s: float
    """Shortest time between the end of a transmission and the start of a reception, and the reverse."""
    can_transmit: bool = True
    """False: the device only receives, as an RTL-SDR does. Only Eve may use it; its transmit gain has no effect."""
    queue: int = 4
    """How many timed transmissions may wait in the device."""
    longest_capture: int = 0
    """Largest number of samples of one reception, 0: not limited by the device."""


@dataclass(frozen=True, slots=True)
class RadioSettings:
    """Settings that a radio is asked for, and, as its answer, those that it accepted."""

    carrier_hz: float
    sample_rate_hz: float
    tx_gain_db: float
    rx_gain_db: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Widest ranges (lowest, highest) that any device of a driver accepts, known without opening a device.

    A run that asks for more is refused before anything starts. A single device may accept less; its `capabilities` then
    have the narrower range. None: only the device knows its range.

    >>> Limits(carrier_hz=(70e6, 6e9)).refusal("carrier_hz", 7e9)
    '7e+09, accepted: 7e+07 to 6e+09'
    """

    carrier_hz: tuple[float, float] | None = None
    sample_rate_hz: tuple[float, float] | None = None
    tx_gain_db: tuple[float, float] | None = None
    rx_gain_db: tuple[float, float] | None = None
    device: str = ""
    """The device's name for messages; default: the driver's name."""
    bandwidth_hz: float | None = None
    """Bandwidth of its analogue filters around the carrier, for sending and receiving."""
    can_transmit: bool = True

    def refusal(self, key: str, value: float) -> str | None:
        """Return what is wrong with a value of one of the fields, None where it is accepted or not limited here."""
        limit: tuple[float, float] | None = getattr(self, key)
        if limit is None or limit[0] <= value <= limit[1]:
            return None
        return f"{value:g}, accepted: {limit[0]:g} to {limit[1]:g}"


@dataclass(frozen=True, slots=True)
class FoundRadio:
    """A device that answers, as `testbed init` writes it into a lab file."""

    options: dict[str, Any]
    """Options of the node's table with which the driver opens exactly this device."""
    serial: str
    """Empty where the device states none."""
    words: str
    """Description of the device as text."""
    tx_gain_db: tuple[float, float]
    rx_gain_db: tuple[float, float]
    can_transmit: bool = True


@dataclass(frozen=True, slots=True)
class Window:
    """One reception of a train."""

    n_samples: int
    at_s: float
    """Device time of the first sample."""


class Radio(ABC):
    """A half-duplex transceiver with its own sample clock.

    After `configure` no sample from before the retune is ever returned. A transmission in the past raises
    `LateTransmit`. `close` silences the transmitter, may be called twice, and is called at the end of a `with` block.
    Before `configure` only the clock and `silence` may be used. The clock never goes back. A radio does not receive its
    own transmission.

    >>> class Deaf(Radio):
    ...     "Hears zeros; the least that a driver has to provide."
    ...     capabilities = RadioCapabilities(False, 1, (1e6, 2e7), (7e7, 6e9), (-80, 0), (0, 70), 1e-3)
    ...     def _do_configure(self, settings):
    ...         return settings
    ...     def _do_transmit(self, block, at_s): ...
    ...     def _do_receive(self, n_samples, at_s, timeout_s):
    ...         return IqBlock(np.zeros((1, n_samples), np.complex64), self.settings.sample_rate_hz, self.now_s())
    ...     def _do_silence(self): ...
    ...     def _do_close(self): ...
    ...     def now_s(self):
    ...         return 0.0
    >>> with Deaf("alice") as radio:
    ...     accepted = radio.configure(RadioSettings(2.4e9, 2e7, tx_gain_db=-10.0, rx_gain_db=20.0))
    ...     radio.receive(3).samples
    array([[0.+0.j, 0.+0.j, 0.+0.j]], dtype=complex64)
    """

    options_type: ClassVar[type[Struct] | None] = None
    """The keys of the node's `options` in the lab file, so that they can be checked before anything starts; None: the
    driver alone knows."""
    needs_world: ClassVar[bool] = False
    """Simulated: a lab with such a device has a table [world], which is checked before anything starts."""
    limits: ClassVar[Limits | None] = None
    """What no device of this driver exceeds, so that a run can be refused before anything starts; None: not known."""

    @classmethod
    def limits_of(cls, options: Mapping[str, Any]) -> Limits | None:
        """Return the limits of a device with these options of the lab file, which may narrow them (by its model, say).

        The options may be invalid: this method does not check them, and must not raise.
        """
        return cls.limits

    @classmethod
    def discover(cls, addresses: Sequence[str] = ()) -> list[FoundRadio]:
        """Return the devices that answer on this machine, each once; `addresses`: further places to search.

        Addresses of other drivers are passed over. Raises DeviceError where the vendor's library is missing. Default:
        this driver cannot look for devices.
        """
        return []

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "open"
        self.correction_ppm = 0.0
        """By how much this device's oscillator is too fast; `configure` tunes it lower by as much. Set it before
        `configure`."""
        self.tell_air: Callable[[float], None] = lambda time_s: None
        """Called with the time until which the device will not transmit; an emulated device passes it to the air."""
        self._settings: RadioSettings | None = None
        self._interrupted = threading.Event()

    # -- what drivers provide
    @property
    @abstractmethod
    def capabilities(self) -> RadioCapabilities: ...
    @abstractmethod
    def _do_configure(self, settings: RadioSettings) -> RadioSettings: ...
    @abstractmethod
    def _do_transmit(self, block: IqBlock, at_s: float | None) -> None: ...
    @abstractmethod
    def _do_receive(self, n_samples: int, at_s: float | None, timeout_s: float) -> IqBlock: ...
    @abstractmethod
    def _do_silence(self) -> None: ...
    @abstractmethod
    def _do_close(self) -> None: ...
    @abstractmethod
    def now_s(self) -> float:
        """Return the device's clock in seconds."""

    def idle_until(self, time_s: float) -> None:
        """Promise not to transmit before device time `time_s`. Simulated air needs this promise; real air does not."""
        self.tell_air(time_s)

    def use_timing(self, timed: bool) -> None:
        """Choose, before `configure`, whether samples are timed; from then on `capabilities` report the choice.

        Where one radio of a run cannot time its samples, all have to work untimed: they then repeat each transmission
        until `silence()`. Raises DeviceError, without any change, where this radio cannot.
        """
        if timed != self.capabilities.timed:
            detail = (
                "this radio cannot time its samples"
                if timed
                else "this radio cannot repeat what it sends, as it must beside radios that cannot time their samples"
            )
            raise DeviceError(self.name, "use_timing", self.state, detail)

    def identity(self) -> dict[str, Any]:
        """Return driver, serial number and firmware version for the run's provenance."""
        return {"driver": type(self).__name__}

    # -- what callers use
    @property
    def settings(self) -> RadioSettings:
        """Return the settings that the device accepted; raises DeviceError before `configure`."""
        if self._settings is None:
            raise DeviceError(self.name, "settings", self.state, "not configured yet: call configure() first")
        return self._settings

    def configure(self, settings: RadioSettings) -> RadioSettings:
        """Set carrier, rate and gains. Out-of-range values raise and change nothing; returns what was accepted.

        The carrier is that on the air; the frequency that the device is set to differs from it by `correction_ppm`.
        """
        self._require_open("configure")
        caps = self.capabilities
        for key in ("carrier_hz", "sample_rate_hz", *(["tx_gain_db"] if caps.can_transmit else []), "rx_gain_db"):
            low, high = getattr(caps, key)
            value = getattr(settings, key)
            if not low <= value <= high:
                table = f"[node.{self.name}] of the lab" if key.endswith("gain_db") else "[radio] of the experiment"
                raise DeviceError(
                    self.name, "configure", self.state,
                    f"{key} = {value:g}, accepted {low:g} to {high:g}: change it in table {table}",
                )  # fmt: skip
        self._settings = self._corrected(settings)
        self.state = "configured"
        return self._settings

    def _corrected(self, settings: RadioSettings) -> RadioSettings:
        """Tune the device so that, with its oscillator's error, the carrier is right; return the settings on the
        air."""
        scale = 1.0 + 1e-6 * self.correction_ppm
        told = replace(settings, carrier_hz=settings.carrier_hz / scale)
        accepted = self._do_configure(told)
        same = accepted.carrier_hz == told.carrier_hz
        return replace(accepted, carrier_hz=settings.carrier_hz if same else accepted.carrier_hz * scale)

    def transmit(self, block: IqBlock, at_s: float | None = None) -> None:
        """Send `block.samples` (antenna, sample) starting at device time `at_s`.

        Untimed radios repeat the block until `silence()`. Raises LateTransmit where `at_s` has passed, DeviceError on
        a wrong shape, rate, or a sample beyond full scale.
        """
        self._check_transmission(block, at_s)
        self._do_transmit(block, at_s)

    def _check_transmission(self, block: IqBlock, at_s: float | None) -> None:
        self._require_configured("transmit")
        self.check_interrupted("transmit")
        if not self.capabilities.can_transmit:
            raise DeviceError(self.name, "transmit", self.state, "this radio can only receive: accepted as Eve's")
        samples = block.samples
        if samples.ndim != 2 or samples.shape[0] != self.capabilities.n_antennas or samples.shape[1] == 0:
            raise DeviceError(
                self.name,
                "transmit",
                self.state,
                f"samples of shape {samples.shape}, accepted ({self.capabilities.n_antennas}, n > 0)",
            )
        if block.sample_rate_hz != self.settings.sample_rate_hz:
            raise DeviceError(
                self.name,
                "transmit",
                self.state,
                f"block at {block.sample_rate_hz:g} Hz, radio at {self.settings.sample_rate_hz:g} Hz",
            )
        if samples.dtype == np.complex64 and samples.flags.c_contiguous:
            parts = samples.view(np.float32)
            peak = float(max(parts.max(), -parts.min()))
        else:
            peak = float(max(np.abs(samples.real).max(), np.abs(samples.imag).max()))
        if not peak <= 1.0:  # catches NaN too
            raise DeviceError(self.name, "transmit", self.state, f"peak {peak:g} beyond full scale 1")
        self._check_timed("transmit", at_s)

    def transmit_many(self, blocks: Sequence[IqBlock]) -> list[DeviceError | None]:
        """Queue several transmissions in ascending order of time, each to start at its block's `time_s`.

        Returns, for each, why it will not be sent, or None. Raises what `transmit` raises for an impossible block.

            late = radio.transmit_many([replace(block, time_s=start_s + k * 0.01) for k in range(64)])
        """
        for block in blocks:
            self._check_transmission(block, block.time_s)
        return self._do_transmit_many(blocks) if blocks else []

    def _do_transmit_many(self, blocks: Sequence[IqBlock]) -> list[DeviceError | None]:
        """Queue one after the other; drivers whose device takes several orders at once override this."""
        out: list[DeviceError | None] = []
        for block in blocks:
            try:
                self.check_interrupted("transmit")
                self._do_transmit(block, block.time_s)
                out.append(None)
            except DeviceError as exc:
                out.append(exc)
        return out

    def failed_transmissions(self) -> list[tuple[float, DeviceError]]:
        """Return (start on the device's clock, why) of queued transmissions that failed after `transmit_many` had
        returned, as far as the device has reported them; each is returned once.

        Default: the device refuses at once what it cannot send.
        """
        return []

    def interrupt(self) -> None:
        """End all receptions for good: one that another thread waits for within 100 ms, later ones at once.

        They raise DeviceError, and so do transmissions. It may be called from any thread, before the transmitter is
        silenced and the device closed, so that no other thread transmits after `silence`.
        """
        self._interrupted.set()

    @property
    def is_interrupted(self) -> bool:
        """Whether `interrupt` was called; drivers look at it while they wait."""
        return self._interrupted.is_set()

    def check_interrupted(self, operation: str = "receive") -> None:
        """Raise DeviceError where `interrupt` was called."""
        if self.is_interrupted:
            raise DeviceError(self.name, operation, self.state, "interrupted: the node is halted")

    def receive(self, n_samples: int, at_s: float | None = None, timeout_s: float = 5.0) -> IqBlock:
        """Return `n_samples` starting at device time `at_s` (now where None), with the first sample's time.

        Raises DeviceTimeout after `timeout_s` of wall time, DeviceError where the device no longer has the samples of
        `at_s`.
        """
        self._require_configured("receive")
        if n_samples <= 0:
            raise DeviceError(self.name, "receive", self.state, f"n_samples = {n_samples}, accepted > 0")
        self._check_timed("receive", at_s)
        self.check_interrupted()
        return self._do_receive(n_samples, at_s, timeout_s)

    def receive_many(self, windows: Sequence[Window], timeout_s: float = 5.0) -> list[IqBlock | DeviceError]:
        """Return the samples of each window of a train, or the error of a window that failed.

        For radios that time their samples. Transmissions between the windows must be queued before. Raises DeviceError
        where the windows are not in ascending order or overlap, and what `receive` raises for an impossible window.
        Each window may take `timeout_s` of wall time from the earliest possible time of its samples.

            for block in radio.receive_many([Window(1000, start_s + k * 0.01) for k in range(64)]):
                if isinstance(block, DeviceError): …
        """
        self._require_configured("receive_many")
        rate_hz, end_s = self.settings.sample_rate_hz, -np.inf
        for window in windows:
            if window.n_samples <= 0:
                detail = f"n_samples = {window.n_samples}, accepted > 0"
                raise DeviceError(self.name, "receive_many", self.state, detail)
            self._check_timed("receive_many", window.at_s)
            if window.at_s < end_s:
                detail = f"a window at {window.at_s:.9f} s begins before the one before it ends, at {end_s:.9f} s"
                raise DeviceError(self.name, "receive_many", self.state, detail)
            end_s = window.at_s + window.n_samples / rate_hz
        return self._do_receive_many(windows, timeout_s) if windows else []

    def _do_receive_many(self, windows: Sequence[Window], timeout_s: float) -> list[IqBlock | DeviceError]:
        """Receive one window after the other; drivers whose devices queue several orders override this."""
        out: list[IqBlock | DeviceError] = []
        for window in windows:
            try:
                self.check_interrupted()
                out.append(self._do_receive(window.n_samples, window.at_s, timeout_s))
            except DeviceError as exc:
                out.append(exc)
        return out

    def silence(self) -> None:
        """Stop transmitting now and drop what was queued. Allowed in every state except closed."""
        if self.state != "closed":
            self._do_silence()

    def close(self) -> None:
        """Silence the transmitter and release the device. May be called twice."""
        if self.state == "closed":
            return
        try:
            self._do_silence()
        finally:
            self.state = "closed"
            self._do_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # -- shared checks
    def _require_open(self, operation: str) -> None:
        if self.state == "closed":
            raise DeviceError(self.name, operation, self.state, "the radio is closed")

    def _require_configured(self, operation: str) -> None:
        self._require_open(operation)
        if self._settings is None:
            raise DeviceError(self.name, operation, self.state, "not configured yet: call configure() first")

    def _check_timed(self, operation: str, at_s: float | None) -> None:
        if at_s is not None and not self.capabilities.timed:
            raise DeviceError(self.name, operation, self.state, "this radio cannot time its samples: at_s must be None")
        if at_s is not None and not np.isfinite(at_s):
            raise LateTransmit(self.name, operation, self.state, f"at_s = {at_s}")
