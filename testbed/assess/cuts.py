"""The table of a replay: what each set of links gave, and against which Eves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return rows of text for people: a heading, then for each cut one row, one for each Eve, and one without measured
    Eves.

    The first row of a cut is the result: the key against the strongest of the Eves marked *, who are assumed possible.
    """
    rows = [
        [
            "cut",
            "correlation",
            "without drift",
            "disagreement",
            "Eve",
            "her correlation",
            "her disagreement",
            "key bits",
        ]
    ]
    for cut in summary["cuts"]:
        correlations = (cut["csi_correlation_ab"], cut["csi_correlation_ab_detrended"], cut["kdr_raw"])
        eve = "strongest of those with *" if cut["eves"] else "not measured"
        rows.append([cut["cut"], *map(_text, correlations), eve, "", _text(cut["kdr_eve"]), str(cut["key_bits"])])
        for eve in cut["eves"]:
            star = "*" if eve["assumed"] else ""
            correlation, kdr = _text(eve["csi_correlation_ae"]), _text(eve["kdr_eve"])
            rows.append(["", "", "", "", eve["label"] + star, correlation, kdr, str(eve["key_bits"])])
        if cut["eves"]:
            rows.append(
                ["", "", "", "", "assumed, if none were measured", "", "", str(cut["key_bits_if_eve_unmeasured"])]
            )
    return rows


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
