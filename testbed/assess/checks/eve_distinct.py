"""Fails if Eve's channel correlates with Alice's or Bob's by more than half of what these two correlate by."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from testbed.assess.agreement import correlation, detrend
from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64


class EveDistinct(HealthCheck):
    """Fails if Eve's channel correlates with Alice's or Bob's by more than half of what these two correlate by."""

    order = 80

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [eve_distinct(m.alice_db, m.bob_db, m.eve_db)] if m.eve_db else []


def eve_distinct(alice_db: F64, bob_db: F64, eve_db: Mapping[str, F64]) -> Verdict:
    """Fails if Eve's channel correlates with Alice's or Bob's by more than half of what these two correlate by."""
    name = "eve_distinct"
    legitimate = correlation(alice_db, bob_db)
    found = {}
    for heard, values in eve_db.items():
        for end, other in (("Alice", alice_db), ("Bob", bob_db)):
            for kind, x, y in (("levels", other, values), ("changes", detrend(other), detrend(values))):
                r = correlation(x, y)
                if r is not None:
                    chance = 4.0 / np.sqrt(_independent_probes(x, y))
                    found[f"{kind} of {heard.capitalize()}'s probes at Eve and those at {end}"] = (r, chance)
    if not found or legitimate is None:
        return Verdict(name, False, "Eve's channel could not be compared: the levels at Alice, Bob or Eve do not vary.")
    # The links that correlate by more than chance are preferred; among them, the largest correlation is reported.
    where = max(found, key=lambda key: (abs(found[key][0]) > found[key][1], abs(found[key][0])))
    worst, chance = found[where]
    values_out = {"r_eve": worst, "r": legitimate}
    figures = f"the {where} correlate by {worst:.2f}, Alice and Bob by {legitimate:.2f}"
    if abs(worst) > max(0.5 * abs(legitimate), chance):
        return Verdict(name, False, f"Eve's channel resembles that of Alice and Bob: {figures}.", values_out)
    return Verdict(name, True, f"Eve's channel is her own: at most, {figures}.", values_out)


def _independent_probes(a: F64, b: F64) -> float:
    """Return the number of independent probes to which two series with memory are equivalent (Bartlett 1935)."""
    n = a.shape[0]
    memory = max(0.0, (correlation(a[1:], a[:-1]) or 0.0) * (correlation(b[1:], b[:-1]) or 0.0))
    return max(1.0, n * (1.0 - memory) / (1.0 + memory))
