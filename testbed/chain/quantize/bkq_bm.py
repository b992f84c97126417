"""BKQ-BM, paper B's peer [18]: balanced by filling regions greedily.

Samples are assigned one by one in their order; each goes to the nearest region that is not full yet. Late samples get
whatever region has room, so regions overlap.
"""

from __future__ import annotations

import numpy as np

from testbed.chain.quantize._vector import VectorQuantizer
from testbed.core.types import F64, I64


class BkqBm(VectorQuantizer):
    """Greedy balanced k-means."""

    def assign(self, costs: F64, prices: F64 | None = None) -> tuple[I64, F64]:
        """Return the regions and prices of 0: a greedy assignment has none."""
        return fill(costs), np.zeros(costs.shape[0])


def fill(costs: F64) -> I64:
    """Return (sample,) regions of ⌊n/k⌋ or ⌈n/k⌉ samples for (region, sample) costs, in order of the samples."""
    k, n = costs.shape
    each, larger = divmod(n, k)
    room = np.full(k, each + (larger > 0), np.int64)
    label = np.empty(n, np.int64)
    open_ = np.ones(k, np.bool_)
    start = 0
    while start < n:
        left = np.flatnonzero(open_)
        wish = left[np.argmin(costs[left, start:], axis=0)]
        # Count the earlier samples that prefer the same region; the first sample whose region is full ends this part.
        count = np.zeros(wish.size, np.int64)
        for j in left:
            here = wish == j
            count[here] = np.arange(1, int(here.sum()) + 1)
        filled = np.flatnonzero(count == room[wish])
        stop = int(filled[0]) + 1 if filled.size else wish.size
        label[start : start + stop] = wish[:stop]
        room -= np.bincount(wish[:stop], minlength=k)
        if filled.size and larger:
            larger -= 1
            if not larger:  # this was the last larger region, so all that are not full have one place less
                room[room > 0] -= 1
        open_ = room > 0
        start += stop
    return label
