"""Coordinate ascent: tries the other levels of one group of elements after the other and keeps improvements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from msgspec import Meta

from testbed.core.options import StageOptions
from testbed.core.stages import SurfaceSearch
from testbed.core.types import SurfacePattern

_REFRESH = 16
"""Number of groups after which the kept pattern is measured again: its first value may have been high by chance."""


class GreedyOptions(StageOptions, frozen=True):
    group: Annotated[int, Meta(ge=1)] = 1
    """Number of elements that are changed together."""
    sweeps: Annotated[int, Meta(ge=1)] = 3
    """Largest number of sweeps over all elements."""


class Greedy(SurfaceSearch):
    """Changes `group` elements together to their other levels, in random order, in up to `sweeps` sweeps over all.

    A change is kept where it is better by more than the standard error of the comparison. Ends early after a sweep
    that changed nothing. Tries (2^bits − 1)·elements/group patterns a sweep, and measures the kept one again after
    every 16th group.
    """

    options_type = GreedyOptions
    options: GreedyOptions

    def begin(self, start: SurfacePattern, rng: np.random.Generator) -> None:
        self._held = self._tried = start
        self._worth = self._error = 0.0
        self._course = self._search(rng)
        next(self._course)

    def ask(self) -> SurfacePattern:
        return self._held if self.done else self._tried

    def tell(self, worth: float, error: float) -> None:
        self._worth, self._error = worth, error
        self.done = next(self._course, None) is None

    def _search(self, rng: np.random.Generator) -> Iterator[bool]:
        """Leave a pattern in `_tried` at every step; `_worth` and `_error` hold its result at the next step."""
        n_levels, n = 1 << self._held.phase_bits, self._held.levels.size
        for _ in range(self.options.sweeps):
            changed = False
            order = rng.permutation(n)
            for i, first in enumerate(range(0, n, self.options.group)):
                if i % _REFRESH == 0:
                    self._tried = self._held
                    yield True
                    worth = self._worth
                base, chosen = self._held.levels.ravel(), order[first : first + self.options.group]
                for step in range(1, n_levels):
                    levels = base.copy()
                    levels[chosen] = (levels[chosen] + step) % n_levels
                    self._tried = SurfacePattern(levels.reshape(self._held.levels.shape), self._held.phase_bits)
                    yield True
                    if self._worth > worth + np.sqrt(2) * self._error:
                        self._held, worth, changed = self._tried, self._worth, True
            if not changed:
                return
