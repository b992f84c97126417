"""Multi-bit adaptive scalar quantization with Gray labels and guard bands, one dimension at a time.

Levels are cut by rank, not by value: a value's rank among this side's own values of the block (ties share the mean
rank) is its probability u in (0, 1), and u is cut at fixed points. So thresholds are empirical quantiles of that
dimension, any level or gain of a receiver cancels, and values of coarse resolution stay deterministic: equal values
always get the same label. The levels are then unbalanced, which the entropy estimate notices.

What the public messages reveal: Alice and Bob publish which (probe, dimension) entries they keep, nothing else.

- Guard bands. With L levels, each keeps the same probability k, and 2γ is dropped between two levels (γ = guard / L,
  k = (1 − 2(L−1)γ) / L). Hence P(kept | level) at Alice is the same for all levels, and for independent probes the
  indices say nothing about the labels of what is kept.
- Bob chooses in the same way by his own ranks. An inner level has two guard bands beside it, an outer one only one, so
  Bob drops slightly more of Alice's inner levels. The kept values are still independent of the indices, but slightly
  biased; the bias is visible in the final string, and the entropy estimate accounts for it.
- Where probes depend on one another, a gap in the indices means that the value crossed a threshold nearby. The entropy
estimate accounts for this as well, because its predictors use the gaps; it is not counted again here.
- Ranks make the levels balanced by construction: everybody knows that each of the L labels occurs equally often in a
  dimension (within one). This removes n·log2 L − log2(n! / Π c_l!) bits from n labels with counts c_l, and no
  statistic of the string shows it. Alice's message counts these bits as leaked. Bob's subset is a function of Alice's
  draft and of the indices, so it reveals nothing more.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.chain.quantize._gray import gray_table
from testbed.chain.quantize._messages import Mask, balance_bits, read_count, read_mask
from testbed.core.errors import ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.core.options import StageOptions
from testbed.core.stages import Quantizer
from testbed.core.types import F64, I64, Bits, Features


class ScalarOptions(StageOptions, frozen=True):
    bits: Annotated[int, Meta(ge=1, le=4)] = 2
    """Bits of a feature."""
    guard: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    """Share of a level's nominal probability 1/2**bits that is dropped on either side of each threshold."""


class Scalar(Quantizer):
    """Cuts each dimension into 2**bits equally likely levels.

    Dimensions without any variation, or with fewer than 2 values a level, give no bits.
    """

    options_type = ScalarOptions
    options: ScalarOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        bits, guard = self.options.bits, self.options.guard
        self._bits, self._n_levels = bits, 1 << bits
        self._gap = guard / self._n_levels
        self._keep = (1.0 - 2.0 * (self._n_levels - 1) * self._gap) / self._n_levels
        self._pitch = self._keep + 2.0 * self._gap
        self._labels = gray_table(bits)

    def lead(self, features: Features, rng: np.random.Generator) -> tuple[Bits, PublicMessage]:
        """Quantize Alice's features; publish the (probe, dimension) entries kept. `rng` is not used."""
        level, kept = self._levels(features.values)
        message = PublicMessage(
            kind="quantize.lead",
            body={
                "bits": self._bits,
                "probes": kept.shape[0],
                "dimensions": kept.shape[1],
                "kept": np.packbits(kept).tobytes(),
            },
            leaked_bits=ceil(sum(balance_bits(int(n), self._n_levels) for n in kept.sum(axis=0))),
        )
        return self._to_bits(level, kept), message

    def follow(self, features: Features, lead: PublicMessage) -> tuple[Bits, PublicMessage]:
        """Quantize Bob's features; publish which of Alice's entries he keeps, too.

        Raises ProtocolError where Alice's message does not fit his features or options.
        """
        offered = self._offered(lead)
        if offered.shape != features.values.shape:
            raise ProtocolError(
                f"scalar quantizer: {lead.kind} is about (probe, dimension) = {offered.shape}, "
                f"Bob has {features.values.shape}"
            )
        level, mine = self._levels(features.values)
        message = PublicMessage(kind="quantize.follow", body={"kept": np.packbits(mine[offered]).tobytes()})
        return self._to_bits(level, mine & offered), message

    def finish(self, draft: Bits, follow: PublicMessage) -> Bits:
        """Restrict Alice's draft to what Bob kept; raises ProtocolError where his message does not fit it."""
        kept = read_mask(follow, "kept", draft.values.size // self._bits)
        return draft.take(np.repeat(kept, self._bits))

    def eavesdrop(self, features: Features, lead: PublicMessage, follow: PublicMessage) -> tuple[Bits, Mask]:
        """Return Eve's guess, her own ranks cut halfway between levels, and (bit,) where she has a rank.

        Entries or dimensions that she lacks, or that do not vary for her, guess 0.
        """
        kept = self._offered(lead)
        kept[kept] = read_mask(follow, "kept", int(kept.sum()))
        own = features.values[:, : kept.shape[1]]
        if own.shape[0] != kept.shape[0]:
            raise ValueError(f"Eve's features have {own.shape[0]} probes, the public messages {kept.shape[0]}")
        u = np.full(kept.shape, np.nan)
        u[:, : own.shape[1]] = self._ranks(own)
        level = np.clip(np.floor((np.nan_to_num(u) + self._gap) / self._pitch), 0, self._n_levels - 1)
        return self._to_bits(level.astype(np.int64), kept), np.repeat(np.isfinite(u[kept]), self._bits)

    def _ranks(self, values: F64) -> F64:
        """Return each value's rank u in (0, 1) among the valid values of its dimension; NaN where there is none."""
        u = np.full(values.shape, np.nan)
        for d in range(values.shape[1]):
            valid = np.isfinite(values[:, d])
            column = values[valid, d]
            if column.size < 2 * self._n_levels or column.min() == column.max():
                continue
            ordered = np.sort(column)
            below = np.searchsorted(ordered, column, "left")
            up_to = np.searchsorted(ordered, column, "right")
            u[valid, d] = (below + up_to) / (2.0 * column.size)
        return u

    def _levels(self, values: F64) -> tuple[I64, Mask]:
        """Return (probe, dimension) levels, and which lie outside guard bands and are valid."""
        u = self._ranks(values)
        valid = np.isfinite(u)
        u = np.nan_to_num(u)
        level = np.clip(np.floor(u / self._pitch), 0, self._n_levels - 1).astype(np.int64)
        return level, valid & (u - level * self._pitch <= self._keep + 1e-12)

    def _to_bits(self, level: I64, kept: Mask) -> Bits:
        probe, dimension = np.nonzero(kept)
        n = probe.size
        return Bits(
            values=self._labels[level[kept]].reshape(-1),
            probe=np.repeat(probe, self._bits).astype(np.int64),
            dimension=np.repeat(dimension, self._bits).astype(np.int64),
            level_bit=np.tile(np.arange(self._bits, dtype=np.int64), n),
        )

    def _offered(self, lead: PublicMessage) -> Mask:
        bits, probes, dimensions = (read_count(lead, key) for key in ("bits", "probes", "dimensions"))
        if bits != self._bits:
            raise ProtocolError(f"scalar quantizer: Alice uses {bits} bits a feature, this side {self._bits}")
        return read_mask(lead, "kept", probes * dimensions).reshape(probes, dimensions)
