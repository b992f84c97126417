"""The page of a sweep: each figure over the grid with error bars, and a table of means. One self-contained file.

A point's value is the mean over its repetitions. Its error bar, which needs at least two repetitions, is the standard
error of that mean: s/√n with s the standard deviation of the sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from testbed.core.whole import whole
from testbed.core.words import counted
from testbed.report import paper
from testbed.report.pictures import Curve, Pictures
from testbed.report.pieces import Cell, figure, missing, picture, table
from testbed.report.style import CSS

FIGURES = {
    "key_bits": "key bits of a run",
    "key_rate_bps": "key rate, bit/s",
    "key_bits_per_round": "key bits a round",
    "csi_correlation_ab": "CSI correlation Alice–Bob",
    "csi_correlation_ae": "CSI correlation Alice–Eve",
    "kdr_raw": "disagreement Alice–Bob, raw bits",
    "kdr_eve": "disagreement Alice–Eve, raw bits",
    "min_entropy_per_bit": "min-entropy a bit, given Eve",
}
"""Fields of summary.json that are drawn if they were measured → their names on the page."""
MOST_CURVES = 12


def make(rows: Sequence[Mapping[str, Any]], parameters: Mapping[str, list[Any]], title: str, path: Path) -> Path:
    """Write the page of a sweep's rows (`lab.sweep`) to `path`, its figures beside it, and return the path.

    `parameters`: key of the grid → its values.
    """
    done = [row for row in rows if row["status"] != "failed"]
    failed = [row for row in rows if row["status"] == "failed"]
    points, draw = _points(done), Pictures(keeps=True)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} – sweep</title><style>{CSS}</style></head><body><header><h1>{escape(title)}</h1>"
        f'<p class="lede">{counted(len(points), "point")}, {counted(len(done), "run")}'
        f"{f', {len(failed)} failed' if failed else ''}.</p></header><main>"
    ]
    if not done:
        parts.append(missing("No run was finished."))
    else:
        parts += _pictures(draw, points, parameters)
        parts += ["<section><h2>Every point</h2>", _table(points, parameters), "</section>"]
    if failed:
        told = [(_told(r["values"]), r["seed"], r["detail"]) for r in failed]
        parts += ["<section><h2>Failed</h2>", table(("point", "seed", "why"), told), "</section>"]
    parts.append("</main></body></html>\n")
    with whole(path) as part:
        part.write_text("".join(parts), encoding="utf-8")
    paper.write(draw.kept, "", path.parent)
    return path


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error; None for the error of a single value.

    >>> mean([1.0, 3.0])
    (2.0, 1.0)
    """
    n = len(values)
    centre = math.fsum(values) / n
    if n < 2:
        return centre, None
    return centre, math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (n - 1) / n)


def _points(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the repetitions of each point, in the order of the points."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["point"], []).append(row)
    return [found[number] for number in sorted(found)]


def _measured(point: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    values = (row["figures"].get(name) for row in point)
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def _told(values: Mapping[str, Any], without: str | None = None) -> str:
    return ", ".join(f"{k.rpartition('.')[2]} {_short(v)}" for k, v in values.items() if k != without)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _axis(parameters: Mapping[str, list[Any]]) -> str:
    """Return the parameter for the x axis: one with numbers as values if there is one, and then one with most
    values."""

    def rank(name: str) -> tuple[bool, int]:
        values = parameters[name]
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values), len(values)

    varied = [name for name, values in parameters.items() if len(values) > 1]
    return max(varied or list(parameters), key=rank)


def _pictures(
    draw: Pictures, points: Sequence[Sequence[Mapping[str, Any]]], parameters: Mapping[str, list[Any]]
) -> list[str]:
    along, out = _axis(parameters), []
    varied = [name for name, values in parameters.items() if len(values) > 1 and name != along]
    for name, label in FIGURES.items():
        curves: dict[str, Curve] = {}
        for point in points:
            values = _measured(point, name)
            if values:
                key = _told({k: point[0]["values"][k] for k in varied}) or "all runs"
                curves.setdefault(key, Curve([], [], [])).add(point[0]["values"][along], *mean(values))
        if not curves:
            continue
        shown = dict(list(curves.items())[:MOST_CURVES])
        caption = "Means over the repetitions; the bars are one standard error of the mean."
        if len(shown) < len(curves):
            caption += f" The first {MOST_CURVES} of {len(curves)} curves; the table has all."
        svg = draw.curves(name, shown, along, label, f"{label} over {along}: " + "; ".join(shown))
        out.append(f"<section><h2>{escape(label)}</h2>{picture(svg, caption)}</section>")
    return out


def _table(points: Sequence[Sequence[Mapping[str, Any]]], parameters: Mapping[str, list[Any]]) -> str:
    names = [name for name in FIGURES if any(_measured(point, name) for point in points)]
    rows = []
    for point in points:
        cells: list[Any] = [_short(point[0]["values"][name]) for name in parameters]
        cells.append(Cell(len(point), "n"))
        for name in names:
            values = _measured(point, name)
            if not values:
                cells.append(Cell("n/a", "n"))
                continue
            centre, error = mean(values)
            cells.append(Cell(figure(centre) + ("" if error is None else f" ± {figure(error)}"), "n"))
        rows.append(cells)
    head = [*parameters, Cell("runs", "n"), *(Cell(FIGURES[name], "n") for name in names)]
    return table(head, rows)
