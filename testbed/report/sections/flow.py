"""The waterfall from raw bits to key bits."""

from __future__ import annotations

from testbed.core.words import counted
from testbed.report import bit_flow
from testbed.report.pieces import Cell, missing, picture, table
from testbed.report.section import Section
from testbed.report.view import View, no_blocks


class Flow(Section):
    """The waterfall from raw bits to key bits."""

    order = 70
    short = "Where bits went"
    title = "From raw bits to key bits"

    def html(self, v: View) -> str:
        blocks = v.run.blocks
        raw = bit_flow.raw_bits(blocks)
        if not raw:
            return missing(no_blocks(v) if not blocks else "No block had raw bits.")
        epsilon_log2 = v.run.start.experiment.get("accounting", {}).get("epsilon_log2")
        if epsilon_log2 is None:
            return missing("The start document contains no security parameter, so the losses cannot be separated.")
        steps = bit_flow.flow(blocks, int(epsilon_log2))
        key = sum(bit_flow.key_bits(b) for b in blocks)
        alarm = ""
        if steps[-1].bits < 0:
            alarm = (
                f'<p class="alarm">Blocks delivered {-steps[-1].bits:,} key bits more than their own reports allow:  '
                "the accounting or a report has an error.</p>"
            )
        losses = [(step.label, step.bits) for step in steps]
        alt = f"Waterfall from {raw:,} raw bits to {key:,} key bits: " + ", ".join(f"{n} {b:,}" for n, b in losses)
        svg = v.draw.waterfall(raw, losses, key, alt)
        caption = f"Sum over {counted(len(blocks), 'block')}. No loss exceeds the bits that its block had left."
        rows = [(step.label, Cell(f"{step.bits:,}", "n"), step.why) for step in steps]
        rows = [("raw bits", Cell(f"{raw:,}", "n"), "agreed positions after quantization"), *rows]
        rows.append(("key", Cell(f"{key:,}", "n"), "bits that both sides hold"))
        leaks: dict[str, int] = {}
        for b in blocks:
            agreed = bit_flow.report_of(b)
            for kind, n in ({} if agreed is None else agreed.leaked_by_kind).items():
                leaks[kind] = leaks.get(kind, 0) + n
        by_kind = ""
        if leaks:
            ordered = sorted(leaks.items(), key=lambda item: -item[1])
            by_kind = "<h3>Leaked bits by kind of public message</h3>" + table(
                ("message", Cell("bits", "n")), [(kind, Cell(f"{n:,}", "n")) for kind, n in ordered]
            )
        return alarm + picture(svg, caption) + table(("step", Cell("bits", "n"), "why"), rows) + by_kind
