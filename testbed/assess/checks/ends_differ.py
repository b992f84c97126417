"""Fails if both ends have the same values: two receivers, each with noise of its own, never measure the same."""

from __future__ import annotations

import numpy as np

from testbed.assess.agreement import MIN_PROBES
from testbed.assess.checks._levels import centred
from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64

_EQUAL_DB = 1e-4
"""Levels that differ by less are taken to be one measurement: at an SNR of 100 dB noise changes a level by as much."""
_NEARLY_ALL = 0.999
"""Share of equal levels from which on the check fails. Levels in whole dB are often, but never always, equal."""


class EndsDiffer(HealthCheck):
    """Fails if both ends have the same values: two receivers, each with noise of its own, never measure the same."""

    order = 35

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [ends_differ(m.alice_db, m.bob_db)]


def ends_differ(alice_db: F64, bob_db: F64) -> Verdict:
    """Fails if both ends have the same values, apart from one constant factor for each dimension."""
    name = "ends_differ"
    alice = centred(alice_db)
    apart = np.abs(alice - centred(bob_db))
    apart = apart[np.isfinite(apart)]
    if apart.size < MIN_PROBES:
        return Verdict(name, True, "Too few common probes to compare the two ends' values.")
    equal = float(np.mean(apart < _EQUAL_DB))
    values = {"equal_share": equal}
    if equal > _NEARLY_ALL and np.nanmax(np.abs(alice)) > _EQUAL_DB:
        return Verdict(
            name,
            False,
            f"{equal:.0%} of the levels at Alice and Bob are equal: one measurement counts for both ends. Look for one "
            "column or array that is named for both; a simulation without noise does the same.",
            values,
        )
    return Verdict(name, True, f"{equal:.1%} of the levels at Alice and Bob are equal.", values)
