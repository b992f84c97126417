"""Fails if the ends correlate mainly through slow drift: levels correlate, but their changes from probe to probe do
not.
"""

from __future__ import annotations

from testbed.assess.agreement import correlation, detrended
from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64


class SlowDrift(HealthCheck):
    """Fails if the ends correlate mainly through slow drift: levels correlate, but their changes from probe to probe do
    not.
    """

    order = 40

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [slow_drift(m.alice_db, m.bob_db)]


def slow_drift(alice_db: F64, bob_db: F64) -> Verdict:
    """Is the correlation that of a slow drift: far lower between changes from probe to probe than between levels?"""
    name = "slow_drift"
    raw, fast = correlation(alice_db, bob_db), detrended(alice_db, bob_db)
    if raw is None or fast is None:
        return Verdict(
            name,
            True,
            "The correlation could not be measured: there are too few common probes, or the levels do not vary.",
        )
    values = {"r": raw, "r_detrended": fast}
    figures = f"Alice and Bob correlate by {raw:.2f}, their changes from probe to probe by {fast:.2f}"
    if raw >= 0.3 and fast < 0.5 * raw:
        return Verdict(
            name,
            False,
            f"{figures}: their common variation is mostly slow drift, which gives few secret bits per probe.",
            values,
        )
    return Verdict(name, True, f"{figures}.", values)
