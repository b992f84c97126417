"""Sections on the run itself: health, rejections, events, provenance."""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np

from testbed.assess import compare
from testbed.core.words import plainly
from testbed.records import files
from testbed.report.pieces import MAX_ROWS, Cell, Code, figure, folded, inline, missing, percent, table
from testbed.report.view import View, no_summary


def health(v: View) -> str:
    checks = v.summary.get("health")
    if not checks:
        return missing("No health check was recorded." if v.run.summary is not None else no_summary(v))
    checks = sorted(checks, key=lambda c: bool(c.get("ok")))
    rows = [
        (
            c.get("check", ""),
            Cell("ok", "ok") if c.get("ok") else Cell("not ok", "bad"),
            c.get("detail", ""),
        )
        for c in checks
    ]
    return table(("check", "", "detail"), rows)


def baseline(v: View) -> str:
    if v.baseline is None:
        return missing("No baseline run was given.")
    if v.run.summary is None or v.baseline.summary is None:
        return missing("One of the two runs has no summary.")
    rows = []
    for row in compare.compare(v.run.summary, v.baseline.summary):
        many = row.ratio is None and bool(row.ours) and row.baseline == 0
        times = "none without" if many else "n/a" if row.ratio is None else f"{row.ratio:.3g} ×"
        if row.ratio_at_least is not None:
            times = f"≥ {row.ratio_at_least:.3g} ×"
        name = f"{row.name}, {row.unit}" if row.unit else row.name
        rows.append((name, *(Cell(t, "n") for t in (figure(row.ours), figure(row.baseline), times))))
    changed = compare.differences(v.run.start.experiment, v.baseline.start.experiment)
    named = ", ".join(f"<code>{escape(key)}</code>" for key in changed) or "nothing"
    title = escape(str(v.baseline.start.experiment.get("title") or "a run"))
    note = (
        f'<p class="note">The baseline is run {escape(v.baseline.start.uid)} (“{title}”). The experiments differ in '
        f"{named}. Agreed information is the raw rate times 1 − h(disagreement): quantized noise counts for nothing, "
        "and a ratio to it is to the most that it can be within 3 standard deviations.</p>"
    )
    return table(("", Cell("this run", "n"), Cell("baseline", "n"), Cell("ratio", "n")), rows) + note


def rejections(v: View) -> str:
    rounds = v.run.rounds
    counted: dict[str, int] | None = v.summary.get("pairs_rejected")
    if counted is None:
        reasons, n = np.unique(rounds.reason[~rounds.kept], return_counts=True)
        counted = {str(r): int(k) for r, k in zip(reasons, n, strict=True)}
    if not counted:
        return "<p>No round was rejected.</p>" if rounds.rounds.size else missing("No round was finished.")
    total = max(rounds.rounds.size, 1)
    rows = [
        (reason, Cell(f"{n:,}", "n"), Cell(percent(n / total), "n"))
        for reason, n in sorted(counted.items(), key=lambda item: -item[1])
    ]
    return table(("reason", Cell("rounds", "n"), Cell(f"of {rounds.rounds.size:,}", "n")), rows)


def events(v: View) -> str:
    events = v.run.events
    if not events:
        return missing("None was recorded.")
    rows = [(e.time[11:23], e.kind, plainly(e.data)) for e in events[-MAX_ROWS:]]
    note = f'<p class="note">The last {MAX_ROWS} of {len(events):,}.</p>' if len(events) > MAX_ROWS else ""
    return note + table(("UTC", "what", "details"), rows)


def provenance(v: View) -> str:
    start = v.run.start
    commit = "not run from a git checkout"
    if start.git_hash:
        commit = start.git_hash + (" with changes on top" if start.git_modified else "")
    rows: list[tuple[Any, ...]] = [("run", Code(start.uid)), ("started", start.time)]
    if v.run.stop is not None:
        rows.append(("stopped", v.run.stop.time))
    rows.append(("commit", Code(commit)))
    rows += [(f"seed: {name}", Code(str(seed))) for name, seed in start.seeds.items()]
    out = [table(("", ""), rows)]
    nodes = sorted({*start.drivers, *start.radios})
    if nodes:
        devices = [
            (n, start.role(n), Code(inline(start.drivers.get(n))), Code(inline(start.radios.get(n)))) for n in nodes
        ]
        out.append(
            "<h3>Devices and the settings they accepted</h3>" + table(("node", "role", "driver", "accepted"), devices)
        )
    versions = [(name, Code(version)) for name, version in start.versions.items()]
    if versions:
        out.append(folded("Versions", table(("package", "version"), versions)))
    if v.run.files:
        rows = [(name, Code(digest[:32] + "…")) for name, digest in list(v.run.files.items())[:MAX_ROWS]]
        note = f'<p class="note">In full in <code>{files.RUN}</code>.</p>'
        out.append(folded("Files", note + table(("file", "sha512"), rows, len(v.run.files))))
    for name, content in (("Experiment", start.experiment), ("Lab", start.lab)):
        text = escape(json.dumps(content, indent=1, ensure_ascii=False))
        out.append(folded(f"{name} file as used", f"<pre>{text}</pre>"))
    return "".join(out)
