"""Parts of the quantizers' public messages: counts, kept entries, and the bits that balance reveals."""

from __future__ import annotations

from math import lgamma, log, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.errors import ProtocolError
from testbed.core.ledger import PublicMessage

Mask = NDArray[np.bool_]


def balance_bits(n: int, n_levels: int) -> float:
    """Return how many bits of n labels are revealed by the fact that all levels occur equally often (within one)."""
    each, extra = divmod(n, n_levels)
    arrangements = lgamma(n + 1) - extra * lgamma(each + 2) - (n_levels - extra) * lgamma(each + 1)
    return max(0.0, n * log2(n_levels) - arrangements / log(2.0))


def read_count(message: PublicMessage, key: str) -> int:
    """Return a whole number 0 to 2**31 − 1 of the body; raises ProtocolError."""
    value: Any = message.body.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise ProtocolError(f"quantizer: {message.kind} has {key} = {str(value)[:40]}, accepted: a count")
    return value


def read_mask(message: PublicMessage, key: str, n: int) -> Mask:
    """Return (entry,) n packed bits of the body; raises ProtocolError."""
    packed = read_bytes(message, key, (n + 7) // 8)
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=n).astype(np.bool_)


def read_bytes(message: PublicMessage, key: str, n: int) -> bytes:
    """Return n bytes of the body; raises ProtocolError."""
    packed: Any = message.body.get(key)
    if not isinstance(packed, bytes) or len(packed) != n:
        raise ProtocolError(f"quantizer: {message.kind} must carry {n} bytes of {key}")
    return packed
