"""One bit per feature: above or below the median; values in a dead band around the median give none."""

from math import ceil, lgamma, log
from typing import Annotated

import numpy as np
from msgspec import Meta

from testbed.core.errors import ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.core.options import StageOptions
from testbed.core.stages import Quantizer
from testbed.core.types import Bits


class MedianOptions(StageOptions):
    dead_band: Annotated[float, Meta(ge=0, le=0.8)] = 0.2
    """Share of each dimension's values, those nearest to the median, that give no bit."""


class Median(Quantizer):
    """Each end divides each dimension at its own median."""

    options_type = MedianOptions

    def lead(self, features, rng):
        above, kept = self._cut(features.values)
        body = {"shape": list(kept.shape), "kept": np.packbits(kept).tobytes()}
        # it is public that both labels occur equally often: n − log2 C(n, n/2) bits of n are not secret
        leaked = ceil(sum(_balance(int(n)) for n in kept.sum(axis=0)))
        return _bits(above, kept), PublicMessage(kind="quantize.lead", body=body, leaked_bits=leaked)

    def follow(self, features, lead):
        offered = _offered(lead)
        if offered.shape != features.values.shape:
            raise ProtocolError(f"median: {lead.kind} is about {offered.shape}, Bob has {features.values.shape}")
        above, own = self._cut(features.values)
        message = PublicMessage(kind="quantize.follow", body={"kept": np.packbits(own[offered]).tobytes()})
        return _bits(above, own & offered), message

    def finish(self, draft, follow):
        return draft.take(_mask(follow, draft.values.size))

    def eavesdrop(self, features, lead, follow):
        kept = _offered(lead)
        kept[kept] = _mask(follow, int(kept.sum()))
        above, _ = self._cut(features.values)
        heard = np.isfinite(features.values)[kept]
        return _bits(above & np.isfinite(features.values), kept), heard

    def _cut(self, values):
        """Return (probe, dimension) which values lie above the median, and which outside the dead band."""
        above, kept = np.zeros(values.shape, bool), np.zeros(values.shape, bool)
        half = self.options.dead_band / 2
        for d, column in enumerate(values.T):
            measured = column[np.isfinite(column)]
            if measured.size:
                low, middle, high = np.quantile(measured, [0.5 - half, 0.5, 0.5 + half])
                above[:, d] = column > middle
                kept[:, d] = (column < low) | (column > high)
        return above, kept


def _bits(above, kept):
    probe, dimension = np.nonzero(kept)
    return Bits(above[kept].astype(np.uint8), probe, dimension, np.zeros(probe.size, np.int64))


def _offered(lead):
    shape = lead.body.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 <= n < 1 << 20 for n in shape)):
        raise ProtocolError(f"median: {lead.kind} has no shape")
    return _mask(lead, shape[0] * shape[1]).reshape(shape)


def _mask(message, n):
    packed = message.body.get("kept")
    if not isinstance(packed, bytes) or len(packed) != (n + 7) // 8:
        raise ProtocolError(f"median: {message.kind} must carry {n} packed bits")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=n).astype(bool)


def _balance(n):
    return n - (lgamma(n + 1) - 2 * lgamma(n / 2 + 1)) / log(2) if n else 0.0
