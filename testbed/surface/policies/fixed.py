"""One pattern for the whole run."""

from __future__ import annotations

from testbed.core import patterns
from testbed.core.stages import SurfacePolicy
from testbed.core.types import SurfacePattern


class Fixed(SurfacePolicy):
    """Holds `pattern` (`core.patterns`): a static channel, and with `pattern = "uniform"` a plain reflector."""

    changes = False

    def __init__(self, pattern: str = "random(1)") -> None:
        patterns.check(pattern)
        self._spec = pattern

    def begin(self, shape: tuple[int, int], phase_bits: int, seed: int) -> None:
        self._pattern = patterns.make(self._spec, shape, phase_bits)

    def pattern_for(self, round: int) -> SurfacePattern:
        return self._pattern
