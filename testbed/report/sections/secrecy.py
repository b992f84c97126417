"""Who could know the key, from which data, and under which assumptions."""

from __future__ import annotations

from html import escape
from typing import Any

from testbed.assess.summary import note_on_eves
from testbed.core.words import counted
from testbed.report.pieces import Cell, missing, number, percent, table
from testbed.report.section import Section
from testbed.report.view import View, no_summary

WORDS = {
    "total": "all keys of the run, together",
    "estimation": "an Eve of the portfolio guesses more often than her confidence limit",
    "correction": "both ends verify strings that differ",
    "amplification": "a hashed key is distinguishable from a random one",
}


class Secrecy(Section):
    """Who could know the key, from which data, and under which assumptions."""

    order = 85
    short = "Eves"
    title = "Who could know this key"

    def html(self, v: View) -> str:
        """Return one row per Eve: what she knows, how often she guesses correctly, the key length against her alone."""
        secrecy = v.summary.get("secrecy")
        if not secrecy:
            return missing("No key length was computed." if v.run.summary is not None else no_summary(v))
        parts = [_marks(v.summary)]
        parts.append(
            f"<p>The key is as long as the most able of these Eves allows: <strong>{escape(str(secrecy['limiting']))}"
            "</strong>. Each guessed those of Alice’s labels that her attack was not "
            "trained on; her unknown parameters "
            "were fitted to Alice’s own measurements. No statistic can exclude that another attack, "
            "which is not in this table, does better.</p>"
        )
        parts.append(f"<p>{escape(note_on_eves(secrecy['eves']))}</p>" + _table(secrecy["eves"]))
        if secrecy.get("sensitivity"):
            parts.append("<h3>Under stronger assumptions</h3>" + _table(secrecy["sensitivity"]))
        assumptions = "".join(f"<li>{escape(text)}</li>" for text in secrecy["assumptions"])
        parts.append(f"<h3>Assumptions</h3><ul>{assumptions}</ul>")
        chances = [
            (WORDS.get(name, name), Cell(f"2^{value:g}".replace("-", "−"), "n"))
            for name, value in secrecy["epsilon_log2"].items()
        ]
        parts.append("<h3>Bounds on the probability of failure</h3>" + table(("what", Cell("at most", "n")), chances))
        return "".join(parts)


def _marks(summary: dict[str, Any]) -> str:
    out = ""
    if summary.get("keys_exposed"):
        them = "it" if summary["keys_exposed"] == 1 else "them"
        out += (
            f'<p class="alarm"><strong>{counted(summary["keys_exposed"], "key is", "keys are")} exposed:</strong> '
            f"an Eve of the audit after the run can predict {them}. Do not use {them}.</p>"
        )
    if summary.get("keys_reproducible"):
        out += (
            f"<p>{counted(summary['keys_reproducible'], 'key follows', 'keys follow')} from the experiment’s public "
            "seed: this was a rehearsal. "
            "They are stored separately and never delivered.</p>"
        )
    return out


def _table(rows: list[dict[str, Any]]) -> str:
    head = ("Eve", "what she knows", Cell("labels guessed", "n"), Cell("at most", "n"), Cell("key left, bits", "n"))
    return table(
        head,
        [
            (
                row["name"],
                row["knows"],
                Cell("–" if row["guess_probability"] is None else percent(row["guess_probability"]), "n"),
                Cell("–" if row["upper_bound"] is None else percent(row["upper_bound"]), "n"),
                Cell(number(row["key_bits"]), "n"),
            )
            for row in rows
        ],
    )
