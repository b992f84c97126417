"""Fails if no Eve measured any probe, so that what she knows is assumed."""

from __future__ import annotations

from collections.abc import Mapping

from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64


class EveMeasured(HealthCheck):
    """Fails if no Eve measured any probe, so that what she knows is assumed."""

    order = 70

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [eve_measured(m.eve_db)]


def eve_measured(eve_db: Mapping[str, F64]) -> Verdict:
    """Fails if no Eve measured any probe, so that what she knows is assumed."""
    if not eve_db:
        return Verdict(
            "eve_measured",
            False,
            "Eve was not measured: what she knows is assumed (table [accounting], assumed_eve_…).",
        )
    return Verdict(
        "eve_measured",
        True,
        f"Eve measured the probes of {' and '.join(name.capitalize() for name in sorted(eve_db))}.",
    )
