"""The best of many random patterns: the reference for every other search."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.core.options import StageOptions
from testbed.core.stages import SurfaceSearch
from testbed.core.types import SurfacePattern


class RandomSearchOptions(StageOptions, frozen=True):
    trials: Annotated[int, Meta(ge=1)] = 1000
    """Number of patterns drawn."""


class RandomSearch(SurfaceSearch):
    """Draws `trials` patterns uniformly and keeps the one of highest worth, the start included."""

    options_type = RandomSearchOptions
    options: RandomSearchOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = self.options.trials

    def begin(self, start: SurfacePattern, rng: np.random.Generator) -> None:
        self._rng = rng
        self._best = self._tried = start
        self._worth = -np.inf

    def ask(self) -> SurfacePattern:
        return self._best if self.done else self._tried

    def tell(self, worth: float, error: float) -> None:
        if worth > self._worth:
            self._best, self._worth = self._tried, worth
        self._left -= 1
        self.done = self._left < 0
        bits = self._tried.phase_bits
        levels = self._rng.integers(0, 1 << bits, self._tried.levels.shape, dtype=np.uint8)
        self._tried = SurfacePattern(levels, bits)
