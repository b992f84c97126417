"""A node's measurements that no block has used yet. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from testbed.core.types import CsiFrame, CsiSeries
from testbed.nodes.events import OrderRefused


class MeasuredCsi:
    """The CSI of this node's rounds, by round and role of the transmitter. No round is used in two blocks."""

    MOST = 1 << 17
    """Largest number of rounds that are kept, as the coordinator decides when a block uses them; then the oldest are
    dropped."""

    def __init__(self) -> None:
        self._frames: dict[int, dict[str, CsiFrame]] = {}
        self._used = -1
        """Latest round that a block has used."""

    def clear(self) -> None:
        self._frames.clear()
        self._used = -1

    def keep(self, round: int, frames: dict[str, CsiFrame]) -> None:
        """Keep a round's CSI, unless a block has used this round or a later one already."""
        if frames and round > self._used:
            self._frames[round] = frames
            while len(self._frames) > self.MOST:
                del self._frames[next(iter(self._frames))]

    def series(self, rounds: list[int], tx: str) -> CsiSeries | None:
        """Return the CSI of transmitter `tx` in these rounds, NaN where it is missing; None if all of it is missing."""
        frames = [self._frames.get(r, {}).get(tx) for r in rounds]
        known = [f for f in frames if f is not None]
        if not known:
            return None
        blank = np.full_like(known[0].h, np.nan)
        return CsiSeries(
            h=np.stack([blank if f is None else f.h for f in frames]),
            rounds=np.array(rounds, dtype=np.int64),
            subcarrier_hz=known[0].subcarrier_hz,
        )

    def until(self, round: int, most: int) -> list[int]:
        """Return the rounds up to this one of which CSI is kept, ascending; at most the latest `most` of them."""
        return sorted(r for r in self._frames if r <= round)[-most:]

    def use(self, rounds: list[int], tx: str, block: int) -> CsiSeries:
        """Return the series of a block and delete it here, so that no round is used twice.

        Raises OrderRefused where its rounds cannot be used.
        """
        if rounds[0] <= self._used or any(later <= earlier for earlier, later in pairwise(rounds)):
            raise OrderRefused(f"rounds of block {block} repeat or are out of order")
        series = self.series(rounds, tx)
        if series is None:
            raise OrderRefused(f"there is no CSI of block {block}: this node may have been restarted")
        self._used = rounds[-1]
        self.forget_until(self._used)
        return series

    def forget_until(self, round: int) -> None:
        """Delete the measurements of this round and of all before it."""
        for r in [r for r in self._frames if r <= round]:
            del self._frames[r]

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        if any(r <= self._used for r in self._frames):
            yield f"CSI is kept of rounds up to {self._used}, which were used"
