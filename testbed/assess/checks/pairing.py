"""Fails if the probes are paired wrongly: Alice and Bob correlate clearly only if one series is shifted."""

from __future__ import annotations

import numpy as np

from testbed.assess.agreement import correlation, detrend
from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64

MAX_SHIFT = 32


class Pairing(HealthCheck):
    """Fails if the probes are paired wrongly: Alice and Bob correlate clearly only if one series is shifted."""

    order = 20

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [pairing(m.alice_db, m.bob_db)]


def pairing(alice_db: F64, bob_db: F64) -> Verdict:
    """Fails if the probes are paired wrongly: Alice and Bob correlate clearly only if one series is shifted."""
    name = "pairing"
    r0 = correlation(alice_db, bob_db)
    n = alice_db.shape[0]
    reach = min(MAX_SHIFT, n // 4)
    # Differences from probe to probe are compared, because a slow drift correlates at every shift. The first probe has
    # none.
    a, b = detrend(alice_db)[1:], detrend(bob_db)[1:]
    by_shift = {k: correlation(a[k:], b[:-k]) for k in range(1, reach + 1)}
    by_shift |= {-k: correlation(a[:-k], b[k:]) for k in range(1, reach + 1)}
    shifted = {shift: r for shift, r in by_shift.items() if r is not None}
    if r0 is None or not shifted:
        return Verdict(
            name, True, "The pairing cannot be checked: there are too few common probes, or the levels do not vary."
        )
    best = max(shifted, key=lambda shift: shifted[shift])
    # The sign matters: differences of a fast channel correlate by −0.5 if the true shift is 1.
    at_zero = max(0.0, correlation(a, b) or 0.0)
    values = {"r": r0, "best_shift": float(best), "r_shifted": shifted[best]}
    # For independent series, the largest of the 2·reach correlations is below 5/√n.
    if shifted[best] > max(0.4, 5.0 / np.sqrt(n)) and shifted[best] > 2.0 * at_zero:
        detail = (
            f"Alice and Bob correlate by {r0:.2f} as paired, but by {shifted[best]:.2f} (probe-to-probe changes) when "
            f"Alice is shifted by {best} probes: the rounds are paired wrongly."
        )
        return Verdict(name, False, detail, values)
    return Verdict(
        name, True, f"No shift of Alice's probes by up to {reach} correlates better than the recorded pairing.", values
    )
