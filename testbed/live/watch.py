"""A run in a terminal, from the live page's feed: as a table that is redrawn, or as a line every few seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from testbed.core.gate import printable
from testbed.live.feed import Feed

LINE_S = 5.0
"""Time between two lines where the output is no terminal."""
PERIOD_S = 0.5


def line(told: dict[str, Any]) -> str:
    """Return the state of a run in one line: rounds, rate, correlation, key bits, rejections."""
    last = latest(told)
    state = "stopping" if told["asked"] else "paused" if told["paused"] else told["state"]
    parts = [f"{state}: round {told['rounds']}/{told['planned']}"]
    if told["rounds_per_s_now"] is not None:
        parts.append(f"{told['rounds_per_s_now']:.0f} rounds/s now")
    parts += [f"r {name} {r:+.2f}" for name, r in last["r"].items()]
    if last["snr_db"]:
        parts.append(f"SNR {min(last['snr_db'].values()):.0f} dB")
    parts.append(f"{told['key_bits']} key bits")
    if told["rejected"]:
        parts.append("rejected: " + ", ".join(f"{n} {reason}" for reason, n in told["rejected"].items()))
    return "  ".join(parts)


def figures(told: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a run as plain data: the contents of `line`, and also offsets and nodes."""
    last = latest(told)
    same = (
        "state",
        "paused",
        "asked",
        "title",
        "round",
        "rounds",
        "planned",
        "rounds_per_s_now",
        "kept",
        "rejected",
        "key_bits",
    )
    out = {key: told[key] for key in same}
    return (
        out
        | {"bits": told["flow"], "nodes": told["nodes"], "correlation": last["r"]}
        | {key: last[key] for key in ("snr_db", "cfo_hz")}
    )


def table(told: dict[str, Any]) -> Any:
    """Return a rich table of the links, the curves' last points, nodes and latest events."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    last = latest(told)
    links = Table("link", "probes", "SNR (dB)", "CFO (Hz)", "level (dB)")
    for name, link in sorted(told["links"].items()):
        level = link.get("level_db")
        links.add_row(
            name,
            str(link["rounds"]),
            _figure(last["snr_db"].get(name), ".1f"),
            _figure(last["cfo_hz"].get(name), ".0f"),
            spark(level) if level else "–",
        )
    flow = told["flow"]
    bits = ", ".join(f"{name} {n}" for name, n in flow.items()) or "no block yet"
    nodes = ", ".join(f"{n['name']} {n['state']}" for n in told["nodes"]) or "none yet"
    said = [printable(f"{e['time'][11:19]} {e['kind']} {e['text']}", 160) for e in told["events"][-5:]]  # nodes' words
    events = [Text(text, style="dim") for text in said]
    head = Text(printable(told["title"]), style="bold"), Text(printable(line(told), 1000))
    return Group(*head, links, Text(f"bits: {bits}"), Text(f"nodes: {nodes}"), *events)


def latest(told: dict[str, Any]) -> dict[str, Any]:
    """Return the last point of the curves that has a correlation; where none has one, the last point."""
    empty: dict[str, Any] = {"r": {}, "snr_db": {}, "cfo_hz": {}}
    points = told["points"] or [empty]
    return next((point for point in reversed(points) if point["r"]), points[-1])


def spark(values: list[float], width: int = 32) -> str:
    """Return a spectrum as a row of block characters, scaled from its lowest to its highest level."""
    n = min(width, len(values))
    edges = [i * len(values) // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    steps, span = "▁▂▃▄▅▆▇█", (high - low) or 1.0
    return "".join(steps[int((v - low) / span * (len(steps) - 1))] for v in means) + f" {low:.0f}…{high:.0f}"


def _figure(value: float | None, form: str) -> str:
    return "–" if value is None or math.isnan(value) else format(value, form)


def watch(folder: Path, tell: Callable[[dict[str, Any]], None], drawn: bool, end_only: bool = False) -> None:
    """Follow a run until it is over: `drawn` as a table on a terminal, else by `tell` every few seconds and at the end.

    `end_only`: `tell` is called only at the end.
    """
    feed = Feed(folder)
    if not drawn:
        _tell(feed, tell, end_only)
        return
    from rich.live import Live

    with Live(refresh_per_second=4) as screen:
        while True:
            feed.poll()
            told, _ = feed.message()
            screen.update(table(told))
            if feed.state in ("closed", "killed"):
                return
            time.sleep(PERIOD_S)


def _tell(feed: Feed, tell: Callable[[dict[str, Any]], None], end_only: bool) -> None:
    due_s = math.inf if end_only else 0.0
    while True:
        feed.poll()
        over = feed.state in ("closed", "killed")
        if over or time.monotonic() >= due_s:
            tell(feed.message()[0])
            due_s = time.monotonic() + LINE_S
        if over:
            return
        time.sleep(PERIOD_S)
