"""Files for a paper, written with a report: every figure as SVG and PDF, its data as CSV, and tables for LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.core.whole import whole
from testbed.records import files
from testbed.report.style import CSS

FOLDER = files.FIGURES
Columns = Sequence[str]
Rows = Iterable[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Kept:
    """One figure for a paper, in light colours."""

    name: str
    svg: str
    pdf: bytes
    columns: Columns
    """Meaning and unit of each column of the data."""
    rows: list[Sequence[Any]]


def light(variables: Mapping[str, str]) -> dict[str, str]:
    """Return placeholder colour → colour of the page's light style."""
    root = CSS[CSS.index(":root{") : CSS.index("@media")]
    colours = dict(re.findall(r"--([a-z-]+):(#[0-9a-f]+)", root))
    return {placeholder: colours[name] for placeholder, name in variables.items()}


def keep(fig: Any, svg: str, name: str, variables: Mapping[str, str], columns: Columns, rows: Rows) -> Kept:
    """Return the files of a matplotlib figure, which is already drawn as `svg`; placeholder colours are replaced by
    those of the light style."""
    colours = light(variables)
    for placeholder, colour in colours.items():
        svg = svg.replace(placeholder, colour)
    _recolour(fig, colours)
    pdf = io.BytesIO()
    fig.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Kept(name, svg, pdf.getvalue(), columns, list(rows))


def _recolour(fig: Any, colours: Mapping[str, str]) -> None:
    from matplotlib.colors import to_hex, to_rgba

    def changed(value: Any) -> Any:
        """Return the new colour, or list of colours, with its transparency; None where it stays the same."""
        if hasattr(value, "ndim") and value.ndim == 2:
            parts = [changed(v) for v in value]
            return None if all(p is None for p in parts) else [p or v for p, v in zip(parts, value, strict=True)]
        try:
            new = colours.get(to_hex(value))
            return None if new is None else to_rgba(new, to_rgba(value)[3])
        except (ValueError, TypeError):
            return None

    for axes in fig.axes:
        axes.tick_params(colors=changed(axes.xaxis.label.get_color()))  # ticks are drawn anew for every file
    for artist in fig.findobj():
        for what in ("color", "facecolor", "edgecolor"):
            read, write = getattr(artist, f"get_{what}", None), getattr(artist, f"set_{what}", None)
            if read is not None and write is not None and (new := changed(read())) is not None:
                write(new)


def write(kept: Sequence[Kept], tables: str, folder: Path) -> None:
    """Write NAME.svg, NAME.pdf and NAME.csv of each figure, and tables.tex, into `folder`/figures."""
    into = folder / FOLDER
    into.mkdir(exist_ok=True)
    for one in kept:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(one.columns)
        writer.writerows(one.rows)
        for end, content in ((".svg", one.svg.encode()), (".pdf", one.pdf), (".csv", text.getvalue().encode())):
            with whole(into / (one.name + end)) as part:
                part.write_bytes(content)
    if tables:
        with whole(into / "tables.tex") as part:
            part.write_text(tables, encoding="utf-8")


def downloads(name: str) -> str:
    """Return the links below a figure."""
    links = (f'<a href="{FOLDER}/{name}.{end}">{end.upper()}</a>' for end in ("svg", "pdf", "csv"))
    return f'<p class="note">Download: {" · ".join(links)}</p>'


# ---------------------------------------------------------------- LaTeX

_SPECIAL = {c: "\\" + c for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "−": "$-$", "–": "--",
    "λ": r"$\lambda$", "ε": r"$\varepsilon$", "±": r"$\pm$", "≥": r"$\ge$", "≤": r"$\le$", "×": r"$\times$",
    "·": r"$\cdot$",
}  # fmt: skip


def tex(text: Any) -> str:
    """Return text with the characters escaped that LaTeX reads as commands.

    >>> tex("kdr_raw 3 %")
    'kdr\\\\_raw 3 \\\\%'
    """
    return "".join(_SPECIAL.get(c, c) for c in str(text))


def tabular(head: Sequence[str], rows: Iterable[Sequence[Any]], caption: str) -> str:
    """Return a LaTeX table; columns whose cells are all numbers, or missing, are set to the right."""
    rows = [list(row) for row in rows]

    def numeric(i: int) -> bool:
        return all(row[i] is None or isinstance(row[i], int | float) for row in rows)

    def shown(value: Any) -> str:
        return "--" if value is None else f"{value:.4g}" if isinstance(value, float) else tex(value)

    form = "".join("r" if numeric(i) else "l" for i in range(len(head)))
    lines = [" & ".join(map(tex, head)) + r" \\", r"\hline", *(" & ".join(map(shown, r)) + r" \\" for r in rows)]
    body = "\n".join(lines)
    return (
        f"\\begin{{table}}\n\\caption{{{tex(caption)}}}\n\\begin{{tabular}}{{{form}}}\n\\hline\n{body}\n\\hline\n"
        "\\end{tabular}\n\\end{table}\n"
    )


_FIGURES = {
    "rounds": "rounds", "pairs_kept": "pairs kept", "csi_correlation_ab": "CSI correlation Alice–Bob",
    "csi_correlation_ae": "CSI correlation Alice–Eve",
    "csi_correlation_ab_detrended": "CSI correlation Alice–Bob, detrended",
    "raw_bits": "raw bits", "kdr_raw": "disagreement Alice–Bob, all raw bits",
    "kdr_eve": "disagreement Alice–Eve, all raw bits", "min_entropy_per_bit": "min-entropy a bit, given Eve",
    "key_bits": "key bits", "keys_verified": "verified keys", "raw_rate_bps": "raw rate, bit/s",
    "key_rate_bps": "key rate, bit/s", "key_bits_per_round": "key bits a round",
}  # fmt: skip


def tables_of(summary: Mapping[str, Any]) -> str:
    """Return LaTeX tables of a run's figures, Eves and health checks; '' without a summary."""
    if not summary:
        return ""
    out = [
        tabular(("figure", "value"), [(label, summary.get(k)) for k, label in _FIGURES.items()], "Figures of the run")
    ]
    secrecy = summary.get("secrecy") or {}
    if secrecy.get("eves"):
        rows = [
            (e["name"], e["knows"], e["guess_probability"], e["upper_bound"], e["key_bits"]) for e in secrecy["eves"]
        ]
        head = ("Eve", "what she knows", "labels guessed", "at most", "key left, bits")
        out.append(tabular(head, rows, "What each Eve would leave of the key"))
    checks = [(c["check"], "ok" if c["ok"] else "not ok", c["detail"]) for c in summary.get("health") or ()]
    if checks:
        out.append(tabular(("check", "", "detail"), checks, "Health checks"))
    return "\n".join(out)
