"""Conditional sample mean: every element takes the level for which random patterns had the highest mean worth.

Ren et al., "Configuring intelligent reflecting surface with performance guarantees: blind beamforming" (IEEE Trans.
Wireless Commun. 2023): of T random patterns, average the worth over those with element n at level k, and choose the k
of the highest average. With power P = |h₀ + Σ hₙ e^{jθₙ}|² that average is a constant + 2 Re(h₀* hₙ e^{jθₖ}), since all
other elements average out: each element is aligned with the static part h₀. If that is weak, the alignment fails. So
there are several rounds. From the second one on, half of the elements are drawn anew, and the others are held at their
present levels: held elements add to the static part, and the drawn ones align with the sum. Only worths are used.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from testbed.core.options import StageOptions
from testbed.core.stages import SurfaceSearch
from testbed.core.types import SurfacePattern


class ConditionalMeanOptions(StageOptions, frozen=True):
    samples: Annotated[int, Meta(ge=0)] = 0
    """Random patterns in each round of the search, from 8; 0: as many as there are elements, but at least 32."""
    rounds: Annotated[int, Meta(ge=1)] = 8
    """Rounds of the search; after each of them the elements choose their levels."""

    def __post_init__(self) -> None:
        if 0 < self.samples < 8:
            raise ValueError(f"samples = {self.samples}, accepted: 0 or from 8")


class ConditionalMean(SurfaceSearch):
    """Draws random patterns in each round of the search, and after each lets the elements choose their levels.

    In the first round all elements are drawn, from the second on a random half of them, while the others are held. A
    drawn element changes where its best level's average exceeds that of its present one by more than the standard error
    of their difference. Tries rounds·samples patterns.
    """

    options_type = ConditionalMeanOptions
    options: ConditionalMeanOptions

    def begin(self, start: SurfacePattern, rng: np.random.Generator) -> None:
        self._held, self._rng = start, rng
        self._samples = self.options.samples or max(32, start.levels.size)
        self._round = 0
        self._begin_round()

    def ask(self) -> SurfacePattern:
        return self._held if self.done else self._tried

    def tell(self, worth: float, error: float) -> None:
        self._worths.append(worth)
        self._levels.append(self._tried.levels.ravel()[self._drawn])
        if len(self._worths) == self._samples:
            self._choose()
            self._round += 1
            self.done = self._round == self.options.rounds
            self._begin_round()
        else:
            self._draw()

    def _begin_round(self) -> None:
        n = self._held.levels.size
        self._drawn = np.arange(n) if self._round == 0 else np.sort(self._rng.permutation(n)[: -(-n // 2)])
        self._worths: list[float] = []
        self._levels: list[np.ndarray] = []
        self._draw()

    def _draw(self) -> None:
        levels = self._held.levels.copy()
        n_levels = 1 << self._held.phase_bits
        levels.ravel()[self._drawn] = self._rng.integers(0, n_levels, self._drawn.size, dtype=np.uint8)
        self._tried = SurfacePattern(levels, self._held.phase_bits)

    def _choose(self) -> None:
        worths, levels = np.array(self._worths), np.array(self._levels)
        at = levels[:, :, None] == np.arange(1 << self._held.phase_bits)  # (sample, element, level)
        counts = at.sum(axis=0)
        means = np.where(counts > 0, np.einsum("s,sel->el", worths, at) / np.maximum(counts, 1), -np.inf)
        present = self._held.levels.ravel()[self._drawn]
        each = np.arange(present.size)
        best = means.argmax(axis=1)
        error = worths.std() * np.sqrt(1 / np.maximum(counts[each, best], 1) + 1 / np.maximum(counts[each, present], 1))
        better = (means[each, best] - means[each, present] > error) | (self._round == 0)
        chosen = self._held.levels.copy()
        chosen.ravel()[self._drawn] = np.where(better, best, present)
        self._held = SurfacePattern(chosen, self._held.phase_bits)
