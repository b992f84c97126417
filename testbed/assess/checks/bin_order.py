"""Fails if one end's spectrum is mirrored or shifted against the other's: its subcarriers are misnumbered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.assess.agreement import correlation
from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64

MOST_SHIFT = 16
_LEAST_BINS = 8
_CLEAR = 0.4
"""Least correlation in another order for which that order is the right one; it must also exceed that in the recorded
order by `_BETTER`."""
_BETTER = 0.1


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which the second end's bins agree with the first end's."""

    mirrored: bool
    shift: int
    """First end's bin k is the second end's bin k + shift, after mirroring."""

    @property
    def words(self) -> str:
        shift = f"shifted by {abs(self.shift)} bin{'s' * (abs(self.shift) > 1)}" if self.shift else ""
        return " and ".join(w for w in ("mirrored" * self.mirrored, shift) if w)


class BinOrder(HealthCheck):
    """Fails if one end's spectrum is mirrored or shifted against the other's, that is, if its subcarriers are
    misnumbered.
    """

    order = 25

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [bin_order(m.alice_db, m.bob_db, m.pairs)]


def bin_order(alice_db: F64, bob_db: F64, pairs: int = 1) -> Verdict:
    """Return whether one end's spectrum is mirrored or shifted: it correlates clearly, but only in another order of its
    bins.

    Levels (probe, dimension), dimension = pair · n_subcarriers + subcarrier. In a channel that is flat over the band
    all orders give the same levels, and the order does not matter.
    """
    name = "bin_order"
    found = other_order(alice_db, bob_db, pairs)
    if found is None:
        return Verdict(name, True, "No other order of the subcarriers correlates better than the recorded one.")
    order, r, r0 = found
    detail = (
        f"Bob's spectrum is {order.words} against Alice's: bin by bin they correlate by {r0:.2f} as recorded, by "
        f"{r:.2f} in that order. Check the order of I and Q and of the bins (descending, FFT order, a missing bin) at "
        "both ends."
    )
    return Verdict(name, False, detail, {"r": r0, "r_reordered": r, "shift": float(order.shift)})


def other_order(first_db: F64, second_db: F64, pairs: int = 1) -> tuple[Order, float, float] | None:
    """Return the order in which two ends' levels clearly correlate better, that correlation, and the one as recorded.

    None where the recorded order is the best one, or there are too few bins to decide.
    """
    a, b = (x.reshape(len(x), pairs, x.shape[1] // pairs) for x in (first_db, second_db))
    n_bins = a.shape[2]
    as_is = correlation(first_db, second_db)
    if n_bins < _LEAST_BINS or b.shape != a.shape or as_is is None:
        return None
    reach = min(MOST_SHIFT, n_bins // 4)
    found = {}
    for mirrored in (False, True):
        turned = b[:, :, ::-1] if mirrored else b
        for shift in range(-reach, reach + 1):
            mine = a[:, :, max(0, -shift) : n_bins - max(0, shift)].reshape(len(a), -1)
            theirs = turned[:, :, max(0, shift) : n_bins - max(0, -shift)].reshape(len(a), -1)
            r = correlation(mine, theirs)
            if r is not None:
                found[Order(mirrored, shift)] = r
    best = max(found, key=lambda order: (found[order], -abs(order.shift)))
    # With independent channels, the best of many orders correlates by about 4/√(n · independent bins), less than
    # _CLEAR.
    limit = max(_CLEAR, as_is + _BETTER, 5.0 / np.sqrt(max(len(a), 1)))
    return (best, found[best], as_is) if found[best] > limit else None
