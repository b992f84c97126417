"""Simulated annealing over the surface's elements."""

from typing import Annotated

import numpy as np
from msgspec import Meta

from testbed.core.options import StageOptions
from testbed.core.stages import SurfaceSearch
from testbed.core.types import SurfacePattern


class AnnealingOptions(StageOptions):
    trials: Annotated[int, Meta(ge=2)] = 600
    """Number of patterns tried, including the start."""
    heat: Annotated[float, Meta(gt=0, le=1)] = 0.3
    """Loss that is accepted with probability 1/e at the beginning, as a share of the start's worth."""


class Annealing(SurfaceSearch):
    """Changes one element at a time; worse patterns are accepted more and more rarely."""

    options_type = AnnealingOptions

    def begin(self, start, rng):
        self._rng, self._tried, self._held, self._best = rng, start, start, start
        self._worth = self._most = None
        self._left = self.options.trials

    def ask(self):
        return self._best if self.done else self._tried

    def tell(self, worth, error):
        self._left -= 1
        if self._worth is None:
            self._first = max(abs(worth), 1e-30)
        heat = self.options.heat * self._first * self._left / self.options.trials
        if (
            self._worth is None
            or worth >= self._worth
            or self._rng.random() < np.exp((worth - self._worth) / max(heat, 1e-30))
        ):
            self._held, self._worth = self._tried, worth
        if self._most is None or worth > self._most:
            self._best, self._most = self._tried, worth
        self.done = self._left == 0
        levels = self._held.levels.copy()
        at = self._rng.integers(levels.size)
        n = 1 << self._held.phase_bits
        levels.ravel()[at] = (levels.ravel()[at] + self._rng.integers(1, n)) % n
        self._tried = SurfacePattern(levels, self._held.phase_bits)
