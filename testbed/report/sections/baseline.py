"""This run compared with another one."""

from __future__ import annotations

from html import escape

from testbed.assess import compare
from testbed.report.pieces import Cell, figure, missing, table
from testbed.report.section import Section
from testbed.report.view import View


class Baseline(Section):
    """This run compared with another one."""

    order = 20
    short = "Baseline"
    title = "Comparison with the baseline run"

    def shows(self, v: View) -> bool:
        return v.baseline is not None

    def html(self, v: View) -> str:
        if v.baseline is None:
            return missing("No baseline run was given.")
        if v.run.summary is None or v.baseline.summary is None:
            return missing("One of the two runs has no summary.")
        rows = []
        for row in compare.compare(v.run.summary, v.baseline.summary):
            many = row.ratio is None and bool(row.ours) and row.baseline == 0
            times = "none without" if many else "n/a" if row.ratio is None else f"{row.ratio:.3g} ×"
            if row.ratio_at_least is not None:
                times = f"≥ {row.ratio_at_least:.3g} ×"
            name = f"{row.name}, {row.unit}" if row.unit else row.name
            rows.append((name, *(Cell(t, "n") for t in (figure(row.ours), figure(row.baseline), times))))
        changed = compare.differences(v.run.start.experiment, v.baseline.start.experiment)
        named = ", ".join(f"<code>{escape(key)}</code>" for key in changed) or "nothing"
        title = escape(str(v.baseline.start.experiment.get("title") or "a run"))
        note = (
            f'<p class="note">The baseline is run {escape(v.baseline.start.uid)} (“{title}”). The experiments differ '
            f"in {named}. Agreed information is the raw rate times 1 − h(disagreement), so that quantized "
            "noise counts as none. Its ratio divides by the largest baseline value within 3 standard "
            "deviations.</p>"
        )
        return table(("", Cell("this run", "n"), Cell("baseline", "n"), Cell("ratio", "n")), rows) + note
