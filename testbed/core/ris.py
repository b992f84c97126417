"""The Board contract: a controller that sets the phases of a reconfigurable surface.

Drivers override `_do_apply` and `_do_readback`. `apply` returns only once the board said that its outputs hold the
pattern; a wrong shape or level raises and changes nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from msgspec import Struct

from testbed.core.errors import DeviceError
from testbed.core.types import AppliedPattern, SurfacePattern


class Board(ABC):
    """A surface controller with `shape` = (rows, columns) elements of `phase_bits` bits each."""

    options_type: ClassVar[type[Struct] | None] = None
    """The keys of the node's `options` in the lab file, so that they can be checked before anything starts; None: the
    driver alone knows."""

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
    def n_elements(self) -> int:
        return self.shape[0] * self.shape[1]

    def identity(self) -> dict[str, Any]:
        """Return driver, serial number and firmware version for the run's provenance."""
        return {"driver": type(self).__name__}

    def apply(self, pattern: SurfacePattern, timeout_s: float = 2.0) -> AppliedPattern:
        """Set every element. Raises DeviceError on a wrong shape, level or resolution, DeviceTimeout on silence."""
        self._require_open("apply")
        levels = np.asarray(pattern.levels)
        if levels.shape != self.shape:
            raise DeviceError(self.name, "apply", self.state, f"pattern of shape {levels.shape}, accepted {self.shape}")
        if pattern.phase_bits != self.phase_bits:
            raise DeviceError(
                self.name, "apply", self.state, f"{pattern.phase_bits}-bit pattern, accepted {self.phase_bits}-bit"
            )
        if levels.min() < 0 or levels.max() >= 1 << self.phase_bits:
            raise DeviceError(
                self.name, "apply", self.state, f"level {levels.max()}, accepted 0 to {(1 << self.phase_bits) - 1}"
            )
        return self._do_apply(pattern, timeout_s)

    def readback(self, timeout_s: float = 2.0) -> SurfacePattern:
        """Return what the outputs hold now."""
        self._require_open("readback")
        return self._do_readback(timeout_s)

    def close(self) -> None:
        """Let the device go; the surface keeps its last pattern. May be called twice."""
        if self.state != "closed":
            self.state = "closed"
            self._do_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _require_open(self, operation: str) -> None:
        if self.state == "closed":
            raise DeviceError(self.name, operation, self.state, "the board is closed")
