"""SP 800-22 on the keys."""

from __future__ import annotations

from testbed.report.pieces import Cell, figure, missing, table
from testbed.report.section import Section
from testbed.report.view import View, no_summary


class Randomness(Section):
    """SP 800-22 on the keys."""

    order = 90
    short = "Randomness"
    title = "Randomness"

    def html(self, v: View) -> str:
        tests = v.summary.get("randomness")
        if not tests:
            return missing(
                "No randomness test was recorded; most tests need more bits than short keys have."
                if v.run.summary is not None
                else no_summary(v)
            )
        rows = [
            (name, Cell(figure(told.get("pass_ratio")), "n"), Cell(figure(told.get("p_value")), "n"))
            for name, told in tests.items()
        ]
        return table(("test", Cell("pass ratio", "n"), Cell("p-value", "n")), rows)
