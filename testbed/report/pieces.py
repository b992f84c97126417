"""Small pieces of HTML, and the form in which numbers are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

MAX_ROWS = 200
FOLD_ROWS = 12
"""A table of blocks or files with more rows than this is folded."""


class Cell:
    """A table cell with a CSS class."""

    def __init__(self, text: Any, kind: str) -> None:
        self.text, self.kind = text, kind


class Code(str):
    """Text in a fixed-width font."""

    __slots__ = ()


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], total: int | None = None) -> str:
    """Return a table; `total` is the number of all rows if only the first ones are given."""

    def cell(tag: str, value: Any) -> str:
        kind = f' class="{value.kind}"' if isinstance(value, Cell) else ""
        text = value.text if isinstance(value, Cell) else value
        inside = f"<code>{escape(text)}</code>" if isinstance(text, Code) else escape(str(text))
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{kind}{scope}>{inside}</{tag}>"

    rows = list(rows)
    top = f"<thead><tr>{''.join(cell('th', h) for h in head)}</tr></thead>" if any(map(_filled, head)) else ""
    body = "".join(f"<tr>{''.join(cell('td', v) for v in row)}</tr>" for row in rows)
    more = f'<p class="note">The first {len(rows)} of {total:,}.</p>' if total is not None and total > len(rows) else ""
    whole = f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>{more}'
    return folded(f"all {len(rows)} rows", whole) if total is not None and len(rows) > FOLD_ROWS else whole


def _filled(value: Any) -> bool:
    return isinstance(value, Cell) or bool(value)


def missing(why: str) -> str:
    return f'<p class="missing">{escape(why)}</p>'


def folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def picture(svg: str, caption: str) -> str:
    return f'<figure><div class="scroll">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'


def number(value: Any) -> str:
    return "n/a" if value is None else f"{value:,}"


def figure(value: Any) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.3g}"


def percent(value: Any) -> str:
    return "n/a" if value is None or not math.isfinite(value) else f"{100 * value:.3g} %"


def ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def inline(value: dict[str, Any] | None) -> str:
    if not value:
        return ""
    return ", ".join(f"{k} {v:.10g}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items())
