"""Fails if the gain of one end jumped (AGC, temperature): a lasting step of Alice − Bob in all dimensions."""

from __future__ import annotations

import numpy as np

from testbed.assess.checks._levels import centred, row_median
from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64
from testbed.core.words import counted


class GainSteps(HealthCheck):
    """Fails if the gain of one end jumped (AGC, temperature): a lasting step of Alice − Bob in all dimensions."""

    order = 50

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [gain_steps(m.alice_db, m.bob_db)]


def gain_steps(alice_db: F64, bob_db: F64) -> Verdict:
    """Fails if the gain of one end jumped (AGC, temperature): a lasting step of Alice − Bob in all dimensions."""
    name = "gain_steps"
    offset = row_median(centred(alice_db) - centred(bob_db))
    rows = np.flatnonzero(np.isfinite(offset))
    window = int(np.clip(rows.size // 16, 8, 64))
    if rows.size < 4 * window:
        return Verdict(
            name, True, f"Alice and Bob have fewer than {4 * window} common probes: gain steps were not searched for."
        )
    offset = offset[rows]
    # Medians before and after each probe are compared, so that a single outlier does not count as a step.
    medians = np.median(np.lib.stride_tricks.sliding_window_view(offset, window), axis=1)
    step = medians[window:] - medians[:-window]
    # The limit follows from the spread of all such differences (1.4826·MAD = std of a Gaussian): if the ends measure
    # different channels, the offset varies all the time, which must not be mistaken for steps of the gain.
    limit = max(1.0, 6.0 * 1.4826 * float(np.median(np.abs(step - np.median(step)))))
    found: list[int] = []
    strength = np.abs(step)
    while strength.size and strength.max() > limit:
        at = int(strength.argmax())
        found.append(at)
        strength[max(0, at - 2 * window) : at + 2 * window + 1] = 0.0
    values = {"steps": float(len(found)), "largest_db": float(np.abs(step).max()), "limit_db": float(limit)}
    if not found:
        return Verdict(
            name, True, f"The difference of Alice's and Bob's levels never steps by more than {limit:.1f} dB.", values
        )
    at = found[0]
    row = int(rows[at + window])
    detail = (
        f"The gain of one end stepped {counted(len(found), 'time')}; the largest step is {abs(step[at]):.1f} dB at "
        f"probe {row}, at {_stepping_end(alice_db[rows], bob_db[rows], at, window)}. "
        "Switch automatic gain control off, or discard these probes."
    )
    return Verdict(name, False, detail, values)


def _stepping_end(alice_db: F64, bob_db: F64, at: int, window: int) -> str:
    """Name the end whose own level jumped more; the channel's movement is common to both."""
    jumps = []
    for values in (alice_db, bob_db):
        level = row_median(centred(values))
        jumps.append(abs(np.nanmedian(level[at + window : at + 2 * window]) - np.nanmedian(level[at : at + window])))
    return "Alice" if jumps[0] >= jumps[1] else "Bob"
