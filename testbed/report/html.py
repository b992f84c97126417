"""The report of a run: one self-contained HTML file, drawn from the records; numbers are quoted from summary.json.

A section whose data are missing gives the reason. Works on closed, live and killed runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from testbed.core import registry
from testbed.core.forks import Children
from testbed.core.words import counted
from testbed.records import files, reader, sound
from testbed.report import paper
from testbed.report.pieces import figure, missing, number, percent
from testbed.report.section import sections_of
from testbed.report.style import CSS
from testbed.report.view import View, no_summary


def load() -> None:
    """Load the libraries that read a record and draw a page, which takes half a second; `make` does it where that was
    not done."""
    for name in ("h5py", "matplotlib.figure", "matplotlib.backends.backend_svg", "matplotlib.font_manager"):
        import_module(name)
    registry.usable("report_sections")


def make(folder: Path, baseline: Path | None = None, figures: bool = False, children: Children | None = None) -> Path:
    """Write `report.html` into a run's folder and return its path; raises InputError if the folder contains no run.

    `figures`: every figure is also written as SVG and PDF with its data as CSV, and tables for LaTeX (`report.paper`).
    `baseline`: the folder of another run to compare this one with, e.g. the same room with a fixed surface.
    `children`: forked children draw, see `report.section`; not where `figures` are kept.
    """
    if children is not None:
        load()
    run, other = reader.load(folder), None if baseline is None else reader.load(baseline)
    with sound.damaged(folder, "cannot be shown"):
        view = View(run, other, figures)
        page = _render(view, None if figures else children)
    path = folder / files.REPORT
    with files.on_disk(folder):
        if figures:
            paper.write(view.draw.kept, paper.tables_of(view.summary), folder)
        with files.whole(path) as part:
            part.write_text(page, encoding="utf-8")
    return path


def _render(v: View, children: Children | None = None) -> str:
    sections = sections_of(v, children)
    title = str(v.run.start.experiment.get("title") or "Run")
    nav = "".join(f'<a href="#{key}">{short}</a>' for key, short, _, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{name}</h2>{inside}</section>' for key, _, name, inside in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} – key generation run</title><style>{CSS}</style></head><body>"
        f"<header>{_head(v, title)}<nav aria-label='Sections'>{nav}</nav></header><main>{body}</main>"
        f"<footer>Run {escape(v.run.start.uid)}. Pictures are drawn from {files.ROUNDS}, figures quoted from "
        f"{files.SUMMARY}; this page computes no key. {_figures(v)}</footer></body></html>\n"
    )


def _figures(v: View) -> str:
    if v.draw.kept:
        return (
            f'Figures and <a href="{paper.FOLDER}/tables.tex">tables for LaTeX</a> are in <code>{paper.FOLDER}</code>.'
        )
    return "<code>testbed report</code> on this folder writes every figure as SVG, PDF and CSV, and tables for LaTeX."


def _head(v: View, title: str) -> str:
    run, s = v.run, v.summary
    status, kind = "still running", "warn"
    if run.state == "killed":
        status, kind = "killed, not recovered", "bad"
    elif run.stop is not None:
        status, kind = run.stop.exit_status, "ok" if run.stop.exit_status == "ok" else "bad"
    out = [f"<h1>{escape(title)}</h1>", f'<p class="meta"><span class="badge {kind}">{escape(status)}</span> ']
    if run.start.replay is not None:
        out.append('<span class="badge warn">replay</span> ')
    lab = None if run.start.replay is not None else run.start.lab.get("name")
    out.append(f"{escape(run.start.time[:19].replace('T', ' '))} UTC")
    out.append(f" · lab <code>{escape(str(lab))}</code>" if lab else "")
    out.append(f" · mode {escape(str(run.start.experiment.get('mode', 'not recorded')))}</p>")
    if run.stop is not None and run.stop.reason:
        out.append(f'<p class="alarm">{escape(run.stop.reason)}</p>')
    if run.start.replay is not None:
        out.append(
            f"<p>A replay of <code>{escape(run.start.replay.path)}</code>: the key chain was run again over what is "
            "measured there. No radio took part, and no key was stored.</p>"
        )
    if run.state == "killed":
        out.append(
            '<p class="alarm">The coordinator’s process died. This page shows the contents of its journal; '
            "<code>testbed report</code> on this folder recovers it into lasting files.</p>"
        )
    if s.get("keys_mismatched"):
        out.append(
            f'<p class="alarm"><strong>{counted(s["keys_mismatched"], "key")} believed verified by both sides differ'
            f"{'s' if s['keys_mismatched'] == 1 else ''}.</strong>"
            " No key of this run may be used.</p>"
        )
    out.append(f'<p class="lede">{_verdict(v)}</p>')
    rejected = s.get("pairs_rejected")
    n_rejected = None if rejected is None else sum(rejected.values())
    rate = s.get("key_rate_bps")
    tiles = [
        (
            "key bits",
            number(s.get("key_bits")),
            _verified(s.get("keys_verified")),
        ),
        ("keys that differ", number(s.get("keys_mismatched")), "must be 0"),
        ("raw disagreement", percent(s.get("kdr_raw")), "Alice – Bob, before reconciliation"),
        ("Eve’s disagreement", percent(s.get("kdr_eve")), "of all raw bits; 50 % is pure guessing"),
        ("CSI correlation A–B", figure(s.get("csi_correlation_ab")), _detrended(v)),
        ("CSI correlation A–E", figure(s.get("csi_correlation_ae")), "the strongest of Eve’s links"),
        ("pairs kept", number(s.get("pairs_kept")), f"{number(n_rejected)} rejected"),
        ("rounds", number(s.get("rounds")), _pace(s)),
        (
            "key rate",
            "n/a" if rate is None else f"{figure(rate)} bit/s",
            f"{figure(s.get('key_bits_per_round'))} bits per round",
        ),
        ("min-entropy per bit", figure(s.get("min_entropy_per_bit")), "given Eve, as used for the key length"),
    ]
    if run.summary is None:
        out.append(missing(no_summary(v)))
    else:
        cells = (f"<div><dt>{a}</dt><dd>{b}{f'<small>{c}</small>' if c else ''}</dd></div>" for a, b, c in tiles)
        out.append(f'<dl class="tiles">{"".join(cells)}</dl>')
    return "".join(out)


def _pace(s: Mapping[str, Any]) -> str:
    per_s, spans = f"{figure(s.get('rounds_per_s'))} per second on average", s.get("pace") or {}
    if spans.get("probe_s") is None:
        return per_s
    told = ((name, spans[key]) for name, key in (("start", "start_s"), ("probing", "probe_s"), ("blocks", "distil_s")))
    return f"{per_s}; " + ", ".join(f"{name} {figure(value)} s" for name, value in told)


def _verified(keys: int | None) -> str:
    return "not counted" if keys is None else f"{counted(keys, 'key')} verified"


def _detrended(v: View) -> str:
    value = v.summary.get("csi_correlation_ab_detrended")
    return "" if value is None else f"{figure(value)} detrended"


def _verdict(v: View) -> str:
    s = v.summary
    key_bits, verified = s.get("key_bits"), s.get("keys_verified")
    if key_bits is None:
        return "The number of key bits was not recorded."
    if key_bits == 0:
        reasons = sorted({k.failure for b in v.run.blocks for k in b.key.values() if k.failure})
        reasons += sorted({a.failure for b in v.run.blocks for a in b.agree.values() if a.failure})
        if not v.run.blocks:
            reasons = ["no block was complete"]
        return f"No key. {escape('; '.join(dict.fromkeys(reasons)).capitalize())}{'.' if reasons else ''}"
    measured = s.get("kdr_eve")
    eve = (
        "Eve was not measured; the key length is that against an assumed Eve."
        if measured is None
        else f"Eve’s best guess of a raw bit was wrong {percent(measured)} of the time."
    )
    bits, rounds = counted(key_bits, "secret bit"), s.get("rounds")
    keys = "keys that were not counted" if verified is None else counted(verified, "verified key")
    return f"{bits} in {keys} from {'n/a rounds' if rounds is None else counted(rounds, 'round')}. {eve}"
