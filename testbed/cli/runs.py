"""Commands that run an experiment and its daemons."""

from __future__ import annotations

import contextlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from testbed import config
from testbed.cli.app import InProcessOption, JsonOption, LabOption, QuietOption, SupervisedOption, VerboseOption, app
from testbed.cli.status import status_of
from testbed.cli.terminal import Ahead, ProgressBar, aside, conclude, on_signals, print_json, say
from testbed.core import logs
from testbed.core.errors import InputError

if TYPE_CHECKING:
    from testbed.coordinator.server import Coordinator
    from testbed.lab.processes import Crew
    from testbed.lab.spares import Spares


ExperimentArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(help="Experiment file, or the name of a bundled one."),
]
ResumeOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--resume", help="Continue this run, whose process died.", metavar="RUN"),
]

MetricsOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=0, max=65535, help="Serve the run's figures for Prometheus on this port of this machine; 0: a free one.",
        metavar="PORT",
    ),
]  # fmt: skip


def serve_metrics(stack: contextlib.ExitStack, port: int | None, server: Coordinator) -> None:
    """Serve a run's figures on `port` until the stack is closed; does nothing without a port."""
    if port is None:
        return
    from testbed.live import metrics

    def read() -> metrics.Figures:
        state = server.state
        return metrics.Figures(
            run=server.run_name, phase=state.phase, rounds=state.probed, kept=state.kept,
            rejected=dict(state.rejected), key_bits=state.key_bits, snr_db=state.snr_db,
            alive={name: node.alive for name, node in state.nodes.items()},
            free_bytes=server.disks.free_bytes(server.folder),
        )  # fmt: skip

    say(f"metrics: {stack.enter_context(metrics.served(port, read))}")


def prepare(spares: Spares, lab: str) -> None:
    """Fork the processes that become the daemons of a run on this lab, where this process may fork.

    Loads what several of them need before, so that it is loaded once. Of the lab, nothing is wrong any more.
    """
    from testbed.lab import processes
    from testbed.lab.spares import can_fork

    if not can_fork():
        return
    for name in ("scipy.fft", "scipy.special", "zmq.auth.thread", "testbed.nodes.service"):
        import_module(name)
    names = processes.local_names(config.load_lab(lab))
    spares.fork(len(names) - ("coordinator" in names), _daemon)


def _daemon(command: str, options: dict[str, Any]) -> int:
    """Do in a spare process what the command of a daemon does; returns its exit status."""
    does: Any = {"node": node, "sim": sim}[command]
    return status_of(lambda: does(**options, supervised=True))


@app.command()
def run(
    experiment: ExperimentArgument = None,
    lab: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--lab", help="Lab file, or the name of a bundled one; default: sim.", metavar="LAB"),
    ] = None,
    resume: ResumeOption = None,
    rounds: Annotated[Optional[int], typer.Option(min=1, help="Rounds in place of the file's.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(min=0, max=2**62, help="Seed in place of the file's.")] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="Folder in which the run's folder is made.")] = Path("runs"),
    live: Annotated[bool, typer.Option("--live", help="Serve a live page of the run on this machine.")] = False,
    metrics: MetricsOption = None,
    in_process: InProcessOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run an experiment: start the lab's local daemons, drive all rounds, distil keys, write the run.

    A run whose process died is continued by: testbed run --resume RUN.
    Example: testbed run mobile_room --lab sim --rounds 400 --seed 7
    """
    logs.configure(verbose)
    from testbed.lab import run as running
    from testbed.lab.spares import Spares
    from testbed.live.beside import Beside
    from testbed.live.metrics import check as check_metrics

    def begins(_: Path) -> None:
        if resume is None and not in_process:
            prepare(spares, lab or "sim")
        bar.show()  # it has a thread of its own, with which this process must not fork

    def begun(server: Coordinator, crew: Crew | None) -> None:
        stop_on_signals(server, crew)
        page.ask = lambda kind: page_asked(server, kind)
        serve_metrics(stack, metrics, server)
        if live:
            page.start(server.folder)

    if live:
        Beside.check()
    if metrics is not None:
        check_metrics()
    with (
        contextlib.ExitStack() as stack, Spares() as spares, Beside(say) as page, ProgressBar(quiet) as bar,
        Ahead(bar.update) as ahead,
    ):  # fmt: skip
        outcome = running.run(
            experiment, lab, rounds=rounds, seed=seed, out=out, resume=resume, in_process=in_process,
            progress=ahead.update, on_folder=begins, on_coordinator=begun, spares=spares,
        )  # fmt: skip
    conclude(outcome, as_json, quiet)


@app.command()
def coordinator(
    experiment: ExperimentArgument = None,
    lab: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--lab", help="Lab file, or the name of a bundled one.", metavar="LAB"),
    ] = None,
    resume: ResumeOption = None,
    world: Annotated[Optional[str], typer.Option(help="Endpoint of the simulated air, where the lab has one.")] = None,  # noqa: UP045
    rounds: Annotated[Optional[int], typer.Option(min=1)] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(min=0)] = None,  # noqa: UP045
    out: Annotated[Path, typer.Option(help="Folder in which the run's folder is made.")] = Path("runs"),
    metrics: MetricsOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Drive one run with nodes that are started elsewhere (`testbed node NAME`).

    Example: testbed coordinator mobile_room --lab bench.toml
    """
    logs.configure(verbose)
    from testbed.coordinator.server import Coordinator
    from testbed.lab import processes
    from testbed.lab.run import check_world, origin_of, plan_of, resumable
    from testbed.live.metrics import check as check_metrics

    if metrics is not None:
        check_metrics()
    dead = None
    if resume is not None:
        found = resumable(resume, "coordinator", experiment, lab, rounds, seed)
        dead, origin, plan, lab, place = found.dead, found.origin, found.plan, found.lab, found.place
        experiment = origin.experiment
    elif experiment is None or lab is None:
        raise InputError("accepted: an experiment and --lab LAB, or --resume RUN")
    else:
        plan, place = plan_of(experiment, rounds, seed), config.load_lab(lab)
        origin = origin_of("coordinator", experiment, lab)
    config.check_run(plan, experiment, place)
    check_world(plan, place, lab)
    if plan.faults is not None:
        raise InputError(f"{experiment}: table [faults]: accepted by `testbed run` only, which injects the faults")
    if place.world is not None and world is None:
        if place.world.port == 0:
            raise InputError(
                f"{lab}: table [world]: key 'port' is 0, so give the address of the simulated air: --world tcp://HOST:PORT"
            )
        world = f"tcp://{place.world.host}:{place.world.port}"
    if place.curve:
        processes.make_keys(place, ["coordinator", *processes.local_names(place)])
    folder = processes.new_run_folder(out, Path(experiment).stem) if resume is None else resume
    with processes.unless_empty(folder):
        server = Coordinator(
            place, plan, folder, processes.load_identity(place, "coordinator"), origin=origin, dead=dead
        )
        try:
            server.check_disk()
            stop_on_signals(server, None)
            nodes = ", ".join(server.state.nodes)
            say(f"coordinator on tcp://{place.coordinator.host}:{server.port}, waiting for {nodes}")
            with contextlib.ExitStack() as stack, ProgressBar(quiet) as bar, Ahead(bar.update) as ahead:
                bar.show()
                serve_metrics(stack, metrics, server)
                outcome = server.run(world, progress=ahead.update)
        finally:
            server.close()
    conclude(outcome, as_json, quiet)


@app.command()
def node(
    name: Annotated[str, typer.Argument(help="The node's name in the lab file.")],
    lab: LabOption,
    coordinator: Annotated[Optional[str], typer.Option(help="Endpoint of the coordinator; default: the lab's.")] = None,  # noqa: UP045
    world: Annotated[Optional[str], typer.Option(help="Endpoint of the simulated air; default: the lab's.")] = None,  # noqa: UP045
    uri: Annotated[Optional[str], typer.Option(help="URI of its device, in place of the lab's options.uri.")] = None,  # noqa: UP045
    once: Annotated[bool, typer.Option("--once", help="Exit after one run, or if none begins in time.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    supervised: SupervisedOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run one node daemon: Alice, Bob, Eve or the surface, whichever NAME is in the lab file.

    It waits for its coordinator, takes part in the run, and stays for the next one until it is stopped (Ctrl-C).
    Example: testbed node bob --lab bench.toml
    """
    logs.configure(verbose)
    from testbed.lab import processes, supervision
    from testbed.nodes import service
    from testbed.nodes.daemon import NodeDaemon

    place = config.load_lab(lab)
    if name not in place.node:
        raise InputError(f"{lab}: no table [node.{name}]; accepted: {', '.join(place.node)}")
    config.check_drivers(place, lab, [name])
    if supervised:
        said = supervision.told()
        coordinator, world, uri = said["coordinator"], said["world"], said["uri"]
    if uri is not None:
        place.node[name].options["uri"] = uri
    if coordinator is None:
        if place.coordinator.port == 0:
            raise InputError(
                f"{lab}: table [coordinator]: key 'port' is 0, so give the coordinator's address: --coordinator tcp://HOST:PORT"
            )
        coordinator = f"tcp://{place.coordinator.host}:{place.coordinator.port}"
    if world is None and place.world is not None and place.world.port:
        world = f"tcp://{place.world.host}:{place.world.port}"
    if place.curve:
        processes.make_keys(place, [name])
    address = coordinator
    at_work: list[NodeDaemon] = []

    def silence() -> None:
        for daemon in at_work:
            daemon.halt()

    if supervised:
        supervision.watch_parent(silence)

    def make() -> NodeDaemon:
        # Keys are read again for every run, because those of other machines may have been copied here meanwhile.
        identity = processes.load_identity(place, name)
        at_work[:] = [NodeDaemon(place, name, address, world, identity, processes.node_state_dir(place, name))]
        return at_work[0]

    code = service.serve(
        make, name, once=once or supervised, within_s=0.0 if supervised else place.coordinator.join_timeout_s,
        say=aside(quiet or supervised), air=world,
    )  # fmt: skip
    if as_json:
        print_json({"node": name, "status": code})
    raise typer.Exit(code)


@app.command()
def sim(
    lab: LabOption = "sim",
    port: Annotated[Optional[int], typer.Option(min=0, max=65535, help="In place of the lab's; 0 chooses one.")] = None,  # noqa: UP045
    experiment: Annotated[
        str, typer.Option(help="Experiment whose scene the air simulates until a run sends its own.")
    ] = "static_room",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    supervised: SupervisedOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run the simulated air of a lab and the devices emulated on it, for nodes and other programs started separately.

    It serves one run after the other until it is stopped (Ctrl-C).
    Prints {"endpoint": …, "devices": {node: URI}} once it is ready; the air then holds the scene of --experiment.
    Example: testbed sim --lab wire, then iio_info -u URI
    """
    logs.configure(verbose)
    from testbed.core import memory, registry
    from testbed.lab import processes, supervision

    place = config.load_lab(lab)
    if place.world is None:
        raise InputError(f"{lab}: no table [world]: this lab has no simulated air")
    if place.curve:
        processes.make_keys(place, ["world", *(processes.local_names(place) if place.world.local else [])])
    if supervised:
        supervision.watch_parent()
    driver = registry.load_driver("worlds", place.world.driver)
    endpoint = f"tcp://{place.world.host}:{place.world.port if port is None else port}"
    scene = None if supervised else config.load_experiment(experiment)
    # A run or the doctor that starts this process looks for missing keys itself, so here only those that are on this
    # machine are required.
    identity = (processes.own_identity if supervised else processes.load_identity)(place, "world")
    memory.keep_freed()
    with processes.emulators(place, lab, driver, scene) as ready, memory.collected_seldom():
        driver.serve(endpoint, identity, place.world.pace, place.world.peer_timeout_s, ready)


def page_asked(server: Coordinator, kind: str) -> None:
    """Do what the live page requests; stop and halt work in the same way as Ctrl-C."""
    if kind in ("pause", "unpause"):
        say(f"{kind}: requested on the live page")
        server.ask_pause(kind == "pause")
        return
    say(f"{kind}: requested on the live page: {_is_done_now(kind, server.state.phase).split(' (')[0]}")
    server.ask_stop(kind)  # type: ignore[arg-type]


_ENDS_BEFORE = "the run ends before its first round"
_ENDS, _OVER = "the run has ended, and its nodes stop", "the run is over, and its record is being closed"
_AGAIN = " (Ctrl-C again {})"
_HALTS = _AGAIN.format("halts the transmitters")
_WORDS = {
    "stop": {
        "joining": _ENDS_BEFORE,
        "configuring": _ENDS_BEFORE,
        "probing": "finishing the rounds on the air, and a block of those that are in none"
        + _AGAIN.format("drops both"),
        "distilling": "finishing the block that is being distilled" + _AGAIN.format("drops it"),
        "finishing": _ENDS,
        "over": _OVER,
    },
    "abort": {
        "joining": _ENDS_BEFORE + _HALTS,
        "configuring": _ENDS_BEFORE + _HALTS,
        "probing": "dropping the rounds on the air" + _HALTS,
        "distilling": "dropping the block" + _HALTS,
        "finishing": _ENDS + _HALTS,
        "over": _OVER,
    },
}
"""Kind of request for the end → phase in which it comes → what is done."""


def _is_done_now(kind: str, phase: str) -> str:
    if kind == "halt" and phase != "over":
        return "halting all transmitters"
    return _WORDS["abort" if kind == "halt" else kind][phase]


def stop_on_signals(server: Coordinator, crew: Crew | None) -> None:
    """Handle Ctrl-C: the first one finishes what is under way, the second drops it, the third silences all
    transmitters."""
    kinds = iter(("stop", "abort", "halt"))

    def ask(*_: object) -> None:
        kind = next(kinds, None)
        if kind is None:
            return
        say(_is_done_now(kind, server.state.phase))
        server.ask_stop(kind)  # type: ignore[arg-type]

    on_signals(ask)
