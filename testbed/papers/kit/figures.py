"""Draws a study's figures as PNG: one line per curve, with bands of one standard error if there are several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_MARKERS = "osD^vPX*<>"


def draw(figure: dict[str, Any], path: Path) -> None:
    """Write the figure, in the form of results.json, to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6.4, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    x = np.asarray(figure["x"], dtype=float)
    for i, (label, values) in enumerate(figure["curves"].items()):
        y = np.asarray(values, dtype=float)
        line = axes.plot(x, y, marker=_MARKERS[i % len(_MARKERS)] if x.size <= 40 else None, ms=4, lw=1.4, label=label)
        if label in figure["errors"]:
            error = np.asarray(figure["errors"][label], dtype=float)
            axes.fill_between(x, y - error, y + error, color=line[0].get_color(), alpha=0.18, lw=0)
    if figure["log_x"]:
        axes.set_xscale("log")
    if figure["log_y"]:
        axes.set_yscale("log")
    axes.set(xlabel=figure["x_label"], ylabel=figure["y_label"], title=figure["title"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    canvas.savefig(path)
