"""The best of so many random patterns: what any cleverer search has to beat."""

from __future__ import annotations

import numpy as np

from testbed.core.stages import SurfaceSearch
from testbed.core.types import SurfacePattern


class RandomSearch(SurfaceSearch):
    """Draws `trials` patterns uniformly and keeps the one that was worth most, the start included."""

    def __init__(self, trials: int = 1000) -> None:
        if trials < 1:
            raise ValueError(f"trials = {trials}, accepted from 1")
        self._left = trials

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
