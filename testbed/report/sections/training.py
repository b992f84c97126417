"""The training of the enhancer."""

from __future__ import annotations

from testbed.report import training as report_training
from testbed.report.pieces import missing, table
from testbed.report.section import Section
from testbed.report.view import View, no_summary


class Training(Section):
    """The training of the enhancer."""

    order = 50
    short = "Training"
    title = "Training of the enhancer"

    def shows(self, v: View) -> bool:
        return v.trains

    def html(self, v: View) -> str:
        told = v.summary.get("training")
        if not told:
            return missing(no_summary(v) if v.run.summary is None else "No training was recorded.")
        return table(("", ""), report_training.rows(told))
