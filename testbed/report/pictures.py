"""The report's pictures as inline SVG. Colours are CSS variables, so that one picture fits light and dark pages.

matplotlib draws with placeholder colours, which `_inline` replaces by variables; it is imported on first use.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import count
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64, U8, SurfacePattern
from testbed.report import paper

INK, MUTED, RULE, ALICE, BOB, EVE, BAD, OK, CARD = (f"#0102{i:02d}" for i in range(10, 19))
_VARIABLES = dict(
    zip(
        (INK, MUTED, RULE, ALICE, BOB, EVE, BAD, OK, CARD),
        ("ink", "muted", "rule", "alice", "bob", "eve", "bad", "ok", "card"),
        strict=True,
    )
)
ROLES = {"alice": ALICE, "bob": BOB, "eve": EVE}
_DASHES: dict[tuple[str, bool], Any] = {
    ("alice", False): "-", ("bob", False): (0, (6, 2)), ("eve", False): (0, (1.5, 1.5)),
    ("eve", True): (0, (5, 1.5, 1.5, 1.5)),
}  # fmt: skip
"""(role, whether it is the receiver's second link) → dashes, by which the curves differ where their colours do not."""
_HATCHES = ("", "////", "....", "xxxx")
MAX_COLUMNS = 600
MAX_SUBCARRIERS = 96

_style: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "testbed",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "image.composite_image": False,
}


PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colours of Okabe and Ito, which colour-blind people can distinguish, for a light and a dark background."""
_MARKERS = "osD^vPX*<>"


@dataclass(slots=True)
class Curve:
    """A curve with error bars; x may be numbers or words."""

    x: list[Any]
    y: list[float]
    error: list[float | None]

    def add(self, x: Any, y: float, error: float | None) -> None:
        self.x.append(x)
        self.y.append(y)
        self.error.append(error)


@dataclass(frozen=True, slots=True)
class LinkPicture:
    """The data of one link that are drawn; NaN where nothing was received."""

    title: str
    role: str
    """The receiver's role."""
    rounds: I64
    """(probe,)."""
    magnitude_db: F64 | None
    """(probe, subcarrier), relative to the link's median."""
    snr_db: F64
    cfo_hz: F64
    dashed: bool
    """Whether this is the second link of a receiver with two."""


class Pictures:
    """Draws the pictures of one page, and keeps the identifiers in their SVGs distinct.

    `rounds` and `t0_s` (round,), ascending: the start time of each round, for a second axis in seconds; None: rounds
    only.
    """

    def __init__(self, rounds: I64 | None = None, t0_s: F64 | None = None, keeps: bool = False) -> None:
        """`keeps`: every figure is also added to `kept`, for its files for a paper, and gets links to these."""
        self.begin("")
        self._keeps = keeps
        self.kept: list[paper.Kept] = []
        self._clock = _clock(rounds, t0_s)

    def begin(self, section: str) -> None:
        """Number the pictures of a section from 1, whichever sections were drawn before."""
        self._section, self._number = f"-{section}-" if section else "", count(1)

    def heat_maps(self, links: Sequence[LinkPicture], subcarrier_hz: F64, alt: str) -> str:
        """Draw CSI magnitude over rounds and frequency: one row per link, all on one colour scale."""
        shown = [link for link in links if link.magnitude_db is not None]
        grids = []
        first, last = _span(shown)
        take = np.unique(np.linspace(0, len(subcarrier_hz) - 1, MAX_SUBCARRIERS).round().astype(int))
        for link in shown:
            assert link.magnitude_db is not None
            column = columns(link.rounds, first, last)
            grid = np.full((len(take), len(column)), np.nan)
            grid[:, column >= 0] = link.magnitude_db[column[column >= 0]][:, take].T
            grids.append(grid)
        finite = np.concatenate([g[np.isfinite(g)] for g in grids])
        low, high = np.percentile(finite, [1, 99.5]) if finite.size else (-1.0, 1.0)
        with _figure(8.6, 0.55 + 1.25 * len(shown)) as fig:
            axes = fig.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
            low_mhz, high_mhz = subcarrier_hz[0] / 1e6, subcarrier_hz[-1] / 1e6
            if low_mhz == high_mhz:  # a single subcarrier, or levels without a frequency
                low_mhz, high_mhz = low_mhz - 0.5, high_mhz + 0.5
            edges = (first - 0.5, last + 0.5, low_mhz, high_mhz)
            image = None
            for ax, link, grid in zip(axes, shown, grids, strict=True):
                image = ax.imshow(
                    grid,
                    aspect="auto",
                    origin="lower",
                    extent=edges,
                    vmin=low,
                    vmax=high,
                    cmap="viridis",
                    interpolation="none",
                )
                ax.set_title(link.title, color=ROLES.get(link.role, INK), fontweight="bold")
                ax.set_ylabel("MHz")
            self._time_axis(axes[-1], -0.5)
            bar = fig.colorbar(image, ax=list(axes), fraction=0.02, pad=0.015, aspect=25 * len(shown) / 2)
            bar.set_label("|h| relative to the link's median, dB")
            bar.outline.set_linewidth(0)
            head = ("link", "round", *(f"|h| at {f / 1e6:.6g} MHz, dB" for f in subcarrier_hz[take]))
            data = (
                (link.title, int(n), *(f"{x:.3f}" for x in row[take]))
                for link in shown if link.magnitude_db is not None
                for n, row in zip(link.rounds, link.magnitude_db, strict=True)
            )  # fmt: skip
            return self._inline(fig, alt, "channel", head, data)

    def scatter(self, panels: Sequence[tuple[str, str, F64, F64, str]], alt: str) -> str:
        """Draw panels of (title, role on the y axis, x values, y values, y label); the x values are Alice's."""
        with _figure(4.2 * len(panels), 3.9) as fig:
            every = np.concatenate([np.concatenate([x, y]) for _, _, x, y, _ in panels])
            low, high = np.percentile(every, [0.2, 99.8])
            pad = 0.05 * max(high - low, 1e-3)
            limits = (low - pad, high + pad)
            axes = fig.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
            for ax, (title, role, x, y, label) in zip(axes, panels, strict=True):
                ax.plot(limits, limits, color=MUTED, lw=0.8, zorder=1)
                ax.plot(x, y, ".", ms=3.2, mew=0, alpha=0.45, color=ROLES.get(role, INK), zorder=2)
                ax.set(title=title, xlabel="at Alice, dB", xlim=limits, ylim=limits, aspect="equal")
                ax.set_ylabel(label)
                ax.tick_params(labelleft=True)
                ax.grid(True)
            data = ((title, a, b) for title, _, x, y, _ in panels for a, b in zip(x, y, strict=True))
            return self._inline(fig, alt, "reciprocity", ("panel", "at Alice, dB", "at the other node, dB"), data)

    def over_time(self, links: Sequence[LinkPicture], alt: str) -> str:
        """Draw SNR and CFO over rounds, one line per link."""
        with _figure(8.6, 4.0) as fig:
            top, bottom = fig.subplots(2, 1, sharex=True)
            first, last = _span(links)
            for link in links:
                column = columns(link.rounds, first, last)
                x = first + (np.arange(len(column)) + 0.5) * (last - first + 1) / len(column) - 0.5
                there = column >= 0
                style: dict[str, Any] = {
                    "color": ROLES.get(link.role, INK),
                    "lw": 1.0,
                    "ls": _dashes(link.role, link.dashed),
                    "marker": "." if there.sum() < 60 else None,
                    "ms": 3,
                }
                for ax, values in ((top, link.snr_db), (bottom, link.cfo_hz / 1e3)):
                    ax.plot(x, np.where(there, values[column], np.nan), label=link.title, **style)
            top.set_ylabel("SNR, dB")
            bottom.set(ylabel="CFO, kHz", xlim=(first - 0.5, last + 0.5))
            self._time_axis(bottom, -0.38)
            for ax in (top, bottom):
                ax.grid(True, axis="y")
            top.legend(ncols=4, loc="lower left", bbox_to_anchor=(-0.01, 1.0), handlelength=3.0, columnspacing=1.4)
            data = (
                (link.title, *row)
                for link in links
                for row in zip(link.rounds.tolist(), link.snr_db.tolist(), link.cfo_hz.tolist(), strict=True)
            )
            return self._inline(fig, alt, "snr_cfo", ("link", "round", "SNR, dB", "CFO, Hz"), data)

    def lines(
        self, name: str, curves: Mapping[str, tuple[F64, F64]], roles: Mapping[str, tuple[str, bool]], x_label: str,
        y_label: str, alt: str, band: float | None = None,
    ) -> str:  # fmt: skip
        """Curves (x, y), in the colours of their roles (role, whether dashed); `band`: ± that, shaded around 0."""
        with _figure(8.6, 2.9) as fig:
            ax = fig.subplots()
            if band is not None:
                ax.axhspan(-band, band, color=RULE, alpha=0.6, lw=0)
            for title, (x, y) in curves.items():
                role, dashed = roles.get(title, ("", True))
                colour = ROLES.get(role, INK) if title in roles else MUTED
                ax.plot(x, y, color=colour, lw=1.1, ls=_dashes(role, dashed), label=title)
            ax.set(xlabel=x_label, ylabel=y_label)
            ax.grid(True, axis="y")
            ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 1.0), handlelength=3.0, columnspacing=1.4)
            data = ((title, a, b) for title, (x, y) in curves.items() for a, b in zip(x, y, strict=True))
            return self._inline(fig, alt, name, ("curve", x_label, y_label), data)

    def curves(self, name: str, curves: Mapping[str, Curve], x_label: str, y_label: str, alt: str) -> str:
        """Curves with error bars; x that are not all numbers are categories, in the order in which they come."""
        seen = list(dict.fromkeys(map(_hashable, (x for c in curves.values() for x in c.x))))
        numeric = all(isinstance(x, int | float) and not isinstance(x, bool) for x in seen)
        with _figure(8.6, 3.6) as fig:
            ax = fig.subplots()
            for i, (label, c) in enumerate(curves.items()):
                x = c.x if numeric else [seen.index(_hashable(v)) for v in c.x]
                error = [0.0 if e is None else e for e in c.error]
                ax.errorbar(
                    x, c.y, error, label=label, color=PALETTE[i % len(PALETTE)], marker=_MARKERS[i % len(_MARKERS)],
                    ls="-" if i < len(PALETTE) else "--", lw=1.2, ms=4, capsize=3,
                )  # fmt: skip
            if not numeric:
                ax.set_xticks(range(len(seen)), [str(x) for x in seen])
            ax.set(xlabel=x_label, ylabel=y_label)
            ax.grid(True, axis="y")
            if len(curves) > 1:
                ax.legend(ncols=2, loc="lower left", bbox_to_anchor=(-0.01, 1.0))
            data = ((label, *row) for label, c in curves.items() for row in zip(c.x, c.y, c.error, strict=True))
            return self._inline(fig, alt, name, ("curve", x_label, y_label, "standard error of the mean"), data)

    def _time_axis(self, ax: Any, below: float) -> None:
        """Label an axis of rounds, and add seconds on a second line if the rounds' times are known."""
        ax.set_xlabel("round")
        if self._clock is None:
            return
        rounds, seconds = self._clock

        def through(x: Any, of: F64, to: F64) -> Any:
            # matplotlib also asks for values beyond the ends, where np.interp is constant
            x = np.asarray(x, dtype=np.float64)
            slope = (to[-1] - to[0]) / (of[-1] - of[0])
            outside = np.where(x < of[0], to[0] + (x - of[0]) * slope, to[-1] + (x - of[-1]) * slope)
            return np.where((x < of[0]) | (x > of[-1]), outside, np.interp(x, of, to))

        time = ax.secondary_xaxis(
            below, functions=(lambda x: through(x, rounds, seconds), lambda x: through(x, seconds, rounds))
        )
        time.set_xlabel("time since the first round, s")

    def disagreement(
        self, blocks: Sequence[int], stages: dict[str, tuple[str, list[float | None]]], alt: str,
        sure: Mapping[str, Sequence[tuple[float, float] | None]] = MappingProxyType({}),
    ) -> str:  # fmt: skip
        """Share of differing bits a block: stage → (colour, one value a block, None where unknown).

        `sure`: stage → the ends of each value's confidence interval.
        """
        with _figure(8.6, 2.9) as fig:
            ax = fig.subplots()
            few = len(blocks) <= 10
            width = 0.24
            x = np.arange(len(blocks)) if few else np.array(blocks)
            highest = max((v for _, values in stages.values() for v in values if v is not None), default=0.0)
            if highest > 0.25:
                ax.axhline(0.5, color=MUTED, lw=0.8, ls=":")
                at_right = ax.get_yaxis_transform()
                ax.text(1.0, 0.51, "coin toss", transform=at_right, ha="right", color=MUTED, fontsize=8)
            for i, (stage, (colour, values)) in enumerate(stages.items()):
                known = np.array([np.nan if v is None else v for v in values], dtype=float)
                ends = np.array([e or (np.nan, np.nan) for e in sure.get(stage, [None] * len(values))], dtype=float)
                bars = np.abs(ends.T - known)
                if few:
                    at = x + (i - (len(stages) - 1) / 2) * width
                    hatch = _HATCHES[i % len(_HATCHES)]
                    ax.bar(
                        at, np.nan_to_num(known), width * 0.9, color=colour, label=stage, hatch=hatch,
                        edgecolor=CARD, lw=0,
                    )  # fmt: skip
                    ax.errorbar(at, known, bars, fmt="none", ecolor=MUTED, elinewidth=0.8, capsize=2)
                    for xi, v in zip(at, values, strict=True):
                        # Without the text, an unknown value and 0 would look the same.
                        text = "n/a" if v is None else f"{100 * v:.3g} %"
                        inside = v is not None and v > 0.4
                        place: dict[str, Any] = {"va": "bottom", "color": MUTED}
                        if inside:
                            box = {"facecolor": colour, "edgecolor": "none", "pad": 1}
                            place = {"va": "top", "color": CARD, "bbox": box}
                        lift = (3, -3)[inside]
                        ax.annotate(
                            text,
                            (xi, v or 0.0),
                            (0, lift),
                            textcoords="offset points",
                            ha="center",
                            fontsize=8,
                            **place,
                        )
                else:
                    ax.plot(x, known, color=colour, lw=1.1, marker=_MARKERS[i % len(_MARKERS)], ms=3, label=stage)
                    ax.fill_between(x, *ends.T, color=colour, alpha=0.15, lw=0)
            if few:
                ax.set_xticks(x, [str(b) for b in blocks])
                ax.set_xlim(-0.5, max(len(blocks), 4) - 0.5)
            top = 0.58 if highest > 0.25 else max(1.3 * highest, 0.01)
            ax.set(xlabel="block", ylabel="differing bits", ylim=(0 if few else -0.02 * top, top))
            ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %")
            ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.01, 1.0))
            none = [None] * len(blocks)
            data = [
                (stage, block, value, *(ends or (None, None)))
                for stage, (_, values) in stages.items()
                for block, value, ends in zip(blocks, values, sure.get(stage, none), strict=True)
            ]
            head = ("stage", "block", "share of differing bits", "95 % from", "95 % to")
            return self._inline(fig, alt, "disagreement", head, data)

    def strip(self, rows: Sequence[tuple[str, str, U8]], shown: int, alt: str) -> str:
        """Draw bits as `bit_strip` does; the files for a paper contain the same cells and all values."""
        svg = bit_strip(rows, shown, alt)
        if not self._keeps:
            return svg
        kinds = {"cell1": (INK, 1.0), "cell0": (RULE, 1.0), "wrong1": (BAD, 0.5), "wrong0": (BAD, 0.5)}
        per_line, n = 128, min([shown, *(len(values) for _, _, values in rows)])
        lines = -(-n // per_line)
        with _figure(8.6, 0.3 + 0.24 * lines * (len(rows) + 1)) as fig:
            axes = fig.subplots(lines, 1, squeeze=False)[:, 0]
            for line, ax in enumerate(axes):
                part = slice(line * per_line, min((line + 1) * per_line, n))
                for r, (_, _, values) in enumerate(rows):
                    for kind, which in _cells(values[part], rows[0][2][part]).items():
                        colour, tall = kinds[kind]
                        bars = [(i, 0.86) for i in np.flatnonzero(which).tolist()]
                        ax.broken_barh(
                            bars, (r + 1 - tall, 0.9 * tall), color=colour, lw=0, alpha=0.4 if kind == "wrong0" else 1
                        )
                ax.set(xlim=(0, per_line), ylim=(len(rows), 0), yticks=[r + 0.5 for r in range(len(rows))], xticks=[])
                ax.set_yticklabels([label for label, _, _ in rows])
                ax.set_title(f"bits {part.start}–{part.stop - 1}", fontsize=8)
                for spine in ax.spines.values():
                    spine.set_visible(False)
            data = zip(range(n), *(values[:n].tolist() for _, _, values in rows), strict=True)
            self._inline(fig, alt, "bits", ("bit", *(label for label, _, _ in rows)), data)
        return svg + paper.downloads("bits")

    def patterns(self, shown: Mapping[str, SurfacePattern]) -> str:
        """Add a surface's patterns (digest → pattern) to the files for a paper and return links to these; '' if none
        are written."""
        if not self._keeps:
            return ""
        across = min(8, len(shown))
        with _figure(1.05 * across, 1.3 * -(-len(shown) // across)) as fig:
            axes = fig.subplots(-(-len(shown) // across), across, squeeze=False).ravel()
            for ax in axes:
                ax.set_axis_off()
            for ax, (digest, pattern) in zip(axes, shown.items(), strict=False):
                ax.imshow(pattern.phases_rad, cmap="twilight", vmin=0.0, vmax=2 * np.pi, interpolation="none")
                ax.set_title(digest[:8], fontsize=7)
            data = (
                (digest, r, c, int(level), f"{360 * int(level) / (1 << pattern.phase_bits):.6g}")
                for digest, pattern in shown.items()
                for (r, c), level in np.ndenumerate(pattern.levels)
            )
            self._inline(
                fig, "surface patterns", "patterns", ("pattern", "row", "column", "level", "phase, degrees"), data
            )
        return paper.downloads("patterns")

    def waterfall(self, raw: int, steps: Sequence[tuple[str, int]], key: int, alt: str) -> str:
        """Draw bars from raw bits down to key bits."""
        with _figure(8.6, 0.45 + 0.36 * (len(steps) + 2)) as fig:
            ax = fig.subplots()
            labels, left = ["raw bits", *(label for label, _ in steps), "key"], raw
            rows: list[tuple[int, int, str, str]] = [(0, raw, INK, f"{raw:,}")]
            for _, bits in steps:
                rows.append((left - bits, left, MUTED, f"{-bits:,}".replace("-", "−")))
                left -= bits
            rows.append((0, key, OK, f"{key:,}"))
            for i, (start, end, colour, text) in enumerate(rows):
                ax.barh(i, end - start, left=start, height=0.62, color=colour)
                ax.text(max(start, end) + 0.008 * max(raw, 1), i, text, va="center", color=INK)
                if i:
                    previous = rows[i - 1][1] if i == 1 else rows[i - 1][0]
                    nothing = start == end and i < len(rows) - 1
                    ax.plot([previous, previous], [i - 0.69, i + 0.31 if nothing else i - 0.31], color=MUTED, lw=0.7)
            ax.set_yticks(range(len(rows)), labels, color=INK)
            ax.invert_yaxis()
            ax.set_xlim(0, 1.1 * max(raw, key, 1))
            ax.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
            ax.set_xlabel("bits")
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.grid(True, axis="x")
            ax.set_axisbelow(True)
            data = [("raw bits", raw), *((label, -bits) for label, bits in steps), ("key", key)]
            return self._inline(fig, alt, "bit_flow", ("step", "bits"), data)

    def _inline(self, fig: Any, alt: str, name: str, columns: paper.Columns, rows: paper.Rows) -> str:
        """Return the figure as SVG for the page; `columns` and `rows` are its data, `name` that of its files."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        text = io.StringIO()
        FigureCanvasSVG(fig).print_svg(text, metadata={"Date": None})  # `savefig` would draw it twice
        svg = whole_svg = text.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
        box = re.search(r'viewBox="0 0 ([0-9.]+) [^"]*"', svg)
        assert box is not None
        prefix = f"p{self._section}{next(self._number)}-"
        svg = re.sub(r'\bid="', f'id="{prefix}', svg)
        svg = re.sub(r'href="#', f'href="#{prefix}', svg)
        svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
        for placeholder, variable in _VARIABLES.items():
            svg = svg.replace(placeholder, f"var(--{variable})")
        label = escape(alt, quote=True)
        # narrow pictures are not stretched to the page's width, so that the text has one size in all of them
        size = f'style="max-width:{1.55 * float(box[1]):.0f}px"'
        head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} {size} role="img" aria-label="{label}">'
        drawn = head + svg[svg.index(">") + 1 :]
        if not self._keeps:
            return drawn
        self.kept.append(paper.keep(fig, whole_svg, name, _VARIABLES, columns, rows))
        return drawn + paper.downloads(name)


def _dashes(role: str, second: bool) -> Any:
    return _DASHES.get((role, second), "--" if second else (0, (8, 2, 2, 2)))


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else str(value)


def bit_strip(rows: Sequence[tuple[str, str, U8]], shown: int, alt: str, per_line: int = 128) -> str:
    """Draw bits as cells, 1 strong and 0 pale, in lines of `per_line`; red and half as high where a row differs from
    the first row.

    `rows` are (label, role, values).
    """
    width, height, left, gap = 7, 11, 46, 14
    n = min([shown, *(len(values) for _, _, values in rows)])
    lines = -(-n // per_line)
    line_height = len(rows) * (height + 2) + gap
    parts = []
    for line in range(lines):
        part = slice(line * per_line, min((line + 1) * per_line, n))
        top = line * line_height
        parts.append(
            f'<text class="at" x="{left + per_line * width}" y="{top + 8}">bits {part.start}–{part.stop - 1}</text>'
        )
        for r, (label, role, values) in enumerate(rows):
            y = top + gap - 3 + r * (height + 2)
            parts.append(f'<text class="{escape(role)}" x="0" y="{y + height - 2}">{escape(label)}</text>')
            mine, reference = values[part], rows[0][2][part]
            for cell, which in _cells(mine, reference).items():
                tall = height if cell.startswith("cell") else height // 2
                path = "".join(f"M{left + i * width} {y + height - tall}h6v{tall}h-6z" for i in np.flatnonzero(which))
                if path:
                    parts.append(f'<path class="{cell}" d="{path}"/>')
    box = f'viewBox="0 0 {left + per_line * width + 2} {lines * line_height}"'
    return f'<svg class="strip" {box} role="img" aria-label="{escape(alt, quote=True)}">{"".join(parts)}</svg>'


def _cells(mine: U8, reference: U8) -> dict[str, NDArray[np.bool_]]:
    """Return the kind of a cell → (bit,) whether it is of that kind."""
    same = mine == reference
    return {
        "cell1": (mine == 1) & same, "cell0": (mine == 0) & same,
        "wrong1": (mine == 1) & ~same, "wrong0": (mine == 0) & ~same,
    }  # fmt: skip


def pattern_image(pattern: SurfacePattern, alt: str) -> str:
    """Draw a pattern as a small picture with one pixel per element; phase on a cyclic scale (0 light, π dark)."""
    import matplotlib
    from matplotlib.image import imsave

    colours = matplotlib.colormaps["twilight"](pattern.phases_rad / (2 * np.pi))
    png = io.BytesIO()
    imsave(png, colours, format="png")
    n_rows, n_columns = pattern.levels.shape
    scale = 96 / max(n_rows, n_columns)
    size = f'width="{max(4, round(scale * n_columns))}" height="{max(4, round(scale * n_rows))}"'
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img {size} alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def columns(rounds: I64, first: int, last: int) -> I64:
    """Return the row for each picture column of rounds first…last, −1 where there is none.

    A column is one round or, in a long run, the first recorded one of several rounds.
    """
    n = min(MAX_COLUMNS, last - first + 1)
    place = (rounds - first) * n // (last - first + 1)
    out = np.full(n, -1, dtype=np.int64)
    out[place[::-1]] = np.arange(len(rounds))[::-1]
    return out


def decimated(links: Sequence[LinkPicture]) -> bool:
    """Return whether a picture of these links leaves rounds out."""
    first, last = _span(links)
    return last - first + 1 > MAX_COLUMNS


def _clock(rounds: I64 | None, t0_s: F64 | None) -> tuple[F64, F64] | None:
    """Return rounds and seconds since the first, both strictly ascending; None if they give no usable time axis."""
    if rounds is None or t0_s is None:
        return None
    known = np.isfinite(t0_s)
    x, t = rounds[known].astype(np.float64), t0_s[known]
    if x.size < 2 or (np.diff(x) <= 0).any() or (np.diff(t) <= 0).any():
        return None
    return x, t - t[0]


def _span(links: Sequence[LinkPicture]) -> tuple[int, int]:
    return min(int(link.rounds[0]) for link in links), max(int(link.rounds[-1]) for link in links)


class _figure:
    """A matplotlib figure in the report's style, without pyplot and so without a display or global state."""

    def __init__(self, width_in: float, height_in: float) -> None:
        self._size = (width_in, height_in)

    def __enter__(self) -> Any:
        import matplotlib
        from matplotlib.figure import Figure

        self._context = matplotlib.rc_context(_style)
        self._context.__enter__()
        return Figure(figsize=self._size, layout="constrained")

    def __exit__(self, *exc: Any) -> None:
        self._context.__exit__(*exc)
