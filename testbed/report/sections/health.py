"""The results of the health checks, failures first."""

from __future__ import annotations

from testbed.report.pieces import Cell, missing, table
from testbed.report.section import Section
from testbed.report.view import View, no_summary


class Health(Section):
    """The results of the health checks, failures first."""

    order = 10
    short = "Health"
    title = "Health"

    def html(self, v: View) -> str:
        checks = v.summary.get("health")
        if not checks:
            return missing("No health check was recorded." if v.run.summary is not None else no_summary(v))
        checks = sorted(checks, key=lambda c: bool(c.get("ok")))
        rows = [
            (
                c.get("check", ""),
                Cell("ok", "ok") if c.get("ok") else Cell("not ok", "bad"),
                c.get("detail", ""),
            )
            for c in checks
        ]
        return table(("check", "", "detail"), rows)
