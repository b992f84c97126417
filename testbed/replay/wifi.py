"""Wi-Fi captures as arrays that a map can name: Intel 5300, Atheros and Nexmon by csiread (extra `wifi`), ESP32's text.

Subcarriers ascend in frequency here, also where a chip reports those above the carrier first.
"""

from __future__ import annotations

import csv
import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.replay.arrays import Array, ArrayFile, check_bytes, column

KINDS = {"intel": "Intel", "atheros": "Atheros", "nexmon": "Nexmon"}
_NEEDED: dict[str, dict[str, Any]] = {"nexmon": {"chip": "43455c0", "bw": 80}}
_SPACING_HZ = 312.5e3
_INTEL_20_MHZ = (*range(-28, 0, 2), -1, *range(1, 28, 2), 28)
"""Subcarriers that the Linux 802.11n CSI Tool reports at 20 MHz (IEEE 802.11n-2009, table 7-25f, Ng = 2)."""


class Capture(ArrayFile):
    """A capture's arrays; `csi` is (probe, subcarrier, rx, tx)."""

    def __init__(self, path: Path, arrays: dict[str, Array], subcarrier_hz: F64 | None) -> None:
        super().__init__(path, {name: f"{a.shape} {a.dtype}" for name, a in arrays.items()}, arrays.__getitem__)
        self.subcarrier_hz = subcarrier_hz


@contextmanager
def open_capture(path: Path, kind: str, options: dict[str, Any]) -> Iterator[Capture]:
    """Read a capture; raises InputError naming the file, a refused option, or the extra that is not installed."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    check_bytes(path, "", 8 * path.stat().st_size)
    if kind == "esp32":
        if options:
            raise InputError(f"{path}: esp32 has no option {next(iter(options))!r}; accepted: none")
        yield _esp32(path)
        return
    try:
        import csiread
    except ImportError as exc:
        raise InputError(f"{path}: Wi-Fi captures need csiread; accepted: pip install 'ris-skg-testbed[wifi]'") from exc
    reader = getattr(csiread, KINDS[kind])
    accepted = set(inspect.signature(reader.__init__).parameters) - {"self", "file", "if_report"}
    for key in options:
        if key not in accepted:
            raise InputError(f"{path}: {kind} has no option {key!r}; accepted: {', '.join(sorted(accepted))}")
    try:
        capture = reader(str(path), if_report=False, **(_NEEDED.get(kind, {}) | options))
        capture.read()
        csi = _four_axes(np.asarray(capture.csi))
        if kind == "nexmon":
            csi = np.fft.fftshift(csi, axes=1)  # the chip reports 0 … 31, −32 … −1
        arrays = {"csi": csi}
        for name in dir(capture):
            value = None if name.startswith("_") else getattr(capture, name)
            if isinstance(value, np.ndarray) and name != "csi" and value.shape[:1] == csi.shape[:1]:
                arrays[name] = value
    except Exception as exc:  # for damaged files, csiread raises errors of any kind
        said = (str(exc).splitlines() or [""])[0][:200]
        raise InputError(f"{path}: not a capture that csiread reads as {kind}: {type(exc).__name__}: {said}") from exc
    if not csi.size:
        raise InputError(f"{path}: csiread finds no {kind} packet with CSI in it; accepted: a capture with some")
    yield Capture(path, arrays, _subcarriers(kind, csi.shape[1]))


def _four_axes(csi: Array) -> Array:
    """Return (probe, subcarrier, rx, tx); single antennas have no axis in some formats."""
    return csi.reshape(*csi.shape, *(1,) * (4 - csi.ndim))


def _subcarriers(kind: str, n: int) -> F64 | None:
    if kind == "intel" and n == len(_INTEL_20_MHZ):
        return np.asarray(_INTEL_20_MHZ, dtype=np.float64) * _SPACING_HZ
    if kind == "nexmon" or (kind == "esp32" and n == _LLTF):
        return np.asarray((np.arange(n) - n // 2) * _SPACING_HZ, dtype=np.float64)
    return None


# ---------------------------------------------------------------- ESP32

_ESP32_TOOL = [
    "type", "role", "mac", "rssi", "rate", "sig_mode", "mcs", "bandwidth", "smoothing", "not_sounding", "aggregation",
    "stbc", "fec_coding", "sgi", "noise_floor", "ampdu_cnt", "channel", "secondary_channel", "local_timestamp", "ant",
    "sig_len", "rx_state", "real_time_set", "real_timestamp", "len", "CSI_DATA",
]  # fmt: skip
"""Columns of ESP32-CSI-Tool, for files without a heading. Espressif's esp-csi always writes one."""
_LLTF = 64
"""Number of subcarriers of the legacy training field; longer CSI has further fields after it, in another order."""


def _esp32(path: Path) -> Capture:
    """Read the lines `CSI_DATA,…,[im re im re …]` of a log; other lines are ignored."""
    with path.open(encoding="utf-8", errors="replace", newline="") as f:
        rows = [row for row in csv.reader(f) if row and row[0].strip() in ("type", "CSI_DATA")]
    names = _ESP32_TOOL
    kept: list[list[str]] = []
    for row in rows:
        if row[0].strip() == "type":
            names = [name.strip() for name in row]
        elif len(row) == len(names):  # the other lines are incomplete
            kept.append(row)
    if not kept:
        raise InputError(
            f"{path}: no line CSI_DATA of {len(names)} columns; accepted: a log of ESP32-CSI-Tool or esp-csi"
        )
    values = [_bytes_of(row[-1]) for row in kept]
    sizes = Counter(v.size for v in values if v.size)
    if not sizes:
        raise InputError(f"{path}: no [im re im re …] in its last column; accepted: whole numbers in brackets")
    n = sizes.most_common(1)[0][0]
    csi = np.stack([v[1::2] + 1j * v[0::2] if v.size == n else np.full(n // 2, np.nan + 0j) for v in values])
    if csi.shape[1] == _LLTF:
        csi = np.fft.fftshift(csi, axes=1)
    columns = {name: column([row[i] for row in kept]) for i, name in enumerate(names[:-1])}
    return Capture(path, {"csi": _four_axes(csi), **columns}, _subcarriers("esp32", csi.shape[1]))


def _bytes_of(cell: str) -> Array:
    """Return the numbers in brackets; none where the cell has another form or an odd count of numbers."""
    try:
        values = np.array(cell.strip().strip("[]").replace(",", " ").split(), dtype=np.float64)
    except ValueError:
        return np.zeros(0)
    return values if values.size % 2 == 0 else np.zeros(0)
