"""Every element's contribution from Hadamard-coded patterns: each probe measures all elements of a group at once.

While the rest of the surface is held and gives the reference r, the elements of one group are turned by 0 or π by the
rows of a Hadamard matrix. Power is |r + Σ sₙgₙ|² (s = ±1); the difference to the same row with all signs changed
(a fold-over design) is 4 Re(r* Σ sₙgₙ) exactly, and its correlation with the matrix' columns gives Re(r*gₙ) of each
element. With two bits or more a second set, turned by π/2, gives the imaginary part. Then every element takes the level
that adds most to r. Only worths are used; phases of different frames, which have no meaning with free-running
oscillators, are not. Compared with one element at a time, an element's contribution is measured with a standard error
that is √(elements of a group) times smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from msgspec import Meta

from testbed.core.options import StageOptions
from testbed.core.stages import SurfaceSearch
from testbed.core.types import F64, SurfacePattern


class HadamardOptions(StageOptions, frozen=True):
    groups: Annotated[int, Meta(ge=2)] = 4
    """Interleaved groups of elements; one changes while the others are the reference."""
    sweeps: Annotated[int, Meta(ge=1)] = 2
    """Largest number of sweeps over all groups."""


class Hadamard(SurfaceSearch):
    """Estimates `groups` interleaved groups of elements one after the other, in up to `sweeps` sweeps over all.

    An element changes where its gain exceeds the standard error of its estimate. Tries 2·2^⌈log₂(elements/groups)⌉
    patterns for a group in each sweep, twice as many with two bits or more. There are at least two groups: one
    changes, the others are the reference.
    """

    options_type = HadamardOptions
    options: HadamardOptions

    def begin(self, start: SurfacePattern, rng: np.random.Generator) -> None:
        self._held = self._tried = start
        self._worth = self._error = 0.0
        self._course = self._search(rng)
        self.done = next(self._course, None) is None

    def ask(self) -> SurfacePattern:
        return self._held if self.done else self._tried

    def tell(self, worth: float, error: float) -> None:
        self._worth, self._error = worth, error
        self.done = next(self._course, None) is None

    def _search(self, rng: np.random.Generator) -> Iterator[bool]:
        """Leave a pattern in `_tried` at every step; its worth is available at the next step."""
        shape, bits = self._held.levels.shape, self._held.phase_bits
        n_levels, n = 1 << bits, self._held.levels.size
        turns = np.exp(2j * np.pi * np.arange(n_levels) / n_levels)
        for _ in range(self.options.sweeps):
            changed = False
            order = rng.permutation(n)
            for first in range(min(self.options.groups, n)):
                chosen = order[first :: self.options.groups]
                signs = _signs(chosen.size)
                share, errors = np.zeros(chosen.size, complex), []
                for quarter in range(1 if bits == 1 else 2):
                    part = np.zeros(chosen.size)
                    for row in signs:
                        pair = []
                        for sign in (row, -row):
                            levels = self._held.levels.ravel().copy()
                            # s = 1: unchanged, −1: turned by π; in the second set both are turned by a further π/2
                            step = quarter * n_levels // 4 + np.where(sign > 0, 0, n_levels // 2)
                            levels[chosen] = (levels[chosen] + step) % n_levels
                            self._tried = SurfacePattern(levels.reshape(shape), bits)
                            yield True
                            pair.append(self._worth)
                            errors.append(self._error)
                        part += row * (pair[0] - pair[1]) / (4 * len(signs))
                    # after a turn by π/2, the contribution's real part is minus its present imaginary part
                    share += part if quarter == 0 else -1j * part
                gain = (share[:, None] * turns).real
                best = gain.argmax(axis=1)
                error = float(np.mean(errors)) / np.sqrt(8 * len(signs))
                better = gain.max(axis=1) - gain[:, 0] > error
                levels = self._held.levels.ravel().copy()
                levels[chosen[better]] = (levels[chosen[better]] + best[better]) % n_levels
                self._held = SurfacePattern(levels.reshape(shape).astype(np.uint8), bits)
                changed = changed or bool(better.any())
            if not changed:
                return


def _signs(n: int) -> F64:
    """Return (row, n): the first n columns of Sylvester's matrix of the next power of two."""
    signs = np.ones((1, 1))
    while len(signs) < n:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs[:, :n]
