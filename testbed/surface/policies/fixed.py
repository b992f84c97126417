"""One pattern for the whole run."""

from __future__ import annotations

from typing import Any

from testbed.core import patterns
from testbed.core.options import StageOptions
from testbed.core.stages import SurfacePolicy
from testbed.core.types import SurfacePattern


class FixedOptions(StageOptions, frozen=True):
    pattern: str = "random(1)"
    """The pattern, see `core.patterns`."""


class Fixed(SurfacePolicy):
    """Holds one pattern; with `pattern = "uniform"` the surface is a plain reflector."""

    options_type = FixedOptions
    options: FixedOptions
    changes = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        patterns.check(self.options.pattern)

    def begin(self, shape: tuple[int, int], phase_bits: int, seed: int) -> None:
        self._pattern = patterns.make(self.options.pattern, shape, phase_bits)

    def pattern_for(self, round: int) -> SurfacePattern:
        return self._pattern
