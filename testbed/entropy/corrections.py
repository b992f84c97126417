"""What the places of corrected bits tell about a string: the charge for a discussion that lays them open."""

from __future__ import annotations

from math import ceil, log2

import numpy as np

from testbed.core.types import I64


def correction_leak(values: I64, flags: I64, bits: I64) -> int:
    """Return what the places of corrected bits tell about the labels of the string, in bits, rounded up.

    (label,) each: the label as a number, a 1 in `flags` where one of its bits was corrected, its length. Values next to
    a border are often wrong, and regions on both sides of it share most of the label; a label without errors is more
    likely of a region that is seldom wrong. Together they tell I(label; flags) = H(label) − H(label | flags), whatever
    the labels are and wherever errors are frequent. A corrected bit was told as such, by two parities that are counted:
    a label of b bits with w errors is charged b − w at most. Entropies are those of the values found, too low on
    average and the more so the fewer the labels: the charge errs upwards.

    What a place tells of the labels of neighbouring probes is not in it. Of signs of a first-order process with
    correlation 0.6 to 0.95 from probe to probe, 10 to 20 dB, that is 0.01 to 0.12 bit a bit by Shannon, yet it helps
    little to guess a bit: the min-entropy, which the length goes by, falls by 0.006 a bit at most from 15 dB on, and by
    0.02 at 10 dB, where the parities leave no key of such strings.
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
