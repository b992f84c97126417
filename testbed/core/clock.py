"""Two clocks with one interface: the wall clock, and one that moves only when it is advanced; and the time of day."""

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


STEP_S = 0.5
"""A change of the time of day against the wall clock, from which on it is a step."""


class TimeOfDay:
    """The machine's time of day. It may be set at any instant, so nothing is measured or waited for by it."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now_s(self) -> float:
        """Return seconds since 1970, UTC."""
        return time.time() + self._ahead_s

    def step(self, by_s: float) -> None:
        """Step it for this process alone, as a rehearsal does."""
        self._ahead_s += by_s


TIME_OF_DAY = TimeOfDay()
"""This process's."""


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
