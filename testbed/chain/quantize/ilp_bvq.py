"""ILP-BVQ of paper B: balanced k-means with the exact assignment, computed from the dual (`_balanced`)."""

from __future__ import annotations

from testbed.chain.quantize._balanced import assign_balanced
from testbed.chain.quantize._vector import VectorQuantizer
from testbed.core.types import F64, I64


class IlpBvq(VectorQuantizer):
    """Exact balanced vector quantization."""

    def assign(self, costs: F64, prices: F64 | None = None) -> tuple[I64, F64]:
        """Return a cheapest balanced assignment and its prices."""
        return assign_balanced(costs, prices)
