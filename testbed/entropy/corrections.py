"""The information about a string in the positions of its corrected bits, for discussions that publish them."""

from __future__ import annotations

from math import ceil, log2

import numpy as np

from testbed.core.types import I64


def correction_leak(values: I64, flags: I64, bits: I64) -> int:
    """Return what the positions of corrected bits reveal about the labels of the string, in bits, rounded up.

    All arrays are (label,): the label as a number; in `flags`, a number with a 1 at each corrected bit; the length.
    Some labels are corrected more often than others, so that the positions reveal
    I(label; flags) = H(label) − H(label | flags) bits. The parities that locate a corrected bit are counted elsewhere
    and reveal one bit of its label each: a label of b bits with w errors is therefore charged at most b − w. The
    entropies are those of the observed frequencies; with few labels these are too low and the charge is too high.

    What a position reveals of the labels of neighbouring probes is not included. For signs of a first-order process
    with correlation 0.6 to 0.95 from probe to probe, at 10 to 20 dB, that is 0.01 to 0.12 bit per bit by Shannon, but
    it helps little in guessing a bit: the min-entropy, which determines the length, falls by 0.006 a bit at most from
    15 dB on, and by 0.02 at 10 dB, where the parities leave no key of such strings.
    """
    charge = 0.0
    for b in np.unique(bits).tolist():
        among = bits == b
        value, flag = values[among], flags[among]
        whole = _entropy(value)
        for f in np.unique(flag).tolist():
            same = value[flag == f]
            told = max(0.0, whole - _entropy(same))
            charge += same.size * (min(told, b - f.bit_count()) if f else told)
    return ceil(charge - 1e-6)


def _entropy(values: I64) -> float:
    found = np.unique(values, return_counts=True)[1]
    return log2(values.size) - float((found * np.log2(found)).sum()) / values.size
