"""Key bits of each block."""

from __future__ import annotations

from testbed.report import bit_flow
from testbed.report.pieces import MAX_ROWS, Cell, figure, missing, table
from testbed.report.section import Section
from testbed.report.view import View, failure, no_blocks


class Keys(Section):
    """Key bits of each block."""

    order = 80
    short = "Keys"
    title = "Keys"

    def html(self, v: View) -> str:
        blocks = [b for b in v.run.blocks if b.agree or b.key]
        if not blocks:
            return missing(no_blocks(v))
        rows = []
        for b in blocks[:MAX_ROWS]:
            verified = bool(b.agree) and all(a.verified for a in b.agree.values())
            bits = bit_flow.key_bits(b)
            entropy = next((k.min_entropy_per_bit for k in b.key.values() if k.min_entropy_per_bit is not None), None)
            eve = "measured" if any(k.eve_measured for k in b.key.values()) else "assumed"
            rows.append(
                (
                    b.block,
                    Cell(f"{bits:,}", "n"),
                    Cell("yes", "ok") if verified else Cell("no", "bad"),
                    Cell(figure(entropy), "n"),
                    eve if b.key else "",
                    failure(b),
                )
            )
        head = (
            "block",
            Cell("key bits", "n"),
            "verified",
            Cell("min-entropy per bit", "n"),
            "Eve",
            "why not",
        )
        note = "The keys are stored in the nodes’ own folders; this run’s folder and this page contain no key bit."
        if v.run.start.replay is not None:
            note = "A replay stores no key, neither here nor in a node’s folder."
        if v.run.bits:
            note += " But raw bits and channels were recorded: these keys are for research and must not be used."
        return f"<p>{note}</p>" + table(head, rows, len(blocks))
