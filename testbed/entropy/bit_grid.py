"""A raw string laid out where it came from: the common ground of the entropy predictors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import I64, U8, Bits

MISSING = 2
"""Third value of a bit: there is none (dropped, or before the start)."""


@dataclass(frozen=True, slots=True)
class BitGrid:
    """Bits by origin. A string of one probe is laid out with its dimensions as probes: something must be the past."""

    values: U8
    """(bit,) in the string's order."""
    probe: I64
    """(bit,) from 0."""
    dimension: I64
    level_bit: I64
    table: U8
    """(probe, dimension, level bit) of 0, 1 or MISSING."""

    @classmethod
    def of(cls, bits: Bits) -> BitGrid:
        """Lay out at least one bit."""
        probe, dimension = bits.probe - bits.probe.min(), bits.dimension
        if not probe.any():
            probe, dimension = dimension - dimension.min(), probe
        shape = (int(probe.max()) + 1, int(dimension.max()) + 1, int(bits.level_bit.max()) + 1)
        table = np.full(shape, MISSING, dtype=np.uint8)
        table[probe, dimension, bits.level_bit] = bits.values
        return cls(bits.values, probe, dimension, bits.level_bit, table)

    def back(self, probes: int = 0, dimensions: int = 0, level_bits: int = 0) -> U8:
        """Return (bit,) the bit so many probes, dimensions and level bits before each bit."""
        p, d, b = self.probe - probes, self.dimension - dimensions, self.level_bit - level_bits
        found = self.table[np.maximum(p, 0), np.maximum(d, 0), np.maximum(b, 0)]
        found[(p < 0) | (d < 0) | (b < 0)] = MISSING
        return found

    def signs(self) -> NDArray[np.float64]:
        """Return (probe, dimension, level bit) −1 for 0, +1 for 1, 0 for no bit."""
        return np.array([-1.0, 1.0, 0.0])[self.table]


def alternate_segments(n_probes: int, n_segments: int) -> NDArray[np.bool_]:
    """Mark every other of up to `n_segments` segments of probes (probe,): the two halves of the data.

    Segments, not the first and the second half: a channel that drifts from one level to another shows one level in
    each half, and what is learnt on the one says nothing about the other, although each bit repeats the last.
    """
    segment = np.arange(n_probes) * min(n_segments, n_probes) // n_probes
    odd: NDArray[np.bool_] = segment % 2 == 1
    return odd
