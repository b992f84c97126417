"""The command line. Exit status 2: bad input, in one line on standard error; 1: a failed run; 130: Ctrl-C."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import msgspec
import typer

from testbed import __version__
from testbed.core import config, logs
from testbed.core.errors import InputError, TestbedError

if TYPE_CHECKING:
    from testbed.coordinator.server import Coordinator, Progress
    from testbed.launch import Crew

# typer ships its own copy of click or uses an installed one, by version: this is its UsageError either way
_UsageError: Any = typer.BadParameter.__base__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Physical-layer secret key generation with reconfigurable surfaces: probe, distil, account.",
)

LabOption = Annotated[str, typer.Option("--lab", help="Lab file, or the name of a bundled one.", metavar="LAB")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to standard error.")]
SupervisedOption = Annotated[
    bool, typer.Option("--supervised", hidden=True, help="Leave when standard input closes (set by `testbed run`).")
]


def _print_json(value: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr)


# ---------------------------------------------------------------- the main job


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="Experiment file, or the name of a bundled one.")],
    lab: LabOption = "sim",
    rounds: Annotated[Optional[int], typer.Option(min=1, help="Instead of the file's.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(min=0, max=2**62, help="Instead of the file's.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="Folder in which the run's folder is made.")] = Path("runs"),
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run an experiment: start the lab's local daemons, drive all rounds, distil keys, write the run.

    Example: testbed run mobile_room --lab sim --rounds 400 --seed 7
    """
    logs.configure(verbose)
    from testbed import launch

    plan, place = _plan(experiment, rounds, seed), config.load_lab(lab)
    config.check_run(plan, experiment)
    _check_world(plan, place, lab)
    config.check_drivers(place, lab)
    folder = launch.new_run_folder(out, Path(experiment).stem)
    with _ProgressBar() as bar:
        outcome = launch.run(plan, place, lab, folder, bar.update, _stop_on_signals)
    _conclude(outcome, as_json)


@app.command()
def coordinator(
    experiment: Annotated[str, typer.Argument(help="Experiment file, or the name of a bundled one.")],
    lab: LabOption,
    world: Annotated[Optional[str], typer.Option(help="Endpoint of the simulated air, where the lab has one.")] = None,  # noqa: UP045
    rounds: Annotated[Optional[int], typer.Option(min=1)] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(min=0)] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="Folder in which the run's folder is made.")] = Path("runs"),
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Drive one run with nodes that are started elsewhere (`testbed node NAME`).

    Example: testbed coordinator mobile_room --lab bench.toml
    """
    logs.configure(verbose)
    from testbed import launch
    from testbed.coordinator.server import Coordinator

    plan, place = _plan(experiment, rounds, seed), config.load_lab(lab)
    config.check_run(plan, experiment)
    _check_world(plan, place, lab)
    if place.world is not None and world is None:
        if place.world.port == 0:
            raise InputError(f"{lab}: table [world]: key 'port' is 0, so say where the air is: --world tcp://HOST:PORT")
        world = f"tcp://{place.world.host}:{place.world.port}"
    if place.curve:
        launch.make_keys(place, ["coordinator", *launch.local_names(place)])
    server = Coordinator(
        place, plan, launch.new_run_folder(out, Path(experiment).stem), launch.load_identity(place, "coordinator")
    )
    try:
        _stop_on_signals(server, None)
        _say(
            f"coordinator on tcp://{place.coordinator.host}:{server.port}, waiting for {', '.join(server.state.nodes)}"
        )
        with _ProgressBar() as bar:
            outcome = server.run(world, progress=bar.update)
    finally:
        server.close()
    _conclude(outcome, as_json)


@app.command()
def node(
    name: Annotated[str, typer.Argument(help="The node's name in the lab file.")],
    lab: LabOption,
    coordinator: Annotated[Optional[str], typer.Option(help="Endpoint of the coordinator; default: the lab's.")] = None,  # noqa: UP045
    world: Annotated[Optional[str], typer.Option(help="Endpoint of the simulated air; default: the lab's.")] = None,  # noqa: UP045
    uri: Annotated[Optional[str], typer.Option(help="Instead of the lab's options.uri of this node's device.")] = None,  # noqa: UP045
    supervised: SupervisedOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run one node daemon: Alice, Bob, Eve or the surface, whichever NAME is in the lab file.

    Example: testbed node bob --lab bench.toml
    """
    logs.configure(verbose)
    from testbed import launch
    from testbed.nodes.daemon import NodeDaemon, watch_parent

    place = config.load_lab(lab)
    if name not in place.node:
        raise InputError(f"{lab}: no table [node.{name}]; accepted: {', '.join(place.node)}")
    config.check_drivers(place, lab, [name])
    if uri is not None:
        place.node[name].options["uri"] = uri
    if coordinator is None:
        if place.coordinator.port == 0:
            raise InputError(
                f"{lab}: table [coordinator]: key 'port' is 0, so say where it is: --coordinator tcp://HOST:PORT"
            )
        coordinator = f"tcp://{place.coordinator.host}:{place.coordinator.port}"
    if world is None and place.world is not None and place.world.port:
        world = f"tcp://{place.world.host}:{place.world.port}"
    if place.curve:
        launch.make_keys(place, [name])
    daemon = NodeDaemon(
        place, name, coordinator, world, launch.load_identity(place, name), launch.node_state_dir(place, name)
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: daemon.interrupt())
    if supervised:
        watch_parent()
    raise typer.Exit(daemon.run())


@app.command()
def sim(
    lab: LabOption = "sim",
    port: Annotated[Optional[int], typer.Option(min=0, max=65535, help="Instead of the lab's; 0 chooses one.")] = None,  # noqa: UP045
    experiment: Annotated[
        str, typer.Option(help="Whose scene the air holds until a run brings its own.")
    ] = "static_room",
    supervised: SupervisedOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run the simulated air of a lab and the devices emulated on it, for nodes and other programs started separately.

    Prints {"endpoint": …, "devices": {node: URI}} once it is ready; the air then holds the scene of --experiment.
    Example: testbed sim --lab wire, then iio_info -u URI
    """
    logs.configure(verbose)
    from testbed import launch
    from testbed.core import registry
    from testbed.nodes.daemon import watch_parent

    place = config.load_lab(lab)
    if place.world is None:
        raise InputError(f"{lab}: no table [world]: this lab has no simulated air")
    if place.curve:
        launch.make_keys(place, ["world", *(launch.local_names(place) if place.world.local else [])])
    if supervised:
        watch_parent()
    driver = registry.load_driver("worlds", place.world.driver)
    endpoint = f"tcp://{place.world.host}:{place.world.port if port is None else port}"
    scene = None if supervised else config.load_experiment(experiment)
    with launch.emulators(place, lab, driver, scene) as ready:
        driver.serve(
            endpoint, launch.load_identity(place, "world"), place.world.pace, place.world.peer_timeout_s, ready
        )


@app.command()
def doctor(
    lab: LabOption = "sim",
    carrier_hz: Annotated[Optional[float], typer.Option(min=1e6, help="Measure at this carrier.")] = None,  # noqa: UP045
    rate_hz: Annotated[Optional[float], typer.Option(min=1e3, help="Measure at this sample rate.")] = None,  # noqa: UP045
    repeats: Annotated[int, typer.Option(min=4, max=1000, help="Frames a link.")] = 8,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check every radio, board, clock, port and key file of a lab on this machine, and say what to fix.

    What it measures of the radios is kept for the nodes. Exit status 1 if anything must be fixed.
    Example: testbed doctor --lab bench.toml
    """
    logs.configure(verbose)
    from testbed import doctor as examining

    changes = {"carrier_hz": carrier_hz, "sample_rate_hz": rate_hz}
    plan = msgspec.structs.replace(config.RadioPlan(), **{k: v for k, v in changes.items() if v is not None})

    def tell(found: examining.Finding) -> None:
        advice = "" if found.ok else f" – fix: {found.fix}"
        print(f"{'ok ' if found.ok else 'fix'} {found.subject}: {found.check}: {found.detail}{advice}", flush=True)

    diagnosis = examining.examine(config.load_lab(lab), lab, plan, repeats, (lambda _: None) if as_json else tell)
    if as_json:
        _print_json(diagnosis)
    if not diagnosis.ok:
        raise typer.Exit(1)


# ---------------------------------------------------------------- the surface

ris = typer.Typer(no_args_is_help=True, help="Look at, set, or search for a pattern of the lab's surface.")
app.add_typer(ris, name="ris")

PatternArgument = Annotated[str, typer.Argument(help="A pattern's name, 0xHEX, or a saved .json.", metavar="PATTERN")]


@ris.command("show")
def ris_show(
    pattern: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Show this one instead of what the board holds.", metavar="PATTERN"),
    ] = None,
    lab: LabOption = "sim",
    as_json: JsonOption = False,
) -> None:
    """Show the lab's surface and the pattern that it holds, or what PATTERN would be on it.

    Example: testbed ris show "beam(30, 0)" --lab sim
    """
    logs.configure(False)
    from testbed import tuning

    shown = tuning.show(config.load_lab(lab), lab, pattern)
    if as_json:
        _print_json({k: v for k, v in shown.items() if k != "picture"})
        return
    identity = ", ".join(f"{k} {v}" for k, v in shown["identity"].items())
    print(f"{shown['node']}: {shown['size']}" + (f"; {identity}" if identity else ""))
    if shown["capabilities"]:
        print(", ".join(f"{k} {v}" for k, v in shown["capabilities"].items()))
    print(f"pattern {shown['digest']}\n{shown['picture']}")


@ris.command("apply")
def ris_apply(pattern: PatternArgument, lab: LabOption = "sim", as_json: JsonOption = False) -> None:
    """Set a pattern on the lab's surface, read it back, and say how long it took.

    A simulated air of this machine ends with the command, and the pattern with it.
    Example: testbed ris apply best.json --lab bench.toml
    """
    logs.configure(False)
    from testbed import tuning

    applied = tuning.apply(config.load_lab(lab), lab, pattern)
    if as_json:
        _print_json(applied)
    else:
        print(f"{applied['node']} holds {applied['digest']}, applied and read back in {applied['apply_ms']:.1f} ms")


@ris.command("optimise")
def ris_optimise(
    lab: LabOption = "sim",
    experiment: Annotated[
        str, typer.Option(help="Whose radios, probing and scene are used.", metavar="EXPERIMENT")
    ] = "static_room",
    method: Annotated[str, typer.Option(help="hadamard, greedy, conditional_mean, random_search")] = "hadamard",
    objective: Annotated[str, typer.Option(help="power, correlation, key_rate, leakage")] = "power",
    probes: Annotated[int, typer.Option(min=1, help="Rounds each pattern is tried for.")] = 1,
    budget: Annotated[int, typer.Option(min=20, help="Rounds at most.", metavar="ROUNDS")] = 6000,
    start: Annotated[str, typer.Option(help="Pattern to begin with.", metavar="PATTERN")] = "random(1)",
    model: Annotated[
        str, typer.Option(help="What the scene's geometry tells is: start of the search, answer, none.")
    ] = "none",
    seed: Annotated[Optional[int], typer.Option(min=0, max=2**62, help="Instead of the file's.")] = None,  # noqa: UP045
    save: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where the pattern is saved; default: best.json in the run's folder.", metavar="FILE.json"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which the run's folder is made.")] = Path("runs"),
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Search for the best pattern on live probes; Ctrl-C keeps the best so far.

    Use the result in an experiment: [surface] policy = "fixed", options = { pattern = "FILE.json" }
    Example: testbed ris optimise --lab sim --method greedy --save best.json
    """
    logs.configure(verbose)
    from testbed import tuning

    place = config.load_lab(lab)
    plan = tuning.plan(_plan(experiment, budget, seed), experiment, place, method, objective, probes, start, model)
    _check_world(plan, place, lab)
    config.check_drivers(place, lab)
    if save is not None and (save.suffix != ".json" or save.is_dir() or not os.access(save.parent, os.W_OK)):
        raise InputError(f"--save {save}: accepted: a .json file in a folder that can be written")
    found = tuning.optimise(plan, place, lab, experiment, save, out, _say, _stop_on_signals)
    if as_json:
        _print_json(found)
    elif found["digest"] is None:
        if found["status"] != "failed":
            _say("no pattern was judged")
    else:
        gained = "" if found["gain"] is None else f", {found['gain']:+.3f} on the start"
        sure = "" if found["confirmed"] else " (not measured afresh: the search was cut short)"
        print(f"{found['after']:.3f} {found['unit']}{gained} after {found['rounds']} rounds{sure}: {found['saved']}")
    if found["status"] == "failed":
        _say(f"search failed: {found['detail']}")
        raise typer.Exit(1)
    if found["status"] == "stopped":
        raise typer.Exit(130)


# ---------------------------------------------------------------- recorded and measured channels


@app.command()
def replay(
    source: Annotated[Path, typer.Argument(help="A run's folder, or a measured data set (docs/datasets.md).")],
    chain: Annotated[
        str | None, typer.Option("--chain", help="Experiment whose chain is used.", metavar="EXPERIMENT")
    ] = None,
    cut: Annotated[Optional[str], typer.Option(help="Only this measured link.")] = None,  # noqa: UP045
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run the key chain over a recorded run or a measured data set: no radios.

    Example: testbed replay datasets/openris_vna --json
    """
    logs.configure(verbose)
    from testbed import replay as replaying

    plan = config.load_experiment(chain) if chain is not None else None
    watched = sys.stderr.isatty() or verbose
    summary = replaying.replay(source, plan, cut, lambda share, what: _say(f"{share:4.0%} {what}") if watched else None)
    if as_json:
        _print_json(summary)
        return
    from rich.console import Console
    from rich.table import Table

    heading, *rows = replaying.table(summary)
    shown = Table(*heading)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    console.print(f"{summary['description']}", highlight=False)
    console.print(shown)
    console.print(f"* Eve: {summary['eve_assumption']}", highlight=False)
    console.print(f"key: {summary['key_note']}", highlight=False)
    if "training" in summary:
        console.print(_training(summary["training"]), highlight=False, markup=False)
    for caveat in summary["caveats"]:
        console.print(f"note: {caveat}", highlight=False)
    for entry in summary["health"]:
        console.print(f"{'ok  ' if entry['ok'] else 'look'} {entry['check']}: {entry['detail']}", highlight=False)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder, also of a run that was killed.", metavar="RUN")],
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    baseline: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Hold it against this run, with ratios.", metavar="RUN"),
    ] = None,
) -> None:
    """(Re)make the HTML report of a run; a killed run's journal is first turned into its lasting files.

    Example: testbed report runs/20260101-120000-mobile_room --open
    """
    from testbed.coordinator import facts
    from testbed.records import writer
    from testbed.report import html

    writer.recover(folder, facts.summary_of)
    path = html.make(folder, baseline)
    print(path)
    if open_it:
        import webbrowser

        webbrowser.open(path.absolute().as_uri())


# ---------------------------------------------------------------- the rest


@app.command()
def randomness(
    file: Annotated[Path, typer.Argument(help="Bits: a file, or the folder of a node's keys.", metavar="FILE")],
    bits_per_sequence: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=100, help="Length of a sequence; default: the whole file, in pieces of a million."),
    ] = None,
    kind: Annotated[str, typer.Option("--format", help="auto, raw, text (0 and 1), hex or keys.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Test bits for randomness by NIST SP 800-22: all 15 tests, or the reason why the bits are too few for one.

    Example: testbed randomness key.bin --bits-per-sequence 100000
    """
    from testbed.assess import randomness as testing

    bits, kind = testing.load(file, kind, bits_per_sequence)
    assessed = {"source": str(file), "format": kind, **testing.assess(bits)}
    if as_json:
        _print_json(assessed)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    heading, *lines = testing.table(assessed)
    title = f"{file}: {bits.shape[0]} × {bits.shape[1]} bits ({kind})"
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
    Console().print(shown)


@app.command()
def bench(
    name: Annotated[Optional[str], typer.Argument(help="One benchmark; all without it.")] = None,  # noqa: UP045
    as_json: JsonOption = False,
) -> None:
    """Measure performance, each figure beside a peer measured in the same run.

    Example: testbed bench cascade --json
    """
    logs.configure(False)
    from testbed import bench as benches

    rows = benches.run(name)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        peer = f"  {row.peer}: {row.peer_s:.6g} s, ratio {row.ratio:.2f}" if row.peer else ""
        print(f"{row.name}: {row.ours_s:.6g} s{peer}\n    {row.note}")


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="One of: see `testbed list`.")],
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute: fewer points, the same claims.")] = False,
    out: Annotated[Optional[Path], typer.Option(help="Default: studies/NAME.", metavar="DIR")] = None,  # noqa: UP045
    scheduler: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A Dask scheduler that does the work.", metavar="ADDRESS"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a paper's figures: results.json and a PNG a figure, with each claim and whether it holds.

    Example: testbed study pkgnet --quick
    """
    logs.configure(False)
    from testbed import studies

    folder = out or Path("studies") / name
    results = studies.run(name, folder, quick, scheduler, _say)
    if as_json:
        _print_json(results)
    else:
        for row in results["claims"]:
            paper = "" if row["paper"] is None else f" (paper: {_rounded(row['paper'])})"
            verdict = "holds        " if row["holds"] else "DOES NOT HOLD"
            print(f"{verdict} {row['claim']}{paper}: {_rounded(row['measured'])}")
        print(f"{results['seconds']:.0f} s; figures and results.json: {folder}")
    broken = [row["claim"] for row in results["claims"] if row["must_hold"] and not row["holds"]]
    if broken:
        _say(f"testbed: study {name}: our own code breaks what it promises: {'; '.join(broken)}")
        raise typer.Exit(1)


def _rounded(value: Any) -> str:
    """Return a claim's plain value for people: numbers to four digits, in lists and tables too."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_rounded(v)}" for k, v in value.items())
    return str(value)


@app.command()
def train(
    algorithm: Annotated[str, typer.Argument(help="direct, sac, td3 or ppo.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write; its card (.json) comes beside it.")],
    channels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="An experiment, whose scene's channels are played, or a .npz of h, g and maybe fred. Default: AR(1).",
            metavar="EXPERIMENT|FILE",
        ),
    ] = None,
    step_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Between two steps of an experiment's channels; default: its interval between rounds."),
    ] = None,
    updates: Annotated[Optional[int], typer.Option(min=1, help="Default: 600 of direct, 1200 of the others.")] = None,  # noqa: UP045
    view: Annotated[str, typer.Option(help="Of Eve: kalman, lstm, none, or full, which no node has.")] = "kalman",
    frame: Annotated[str, typer.Option(help="turned or antenna.")] = "turned",
    change: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="A number of the setting, as kappa_eve=0.9; repeat for more.", metavar="NAME=VALUE"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**62)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Train beams against an eavesdropper (paper E) for [beams] policy = "agent"; hold them against the closed forms.

    Example: testbed train direct --out beams.pt --set kappa_eve=0.9
    """
    logs.configure(False)
    changes: dict[str, float | int] = {}
    for item in change or []:
        name, _, value = item.partition("=")
        try:
            changes[name] = int(value) if name in ("n_antennas", "history") else float(value)
        except ValueError:
            raise InputError(f"--set {item}: accepted: NAME=NUMBER") from None
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: no folder {out.parent}")
    if out.is_dir() or out.suffix == ".json":
        raise InputError(f"--out {out}: accepted: a file, as beams.pt; .json is its card's suffix")
    new = not out.exists()
    try:
        with out.open("ab"):  # a training must not end where nothing can be written
            pass
    except OSError as exc:
        raise InputError(f"--out {out}: {exc.strerror}; accepted: a file that can be written") from exc
    if new:
        out.unlink()
    if step_s is not None and (channels is None or channels.endswith(".npz")):
        raise InputError("--step-s: accepted: with --channels EXPERIMENT; other channels have steps of their own")
    from testbed.agents import sources
    from testbed.agents import train as training

    series = None
    if channels is not None and channels.endswith(".npz"):
        series = sources.load(Path(channels))
    elif channels is not None:
        plan = config.load_experiment(channels)
        n_antennas = int(changes.get("n_antennas", 4))
        series = sources.from_experiment(plan, step_s, n_antennas)
    found = training.run(training.Plan(algorithm, updates, seed, view, frame, series, changes), out)
    if as_json:
        _print_json(found)
        return
    for name, reward in found["reward"].items():
        share = (
            "" if found["share"][name] is None else f", {found['share'][name]:.1%} of the gap from SVD to the oracle"
        )
        print(f"{name:18s} {reward:.3f} bits{share}")
    told = ", ".join(f"{k} = {found['setting'][k]:.4g}" for k in ("rho", "kappa_eve", "kappa_fred", "mu"))
    print(f"setting: {told}, {found['setting']['n_antennas']} antennas")
    print(f"{found['updates']} updates, {found['seconds']:.0f} s; held out: {found['draws']} draws; checkpoint: {out}")


@app.command("keygen-certs")
def keygen_certs(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Daemons of this machine; default: those that the lab calls local.", metavar="NAME"),
    ] = None,
    lab: LabOption = "sim",
) -> None:
    """Make the transport keys of this machine's daemons where they are missing, and say in which folder they are.

    Each machine keeps its own `.secret` files; copy the `.public` ones to the same folder on the others.

    Example: testbed keygen-certs --lab bench.toml bob
    """
    from testbed import launch

    place = config.load_lab(lab)
    known = launch.daemon_names(place)
    for name in names or ():
        if name not in known:
            raise InputError(f"{lab}: no daemon {name!r}; accepted: {', '.join(known)}")
    print(launch.make_keys(place, names or launch.local_names(place)))


@app.command()
def keys(lab: LabOption = "sim", as_json: JsonOption = False) -> None:
    """List delivered keys: node, run, block, length and where the file is, never the bits.

    Example: testbed keys --lab sim
    """
    from testbed import launch

    rows = []
    place = config.load_lab(lab)
    for name in place.node:
        for path in sorted((launch.lab_folder(place) / name / "keys").glob("*/*.key")):
            bits = json.loads(path.read_text())["bits"]
            rows.append(
                {
                    "node": name,
                    "run": path.parent.name,
                    "block": int(path.stem.split("-")[1]),
                    "bits": bits,
                    "file": str(path),
                }
            )
    if as_json:
        _print_json(rows)
        return
    if not rows:
        _say(f"no keys under {launch.lab_folder(place)}")
    for row in rows:
        print(f"{row['node']:<10} {row['run']}  block {row['block']:>4}  {row['bits']:>6} bits  {row['file']}")


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="experiment or lab.")],
) -> None:
    """Print the JSON Schema of a file kind, for editors that complete TOML.

    Example: testbed schema experiment > experiment.schema.json
    """
    kinds: dict[str, Any] = {"experiment": config.Experiment, "lab": config.Lab}
    if kind not in kinds:
        raise InputError(f"no file kind {kind!r}; accepted: experiment, lab")
    print(json.dumps(config.json_schema(kinds[kind]), indent=2))


@app.command("list")
def list_bundled() -> None:
    """List the bundled experiments and labs, and the stages a chain can be made of.

    Example: testbed list
    """
    from testbed import studies
    from testbed.core import registry

    for title, kind in (("experiments", config.Experiment), ("labs", config.Lab)):
        print(f"{title}: {', '.join(config.bundled(kind))}")
    for stage in registry.STAGES:
        print(f"{stage}: {', '.join(registry.stage_names(stage))}")
    print(f"studies: {', '.join(studies.names())}")


# ---------------------------------------------------------------- shared


def _plan(experiment: str, rounds: int | None, seed: int | None) -> config.Experiment:
    plan = config.load_experiment(experiment)
    changes: dict[str, int] = {}
    if rounds is not None:
        changes["rounds"] = rounds
    if seed is not None:
        changes["seed"] = seed
    return msgspec.structs.replace(plan, **changes)


def _check_world(plan: config.Experiment, place: config.Lab, lab: str) -> None:
    config.check_mode(plan, place, lab)
    if not place.curve:
        _say(f"{lab}: curve = false: links on this machine are not authenticated; keys are for experiments only")
    if plan.surface.policy != "none" and place.by_role("ris") is None:
        raise InputError(f"{lab}: the experiment moves a surface, but no node has role = 'ris'")


def _stop_on_signals(server: Coordinator, crew: Crew | None) -> None:
    """First Ctrl-C: finish the round; second: drop it; third: silence the transmitters at once."""
    kinds = iter(("stop", "abort", "halt"))

    def ask(*_: object) -> None:
        kind = next(kinds, None)
        if kind is None:
            return
        server.interrupted = True
        _say(
            {
                "stop": "finishing the round (again: drop it)",
                "abort": "dropping the round (again: halt)",
                "halt": "halt",
            }[kind]
        )
        server.ask_stop(kind)  # type: ignore[arg-type]

    signal.signal(signal.SIGINT, ask)
    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGHUP, ask)  # a dropped terminal


class _ProgressBar:
    """Rounds, rounds/s, SNR and key bits on a terminal; a plain line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._plain_at = 0

    def __enter__(self) -> _ProgressBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.fields[phase]:>11}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
                transient=True,
                refresh_per_second=5,
            )
            self._bar.start()
            self._task = self._bar.add_task("run", total=None, phase="starting", figures="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, p: Progress) -> None:
        snr = "   –" if math.isnan(p.snr_db) else f"{p.snr_db:4.1f} dB"  # private nodes do not tell it
        figures = f"{p.rounds_per_s:5.0f} rounds/s  SNR {snr}  kept {p.kept}  key bits {p.key_bits}"
        if p.message is not None:
            if self._bar is not None:
                self._bar.console.print(p.message)
            else:
                _say(p.message)
        if self._bar is not None:
            self._bar.update(self._task, completed=p.round, total=p.rounds, phase=p.phase, figures=figures)
        elif p.round >= self._plain_at + 200 or (p.round == p.rounds and self._plain_at < p.rounds):
            self._plain_at = p.round
            _say(f"{p.round}/{p.rounds} rounds  {figures}")


def _conclude(outcome: Any, as_json: bool) -> None:
    """Make the report, show the outcome, leave with the right status."""
    from testbed.report import html

    path = html.make(outcome.folder)
    if as_json:
        _print_json(outcome.summary)
    elif outcome.status != "failed" or outcome.summary["rounds"]:  # of a run that never started there is only a reason
        _show(outcome, path)
    sys.stdout.flush()  # the reason is the last line, whatever the streams are
    if outcome.status == "failed":
        _say(f"run failed: {outcome.detail}; report: {path}")
        raise typer.Exit(1)
    if outcome.status == "stopped":
        raise typer.Exit(130)
    if outcome.summary.get("keys_mismatched"):
        _say("run failed: verified keys differ")
        raise typer.Exit(1)


def _training(told: dict[str, Any]) -> str:
    from testbed.report import training

    return "training: " + "; ".join(f"{what}: {text}" for what, text in training.rows(told))


def _show(outcome: Any, report_path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    s = outcome.summary
    console = Console()

    def figure(value: Any, form: str = "") -> str:
        return "–" if value is None else format(value, form)

    rejected = ", ".join(f"{n} {why}" for why, n in s["pairs_rejected"].items()) or "none"
    console.print(
        f"[bold]{s['keys_verified']} verified keys, {s['key_bits']} bits[/bold]"
        f" (mismatched: {figure(s['keys_mismatched'])}; recovered by Eve: {figure(s['eve_keys_recovered'])})"
    )
    console.print(
        f"rounds {s['rounds']}, pairs kept {s['pairs_kept']}, rejected: {rejected}, "
        f"{figure(s['rounds_per_s'], '.0f')} rounds/s"
    )
    console.print(
        f"raw bits {s['raw_bits']}, disagreement Alice–Bob {figure(s['kdr_raw'], '.3f')}, "
        f"Eve {figure(s['kdr_eve'], '.3f')}, "
        f"min-entropy given Eve {figure(s['min_entropy_per_bit'], '.3f')} bit/bit, "
        f"key rate {figure(s['key_rate_bps'], '.1f')} bit/s of channel time"
    )
    if "training" in s:
        console.print(_training(s["training"]), highlight=False, markup=False)
    table = Table(title="health", title_justify="left", show_header=False)
    for entry in s["health"]:
        table.add_row("[green]ok[/green]" if entry["ok"] else "[yellow]look[/yellow]", entry["check"], entry["detail"])
    console.print(table)
    console.print(f"report: {report_path}", soft_wrap=True)


def main() -> None:
    """Entry point: turn every expected failure into one line and an exit status."""
    try:
        status = app(standalone_mode=False)
    except InputError as exc:
        _say(f"testbed: {exc}")
        status = 2
    except TestbedError as exc:
        _say(f"testbed: {exc}")
        status = 1
    except typer.Exit as exc:
        status = exc.exit_code
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except _UsageError as exc:
        command = exc.ctx.command_path if getattr(exc, "ctx", None) else "testbed"
        said = exc.format_message()
        _say(said if "\n" in said else f"testbed: {said} (see `{command} --help`)")  # no command at all: the help
        status = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as exc:  # a folder that cannot be written, a full disk
        where = f"{exc.filename}: " if exc.filename else ""
        _say(f"testbed: {where}{exc.strerror or exc}")
        status = 1
    logging.shutdown()
    sys.exit(status if isinstance(status, int) else 0)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


if __name__ == "__main__":
    main()
