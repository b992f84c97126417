"""Fails if the ends have no common variation, or less of it than variation of their own."""

from __future__ import annotations

import numpy as np

from testbed.assess.agreement import MIN_PROBES
from testbed.assess.checks._levels import centred
from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64


class ReciprocalVariation(HealthCheck):
    """Fails if the ends have no common variation, or less of it than variation of their own."""

    order = 30

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [reciprocal_variation(m.alice_db, m.bob_db)]


def reciprocal_variation(alice_db: F64, bob_db: F64) -> Verdict:
    """Fails if the ends have no common variation, or less of it than variation of their own."""
    name = "reciprocal_variation"
    both = np.isfinite(alice_db) & np.isfinite(bob_db)
    enough = both.sum(axis=0) >= MIN_PROBES
    if not enough.any():
        return Verdict(name, False, f"Fewer than {MIN_PROBES} probes were measured by both ends: no key can be judged.")
    a = centred(np.where(both, alice_db, np.nan)[:, enough])
    b = centred(np.where(both, bob_db, np.nan)[:, enough])
    common = float(np.sqrt(max(0.0, float(np.nanmean(a * b)))))
    own = float(np.sqrt(np.nanmean((a - b) ** 2) / 2.0))
    values = {"common_std_db": common, "own_std_db": own}
    figures = f"Alice and Bob share {common:.2f} dB (std) of variation, and {own:.2f} dB is each end's own"
    if common <= own:
        cause = (
            "the channel is static and what varies is noise"
            if own < 3.0
            else "the two ends do not see the same channel"
        )
        return Verdict(
            name,
            False,
            f"{figures}: {cause}, so there is hardly any common randomness for a key. Move a node, or let the surface "
            "change its pattern.",
            values,
        )
    return Verdict(name, True, f"{figures}.", values)
