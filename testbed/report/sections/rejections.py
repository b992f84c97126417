"""Why rounds were rejected."""

from __future__ import annotations

import numpy as np

from testbed.report.pieces import Cell, missing, percent, table
from testbed.report.section import Section
from testbed.report.view import View


class Rejections(Section):
    """Why rounds were rejected."""

    order = 120
    short = "Rejections"
    title = "Rejections"

    def html(self, v: View) -> str:
        rounds = v.run.rounds
        counted: dict[str, int] | None = v.summary.get("pairs_rejected")
        if counted is None:
            reasons, n = np.unique(rounds.reason[~rounds.kept], return_counts=True)
            counted = {str(r): int(k) for r, k in zip(reasons, n, strict=True)}
        if not counted:
            return "<p>No round was rejected.</p>" if rounds.rounds.size else missing("No round was finished.")
        total = max(rounds.rounds.size, v.summary.get("rounds") or 0, 1)  # a replay also counts what it has no row for
        rows = [
            (reason, Cell(f"{n:,}", "n"), Cell(percent(n / total), "n"))
            for reason, n in sorted(counted.items(), key=lambda item: -item[1])
        ]
        return table(("reason", Cell("rounds", "n"), Cell(f"of {total:,}", "n")), rows)
