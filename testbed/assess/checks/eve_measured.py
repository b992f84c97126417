"""Was there an Eve?"""

from __future__ import annotations

from collections.abc import Mapping

from testbed.assess.health import HealthCheck, Measured
from testbed.core.stages import Verdict
from testbed.core.types import F64


class EveMeasured(HealthCheck):
    """Was there an Eve?"""

    order = 70

    def verdicts(self, m: Measured) -> list[Verdict]:
        return [eve_measured(m.eve_db)]


def eve_measured(eve_db: Mapping[str, F64]) -> Verdict:
    """Was there an Eve?"""
    if not eve_db:
        return Verdict("eve_measured", False, "Eve was not measured: her error rate is assumed, not known.")
    return Verdict("eve_measured", True, f"Eve was measured hearing {' and '.join(sorted(eve_db))}.")
