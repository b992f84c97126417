"""The one order of antenna pairs that both ends share."""

from __future__ import annotations

from dataclasses import replace

from testbed.core.types import CsiSeries


def canonical_antennas(csi: CsiSeries, role: str) -> CsiSeries:
    """Return the series with axes (probe, Alice's antenna, Bob's antenna, subcarrier), no matter which end measured it.

    A receiver puts its own antennas first: Alice's series is (probe, Alice, Bob, …), Bob's (probe, Bob, Alice, …). By
    reciprocity entry [a, b] of the one is entry [b, a] of the other, so Bob's is transposed, before an enhancer
    transforms it or learns from it. Eve's series (probe, Eve, sender, …) is returned unchanged, because neither order
    of it is reciprocal.
    """
    if role != "bob":
        return csi
    guessed = None if csi.guessed is None else csi.guessed.swapaxes(0, 1)
    return replace(csi, h=csi.h.swapaxes(1, 2), guessed=guessed)
