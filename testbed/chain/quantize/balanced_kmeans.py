"""Balanced k-means by the Hungarian algorithm: paper B's peer [17], as exact as ILP-BVQ, in O(n³) time.

Every region is divided into places for one sample each, and samples are matched with places. Memory is n² numbers.
"""

from __future__ import annotations

import numpy as np
import scipy

from testbed.chain.quantize._balanced import prices_of
from testbed.chain.quantize._vector import VectorQuantizer
from testbed.core.errors import DialogueFailed
from testbed.core.types import F64, I64

MAX_SAMPLES = 8192
"""Largest number of samples: their costs take half a gigabyte, and an assignment takes more than a minute."""


class BalancedKMeans(VectorQuantizer):
    """Balanced k-means for up to 8192 samples per block."""

    def assign(self, costs: F64, prices: F64 | None = None) -> tuple[I64, F64]:
        """Return a cheapest balanced assignment and its prices.

        Raises DialogueFailed('too_many_samples') beyond MAX_SAMPLES.
        """
        if costs.shape[1] > MAX_SAMPLES:
            raise DialogueFailed(
                "too_many_samples",
                f"balanced_kmeans: {costs.shape[1]} samples, accepted: up to {MAX_SAMPLES}; use ilp_bvq",
            )
        label = match_places(costs)
        return label, prices_of(costs, label)


def match_places(costs: F64) -> I64:
    """Return (sample,) regions of a cheapest balanced assignment for (region, sample) costs."""
    k, n = costs.shape
    each, larger = divmod(n, k)
    if not larger:
        _, place = scipy.optimize.linear_sum_assignment(np.repeat(costs, each, axis=0).T)
        return np.asarray(place // each, np.int64)
    # Each region gets one extra place; k − larger dummy samples, which fit extra places only, leave `larger` of them.
    each += 1
    table = np.full((n + k - larger, k * each), np.inf)
    table[:n] = np.repeat(costs, each, axis=0).T
    table[n:, each - 1 :: each] = 0.0
    _, place = scipy.optimize.linear_sum_assignment(table)
    return np.asarray(place[:n] // each, np.int64)
