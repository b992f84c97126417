"""The origin of the run: commit, seeds, devices, versions, files."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from testbed.records import files
from testbed.report.pieces import MAX_ROWS, Code, folded, inline, table
from testbed.report.section import Section
from testbed.report.view import View


class Provenance(Section):
    """The origin of the run: commit, seeds, devices, versions, files."""

    order = 140
    short = "Provenance"
    title = "Provenance"

    def html(self, v: View) -> str:
        start = v.run.start
        commit = "unknown (not a git checkout)"
        if start.git_hash:
            commit = start.git_hash + (" with uncommitted changes" if start.git_modified else "")
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
                "<h3>Devices and the settings they accepted</h3>"
                + table(("node", "role", "driver", "accepted"), devices)
            )
        versions = [(name, Code(version)) for name, version in start.versions.items()]
        if versions:
            out.append(folded("Versions", table(("package", "version"), versions)))
        if v.run.files:
            rows = [(name, Code(digest[:32] + "…")) for name, digest in list(v.run.files.items())[:MAX_ROWS]]
            note = f'<p class="note">The full text is in <code>{files.RUN}</code>.</p>'
            out.append(folded("Files", note + table(("file", "sha512"), rows, len(v.run.files))))
        for name, content in (("Experiment", start.experiment), ("Lab", start.lab)):
            text = escape(json.dumps(content, indent=1, ensure_ascii=False))
            out.append(folded(f"{name} file as used", f"<pre>{text}</pre>"))
        return "".join(out)
