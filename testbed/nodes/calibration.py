"""What `testbed doctor` measured of a radio: kept in its node's state folder, told to the coordinator by its daemon."""

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
    """From the scheduled start at the transmitter to the arrival at the receiver."""

    mean_s: float
    std_s: float
    """Of repetitions, after the clocks' drift was taken out: how far single starts scatter."""


class Heard(Struct, frozen=True, kw_only=True):
    """What this radio measured of one transmitter."""

    snr_db: float
    """Median over subcarriers, mean over repetitions."""
    frames: int
    """Repetitions that were received, of `asked`."""
    asked: int
    delay_s: Delay | None = None
    """None where a radio cannot time its samples."""
    clock_ppm: float | None = None
    """How much faster this radio's sample clock runs than the transmitter's."""
    clock_offset_s: float | None = None
    """This clock minus the transmitter's at the first frame, beyond what reading both told."""
    two_way: bool = False
    """Delay and clock offset were told apart, because the transmitter heard this radio, too."""


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
    """Measured on simulated air whose time stands still while the host works."""
    dc_offset_dbfs: float | None = None
    noise_dbfs: float | None = None
    """Total over the band, in silence, without the offset."""
    gain_table: list[GainStep] = []
    turnaround_s: float | None = None
    """Host time (wall) from ordering a transmission to holding the samples of the reception after it, less the time
    that the frames themselves and the wait for their start take."""
    delay_s: Delay | None = None
    """Mean over the radios that were heard."""
    cfo_hz: dict[str, float] = {}
    """By transmitter: its carrier minus this radio's."""
    heard: dict[str, Heard] = {}
    correction_ppm: float | None = None
    """By how much its crystal is faster than the reference's (`reference`): what its node takes out of the carrier."""
    reference: str = ""
    """The node whose crystal counts as right."""


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
        log.warning("%s: not used: it is of the device with serial number %r", path, found.serial)
        return None
    return found


def correct(radio: Radio, given_ppm: float | None, measured: Calibration | None) -> dict[str, Any]:
    """Have a radio take its crystal's error out of the carrier; return what is recorded of that with its identity.

    What the lab file gives counts before what was measured.
    """
    stored_ppm = measured.correction_ppm if measured is not None else None
    source = "lab" if given_ppm is not None else "doctor" if stored_ppm is not None else "none"
    ppm = given_ppm if given_ppm is not None else stored_ppm
    radio.correction_ppm = 0.0 if ppm is None else ppm
    return {"correction_ppm": radio.correction_ppm, "correction_from": source}
