"""Registers of a PlutoSDR: the transceiver's over SPI, the converter cores' in the FPGA, their flags."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

_STATUS = 0x80000088
"""Status of either converter core's DMA interface: flags that stay until a one is written to them."""
UNDERFLOW, OVERFLOW = 0x1, 0x4
_PRODUCT_ID = 0x37
_IDS = {_PRODUCT_ID: 0x0A}
"""Any chip of the AD936x family has this product number, in its second revision."""


class Registers:
    """One device's `direct_reg_access`: an address is written, then its value is read; or both are written."""

    def __init__(self, spi: bool) -> None:
        self._spi = spi
        self._values = dict(_IDS) if spi else {}
        self._fixed = set(self._values)
        self._at: int | None = None

    def write(self, text: str) -> None:
        """Take `ADDRESS` or `ADDRESS VALUE`, decimal or 0x…; raises OSError (EINVAL) for anything else."""
        try:
            words = [int(word, 0) for word in text.split()]
        except ValueError as exc:
            raise OSError(errno.EINVAL, "not a register") from exc
        highest = 0x3FF if self._spi else _STATUS | 0xFFFF  # the kernel's driver uses 16 bits of an address
        if len(words) not in (1, 2) or words[0] & ~highest or any(not 0 <= w < 1 << 32 for w in words):
            raise OSError(errno.EINVAL, "ADDRESS, or ADDRESS VALUE")
        self._at = words[0]
        if len(words) == 2 and words[0] not in self._fixed:
            self._values[words[0]] = self._after(words[0], words[1])

    def _after(self, address: int, value: int) -> int:
        """Return a register's content after `value` was written to it."""
        if not self._spi and address == _STATUS:
            return self._values.get(address, 0) & ~value
        return value & 0xFF if self._spi else value

    def read(self) -> str:
        return "0x0" if self._at is None else f"0x{self._values.get(self._at, 0):X}"

    def raise_flag(self, flag: int) -> None:
        """Set a flag of the converter core's status, until a client clears it."""
        self._values[_STATUS] = self._values.get(_STATUS, 0) | flag


class Patience:
    """How long a converter can continue without its host. Only the idle time of the client counts, on the host's clock:
    the time for which a request is served, and thus the simulation's computing time, does not.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left_s: float | None = None
        self._since_s = 0.0

    def begin(self) -> bool:
        """A request begins: return whether the client was idle for longer than the time left."""
        late = self.over()
        if self._left_s is not None:
            self._left_s = max(0.0, self._left_s - (self._clock() - self._since_s))
        self._since_s = self._clock()
        return late

    def end(self, more_s: float, at_most_s: float) -> None:
        """The request was served: add `more_s` to the time left, up to `at_most_s`."""
        self._left_s = min((self._left_s or 0.0) + more_s, at_most_s)
        self._since_s = self._clock()

    def over(self) -> bool:
        """Return whether the client has been idle for longer than the time left."""
        return self._left_s is not None and self._clock() - self._since_s > self._left_s

    def stop(self) -> None:
        """The buffer is closed, so that idle time no longer counts."""
        self._left_s = None
