"""Scatter plots of two nodes' measurements."""

from __future__ import annotations

import re

import numpy as np

from testbed.assess import agreement
from testbed.core.types import F64
from testbed.report.pieces import figure, missing, picture
from testbed.report.section import Section
from testbed.report.view import View, called, no_csi, no_eve

MAX_POINTS = 1200


class Reciprocity(Section):
    """Scatter plots of two nodes' measurements."""

    order = 40
    short = "Reciprocity"
    title = "Does Bob measure what Alice measures? Does Eve?"

    def html(self, v: View) -> str:
        if (why := no_csi(v)) is not None:
            return missing(why)
        s, panels = v.summary, []
        at_alice, at_bob = f"{v.bob}>{v.alice}", f"{v.alice}>{v.bob}"
        best = {b.eve.best_link for b in v.run.blocks if b.eve is not None}
        # Eve's best link by her own reports is shown; without a report, her link from Alice.
        from_bob = bool(best) and all(re.search(rf"\b(bob|{re.escape(str(v.bob))})\b", link) for link in best)
        at_eve = f"{v.bob if from_bob else v.alice}>{v.eve}"
        text = []
        for other, role, name in ((at_bob, "bob", "Bob"), (at_eve, "eve", "Eve")):
            points = _points(v, at_alice, other)
            if points is None:
                if role == "bob":
                    return missing("In no round do both Alice and Bob have a channel estimate.")
                continue
            x, y, value = points
            quoted = "correlation not measured" if value is None else f"correlation {figure(value)}"
            label = f"at {name}, dB" if role == "bob" else f"at {name} (from {called(v.run, other.split('>')[0])}), dB"
            panels.append((f"Alice – {name}: {quoted}", role, x, y, label))
            text.append(f"Alice and {name}, {quoted}")
        svg = v.draw.scatter(panels, "Scatter plots of channel magnitude: " + "; ".join(text))
        detrended = s.get("csi_correlation_ab_detrended")
        caption = (
            "Magnitude of the same subcarrier in the same kept round at two nodes, relative to each link’s median; "
            f"at most {MAX_POINTS:,} points, evenly picked. The correlation over a panel is that of its two "
            "links: over all kept rounds, a mean over subcarriers"
            + ("." if detrended is None else f"; Alice – Bob with slow drift removed: {figure(detrended)}.")
            + _strongest(s.get("csi_correlation_ae"))
        )
        return picture(svg, caption) + no_eve(v)


def _strongest(value: float | None) -> str:
    if value is None:
        return ""
    return f" Of all links of Eve with Alice’s or Bob’s, the strongest correlation is {figure(value)}."


def _points(v: View, first: str, second: str) -> tuple[F64, F64, float | None] | None:
    """Return some points of two links and the correlation of all."""
    a, b = v.links.get(first), v.links.get(second)
    if a is None or b is None or a.magnitude_db is None or b.magnitude_db is None:
        return None
    rounds, in_a, in_b = np.intersect1d(a.rounds, b.rounds, return_indices=True)
    table = v.run.rounds
    if table.rounds.size:
        kept = np.isin(rounds, table.rounds[table.kept])
        in_a, in_b = in_a[kept], in_b[kept]
    x, y = a.magnitude_db[in_a].ravel(), b.magnitude_db[in_b].ravel()
    both = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    if not both.size:
        return None
    take = both[np.unique(np.linspace(0, both.size - 1, MAX_POINTS).astype(int))]
    return x[take], y[take], agreement.correlation(a.magnitude_db[in_a], b.magnitude_db[in_b])
