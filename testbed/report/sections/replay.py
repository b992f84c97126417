"""What was replayed, and what each Eve of the recording would leave."""

from __future__ import annotations

from html import escape

from testbed.assess import cuts
from testbed.report.pieces import MAX_ROWS, Code, folded, missing, table
from testbed.report.section import Section
from testbed.report.view import View


class Replay(Section):
    """What was replayed, and what each Eve of the recording would leave."""

    order = 15
    short = "Replay"
    title = "What was replayed"

    def shows(self, v: View) -> bool:
        return v.run.start.replay is not None

    def html(self, v: View) -> str:
        told, s = v.run.start.replay, v.summary
        if told is None:
            return missing("This is no replay.")
        rows = [("source", Code(f"{told.path} ({told.source})")), ("what", told.description), ("cut", told.cut)]
        rows += [("run", Code(told.run))] if told.run else []
        rows += [("sha512", Code(told.sha512[:32] + "…"))] if told.sha512 else []
        out = [table(("", ""), rows)]
        if s.get("cuts"):
            heading, *lines = cuts.table(s)
            out.append(table(heading, lines[:MAX_ROWS]))
            out.append(f'<p class="note">*: {escape(str(s.get("eve_assumption", "")))}.</p>')
        notes = [*s.get("caveats", ()), *([s["key_note"]] if s.get("key_note") else [])]
        out.append("<ul>" + "".join(f"<li>{escape(str(note))}</li>" for note in notes) + "</ul>" if notes else "")
        out.append("" if told.map is None else folded("Map file", f"<pre>{escape(told.map)}</pre>"))
        return "".join(out)
