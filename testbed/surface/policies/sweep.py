"""One pattern of a codebook after the other, over and over."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from testbed.core import patterns
from testbed.core.options import StageOptions
from testbed.core.stages import SurfacePolicy
from testbed.core.types import SurfacePattern


class SweepOptions(StageOptions, frozen=True):
    codebook: Annotated[tuple[str, ...], Meta(min_length=1)]
    """The patterns, see `core.patterns`."""
    dwell: Annotated[int, Meta(ge=1)] = 1
    """Number of rounds for which each pattern is held."""


class Sweep(SurfacePolicy):
    """Holds each pattern of the codebook for `dwell` rounds."""

    options_type = SweepOptions
    options: SweepOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for spec in self.options.codebook:
            patterns.check(spec)
        self.changes = len(self.options.codebook) > 1

    def begin(self, shape: tuple[int, int], phase_bits: int, seed: int) -> None:
        self._codebook = [patterns.make(spec, shape, phase_bits) for spec in self.options.codebook]

    def pattern_for(self, round: int) -> SurfacePattern:
        return self._codebook[round // self.options.dwell % len(self._codebook)]
