"""A new random pattern every `every` rounds: the published method to get keys from a static room."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from testbed.core import seeds
from testbed.core.options import StageOptions
from testbed.core.stages import SurfacePolicy
from testbed.core.types import SurfacePattern


class RandomOptions(StageOptions, frozen=True):
    every: Annotated[int, Meta(ge=1)] = 1
    """Number of rounds for which a pattern is held."""


class Random(SurfacePolicy):
    """Draws every element uniformly, anew every `every` rounds."""

    options_type = RandomOptions
    options: RandomOptions
    can_be_secret = True

    def begin(self, shape: tuple[int, int], phase_bits: int, seed: int) -> None:
        self._shape, self._phase_bits = shape, phase_bits
        self._rng = seeds.generator(seed, "random")
        self._drawn_for = -1

    def group(self, round: int) -> int:
        return round // self.options.every

    def pattern_for(self, round: int) -> SurfacePattern:
        if self._drawn_for < 0 or self.group(round) != self.group(self._drawn_for):
            levels = self._rng.integers(0, 1 << self._phase_bits, size=self._shape, dtype=np.uint8)
            self._pattern = SurfacePattern(levels, self._phase_bits)
            self._drawn_for = round
        return self._pattern
