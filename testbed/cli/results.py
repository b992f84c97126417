"""Commands that evaluate what was measured: replay, report, audit, compare, randomness, keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from testbed import config
from testbed.cli.app import JsonOption, LabOption, QuietOption, VerboseOption, app
from testbed.cli.terminal import Steps, aside, console, plain, print_json, say, training_line
from testbed.core import logs
from testbed.core.errors import InputError
from testbed.core.gate import printable
from testbed.core.words import counted

if TYPE_CHECKING:
    pass


@app.command()
def replay(
    source: Annotated[Path, typer.Argument(help="A run's folder, or a measured data set (docs/datasets.md).")],
    chain: Annotated[
        str | None,
        typer.Option(
            "--chain", help="File with the tables chain, accounting, training; or an experiment.", metavar="CHAIN"
        ),
    ] = None,
    map_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--map", help="Map file: which arrays of SOURCE belong to which node (docs/datasets.md).", metavar="MAP"
        ),
    ] = None,
    cut: Annotated[Optional[str], typer.Option(help="Replay only this cut of the source.")] = None,  # noqa: UP045
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=0, max=2**62, help="Seed in place of the experiment's, or of the one that the source recommends."
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="New folder for the record, summary and report of the replay, in the form of a run's.", metavar="RUN"
        ),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run the key chain over a recorded run, a measured data set, or your own arrays: no radios.

    With --out, report, compare, audit and live accept the new folder as they accept a run's.
    Example: testbed replay measured.csv --map map.toml --chain chain.toml --out replays/monday
    """
    logs.configure(verbose)
    from testbed.replay import replay as replaying

    plan = config.load_chain(chain) if chain is not None else None
    with Steps(quiet) as steps:
        summary = replaying.replay(source, plan, cut, steps.tell, seed, map_file, out)
    page = None
    if out is not None:
        from testbed.report import html

        with Steps(quiet) as steps:
            steps.tell(None, "writing the report")
            page = html.make(out)
    if as_json:
        print_json(summary)
    else:
        _show_replay(summary, page)


def _show_replay(summary: dict[str, Any], page: Path | None) -> None:
    """Print the figures of a replay; `page`: its report, where one was written."""
    from rich.table import Table

    from testbed.assess import cuts

    heading, *rows = cuts.table(summary)
    shown = Table(*heading)
    for row in rows:
        shown.add_row(*map(plain, row))
    out = console()
    out.print(plain(summary["description"]), highlight=False)
    out.print(shown)
    out.print(plain(f"assumption on Eve (*): {summary['eve_assumption']}"), highlight=False)
    if summary["key_note"]:
        out.print(plain(f"key: {summary['key_note']}"), highlight=False)
    if summary["pairs_rejected"]:
        told = ", ".join(f"{n} {reason}" for reason, n in summary["pairs_rejected"].items())
        out.print(plain(f"pairs: {summary['pairs_kept']} of {summary['rounds']}; rejected: {told}"), highlight=False)
    if "training" in summary:
        out.print(plain(training_line(summary["training"])), highlight=False)
    for caveat in summary["caveats"]:
        out.print(plain(f"note: {caveat}"), highlight=False)
    for entry in summary["health"]:
        mark = "ok    " if entry["ok"] else "not ok"
        out.print(plain(f"{mark} {entry['check']}: {entry['detail']}"), highlight=False)
    if page is not None:
        out.print(f"report: {plain(page)}", soft_wrap=True)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, also of a run that was killed.", metavar="RUN")],
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    baseline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Baseline run to compare with.", metavar="RUN"),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """(Re)make the HTML report of a run; a killed run's journal is first turned into its lasting files.

    Every figure is written beside it, as SVG and PDF with its data as CSV, and tables for LaTeX.

    Example: testbed report runs/20260101-120000-mobile_room --open
    """
    from testbed.assess import run_summary
    from testbed.records import writer
    from testbed.report import html, paper

    with Steps(quiet) as steps:
        writer.recover(folder, lambda run: run_summary.summary_of(run, steps.tell))
        steps.tell(None, "writing the report and its figures")
        path = html.make(folder, baseline, figures=True)
    if as_json:
        print_json({"report": str(path), "figures": str(path.parent / paper.FOLDER)})
    else:
        print(path)
    if open_it:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())


@app.command()
def audit(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, recorded in experiment mode.", metavar="RUN…")],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Audit keys by everything that became known later: the whole record, later blocks, the other runs.

    Exit status 1 where a key is exposed. Example: testbed audit runs/MONDAY runs/TUESDAY
    """
    from testbed.assess import audit as auditing
    from testbed.records import reader

    found = []
    with Steps(quiet) as steps:
        loaded = [reader.load(path) for path in runs]
        for i, run in enumerate(loaded):

            def tell(share: float, what: str, i: int = i) -> None:
                steps.tell((i + share) / len(loaded), f"{runs[i].name}: {what}")

            found += auditing.table(auditing.audit(run, loaded[:i] + loaded[i + 1 :], tell=tell))
    exposed = sum(row.get("exposed", False) for row in found)
    if as_json:
        print_json({"keys_exposed": exposed, "keys": found})
    for row in () if as_json else found:
        where = f"{row['run']} block {row['block']}"
        if "not_audited" in row:
            print(f"{where}: not audited: {row['not_audited']}")
            continue
        verdict = "EXPOSED" if row["exposed"] else "ok" if row["assumption"] == auditing.AS_RUN else "what if"
        print(
            f"{where}: {verdict}: {row['assumption']}: {row['attack']} guesses {row['guess_probability']:.1%} of the "
            f"labels and leaves {counted(row['left_bits'], 'bit')} for a key of {row['key_bits']}"
        )
    if not found and not as_json:
        print("no keys in these runs")
    if exposed:
        raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; the others are compared with the first.")],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: each figure of each run, and its ratio to that of the first run.

    Example: testbed compare runs/20260101-120000-eve_near runs/20260101-130000-mobile_room
    """
    from testbed.assess import compare as comparing
    from testbed.records import reader, sound

    if len(runs) < 2:
        raise InputError("testbed compare: one run was given; accepted: two or more")
    summaries = [reader.load(folder).summary for folder in runs]
    for folder, summary in zip(runs, summaries, strict=True):
        if summary is None:
            raise InputError(
                f"{folder}: has no summary yet; accepted: a run that has ended (`testbed "
                f"report {folder}` closes a killed one)"
            )
        with sound.damaged(folder, "its summary cannot be compared"):
            comparing.several([summary, summary])
    rows = comparing.several([summary for summary in summaries if summary is not None])
    if as_json:
        print_json({"runs": [str(folder) for folder in runs], "figures": rows})
        return
    from rich.table import Table

    shown = Table("", *(plain(folder.name) for folder in runs))
    for row in rows:
        cells = ["–" if v is None else f"{v:.4g}" for v in row["values"]]
        cells = [c if r is None else f"{c} (× {r:.3g})" for c, r in zip(cells, row["ratios"], strict=True)]
        shown.add_row(f"{row['name']}{', ' + row['unit'] if row['unit'] else ''}", *cells)
    console().print(shown)


@app.command()
def randomness(
    file: Annotated[Path, typer.Argument(help="Bits: a file, or the folder of a node's keys.", metavar="FILE")],
    bits_per_sequence: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=100, help="Length of a sequence; default: the whole file, cut into sequences of a million bits."
        ),
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="auto, raw, text (0 and 1), hex or keys.")] = "auto",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Test bits for randomness by the 15 tests of NIST SP 800-22; a test that needs more bits says how many.

    Example: testbed randomness key.bin --bits-per-sequence 100000
    """
    from testbed.assess import randomness as testing

    bits, kind = testing.load(file, kind, bits_per_sequence)
    assessed = {"source": str(file), "format": kind, **testing.assess(bits)}
    if as_json:
        print_json(assessed)
        return
    from rich import box
    from rich.table import Table

    heading, *lines = testing.table(assessed)
    title = f"{plain(file)}: {bits.shape[0]} × {bits.shape[1]} bits ({kind})"
    style: dict[str, Any] = {
        "title_justify": "left",
        "box": box.SIMPLE_HEAD,
        "show_edge": False,
        "padding": (0, 1, 0, 0),
    }
    shown = Table(*heading, title=title, **style)
    for column in shown.columns[:-1]:
        column.no_wrap = True
    for line in lines:
        shown.add_row(*line)
    console().print(shown)


def _key_files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*/*.key"))
    except OSError as exc:
        raise InputError(
            f"{folder}: cannot be read: {exc.strerror}; accepted: run this as the user whose nodes made them, or "
            "name another folder in the variable TESTBED_STATE"
        ) from exc


keys = typer.Typer(invoke_without_command=True)


app.add_typer(keys, name="keys")


@keys.callback()
def keys_list(
    context: typer.Context, lab: LabOption = "sim", quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """List delivered keys: node, run, block, length, status and where the file is, never the bits.

    unconfirmed: the node does not know whether the other end has this key, because the run was interrupted before it
    was told; do not use it before `testbed run --resume RUN` has confirmed it. Keys of rehearsals follow from a public
    seed: they are counted and not listed. With --json: keys, rehearsals by node, and unreadable, the number of files
    that are no keys. Example: testbed keys --lab sim
    """
    if context.invoked_subcommand is not None:
        return
    from testbed.core import key_file
    from testbed.lab import processes

    rows, rehearsed, bad = [], {}, 0
    place = config.load_lab(lab)
    for name in place.node:
        rehearsed[name] = len(_key_files(processes.lab_folder(place) / name / "rehearsals"))
        for path in _key_files(processes.lab_folder(place) / name / "keys"):
            try:
                bits, block = key_file.read(path).size, int(path.stem.split("-")[1])
            except (OSError, ValueError, IndexError) as exc:
                say(f"{path}: no key file: {printable(str(exc))}")
                bad += 1
                continue
            status = "confirmed" if key_file.mark_of(path).exists() else "unconfirmed"
            row = {"node": name, "run": path.parent.name, "block": block, "bits": bits, "status": status}
            rows.append({**row, "file": str(path)})
    if any(rehearsed.values()):
        at = ", ".join(f"{n} at {name}" for name, n in rehearsed.items() if n)
        aside(quiet)(f"keys of rehearsals are not listed ({at}): they follow from a public seed and must not be used")
    if as_json:
        print_json({"keys": rows, "rehearsals": rehearsed, "unreadable": bad})
        raise typer.Exit(1 if bad else 0)
    if not rows:
        what = "no other keys" if any(rehearsed.values()) else "no keys"
        aside(quiet)(f"{what} under {processes.lab_folder(place)}")
    for row in rows:
        told = f"block {row['block']:>4}  {row['bits']:>6} bits  {row['status']:<11}"
        print(f"{row['node']:<10} {row['run']}  {told}  {row['file']}")
    if unsure := sum(row["status"] == "unconfirmed" for row in rows):
        aside(quiet)(
            f"{counted(unsure, 'key')} unconfirmed: the other end may have none; a run that is going on confirms a key "
            "when its block is closed, `testbed run --resume RUN` those of a run whose process died"
        )
    if bad:
        raise typer.Exit(1)


@keys.command("pool")
def keys_pool(
    nodes: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Those of Alice's and Bob's nodes that run here; default: by the lab file.", metavar="NODE"
        ),
    ] = None,
    lab: LabOption = "sim",
    bits: Annotated[int, typer.Option(min=256, max=1 << 24, help="Length of the secret; a block uses 256.")] = 1 << 16,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File for the copy of an end on another machine.", metavar="FILE"),
    ] = None,
    take: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Make the secret in this file, carried from the other machine, the pool; delete the file.",
            metavar="FILE",
        ),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Change nothing; say how much is left.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw the secret by which both ends authenticate the discussion in a lab with wegman_carter = true.

    It replaces the pools of both ends. If one end runs on another machine, its copy is written to a file: carry the
    file there on a medium that nobody else can read. Example: testbed keys pool --lab bench.toml --out usb/bob.pool
    Example: testbed keys pool bob --lab bench.toml --take usb/bob.pool
    """
    from testbed.lab import pools

    place = config.load_lab(lab)
    here = nodes or [name for name in pools.ends(place) if place.node[name].local]
    for name in here:
        if name not in pools.ends(place):
            raise InputError(f"{lab}: {name!r} cannot have a pool; accepted: {', '.join(pools.ends(place))}")
    if show:
        left = {name: pools.of(place, name) for name in here}
        if as_json:
            print_json({n: None if x is None else {"bits": x.bits, "blocks": x.pairs} for n, x in left.items()})
            return
        for name, found in left.items():
            rest = "no pool" if found is None else f"{found.bits} bits are left, {counted(found.pairs, 'block')}"
            print(f"{name}: {rest}")
    elif take is not None:
        if len(here) != 1:
            raise InputError(f"--take: name the node that runs here; accepted: {', '.join(pools.ends(place))}")
        path = pools.take(place, here[0], take)
        if as_json:
            print_json({here[0]: str(path)})
        else:
            print(f"{here[0]}: {path}")
    else:
        made = pools.make(place, here, bits, out)
        if as_json:
            print_json({name: str(path) for name, path in made.items()})
            return
        for name, path in made.items():
            print(f"{name}: {path}" if name in here else f"{name} is elsewhere: carry {path} to its machine")
