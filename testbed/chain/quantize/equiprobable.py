"""Equally likely cells without guard bands, as many as a dimension's correlation justifies, for soft decoding.

Alice cuts each dimension into 2**m equally likely cells, by rank or by the normal distribution, and labels them in
binary, so that a label of fewer bits is the beginning of a longer one. She publishes some labels at once (pilots: they
are the first part of the sacrifice); Bob compares his own values and publishes each dimension's m: reverse
water-filling in whole bits. A dimension whose bits cost more than they contribute to the key gets none. Values near
thresholds are not dropped: `reconcile.multilevel` needs more parities for them.

What the public messages reveal:
- Pilots are removed from the string, as all sacrificed bits are (`published`), so they count 0 here.
- The number of bits of a dimension follows from the pilots at both ends; 4 bits are charged for each dimension.
- Ranks make the cells balanced; Bob's message charges what this reveals of n labels (`_messages.balance_bits`): about
7·2**m bits per dimension, which is much for short blocks. With cells of the normal distribution, only the sample's mean
and variance are fixed: each reveals the sum of n labels with the precision of the cells, at most log2 n bits and, from
2^m values, about m + 2. Two such sums are charged, each at the larger of both figures.
"""

from __future__ import annotations

import warnings
from math import ceil
from typing import Annotated, Any, Literal

import numpy as np
import scipy
from msgspec import Meta

from testbed.chain.quantize._messages import Mask, balance_bits, read_bytes, read_count, read_mask
from testbed.core.errors import ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.core.options import StageOptions
from testbed.core.seeds import permutation
from testbed.core.stages import Quantizer
from testbed.core.types import F64, I64, Bits, Features
from testbed.entropy.gaussian_labels import cell_scores, level_entropies, normal_scores

MOST_BITS = 8
_ALLOCATION_BITS = 4
_LEAST_VALUES = 16
_WORTH = 0.02
"""Least number of key bits per value; a dimension with fewer is left out."""
_CLEAR, _GAP, _OFFSET = 0.94, 1.01, 0.022
"""Cost of reconciling a bit of conditional entropy h: the whole bit from `_CLEAR` on, else h·_GAP + _OFFSET."""


class EquiprobableOptions(StageOptions, frozen=True):
    bits: Annotated[int, Meta(ge=0, le=MOST_BITS)] = 0
    """m of every dimension; 0: chosen for each by its pilots."""
    pilots: Annotated[int, Meta(ge=8, le=4096)] = 32
    """Published values per dimension, at most a sixteenth of all values."""
    shortfall: Annotated[float, Meta(ge=0, le=0.5)] = 0.01
    """Entropy that the accounting is expected to subtract from each raw bit; a larger value gives fewer bits."""
    cells: Literal["rank", "normal"] = "rank"
    """rank: for features of any distribution; normal: for Gaussian features, where short blocks are not charged for
    balance. With other features, the cells of `normal` are not equally likely; the rule "estimated" accounts for that,
    the rule "modelled" does not."""


class Equiprobable(Quantizer):
    """Cuts each dimension into 2**m equally likely cells; binary labels, no guard bands.

    Dimensions without variation or with fewer than 16 values give no bits.
    """

    whole_symbols = True

    options_type = EquiprobableOptions
    options: EquiprobableOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        self._bits, self._pilots, self._shortfall, self._by_rank = o.bits, o.pilots, o.shortfall, o.cells == "rank"

    def lead(self, features: Features, rng: np.random.Generator) -> tuple[Bits, PublicMessage]:
        """Label Alice's values with 8 bits each; publish which entries she has, and the pilots."""
        z = self._scores(features.values)
        z[:, np.isfinite(z).sum(axis=0) < _LEAST_VALUES] = np.nan
        offered, seed = np.isfinite(z), int(rng.integers(1 << 63))
        body = {
            "probes": z.shape[0],
            "dimensions": z.shape[1],
            "offered": np.packbits(offered).tobytes(),
            "seed": seed,
            "pilots": _cells(z[self._places(offered, seed)]).astype("u1").tobytes(),
        }
        deep = np.full(z.shape[1], MOST_BITS)
        return _to_bits(z, offered, deep), PublicMessage(kind="quantize.lead", body=body)

    def follow(self, features: Features, lead: PublicMessage) -> tuple[Bits, PublicMessage]:
        """Choose each dimension's bits; publish them, and which entries Bob has, too. Raises ProtocolError."""
        offered, told = self._read_lead(lead)
        if offered.shape != features.values.shape:
            raise ProtocolError(
                f"equiprobable quantizer: {lead.kind} is about (probe, dimension) = {offered.shape}, "
                f"Bob has {features.values.shape}"
            )
        z, counts = self._scores(features.values), offered.sum(axis=0)
        depth = np.array([self._depth(told[:, d], z[:, d], int(counts[d])) for d in range(z.shape[1])], np.int64)
        mine = np.isfinite(z)
        body = {"kept": np.packbits(mine[offered]).tobytes(), "depth": depth.astype("u1").tobytes()}
        leaked = _ALLOCATION_BITS * depth.size
        leaked += ceil(sum(self._balance(int(n), int(m)) for n, m in zip(counts, depth, strict=True)))
        message = PublicMessage(kind="quantize.follow", body=body, leaked_bits=leaked)
        return _to_bits(z, mine & offered, depth), message

    def finish(self, draft: Bits, follow: PublicMessage) -> Bits:
        """Restrict Alice's draft to what Bob kept, and to his number of bits; raises ProtocolError."""
        first = draft.level_bit == 0
        kept = read_mask(follow, "kept", int(first.sum()))
        depth = _read_depth(follow)
        if depth.size <= draft.dimension.max(initial=-1):
            raise ProtocolError(f"equiprobable quantizer: {follow.kind} is about {depth.size} dimensions")
        chosen = np.repeat(kept, MOST_BITS)
        chosen[chosen] = draft.level_bit[chosen] < depth[draft.dimension[chosen]]
        return draft.take(chosen)

    def eavesdrop(self, features: Features, lead: PublicMessage, follow: PublicMessage) -> tuple[Bits, Mask]:
        """Return Eve's guess, the cells of her own scores, and (bit,) where she has one; elsewhere the guess is 0."""
        kept, _ = self._read_lead(lead)
        offered, depth = kept.copy(), _read_depth(follow)
        if depth.size != offered.shape[1]:
            raise ProtocolError(f"equiprobable quantizer: {follow.kind} is about {depth.size} dimensions")
        kept[kept] = read_mask(follow, "kept", int(kept.sum()))
        own = features.values[:, : offered.shape[1]]
        if own.shape[0] != offered.shape[0]:
            raise ValueError(f"Eve's features have {own.shape[0]} probes, the public messages {offered.shape[0]}")
        z = np.full(offered.shape, np.nan)
        z[:, : own.shape[1]] = self._scores(own)
        bits = _to_bits(np.where(np.isfinite(z), z, -9.0), kept, depth)
        return bits, np.isfinite(z)[bits.probe, bits.dimension]

    def published(self, raw: Bits, lead: PublicMessage) -> Mask:
        """Return (bit,) which raw bits Alice's message has published as pilots; raises ProtocolError."""
        probes, dimensions = (read_count(lead, key) for key in ("probes", "dimensions"))
        offered = read_mask(lead, "offered", probes * dimensions).reshape(probes, dimensions)
        return self._places(offered, _read_seed(lead))[raw.probe, raw.dimension]

    def _scores(self, values: F64) -> F64:
        """Return (probe, dimension) normal scores, or values in standard deviations; NaN where there is none."""
        if self._by_rank:
            return normal_scores(values)
        with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a dimension without values has no mean
            spread = np.nanstd(values, axis=0)
            z = (values - np.nanmean(values, axis=0)) / spread
        z[:, ~(spread > 0)] = np.nan
        return z

    def _balance(self, n: int, m: int) -> float:
        """Return how many bits of n labels of m bits are revealed by cells that follow from the labels' own
        distribution.
        """
        if not m:
            return 0.0
        balance = balance_bits(n, 1 << m)
        return balance if self._by_rank else min(2.0 * max(n.bit_length(), m + 2), balance)

    def _depth(self, told: F64, z: F64, n: int) -> int:
        """Return a dimension's bits, from (probe,) Alice's published pilots, NaN elsewhere, and Bob's scores."""
        both = np.isfinite(told) & np.isfinite(z)
        if n < _LEAST_VALUES or np.count_nonzero(np.isfinite(z)) < _LEAST_VALUES:
            return 0
        if self._bits:
            return self._bits
        a, b = told[both], z[both]
        if a.size < 4:
            return 0
        # The correlation is reduced a little, as if a few more pilots had none.
        rho = float(a @ b) / (max(np.sqrt(float(a @ a) * float(b @ b)), 1e-9) + 1e-3 * a.size)
        rho = round(float(np.clip(rho, 0.0, 0.99999)), 3 if rho < 0.99 else 5)
        net = {m: _worth(rho, m) - m * self._shortfall - self._balance(n, m) / n for m in range(1, MOST_BITS + 1)}
        best = max(net, key=lambda m: net[m])
        return best if net[best] > _WORTH else 0

    def _places(self, offered: Mask, seed: int) -> Mask:
        """Return (probe, dimension) the positions of the pilots."""
        pilots = np.zeros(offered.shape, np.bool_)
        for d in range(offered.shape[1]):
            own = np.flatnonzero(offered[:, d])
            chosen = permutation(own.size, seed, "pilots", d)[: min(self._pilots, max(own.size // 16, 4))]
            pilots[own[chosen], d] = True
        return pilots

    def _read_lead(self, lead: PublicMessage) -> tuple[Mask, F64]:
        """Return (probe, dimension) the offered entries, and the pilots' scores, NaN elsewhere."""
        probes, dimensions = (read_count(lead, key) for key in ("probes", "dimensions"))
        offered = read_mask(lead, "offered", probes * dimensions).reshape(probes, dimensions)
        pilots = self._places(offered, _read_seed(lead))
        told = np.frombuffer(read_bytes(lead, "pilots", int(pilots.sum())), "u1")
        scores = np.full(offered.shape, np.nan)
        scores[pilots] = cell_scores(MOST_BITS)[told]
        return offered, scores


def _worth(rho: float, m: int) -> float:
    h = np.array(level_entropies(rho, m))
    return float(m - np.where(h >= _CLEAR, 1.0, np.where(h < 1e-5, h, np.minimum(1.0, h * _GAP + _OFFSET))).sum())


def _cells(z: F64) -> I64:
    """Return the numbers of the finest cells; a score on a border belongs to the upper one, whatever the rounding."""
    return np.minimum(np.floor(scipy.special.ndtr(z) * (1 << MOST_BITS) + 1e-9), (1 << MOST_BITS) - 1).astype(np.int64)


def _to_bits(z: F64, kept: Mask, depth: I64) -> Bits:
    """Return the labels of the kept (probe, dimension) scores, most significant bit first."""
    probe, dimension = np.nonzero(kept & (depth > 0))
    m = depth[dimension]
    cell = _cells(z[probe, dimension])
    place = np.arange(int(m.sum())) - np.repeat(np.cumsum(m) - m, m)
    values = (np.repeat(cell, m) >> (MOST_BITS - 1 - place)) & 1
    return Bits(values.astype(np.uint8), np.repeat(probe, m), np.repeat(dimension, m), place)


def _read_depth(follow: PublicMessage) -> I64:
    packed = follow.body.get("depth")
    if not isinstance(packed, bytes):
        raise ProtocolError(f"quantizer: {follow.kind} must carry each dimension's number of bits")
    depth = np.frombuffer(packed, "u1").astype(np.int64)
    if (depth > MOST_BITS).any():
        raise ProtocolError(f"quantizer: {follow.kind} has {depth.max()} bits, accepted: 0 to {MOST_BITS}")
    return depth


def _read_seed(lead: PublicMessage) -> int:
    seed = lead.body.get("seed")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise ProtocolError(f"quantizer: {lead.kind} has seed = {str(seed)[:40]}, accepted: 0 to 2^63 − 1")
    return seed
