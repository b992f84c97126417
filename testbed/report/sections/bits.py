"""Raw bits and their disagreement at each stage."""

from __future__ import annotations

from html import escape

import numpy as np

from testbed.assess import agreement
from testbed.core.words import counted
from testbed.records.documents import Block
from testbed.report import bit_flow, pictures
from testbed.report.pieces import MAX_ROWS, figure, missing, number, picture, ratio, table
from testbed.report.section import Section
from testbed.report.view import View, failure, no_blocks

STRIP_BITS = 512
EVE_GUESSES = "Alice – Eve, published bits"


class BitStrips(Section):
    """Raw bits and their disagreement at each stage."""

    order = 60
    short = "Bits"
    title = "Bits"

    def html(self, v: View) -> str:
        return _strip(v) + "<h3>Disagreement, stage by stage</h3>" + _disagreement(v)


def _strip(v: View) -> str:
    bits = v.run.bits
    if not bits:
        if v.run.start.private:
            return missing("Bits are not shown: in private mode they never leave the nodes.")
        return missing("No raw bits were recorded" + ("." if v.run.blocks else ": no block was complete."))
    for block in sorted({key[0] for key in bits}):
        rows = []
        for node, role, label, kinds in (
            (v.alice, "alice", "Alice", ("raw",)),
            (v.bob, "bob", "Bob", ("raw",)),
            (v.eve, "eve", "Eve", ("guess", "raw")),
        ):
            found = [bits[(block, node, kind)] for kind in kinds if node is not None and (block, node, kind) in bits]
            rows += [(label, role, found[0])] if found else []
        if [role for _, role, _ in rows[:2]] == ["alice", "bob"] and len(rows[0][2]) and len(rows[1][2]):
            break
    else:
        return missing("Raw bits of both Alice and Bob were recorded for no block.")
    rows = [row for row in rows if len(row[2])]
    shown = min(STRIP_BITS, *(len(values) for _, _, values in rows))
    differ = {label: int(np.count_nonzero(values[:shown] != rows[0][2][:shown])) for label, _, values in rows[1:]}
    text = ", ".join(f"{label} differs from Alice in {n}" for label, n in differ.items())
    svg = v.draw.strip(rows, shown, f"The first {shown} raw bits of block {block}: {text}")
    caption = (
        f"The first {shown} raw bits of block {block}, before reconciliation; a strong colour is 1, a pale one 0. "
        f"Red cells of half height differ from Alice’s: {text}."
    )
    lone = "" if "eve" in {r for _, r, _ in rows} else missing("Eve’s guess of these bits was not recorded.")
    return picture(svg, caption) + lone


def _disagreement(v: View) -> str:
    blocks = [b for b in v.run.blocks if b.agree]
    if not blocks:
        return missing(no_blocks(v))
    raw: list[float | None] = []
    after: list[float | None] = []
    eve: list[float | None] = []
    sure_raw: list[tuple[float, float] | None] = []
    sure_eve: list[tuple[float, float] | None] = []
    for b in blocks:
        agreed = bit_flow.report_of(b)
        assert agreed is not None
        verified = all(a.verified for a in b.agree.values())
        raw.append(ratio(agreed.sacrificed_errors, agreed.sacrificed_bits))
        sure_raw.append(agreement.interval(agreed.sacrificed_errors, agreed.sacrificed_bits))
        # Verified strings are equal; if verification failed, the number of differing bits is unknown.
        after.append(0.0 if verified else _reconciled_difference(v, b))
        eve.append(None if b.eve is None else ratio(b.eve.sacrificed_errors, b.eve.covered_bits))
        sure_eve.append(None if b.eve is None else agreement.interval(b.eve.sacrificed_errors, b.eve.covered_bits))
    stages = {
        "Alice – Bob, published bits": (pictures.INK, raw),
        "Alice – Bob, reconciled": (pictures.OK, after),
        EVE_GUESSES: (pictures.EVE, eve),
    }
    if all(rate is None for rate in eve):
        del stages[EVE_GUESSES]
    svg = v.draw.disagreement(
        [b.block for b in blocks],
        stages,
        f"Share of differing bits at each stage for {counted(len(blocks), 'block')}",
        {"Alice – Bob, published bits": sure_raw, EVE_GUESSES: sure_eve},
    )
    caption = (
        "The rates of published bits are counted on the sacrificed bits of each block, a part of its raw bits; the "
        "figures at the top of the page are over all raw bits. Bars and brackets: 95 % confidence (Wilson). Reconciled "
        "strings that a universal hash verified count as 0; the rate of a failed block is not known."
    )
    rows = []
    for b in blocks[:MAX_ROWS]:
        agreed = bit_flow.report_of(b)
        assert agreed is not None
        corrected = next((a.corrected_bits for a in b.agree.values() if a.corrected_bits is not None), None)
        heard = b.eve
        rows.append(
            (
                b.block,
                _counted(agreed.sacrificed_errors, agreed.sacrificed_bits),
                f"{corrected:,} of {agreed.reconciled_bits:,}" if corrected is not None else "n/a",
                "verified" if all(a.verified for a in b.agree.values()) else failure(b),
                "not measured" if heard is None else _counted(heard.sacrificed_errors, heard.covered_bits),
                "" if heard is None else heard.best_link + ("" if heard.transcript_complete else " (missed messages)"),
            )
        )
    head = (
        "block",
        "differ, sacrificed",
        "corrected by Bob",
        "after reconciliation",
        "Eve’s errors, sacrificed",
        "Eve’s link",
    )
    return picture(svg, caption) + table(head, rows, len(blocks)) + _reconciliation(v)


def _counted(wrong: int, of: int) -> str:
    """Return a count and the confidence interval of its rate, as "12 of 400 (1.72–5.16 %)"."""
    sure = agreement.interval(wrong, of)
    ends = "" if sure is None else f" ({100 * sure[0]:.3g}–{100 * sure[1]:.3g} %)"
    return f"{wrong:,} of {of:,}{ends}"


def _reconciled_difference(v: View, block: Block) -> float | None:
    a = v.run.bits.get((block.block, str(v.alice), "reconciled"))
    b = v.run.bits.get((block.block, str(v.bob), "reconciled"))
    if a is None or b is None or a.size != b.size or not a.size:
        return None
    return float(np.mean(a != b))


def _reconciliation(v: View) -> str:
    told = v.summary.get("reconciliation")
    if not told:
        return ""
    parts = [
        f"method <code>{escape(str(told.get('method')))}</code>",
        f"efficiency f = {figure(told.get('efficiency'))}",
        f"{number(told.get('leaked_bits'))} bits leaked",
        f"{number(told.get('frame_failures'))} failed frames",
    ]
    return f"<p>Reconciliation: {', '.join(parts)}.</p>"
