"""Commands that list what is installed and measure how fast it is."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from testbed import config
from testbed.cli.app import JsonOption, QuietOption, app
from testbed.cli.terminal import Steps, print_json, say
from testbed.config import describe
from testbed.core import folders, logs
from testbed.core.config import ChainFile, Experiment, Lab
from testbed.core.errors import InputError
from testbed.core.words import counted, did_you_mean


@app.command()
def bench(
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Name of one benchmark; default: all. Or soak, or kills."),
    ] = None,
    rounds: Annotated[Optional[int], typer.Option(min=1, help="Rounds of soak; default: 20000.")] = None,  # noqa: UP045
    kills: Annotated[Optional[int], typer.Option(min=1, help="Number of kills; default: 300.")] = None,  # noqa: UP045
    minutes: Annotated[Optional[float], typer.Option(min=0.1, help="Time limit of soak and kills.")] = None,  # noqa: UP045
    seed: Annotated[int, typer.Option(min=0, help="Seed of soak and kills.")] = 1,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for the runs of soak and kills, which is kept; default: a temporary one."),
    ] = None,
    quiet: QuietOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list on standard output, nothing else: an object a figure.")
    ] = False,
) -> None:
    """Measure performance, each figure compared with a peer measured in the same run.

    soak: one long run under faults; kills: SIGKILL at random instants. Both check invariants that must hold whatever
    happens to a run; exit status 1 where one does not hold.
    Example: testbed bench cascade --json, or testbed bench kills --kills 50
    """
    logs.configure(False)
    if name in ("soak", "kills"):
        _endure(name, {"soak": rounds, "kills": kills}[name], minutes, seed, out, as_json)
        return
    if rounds is not None or kills is not None or minutes is not None or out is not None:
        raise InputError("--rounds, --kills, --minutes and --out are options of soak and kills; accepted here: none")
    from testbed import benchmarks as benches

    with Steps(quiet) as steps:
        rows = benches.run(name, steps.tell)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        peer = f"  {row.peer}: {row.peer_s:.6g} s, ratio {row.ratio:.2f}" if row.peer else ""
        print(f"{row.name}: {row.ours_s:.6g} s{peer}\n    {row.note}")


def _endure(name: str, amount: int | None, minutes: float | None, seed: int, out: Path | None, as_json: bool) -> None:
    """Run soak or kills, in the folder `out` or in a temporary one, and print the result."""
    from testbed.benchmarks import endure

    with contextlib.ExitStack() as stack:
        if out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="testbed-")))
        else:
            folders.make(out)
            folder = out.resolve()
            if any(folder.iterdir()):
                raise InputError(f"--out {out}: accepted: a new folder, or an empty one")
        began_s = time.monotonic()
        found = endure(name, folder, amount, seed, minutes, say)
        took_s = time.monotonic() - began_s
    held = "every invariant held" if found.ok else counted(len(found.findings), "finding")
    if as_json:
        row: dict[str, Any] = {"name": name, "ours_s": took_s, "peer": None, "peer_s": None, "ratio": None}
        print_json([{**row, "note": held, "figures": found.figures, "findings": found.findings}])
    else:
        for key, value in found.figures.items():
            print(f"{key}: {value}")
        for finding in found.findings:
            print(f"violated: {finding.invariant}: {finding.detail}")
        print(held)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="experiment, lab, map, chain or grid.")],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print the JSON Schema of a file kind, for editors that complete TOML; with --json on one line.

    Example: testbed schema experiment > experiment.schema.json
    """
    from testbed.lab.grid import GridFile
    from testbed.replay.map import MapFile

    kinds: dict[str, Any] = {
        "experiment": Experiment, "lab": Lab, "map": MapFile, "chain": ChainFile, "grid": GridFile,
    }  # fmt: skip
    if kind not in kinds:
        raise InputError(f"no file kind {kind!r}; accepted: {', '.join(kinds)}")
    print(json.dumps(config.json_schema(kinds[kind]), indent=None if as_json else 2))


@app.command("list")
def list_named(
    kind: Annotated[Optional[str], typer.Argument(help="Kind to list: quantize, radios …")] = None,  # noqa: UP045
    name: Annotated[Optional[str], typer.Argument(help="Name of one thing of that kind.")] = None,  # noqa: UP045
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the bundled files, stages, drivers, checks and studies; with a KIND, also the options of each.

    Anything that was found and cannot be used is named on standard error, one line each.
    Example: testbed list quantize scalar
    """
    from testbed.core import registry

    if as_json:
        print_json(_listed(kind, name))
        return
    if kind is None:
        for title, files in (("experiments", Experiment), ("labs", Lab)):
            print(f"{title}: {', '.join(config.bundled(files))}")
        broken = registry.problems()
        for key in registry.KINDS:
            lost = {p.name for p in broken if p.kind == key}
            print(f"{key}: {', '.join(n for n in registry.names(key) if n not in lost)}")
    elif kind not in registry.KINDS:
        raise InputError(_no_kind(kind))
    elif name is not None:
        broken = []
        _describe(kind, name, registry.find(kind, name))
    else:
        broken = registry.problems([kind])
        for key, thing in registry.usable(kind).items():
            _describe(kind, key, thing)
    for problem in broken:
        say(f"testbed: {problem}")


def _no_kind(kind: str) -> str:
    from testbed.core import registry

    return f"no kind is called {kind!r}{did_you_mean(kind, registry.KINDS)}; accepted: {', '.join(registry.KINDS)}"


def _listed(kind: str | None, name: str | None) -> dict[str, Any]:
    """Return what `testbed list` prints as plain data: names by kind, or the options of each thing of one kind."""
    from testbed.core import registry

    if kind is None:
        files = {title: list(config.bundled(f)) for title, f in (("experiments", Experiment), ("labs", Lab))}
        return files | {key: registry.names(key) for key in registry.KINDS}
    if kind not in registry.KINDS:
        raise InputError(_no_kind(kind))
    things = registry.usable(kind) if name is None else {name: registry.find(kind, name)}
    structs = {key: describe.options_type(thing) for key, thing in things.items()}
    return {
        key: {
            "what": describe.summary(thing),
            "place": str(registry.places(kind)[key][0]),
            "options": [] if (struct := structs[key]) is None else describe.fields(struct),
        }
        for key, thing in things.items()
    }


def _describe(kind: str, name: str, thing: Any) -> None:
    """Print what something is, where it is, and its options with default, range and meaning."""
    from testbed.core import registry

    print(f"{kind} {name} ({registry.places(kind)[name][0]})\n    {describe.summary(thing)}")
    limits = getattr(thing, "limits", None)
    for key in ("carrier_hz", "sample_rate_hz", "tx_gain_db", "rx_gain_db") if limits is not None else ():
        if (limit := getattr(limits, key)) is not None:
            print(f"  range of every device: {key} from {limit[0]:g} to {limit[1]:g}")
    struct = describe.options_type(thing)
    for option in describe.fields(struct) if struct is not None else ():
        given = "must be given" if option.default is None else f"= {option.default}"
        print(f"  {option.name} {given}{f'; accepted: {option.accepted}' if option.accepted else ''}")
        if option.meaning:
            print(f"      {option.meaning}")
