"""Plain k-means vector quantization: every sample goes to the nearest centroid, at Alice and at Bob.

Regions of uneven size make some labels likelier than others; the entropy estimate of the string accounts for that.
"""

from __future__ import annotations

from testbed.chain.quantize._vector import VectorQuantizer, choose_nearest
from testbed.core.types import F64, I64


class KMeans(VectorQuantizer):
    """k-means; `bob = "same"` and "nearest" are the same here."""

    balanced = False

    def assign(self, costs: F64, prices: F64 | None = None) -> tuple[I64, F64]:
        """Return the nearest region of each sample and prices of 0."""
        return choose_nearest(costs)
