"""The TDD engine of a Pluto's FPGA (firmware 0.39 and later): it starts the DMA engines at fixed times in a frame.

Names are those of the Linux driver, which `adi.tddn` uses. Channel 0 leads to a pin, channel 1 to the receiver's DMA,
channel 2 to the transmitter's. Lengths in ms and in cycles of the sample clock (`_raw`) are one value.

What is emulated: while the engine runs, a repeated buffer is sent once in each frame, from channel 2's `on`, and no
samples are received while the engine waits for a sync signal that does not come: nothing is connected to the external
input. What is not: `burst_count`, and receptions that begin at channel 1's `on`.
"""

from __future__ import annotations

import errno
import re

import numpy as np

from sim_backend.emulators.iio_tree import Channel, Device, Key, Tree
from testbed.core.types import C64

TDD = "iio:device4"
_LABEL = "iio-axi-tdd-0"
_LENGTHS = ("frame_length", "internal_sync_period", "startup_delay")
_SWITCHES = ("enable", "sync_external", "sync_internal", "sync_reset", "sync_soft")
_FIXED = {"core_id": "0", "magic": "0x5444444E", "scratch": "0x0", "version": "0x00020001"}
_MOST = 2**32 - 1


def has_tdd(firmware: str) -> bool:
    """Return whether a firmware has the engine.

    >>> has_tdd("v0.38"), has_tdd("v0.39"), has_tdd("v1.0-dirty")
    (False, True, True)
    """
    found = re.match(r"v(\d+)\.(\d+)", firmware)
    return found is not None and (int(found[1]), int(found[2])) >= (0, 39)


class TddEngine:
    """The engine's attributes in a tree."""

    def __init__(self, tree: Tree) -> None:
        self._values = tree.values
        device = Device(TDD, _LABEL)
        numbers = [f"{name}_{unit}" for name in _LENGTHS for unit in ("ms", "raw")]
        device.attributes = sorted(["burst_count", "state", *numbers, *_SWITCHES, *_FIXED])
        for attribute in device.attributes:
            self._values[TDD, attribute] = _FIXED.get(attribute, "0.000000" if attribute.endswith("_ms") else "0")
        for i in range(3):
            own = ("enable", "off_ms", "off_raw", "on_ms", "on_raw", "polarity")
            files = {attribute: f"out_channel{i}_{attribute}" for attribute in own}
            for attribute, file in files.items():
                self._values[TDD, file] = "0.000000" if attribute.endswith("_ms") else "0"
            device.channels.append(Channel(f"channel{i}", True, files))
        tree.devices.append(device)

    def write(self, key: Key, value: str, rate_hz: float) -> None:
        """Store a value as the driver does; raises OSError."""
        _, file = key
        if file in (*_FIXED, "state") and file != "scratch":
            raise OSError(errno.EACCES, "read only")
        if file in _SWITCHES or file.endswith(("_enable", "_polarity")):
            if value.strip() not in ("0", "1"):
                raise OSError(errno.EINVAL, value)
            self._values[key] = value.strip()
        elif file.endswith("_ms"):
            self._set_length(file.removesuffix("_ms"), round(_number(value) * 1e-3 * rate_hz), rate_hz)
        elif file.endswith("_raw"):
            self._set_length(file.removesuffix("_raw"), round(_number(value)), rate_hz)
        else:
            self._values[key] = value.strip()
        self._values[TDD, "state"] = "3" if self.runs else "1" if self._is("enable") else "0"

    def _set_length(self, name: str, cycles: int, rate_hz: float) -> None:
        if not 0 <= cycles <= _MOST:
            raise OSError(errno.EINVAL, f"{cycles} cycles")
        self._values[TDD, f"{name}_raw"] = str(cycles)
        self._values[TDD, f"{name}_ms"] = f"{1e3 * cycles / rate_hz:.6f}"

    def _is(self, file: str) -> bool:
        return self._values[TDD, file] == "1"

    def _cycles(self, name: str) -> int:
        return int(self._values[TDD, f"{name}_raw"])

    @property
    def runs(self) -> bool:
        """Whether frames follow one another: it is enabled, and a sync signal has come."""
        return self._is("enable") and (self._is("sync_internal") or self._is("sync_soft"))

    @property
    def holds_back(self) -> bool:
        """Whether the receiver's DMA waits for a frame that does not begin."""
        return self._is("enable") and self._is("out_channel1_enable") and not self.runs

    def burst(self, samples: C64) -> C64:
        """Return what is sent in a frame of a repeated buffer (sample,)."""
        frame, on = self._cycles("frame_length"), self._cycles("out_channel2_on")
        if not (self.runs and self._is("out_channel2_enable") and 0 <= on < frame <= 1 << 22):
            return samples
        out = np.zeros(frame, np.complex64)
        n = min(samples.size, frame - on)
        out[on : on + n] = samples[:n]
        return out


def _number(value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = np.nan
    if not np.isfinite(found):
        raise OSError(errno.EINVAL, value)
    return found
