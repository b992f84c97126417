"""Two clocks with one interface: the wall clock, and one that moves only when it is advanced."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now_s(self) -> float:
        """Return seconds since an arbitrary origin, never going back."""


class WallClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()


class VirtualClock:
    """A clock that does not move until advanced; tests and simulations own one."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, to_s: float) -> None:
        """Move to `to_s`; going back raises ValueError."""
        if to_s < self._now_s:
            raise ValueError(f"clock at {self._now_s} s cannot go back to {to_s} s")
        self._now_s = to_s
