"""Gray labels: neighbouring levels differ in one bit."""

from __future__ import annotations

import numpy as np

from testbed.core.types import U8


def gray_table(bits: int) -> U8:
    """Return (level, level_bit) labels of 2**bits levels, most significant bit first; level 0 is all zeros."""
    level = np.arange(1 << bits)
    code = level ^ (level >> 1)
    table: U8 = ((code[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
    return table
