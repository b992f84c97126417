"""A radio's own transmit and receive responses, as measured by `testbed doctor --cable`, and their correction.

With transmit response T and receive response R of each end, Alice measures T_B·H·R_A and Bob T_A·H·R_B of one channel
H. Multiplied by their own T/R both have T_A·T_B·H: each end needs only its own device's ratio, which is stored
with the device's serial number, the carrier and the sample rate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from testbed.core.errors import InputError
from testbed.core.types import C64, F64, CsiFrame, IqBlock
from testbed.core.whole import write_whole

_FILE = "cable.json"
_LENGTHS = 8
"""Lengths of blocks whose filters are kept."""
_SAME_HZ = 1e3
"""Largest relative difference of two carriers or rates that count as equal."""


class ChainResponse(Struct, frozen=True, kw_only=True):
    """The responses of one device at one carrier and rate. Levels and phases have mean 0 over frequency, and phases no
    slope.
    """

    serial: str
    carrier_hz: float
    sample_rate_hz: float
    measured_at: str
    """UTC, ISO 8601."""
    subcarrier_hz: list[float]
    """Offsets from the carrier at which the other fields are given, ascending."""
    rx_db: list[float]
    rx_rad: list[float]
    rx_level_db: float
    """Mean level relative to the other devices' at the gain of the lab file."""
    tx_db: list[float] = []
    """Empty if this device did not transmit."""
    tx_rad: list[float] = []
    tx_level_db: float | None = None
    rx_delay_s: float | None = None
    """Includes half of the cable's delay; None where samples cannot be timed."""
    tx_delay_s: float | None = None
    ratio_db: list[list[float]] = []
    """Of a radio with several antennas: T/R of each (antenna, subcarrier), in place of the levels and phases above."""
    ratio_rad: list[list[float]] = []

    def ratios(self, subcarrier_hz: F64) -> C64:
        """Return (antenna, subcarrier) T/R of a radio with several antennas, interpolated as `ratio` does."""
        found = 10.0 ** (np.array(self.ratio_db) / 20.0) * np.exp(1j * np.array(self.ratio_rad))
        rows = [np.interp(subcarrier_hz, self.subcarrier_hz, row) for row in found]
        return np.asarray(rows, np.complex64)

    def ratio(self, subcarrier_hz: F64) -> C64:
        """Return (subcarrier,) T/R linearly interpolated between the measured offsets; beyond them, the last value."""
        if self.ratio_db:
            return self.ratios(subcarrier_hz)[0]
        db = np.interp(subcarrier_hz, self.subcarrier_hz, np.subtract(self.tx_db, self.rx_db))
        rad = np.interp(subcarrier_hz, self.subcarrier_hz, np.subtract(self.tx_rad, self.rx_rad))
        return (10.0 ** (db / 20.0) * np.exp(1j * rad)).astype(np.complex64)


def write(state_dir: Path, response: ChainResponse) -> Path:
    """Store a response, replacing an earlier one of the same device, carrier and rate."""
    path = state_dir / _FILE
    others = [r for r in _read(path) if not _fits(r, response.serial, response.carrier_hz, response.sample_rate_hz)]
    content = msgspec.json.format(msgspec.json.encode([*others, response]), indent=1)
    write_whole(path, content + b"\n")
    return path


def find(
    state_dir: Path, identity: dict[str, Any], carrier_hz: float, sample_rate_hz: float, n_antennas: int = 1
) -> ChainResponse:
    """Return the response of the device with this identity and so many antennas; raises InputError if there is none."""
    serial = str(identity.get("serial") or "")
    for response in _read(state_dir / _FILE):
        if not _fits(response, serial, carrier_hz, sample_rate_hz):
            continue
        if (response.tx_db and n_antennas == 1) or (response.ratio_db and len(response.ratio_db) == n_antennas):
            return response
    raise InputError(
        f"calibrated = true, but there is no measurement over a cable for the device with serial number {serial!r} at "
        f"{carrier_hz / 1e6:g} MHz and {sample_rate_hz / 1e6:g} MS/s"
        f"{f' with {n_antennas} antennas' if n_antennas > 1 else ''}: run `testbed doctor --cable --experiment E`"
    )


class Leveller:
    """Multiplies what each of several antennas received by its T/R, so that a link through beams is reciprocal, too.

    A beam's weights are applied to the antennas' signals, before the channel is estimated. When sending, the signals
    pass the chains T, when receiving, the chains R; equal weights give equal beams only if T/R is the same at all
    antennas.
    """

    def __init__(self, response: ChainResponse) -> None:
        self._response = response
        self._known: dict[tuple[int, float], C64] = {}

    def __call__(self, block: IqBlock) -> IqBlock:
        """Return the block with each antenna's samples (antenna, sample) filtered by its ratio."""
        n = block.samples.shape[1]
        key = n, block.sample_rate_hz
        if key not in self._known:
            if len(self._known) >= _LENGTHS:
                self._known.clear()
            self._known[key] = self._response.ratios(np.fft.fftfreq(n, 1.0 / block.sample_rate_hz).astype(np.float64))
        samples = np.fft.ifft(np.fft.fft(block.samples) * self._known[key]).astype(np.complex64)
        return replace(block, samples=samples)


def levelled(csi: CsiFrame, ratio: C64) -> CsiFrame:
    """Return an estimate (1, 1, subcarrier) with this end's T/R, (subcarrier,), applied."""
    return replace(csi, h=csi.h * ratio)


def _fits(r: ChainResponse, serial: str, carrier_hz: float, sample_rate_hz: float) -> bool:
    near = abs(r.carrier_hz - carrier_hz) < _SAME_HZ and abs(r.sample_rate_hz - sample_rate_hz) < _SAME_HZ
    return r.serial == serial and near


def _read(path: Path) -> list[ChainResponse]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[ChainResponse])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise InputError(
            f"{path}: {exc}; accepted: a file written by `testbed doctor --cable`; delete this one"
        ) from exc
