"""Wi-Fi captures by csiread (extra `wifi`): Intel 5300, Atheros, Nexmon and ESP32, as arrays that a map can name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.replay.arrays import Array, ArrayFile, check_bytes

KINDS = {"intel": "Intel", "atheros": "Atheros", "nexmon": "Nexmon", "esp32": "ESP32"}
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
    try:
        import csiread
    except ImportError as exc:
        raise InputError(f"{path}: Wi-Fi captures need csiread; accepted: pip install 'ris-skg-testbed[wifi]'") from exc
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    check_bytes(path, "", 8 * path.stat().st_size)
    reader = getattr(csiread, KINDS[kind])
    accepted = set(inspect.signature(reader.__init__).parameters) - {"self", "file", "if_report"}
    for key in options:
        if key not in accepted:
            raise InputError(f"{path}: {kind} has no option {key!r}; accepted: {', '.join(sorted(accepted))}")
    try:
        capture = reader(str(path), if_report=False, **(_NEEDED.get(kind, {}) | options))
        capture.read()
        csi = _four_axes(np.asarray(capture.csi))
        arrays = {"csi": csi}
        for name in dir(capture):
            value = None if name.startswith("_") else getattr(capture, name)
            if isinstance(value, np.ndarray) and name != "csi" and value.shape[:1] == csi.shape[:1]:
                arrays[name] = value
    except Exception as exc:  # whatever its parsers stumble over in a damaged file
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
    if kind == "nexmon":
        return np.asarray((np.arange(n) - n // 2) * _SPACING_HZ, dtype=np.float64)
    return None
