"""A radio's measurements by `testbed doctor`, kept in its node's state folder and reported to the coordinator."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from testbed.core.radio import Radio
from testbed.core.whole import write_whole

log = logging.getLogger("testbed.node")
_FILE = "calibration.json"


class Delay(Struct, frozen=True, kw_only=True):
    """The time from the scheduled start at the transmitter to the arrival at the receiver."""

    mean_s: float
    std_s: float
    """Standard deviation over repetitions, without the clocks' drift: the scatter of single starts."""


class Heard(Struct, frozen=True, kw_only=True):
    """The measurements of one transmitter by this radio."""

    snr_db: float
    """Median over subcarriers, mean over repetitions."""
    frames: int
    """Number of repetitions that were received, out of `asked`."""
    asked: int
    delay_s: Delay | None = None
    """None where a radio cannot time its samples."""
    clock_ppm: float | None = None
    """How much faster this radio's sample clock runs than the transmitter's."""
    clock_offset_s: float | None = None
    """This clock minus the transmitter's at the first frame, beyond the difference of the two clock readings."""
    two_way: bool = False
    """Whether delay and clock offset could be separated, because the transmitter received this radio, too."""


class GainStep(Struct, frozen=True, kw_only=True):
    rx_gain_db: float
    rssi_dbfs: float
    clipped: float
    """Share of samples at full scale."""


class Calibration(Struct, frozen=True, kw_only=True):
    serial: str
    measured_at: str
    """UTC, ISO 8601."""
    settings: dict[str, float]
    """Carrier, rate and gains as the device accepted them."""
    virtual: bool
    """Measured on simulated air whose time does not pass while the host works."""
    dc_offset_dbfs: float | None = None
    noise_dbfs: float | None = None
    """Total noise power over the band, without a transmission and without the DC offset."""
    gain_table: list[GainStep] = []
    turnaround_s: float | None = None
    """Host time (wall) from ordering a transmission to holding the samples of the reception after it, less the
    durations of the frames themselves and the wait for their start."""
    delay_s: Delay | None = None
    """Mean over the radios that were received."""
    cfo_hz: dict[str, float] = {}
    """Transmitter → its carrier minus this radio's."""
    heard: dict[str, Heard] = {}
    correction_ppm: float | None = None
    """By how much this radio's crystal is faster than that of `reference`; the node lowers the carrier by as much."""
    reference: str = ""
    """The node whose crystal is the reference."""


def write(state_dir: Path, calibration: Calibration) -> Path:
    path = state_dir / _FILE
    write_whole(path, msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n")
    return path


def read(state_dir: Path, identity: dict[str, Any]) -> Calibration | None:
    """Return the calibration of the device with this identity, None where there is none or it is another device's."""
    path = state_dir / _FILE
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as exc:
        log.warning("%s: not used: %s; run `testbed doctor` again", path, exc)
        return None
    if found.serial != identity.get("serial", ""):
        log.warning("%s: not used: it belongs to the device with serial number %r", path, found.serial)
        return None
    return found


def correct(radio: Radio, given_ppm: float | None, measured: Calibration | None) -> dict[str, Any]:
    """Have a radio correct its carrier for its crystal's error; return the record of this for its identity.

    A value in the lab file takes precedence over a measured one.
    """
    stored_ppm = measured.correction_ppm if measured is not None else None
    source = "lab" if given_ppm is not None else "doctor" if stored_ppm is not None else "none"
    ppm = given_ppm if given_ppm is not None else stored_ppm
    radio.correction_ppm = 0.0 if ppm is None else ppm
    return {"correction_ppm": radio.correction_ppm, "correction_from": source}
