"""The common parts of the studies of quantizers: features of CSI, paper B's five quantizers, the results of a block."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core import registry
from testbed.core.ledger import PublicMessage
from testbed.core.seeds import generator
from testbed.core.stages import Quantizer
from testbed.core.types import I64, U8, Features

C128 = NDArray[np.complex128]

BITS = 4
"""Bits per channel coefficient: 16 regions or levels, as in the paper."""


@dataclass(frozen=True)
class Case:
    """A quantizer, and the kind of features that it gets."""

    label: str
    stage: str
    complex_csi: bool = True
    """Whether the features are the real and imaginary part of a coefficient; otherwise its magnitude."""

    def make(self, regions: int = 1 << BITS, dimension: int = 2) -> Quantizer:
        """Return the quantizer without guard bands, because the paper has none."""
        if self.stage != "scalar":
            options: dict[str, Any] = {"dimension": dimension, "regions": regions}
        else:
            options = {"bits": BITS // 2 if self.complex_csi else BITS}
        made: Quantizer = registry.make_stage("quantize", self.stage, {**options, "guard": 0.0})
        return made


SCALAR = Case("scalar, magnitude", "scalar", complex_csi=False)
SCALAR_PARTS = Case("scalar, Re and Im", "scalar")
"""Not in the paper: the scalar quantizer with the vector quantizers' features, with as many bits per coefficient."""
KMEANS = Case("k-means", "kmeans")
HUNGARIAN = Case("balanced k-means", "balanced_kmeans")
GREEDY = Case("BKQ-BM", "bkq_bm")
ILP = Case("ILP-BVQ", "ilp_bvq")
VECTOR = (KMEANS, HUNGARIAN, GREEDY, ILP)
CASES = (SCALAR, SCALAR_PARTS, *VECTOR)


def features(h: C128, complex_csi: bool) -> Features:
    """Return features of (probe, subcarrier): Re and Im of a coefficient side by side, or its magnitude."""
    values = np.stack([h.real, h.imag], axis=2).reshape(len(h), -1) if complex_csi else np.abs(h)
    return Features(values, np.arange(len(h)))


@dataclass(frozen=True)
class Block:
    """Both sides' labels of the same coefficients, and the published messages."""

    alice: U8
    """(coefficient, bit)."""
    bob: U8
    lead: PublicMessage
    follow: PublicMessage

    @property
    def kdr(self) -> float:
        """Share of bits that differ."""
        return float((self.alice != self.bob).mean())

    @property
    def label_errors(self) -> float:
        """Share of labels that differ."""
        return float((self.alice != self.bob).any(axis=1).mean())


def quantized(case: Case, alice: C128, bob: C128, seed: int) -> Block:
    """Quantize both sides' CSI (probe, subcarrier) as one block, with the public messages that nodes use."""
    q = case.make()
    draft, lead = q.lead(features(alice, case.complex_csi), generator(seed, "studies"))
    bits, follow = q.follow(features(bob, case.complex_csi), lead)
    return Block(labels(q.finish(draft, follow).values), labels(bits.values), lead, follow)


def guessed(case: Case, block: Block, eve: C128) -> U8:
    """Return Eve's labels (coefficient, bit): her own CSI, quantized by the same rule with the published messages."""
    found, _ = case.make().eavesdrop(features(eve, case.complex_csi), block.lead, block.follow)
    return labels(found.values)


def labels(values: U8) -> U8:
    """Return (coefficient, bit). Bits are ordered by probe and dimension, so those of one coefficient are
    neighbours."""
    return values.reshape(-1, BITS)


def symbols(bits: U8) -> I64:
    """Return labels (coefficient, bit) as whole numbers (coefficient,)."""
    return np.asarray(bits.astype(np.int64) @ (1 << np.arange(bits.shape[1])[::-1]))


def entropy_bits(symbol: I64, k: int) -> float:
    """Return the Shannon entropy of (sample,) symbols 0 … k − 1 in bits, corrected by Miller and Madow."""
    counts = np.bincount(symbol, minlength=k)
    seen = counts[counts > 0]
    p = seen / symbol.size
    return float(-(p * np.log2(p)).sum() + (seen.size - 1) / (2 * symbol.size * log(2)))


def shared_bits(x: I64, y: I64, k: int) -> float:
    """Return the mutual information of (sample,) symbols 0 … k − 1 in bits, corrected by Miller and Madow.

    The correction counts only pairs that occur, so rare ones leave a bias that falls as 1/n; not clipped at 0.
    """
    return entropy_bits(x, k) + entropy_bits(y, k) - entropy_bits(x * k + y, k * k)
