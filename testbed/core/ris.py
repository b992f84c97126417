"""The Board contract: a controller that sets the phases of a reconfigurable surface.

Drivers override the `_do_…` methods; the public ones check the arguments once, for all drivers. `apply` returns only
after the board has acknowledged that its outputs hold the pattern; a wrong shape or level raises and changes nothing.
After an operation that raised, the outputs' state is unknown until the next `apply` or `readback` that returns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from msgspec import Struct
from msgspec.structs import fields

from testbed.core.errors import DeviceError
from testbed.core.types import AppliedPattern, SurfacePattern


@dataclass(frozen=True, slots=True)
class BoardCapabilities:
    """What a board can do beyond `apply` and `readback`."""

    timed: bool = False
    """Whether `AppliedPattern.time_s` and `now_s` are of the board's own clock. Otherwise they are of the host's clock,
    read when the acknowledgement arrives, so that the latch was at that time or a little before."""
    can_queue: bool = False
    """Whether `queue` and `trigger` work: one pattern is stored behind the outputs and latches on command."""
    codebook_size: int = 0
    """Largest number of patterns that `upload` stores and `apply_index` chooses from; 0: the board stores none."""
    schedule_size: int = 0
    """Largest number of patterns that `schedule` takes, each of which latches at its time on the board's own clock; 0:
    the board latches none by time."""
    latency_s: float = 0.0
    """How long before its time a board that latches by time must have a pattern."""


class Board(ABC):
    """A surface controller with `shape` = (rows, columns) elements of `phase_bits` bits each.

    The caller may use its arrays again as soon as a call has returned. Acknowledged times never go backwards. `close`
    may be called twice, and is what leaving a `with` block does; after it every operation raises.

    >>> import time
    >>> class Lamps(Board):
    ...     "Four lamps in a row, which stand for a surface."
    ...     shape, phase_bits = (1, 4), 1
    ...     def _do_apply(self, pattern, timeout_s):
    ...         self.held = SurfacePattern(pattern.levels.copy(), 1)
    ...         return AppliedPattern(self.held.digest, self.now_s())
    ...     def _do_readback(self, timeout_s):
    ...         return self.held
    ...     def _do_close(self): ...
    ...     def now_s(self):
    ...         return time.monotonic()
    >>> with Lamps("wall") as board:
    ...     applied = board.apply(SurfacePattern(np.array([[0, 1, 1, 0]], np.uint8), 1))
    ...     board.readback().digest == applied.digest
    True
    """

    options_type: ClassVar[type[Struct] | None] = None
    """The keys of the node's `options` in the lab file, so that they can be checked before anything starts; None: the
    driver alone knows."""
    needs_world: ClassVar[bool] = False
    """Whether the device is simulated: its lab must then have a table [world], which is checked before anything starts.
    """

    @classmethod
    def size_given(cls, options: Mapping[str, Any]) -> tuple[int, int, int] | None:
        """Return (rows, columns, phase bits) where the node's options give them; None: only the board knows."""
        kind = cls.options_type
        defaults = {} if kind is None else {f.name: f.default for f in fields(kind)}
        rows, columns, bits = ((defaults | dict(options)).get(key) for key in ("rows", "columns", "phase_bits"))
        if isinstance(rows, int) and isinstance(columns, int) and isinstance(bits, int):
            return rows, columns, bits
        return None

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = "open"

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]: ...
    @property
    @abstractmethod
    def phase_bits(self) -> int: ...
    @abstractmethod
    def _do_apply(self, pattern: SurfacePattern, timeout_s: float) -> AppliedPattern: ...
    @abstractmethod
    def _do_readback(self, timeout_s: float) -> SurfacePattern: ...
    @abstractmethod
    def _do_close(self) -> None: ...
    @abstractmethod
    def now_s(self) -> float:
        """Return the board's clock in seconds (the clock of `AppliedPattern.time_s`)."""

    @property
    def capabilities(self) -> BoardCapabilities:
        return BoardCapabilities()

    @property
    def n_elements(self) -> int:
        return self.shape[0] * self.shape[1]

    def identity(self) -> dict[str, Any]:
        """Return driver, serial number and firmware version for the run's provenance."""
        return {"driver": type(self).__name__}

    def apply(self, pattern: SurfacePattern, timeout_s: float = 2.0) -> AppliedPattern:
        """Set every element. Raises DeviceError on a wrong shape, level or resolution, DeviceTimeout on silence."""
        self._check("apply", pattern)
        applied = self._do_apply(pattern, timeout_s)
        if applied.digest != pattern.digest:
            detail = f"pattern {pattern.digest} was set, {applied.digest} acknowledged"
            raise DeviceError(self.name, "apply", self.state, detail)
        return applied

    def queue(self, pattern: SurfacePattern, timeout_s: float = 2.0) -> None:
        """Store a pattern behind the outputs; a second one replaces the first. Raises as `apply` does."""
        self._check("queue", pattern)
        if not self.capabilities.can_queue:
            raise DeviceError(self.name, "queue", self.state, "this board cannot queue a pattern")
        self._do_queue(pattern, timeout_s)

    def trigger(self, timeout_s: float = 2.0) -> AppliedPattern:
        """Latch the queued pattern; raises DeviceError where there is none."""
        self._require_open("trigger")
        if not self.capabilities.can_queue:
            raise DeviceError(self.name, "trigger", self.state, "this board cannot queue a pattern")
        return self._do_trigger(timeout_s)

    def schedule(
        self, patterns: Sequence[SurfacePattern], times_s: Sequence[float], timeout_s: float = 2.0
    ) -> list[AppliedPattern]:
        """Have each pattern latch at its time on the board's clock; returns at once, with the times of the latches.

        Times ascend. If one of them has already passed, nothing latches and DeviceError is raised; raises as `apply`
        does.
        """
        size = self.capabilities.schedule_size
        if not 0 < len(patterns) <= size:
            accepted = f"accepted 1 to {size}" if size else "this board latches none by time"
            raise DeviceError(self.name, "schedule", self.state, f"{len(patterns)} patterns, {accepted}")
        for pattern in patterns:
            self._check("schedule", pattern)
        if len(times_s) != len(patterns) or any(b < a for a, b in pairwise(times_s)):
            raise DeviceError(self.name, "schedule", self.state, "times, accepted: one for each pattern, ascending")
        return self._do_schedule(patterns, times_s, timeout_s)

    def upload(self, codebook: Sequence[SurfacePattern], timeout_s: float = 30.0) -> None:
        """Store patterns in the board: all of them or, if this raises, none, and the old codebook is kept."""
        if not 0 < len(codebook) <= self.capabilities.codebook_size:
            size = self.capabilities.codebook_size
            accepted = f"accepted 1 to {size}" if size else "this board stores no codebook"
            raise DeviceError(self.name, "upload", self.state, f"{len(codebook)} patterns, {accepted}")
        for pattern in codebook:
            self._check("upload", pattern)
        self._do_upload(codebook, timeout_s)

    def apply_index(self, index: int, timeout_s: float = 2.0) -> AppliedPattern:
        """Set every element from the stored codebook; raises as `apply` does."""
        self._require_open("apply_index")
        if not self.capabilities.codebook_size:
            raise DeviceError(self.name, "apply_index", self.state, "this board stores no codebook")
        return self._do_apply_index(index, timeout_s)

    def apply_many(
        self, steps: Sequence[SurfacePattern | int], timeout_s: float = 2.0
    ) -> Generator[AppliedPattern, None, None]:
        """Set patterns, or stored ones by their index, one right after the other; yields the acknowledgements.

        Every acknowledgement is yielded, in order; `timeout_s` applies to each. The board may already hold a later
        pattern of `steps` than the last yielded one. If this raises (as `apply` does), the last yielded pattern is the
        last one that is known to be set: continue with those that were not yielded. Nothing is sent before the first
        acknowledgement is requested; any other operation on the board in between may end the sequence.
        """
        for step in steps:
            if isinstance(step, SurfacePattern):
                self._check("apply_many", step)
            elif not self.capabilities.codebook_size:
                raise DeviceError(self.name, "apply_many", self.state, "this board stores no codebook")
        return self._do_apply_many(steps, timeout_s)

    def readback(self, timeout_s: float = 2.0) -> SurfacePattern:
        """Return the pattern that the outputs hold now."""
        self._require_open("readback")
        return self._do_readback(timeout_s)

    def close(self) -> None:
        """Release the device; the surface keeps its last pattern. May be called twice."""
        if self.state != "closed":
            self.state = "closed"
            self._do_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _do_apply_many(
        self, steps: Sequence[SurfacePattern | int], timeout_s: float
    ) -> Generator[AppliedPattern, None, None]:
        for step in steps:
            yield self.apply(step, timeout_s) if isinstance(step, SurfacePattern) else self.apply_index(step, timeout_s)

    def _do_queue(self, pattern: SurfacePattern, timeout_s: float) -> None:
        raise NotImplementedError

    def _do_trigger(self, timeout_s: float) -> AppliedPattern:
        raise NotImplementedError

    def _do_schedule(
        self, patterns: Sequence[SurfacePattern], times_s: Sequence[float], timeout_s: float
    ) -> list[AppliedPattern]:
        raise NotImplementedError

    def _do_upload(self, codebook: Sequence[SurfacePattern], timeout_s: float) -> None:
        raise NotImplementedError

    def _do_apply_index(self, index: int, timeout_s: float) -> AppliedPattern:
        raise NotImplementedError

    def _check(self, operation: str, pattern: SurfacePattern) -> None:
        self._require_open(operation)
        levels, highest = np.asarray(pattern.levels), (1 << self.phase_bits) - 1
        wrong = None
        if levels.shape != self.shape:
            wrong = f"pattern of shape {levels.shape}, accepted {self.shape}"
        elif pattern.phase_bits != self.phase_bits:
            wrong = f"{pattern.phase_bits}-bit pattern, accepted {self.phase_bits}-bit"
        elif levels.dtype != np.uint8:  # another type would change the digest
            wrong = f"levels of type {levels.dtype}, accepted uint8"
        elif levels.min() < 0 or levels.max() > highest:
            wrong = f"levels {levels.min()} to {levels.max()}, accepted 0 to {highest}"
        if wrong is not None:
            raise DeviceError(self.name, operation, self.state, wrong)

    def _require_open(self, operation: str) -> None:
        if self.state == "closed":
            raise DeviceError(self.name, operation, self.state, "the board is closed")
