"""Numbers and plain data as parts of sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

_MOST_LISTED = 6
"""Largest number of numbers of an event that are shown one by one."""


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Return "1 block", "2 blocks", "1,000 blocks"; give `plural` where it is not formed by an s."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a time in words: "40 s", "3 min", "1.7 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def did_you_mean(name: str, known: Iterable[str], least: float = 0.6) -> str:
    """Return "; did you mean 'static_room'?" if one of the known names is like `name`, else ''.

    least: how like they must be, from 0 (not at all) to 1 (equal).

    >>> did_you_mean("static_rom", ["mobile_room", "static_room"])
    "; did you mean 'static_room'?"
    """
    near = get_close_matches(name, list(known), n=1, cutoff=least)
    return f"; did you mean {near[0]!r}?" if near else ""


def plainly(data: Mapping[str, Any]) -> str:
    """Return the data of an event as text for people, as "bob; accepted: carrier_hz 5.8e+09".

    The values of `node` and `detail` are given without their names, nested tables as keys and values in brackets. Of a
    long list of numbers, their count and range are given.

    >>> plainly({"block": 0, "rounds": list(range(200))})
    'block: 0; rounds: 200, from 0 to 199'
    """
    parts = []
    for key, value in data.items():
        text = _plain(value)
        if text:
            parts.append(text if key in ("node", "detail", "text") else f"{key}: {text}")
    return "; ".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ((k, f"({_plain(v)})" if isinstance(v, Mapping) else _plain(v)) for k, v in value.items())
        return ", ".join(f"{k} {text}" for k, text in inner if text)
    if isinstance(value, (list, tuple)):
        numbers = len(value) > _MOST_LISTED and all(type(v) in (int, float) for v in value)
        return _range(value) if numbers else ", ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _range(values: Sequence[float]) -> str:
    return f"{len(values):,}, from {_plain(min(values))} to {_plain(max(values))}"
