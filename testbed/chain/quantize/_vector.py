"""What the vector quantizers share: samples of several dimensions, clustering, labels, guard bands, public messages.

A sample is a group of d features of one probe. Each side scales every dimension to mean 0 and variance 1 by its own
values, so the level and gain of a receiver cancel. Alice clusters her samples (k-means++ start, then assignment and
centroids in turn until nothing changes), rounds the centroids, publishes them and assigns once more; Bob and Eve do
that last assignment with their own samples (paper B section 4). Subclasses define how samples are assigned.

What the public messages reveal, and what Alice's message counts as leaked:

- Centroids are means of secret samples. A message with one of N possible contents lowers the min-entropy of anything by
at most log2 N, so all that they can reveal is charged: coordinates are rounded to p bits (a fraction of a region, see
`precision`), and k points in any order on a grid of 2^(p·d) are log2 C(2^(p·d) + k − 1, k) bits. This holds for any
distribution of the samples. For blocks of thousands of bits it is a few per cent; small blocks have too few bits for
many regions in many dimensions.
- Bit labels are a function of the published centroids and of fresh random numbers, so they reveal nothing more.
- Balance. It is known that all labels occur equally often (within one), but no statistic of the string shows that this
  is so by construction. As in `scalar` it removes n·log2 k − log2(n! / Π c_l!) bits. Plain k-means does not balance its
  counts; their bias is visible in the string, and the entropy estimate accounts for it.
- Unused labels, where k is no power of two: a label then has log2 k bits at most, and not ⌈log2 k⌉. The string shows
the difference in part; it is charged here in full, because an estimate may not notice every missing label.
- Guard bands. The same share of every region is dropped, namely the samples nearest to another region. For independent
  probes the published indices therefore reveal nothing about the labels of kept samples, and at Alice these stay
  balanced. Bob drops samples by the same rule on his own; the bias that results is visible in the string, as in
  `scalar`.
- Which dimensions vary at all is a property of the receiver, not of the kept labels, so nothing is charged.
- Corrected errors are charged later, by their place in the label; `_labels` orders the places for that.
"""

from __future__ import annotations

from abc import abstractmethod
from math import ceil, lgamma, log, log2
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from testbed.chain.quantize._labels import label_bits, label_regions
from testbed.chain.quantize._messages import Mask, balance_bits, read_bytes, read_count, read_mask
from testbed.core.errors import DialogueFailed, ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.core.options import StageOptions
from testbed.core.stages import Quantizer
from testbed.core.types import F64, I64, U8, Bits, Features

MAX_REGIONS, MAX_DIMENSION = 256, 256
_RANGE = 4.0
"""Centroids lie within ± this many standard deviations; those farther out are published at the limit."""
_MAX_ROUNDS = 100


class VectorOptions(StageOptions, frozen=True):
    """Options of all vector quantizers."""

    dimension: Annotated[int, Meta(ge=1, le=MAX_DIMENSION)] = 2
    """Number of features in a sample."""
    regions: Annotated[int, Meta(ge=2, le=MAX_REGIONS)] = 16
    """Number of regions. Each has a label of whole bits, so that only powers of two use all labels."""
    guard: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    """Share of each region's samples dropped, those nearest to another region."""
    grouping: Literal["adjacent", "spread"] = "adjacent"
    """Which features form a sample: adjacent dimensions, or dimensions that are as far apart as there are groups.
    Dimensions that are left over are not used."""
    precision: Annotated[int, Meta(ge=0, le=8)] = 4
    """Bits of a centroid's coordinate beyond the log2(regions)/dimension that distinguish regions; more bits leak
    more."""
    bob: Literal["same", "nearest"] = "same"
    """How Bob assigns with Alice's centroids: by the same rule as Alice (as in the paper), or to the nearest one."""


class VectorQuantizer(Quantizer):
    """Quantizes groups of features together."""

    options_type = VectorOptions
    options: VectorOptions

    balanced = True
    """Whether all regions get the same number of samples at Alice."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        dimension, regions, precision = o.dimension, o.regions, o.precision
        self._d, self._k, self._guard = dimension, regions, o.guard
        self._spread, self._nearest_bob = o.grouping == "spread", o.bob == "nearest"
        self._bits = label_bits(regions)
        self._digits = ceil(self._bits / dimension) + precision
        self._step = 2.0 * _RANGE / (1 << self._digits)

    @abstractmethod
    def assign(self, costs: F64, prices: F64 | None = None) -> tuple[I64, F64]:
        """Return (sample,) regions for (region, sample) costs, and (region,) prices, which are added to the costs.

        `prices` are those of the assignment before, as starting values.
        """

    # ------------------------------------------------------------ the three public steps, and Eve's

    def columns(self, features: Features, lead: PublicMessage) -> I64 | None:
        """Return (column, member): the columns of the group that begins with a column, or only the column itself."""
        n = features.values.shape[1]
        groups = self._groups(np.flatnonzero(read_mask(lead, "varies", n)))
        out = np.repeat(np.arange(n)[:, None], self._d, axis=1)
        out[groups[:, 0]] = groups
        return out

    def lead(self, features: Features, rng: np.random.Generator) -> tuple[Bits, PublicMessage]:
        """Cluster Alice's samples; publish centroids, labels, dimensions and the (probe, group) samples kept.

        Without measurements there are no bits. Raises DialogueFailed('too_few_samples') where there are fewer samples
        than regions or fewer varying dimensions than a sample needs.
        """
        values, varies = _standard(features.values)
        columns = np.flatnonzero(varies)
        groups = self._groups(columns)
        points, valid = _points(values, groups)
        n = int(valid.sum())
        if np.isfinite(features.values).any() and n < self._k:
            raise DialogueFailed(
                "too_few_samples",
                f"{n} complete samples of {self._d} features from {columns.size} varying dimensions, "
                f"accepted: {self._k} for as many regions",
            )
        kept = np.zeros(valid.shape, np.bool_)
        region = np.zeros(valid.shape, np.int64)
        grid = np.zeros((self._k, self._d), np.int64)
        table = np.zeros((self._k, self._bits), np.uint8)
        leaked = 0
        if n:
            own = points[valid]
            grid = self._on_grid(self.cluster(own, rng))
            centroids = np.asarray(grid * self._step, np.float64)
            table = label_regions(centroids, rng)
            region[valid], prices = self.assign(squared_distances(own, centroids))
            kept[valid] = self._inside(own, centroids, region[valid], prices)
            counted = balance_bits(int(kept.sum()), self._k) if self.balanced else 0.0
            unused = int(kept.sum()) * (self._bits - log2(self._k))
            leaked = ceil(_multisets_log2(self._digits * self._d, self._k) + counted + unused)
        body = {
            "dimension": self._d,
            "regions": self._k,
            "digits": self._digits,
            "probes": valid.shape[0],
            "dimensions": values.shape[1],
            "varies": np.packbits(varies).tobytes(),
            "centroids": grid.astype("<i2").tobytes(),
            "labels": np.packbits(table, axis=1).tobytes(),
            "kept": np.packbits(kept).tobytes(),
        }
        message = PublicMessage(kind="quantize.lead", body=body, leaked_bits=leaked)
        return self._to_bits(table, region, kept, groups), message

    def follow(self, features: Features, lead: PublicMessage) -> tuple[Bits, PublicMessage]:
        """Assign Bob's samples with Alice's centroids; publish which of her samples he keeps, too.

        Raises ProtocolError where Alice's message does not fit his features or options.
        """
        offer = _Offer.of(lead, self)
        if offer.shape != features.values.shape:
            raise ProtocolError(
                f"vector quantizer: {lead.kind} is about (probe, dimension) = {offer.shape}, "
                f"Bob has {features.values.shape}"
            )
        region, inside, _ = self._place(features.values, offer, self._nearest_bob)
        message = PublicMessage(kind="quantize.follow", body={"kept": np.packbits(inside[offer.kept]).tobytes()})
        return self._to_bits(offer.table, region, inside & offer.kept, offer.groups), message

    def finish(self, draft: Bits, follow: PublicMessage) -> Bits:
        """Restrict Alice's draft to what Bob kept; raises ProtocolError where his message does not fit it."""
        kept = read_mask(follow, "kept", draft.values.size // self._bits)
        return draft.take(np.repeat(kept, self._bits))

    def eavesdrop(self, features: Features, lead: PublicMessage, follow: PublicMessage) -> tuple[Bits, Mask]:
        """Return Eve's guess, her samples assigned by Alice's rule, and (bit,) where she has a complete sample.

        Elsewhere the guess is 0. Raises ValueError where her series has other probes.
        """
        offer = _Offer.of(lead, self)
        kept = offer.kept.copy()
        kept[kept] = read_mask(follow, "kept", int(kept.sum()))
        probes, dimensions = offer.shape
        if features.values.shape[0] != probes:
            raise ValueError(f"Eve's features have {features.values.shape[0]} probes, the public messages {probes}")
        own = np.full(offer.shape, np.nan)
        shared = min(dimensions, features.values.shape[1])
        own[:, :shared] = features.values[:, :shared]
        region, _, valid = self._place(own, offer, False)
        bits = self._to_bits(offer.table, region, kept, offer.groups)
        covered = np.repeat(valid[kept], self._bits)
        bits.values[~covered] = 0
        return bits, covered

    # ------------------------------------------------------------ clustering

    def cluster(self, points: F64, rng: np.random.Generator, max_rounds: int = _MAX_ROUNDS) -> F64:
        """Return (region, dimension) centroids of (sample, dimension) points, of the best assignment found.

        Assignment and centroids are computed in turn until no sample changes, the cost rises (a greedy assignment need
        not converge), or for `max_rounds` iterations. A region without samples keeps its centroid.
        """
        best, found = plus_plus(points, self._k, rng), np.inf
        centroids, label, prices = best, np.full(points.shape[0], -1), None
        for _ in range(max_rounds):
            costs = squared_distances(points, centroids)
            before, (label, prices) = label, self.assign(costs, prices)
            cost = float(costs[label, np.arange(label.size)].sum())
            if np.array_equal(label, before) or cost >= found:
                break
            found = cost
            sizes = np.bincount(label, minlength=self._k)
            sums = np.stack([np.bincount(label, x, self._k) for x in points.T], axis=1)
            centroids = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
            best = centroids
        return best

    def _on_grid(self, centroids: F64) -> I64:
        """Return (region, dimension) whole steps, regions in ascending order, so that their order reveals nothing."""
        half = 1 << (self._digits - 1)
        grid = np.clip(np.rint(centroids / self._step), -half, half - 1).astype(np.int64)
        return grid[np.lexsort(grid.T[::-1])]

    # ------------------------------------------------------------ samples and bits

    def _groups(self, columns: I64) -> I64:
        """Return (group, place) the columns that form each sample; the first ones ascend."""
        n = columns.size // self._d
        used = columns[: n * self._d]
        return used.reshape(self._d, n).T if self._spread else used.reshape(n, self._d)

    def _place(self, values: F64, offer: _Offer, nearest: bool) -> tuple[I64, Mask, Mask]:
        """Return (probe, group) regions, which samples lie outside the guard bands, and which are complete."""
        standard, varies = _standard(values)
        standard[:, ~varies] = np.nan
        points, valid = _points(standard, offer.groups)
        region, inside = np.zeros(valid.shape, np.int64), np.zeros(valid.shape, np.bool_)
        own = points[valid]
        if own.size:
            costs = squared_distances(own, offer.centroids)
            region[valid], prices = choose_nearest(costs) if nearest else self.assign(costs)
            inside[valid] = self._inside(own, offer.centroids, region[valid], prices)
        return region, inside, valid

    def _inside(self, points: F64, centroids: F64, region: I64, prices: F64) -> Mask:
        """Return (sample,) False for the share `guard` of each region whose samples lie nearest to another region."""
        keep = np.ones(region.size, np.bool_)
        sizes = np.bincount(region, minlength=self._k)
        # If sizes are balanced, all regions drop the same number, so that the counts still differ by one at most.
        floor = np.full(self._k, sizes.min()) if np.ptp(sizes) <= 1 else sizes
        drop = np.floor(self._guard * floor).astype(np.int64)
        if not drop.any():
            return keep
        margin = boundary_distances(points, centroids, region, prices)
        order = np.lexsort((margin, region))
        first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        rank = np.arange(region.size) - first[region[order]]
        keep[order[rank < drop[region[order]]]] = False
        return keep

    def _to_bits(self, table: U8, region: I64, kept: Mask, groups: I64) -> Bits:
        probe, group = np.nonzero(kept)
        b = self._bits
        return Bits(
            values=table[region[kept]].reshape(-1),
            probe=np.repeat(probe, b).astype(np.int64),
            dimension=np.repeat(groups[group, 0], b).astype(np.int64),
            level_bit=np.tile(np.arange(b, dtype=np.int64), probe.size),
        )


class _Offer:
    """Alice's published message, read and checked."""

    def __init__(self, shape: tuple[int, int], groups: I64, centroids: F64, table: U8, kept: Mask) -> None:
        self.shape, self.groups, self.centroids, self.table, self.kept = shape, groups, centroids, table, kept

    @classmethod
    def of(cls, lead: PublicMessage, own: VectorQuantizer) -> _Offer:
        d, k, bits = own._d, own._k, own._bits
        for key, mine in (("dimension", d), ("regions", k), ("digits", own._digits)):
            theirs = read_count(lead, key)
            if theirs != mine:
                raise ProtocolError(f"vector quantizer: Alice uses {key} = {theirs}, this side {mine}")
        probes, dimensions = read_count(lead, "probes"), read_count(lead, "dimensions")
        groups = own._groups(np.flatnonzero(read_mask(lead, "varies", dimensions)))
        kept = read_mask(lead, "kept", probes * groups.shape[0]).reshape(probes, groups.shape[0])
        grid = np.frombuffer(read_bytes(lead, "centroids", 2 * k * d), "<i2").reshape(k, d)
        labels = np.frombuffer(read_bytes(lead, "labels", k), np.uint8)
        if kept.any() and np.unique(labels).size != k:
            raise ProtocolError(f"vector quantizer: {lead.kind} labels several of {k} regions alike")
        table = np.unpackbits(labels[:, None], axis=1, count=bits)
        return cls((probes, dimensions), groups, grid * own._step, table, kept)


def choose_nearest(costs: F64) -> tuple[I64, F64]:
    """Return (sample,) the cheapest region of each, and prices of 0."""
    return np.asarray(np.argmin(costs, axis=0), np.int64), np.zeros(costs.shape[0])


def squared_distances(points: F64, centroids: F64) -> F64:
    """Return (region, sample) squared distances."""
    out: F64 = centroids @ points.T
    out *= -2.0
    out += (centroids**2).sum(axis=1)[:, None]
    out += (points**2).sum(axis=1)
    return out


def boundary_distances(points: F64, centroids: F64, region: I64, prices: F64) -> F64:
    """Return (sample,) how far each lies from the nearest boundary of its region; below 0 on the wrong side.

    The boundary of regions u and v is where cost + price is the same: a plane across the line between their centroids.
    """
    value = squared_distances(points, centroids) + prices[:, None]
    lead = value - value[region, np.arange(region.size)]
    apart = np.sqrt(np.maximum(squared_distances(centroids, centroids), 0.0))
    np.fill_diagonal(apart, 1.0)
    lead /= 2.0 * np.maximum(apart, 1e-9)[:, region]
    lead[region, np.arange(region.size)] = np.inf
    out: F64 = lead.min(axis=0)
    return out


def plus_plus(points: F64, k: int, rng: np.random.Generator) -> F64:
    """Return (region, dimension) starting centroids: samples drawn by squared distance from those drawn before.

    k-means++ of Arthur and Vassilvitskii, SODA 2007.
    """
    chosen = [int(rng.integers(points.shape[0]))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < k:
        sums = np.cumsum(nearest)
        # all samples coincide with chosen ones, so any of them serves
        i = int(np.searchsorted(sums, rng.random() * sums[-1], "right")) if sums[-1] > 0 else chosen[0]
        chosen.append(min(i, points.shape[0] - 1))
        np.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(axis=1), out=nearest)
    return points[chosen]


def _standard(values: F64) -> tuple[F64, Mask]:
    """Return (probe, dimension) values of mean 0 and variance 1 by dimension, and (dimension,) which vary at all."""
    valid = np.isfinite(values)
    clean = np.where(valid, values, 0.0)
    count = np.maximum(valid.sum(axis=0), 1)
    mean = clean.sum(axis=0) / count
    centred = np.where(valid, clean - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    # rounding errors give a constant column a deviation of about 1e-16 of its level
    varies: Mask = np.atleast_1d(deviation > 1e-9 * np.maximum(np.abs(mean), 1e-300))
    return np.where(valid, centred / np.where(varies, deviation, 1.0), np.nan), varies


def _points(values: F64, groups: I64) -> tuple[F64, Mask]:
    """Return (probe, group, place) samples and (probe, group) which of them are complete."""
    points = values[:, groups]
    complete: Mask = np.all(np.isfinite(points), axis=2)
    return points, complete


def _multisets_log2(bits: int, k: int) -> float:
    """Return log2 of the number of ways to choose k points, in any order, out of 2**bits: C(2**bits + k − 1, k)."""
    if bits > 40:  # lgamma is too inexact for huge arguments; then it is k·bits − log2 k! to 1e-6
        return k * bits - lgamma(k + 1) / log(2.0)
    cells = float(1 << bits)
    return (lgamma(cells + k) - lgamma(cells) - lgamma(k + 1)) / log(2.0)
