"""Whether the disks hold what a run still writes, and since when they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from testbed.core.clock import Clock
from testbed.records import files

KEY_BYTES = 1 << 20
"""Least space for the keys and models of this machine's nodes."""
MORE_BYTES = 8 << 20
"""So much more must be free before a run goes on that was paused, so that it is not paused again at once."""


class Disks:
    """The disk of a run's folder, and that of the nodes' state in `state`."""

    def __init__(self, folder: Path, state: Path, clock: Clock) -> None:
        self._folder, self._state, self._clock = folder, state, clock
        self._full_s: float | None = None
        """When the run was paused, on `clock`."""
        self.free_bytes: Callable[[Path], int] = files.free_bytes
        """Returns how much may be written in a folder; the rehearsal of a full disk replaces it."""

    def lack(self) -> str | None:
        """Return which space has to be made, in words; None where there is enough to go on and to close the run."""
        more = MORE_BYTES if self.is_full else 0
        for folder, needed in ((self._folder, files.needed_to_close(self._folder)), (self._state, KEY_BYTES)):
            if (missing := needed + more - self.free_bytes(folder)) > 0:
                return f"disk full: free {max(1, missing >> 20)} MB on the disk of {folder}"
        return None

    @property
    def is_full(self) -> bool:
        """Whether the run is paused, or was until now."""
        return self._full_s is not None

    @property
    def full_for_s(self) -> float:
        return self._clock.now_s() - self._full_s if self._full_s is not None else 0.0

    def pause(self) -> bool:
        """Take note that the run is paused; False where it is already."""
        is_new = not self.is_full
        if is_new:
            self._full_s = self._clock.now_s()
        return is_new

    def go_on(self) -> float:
        """Take note that the run goes on; returns for how long it was paused."""
        paused_s, self._full_s = self.full_for_s, None
        return paused_s
