"""One pattern of a codebook after the other, over and over."""

from __future__ import annotations

from testbed.core import patterns
from testbed.core.stages import SurfacePolicy
from testbed.core.types import SurfacePattern


class Sweep(SurfacePolicy):
    """Holds each of `codebook` (`core.patterns`) for `dwell` rounds."""

    def __init__(self, codebook: list[str], dwell: int = 1) -> None:
        if not codebook or dwell < 1:
            raise ValueError(
                f"codebook of {len(codebook)} patterns, dwell = {dwell}, accepted from one pattern and one round"
            )
        for spec in codebook:
            patterns.check(spec)
        self._specs, self._dwell = codebook, dwell
        self.changes = len(codebook) > 1

    def begin(self, shape: tuple[int, int], phase_bits: int, seed: int) -> None:
        self._codebook = [patterns.make(spec, shape, phase_bits) for spec in self._specs]

    def pattern_for(self, round: int) -> SurfacePattern:
        return self._codebook[round // self._dwell % len(self._codebook)]
