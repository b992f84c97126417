"""Where the time of a round went."""

from __future__ import annotations

from typing import Any

from testbed.assess.pace import PARTS
from testbed.core.words import counted
from testbed.report.pieces import Cell, figure, percent, table
from testbed.report.section import Section
from testbed.report.view import View

_MEANS = {
    "order": "rounds are planned and ordered, with the preparation of the surface",
    "air": "radios wait for their time and capture the rounds; in a simulation, the air computes them",
    "estimate": "nodes estimate channels",
    "message": "the rest: messages on their way, waiting, or being handled",
    "journal": "the coordinator records the rounds",
}


class Pace(Section):
    """Where the time of a round went, as the coordinator and the nodes measured it."""

    order = 125
    short = "Pace"
    title = "Where the time of a round goes"

    def shows(self, v: View) -> bool:
        return _found(v) is not None

    def html(self, v: View) -> str:
        found = _found(v)
        assert found is not None
        mean_s = found["mean_s"]
        rows = [
            (
                name,
                _MEANS[name],
                Cell(_ms(found[name]["time_s"]), "n"),
                Cell(percent(found[name]["time_s"] / mean_s) if mean_s else "n/a", "n"),
                Cell(_ms(found[name]["beside_s"]), "n"),
            )
            for name in PARTS
        ]
        head = ("part", "meaning", *(Cell(text, "n") for text in ("ms a round", "share", "and beside others, ms")))
        return (
            f"<p>{_ms(mean_s)} ms from round to round on the clock of this machine: the mean over "
            f"{counted(found['rounds'], 'round')}, without blocks and pauses. What goes on at the same time as another "
            f"part delays nothing, and is in the last column.</p>{table(head, rows)}"
        )


def _found(v: View) -> dict[str, Any] | None:
    """Return what the summary says of it; None where it was not recorded, as in runs of earlier versions."""
    return (v.summary.get("pace") or {}).get("round")


def _ms(seconds: float) -> str:
    return figure(1e3 * seconds)
