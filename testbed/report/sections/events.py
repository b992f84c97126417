"""The run's events in the order of their times."""

from __future__ import annotations

from testbed.core.words import plainly
from testbed.report.pieces import MAX_ROWS, missing, table
from testbed.report.section import Section
from testbed.report.view import View


class Events(Section):
    """The run's events in the order of their times."""

    order = 130
    short = "Events"
    title = "Events"

    def html(self, v: View) -> str:
        events = v.run.events
        if not events:
            return missing("No event was recorded.")
        rows = [(e.time[11:23], e.kind, plainly(e.data)) for e in events[-MAX_ROWS:]]
        note = f'<p class="note">The last {MAX_ROWS} of {len(events):,}.</p>' if len(events) > MAX_ROWS else ""
        return note + table(("UTC", "what", "details"), rows)
