"""Commands for a lab: write its file, check its devices, make transport keys, set the surface by hand."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import msgspec
import typer

from testbed import config
from testbed.cli.app import JsonOption, LabOption, QuietOption, VerboseOption, app
from testbed.cli.runs import stop_on_signals
from testbed.cli.terminal import aside, print_json, say
from testbed.core import logs
from testbed.core.config import RadioPlan
from testbed.core.errors import InputError

if TYPE_CHECKING:
    pass


@app.command()
def doctor(
    nodes: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Nodes of this machine; default: found by their hosts.", metavar="NODE"),
    ] = None,
    lab: LabOption = "sim",
    experiment: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Measure with this experiment's carrier, rate, probes and scene, and "
        "check that the devices accept its settings.",
                     metavar="EXPERIMENT"),
    ] = None,
    carrier_hz: Annotated[Optional[float], typer.Option(min=1e6, max=1e12, help="Measure at this carrier.")] = None,  # noqa: UP045
    rate_hz: Annotated[Optional[float], typer.Option(min=1e3, max=1e12, help="Measure at this sample rate.")] = None,  # noqa: UP045
    repeats: Annotated[int, typer.Option(min=4, max=1000, help="Frames sent on each link.")] = 8,
    cable: Annotated[
        bool,
        typer.Option(
            "--cable",
            help="The radios are joined by cables and attenuators: measure their own delays, gains and responses.",
        ),
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:  # fmt: skip
    """Check every radio, board, clock, port and key file of a lab on this machine, and say what to fix.

    The nodes use what it measures of the radios. Exit status 1 if anything must be fixed.
    Example: testbed doctor --lab bench.toml --experiment onair_first_key
    """
    logs.configure(verbose)
    from testbed.lab import doctor as examining

    place = config.load_lab(lab)
    for name in nodes or ():
        if name not in place.node:
            raise InputError(f"{lab}: no table [node.{name}]; accepted: {', '.join(place.node)}")
    plan = None if experiment is None else config.load_experiment(experiment)
    changes = {k: v for k, v in (("carrier_hz", carrier_hz), ("sample_rate_hz", rate_hz)) if v is not None}
    usual = RadioPlan() if plan is None else plan.radio
    radio = config.convert(msgspec.to_builtins(usual) | changes, RadioPlan, "--carrier-hz, --rate-hz")

    def tell(found: examining.Finding) -> None:
        if quiet and found.ok:
            return
        advice = "" if found.ok else f" – fix: {found.fix}"
        print(f"{'ok ' if found.ok else 'fix'} {found.subject}: {found.check}: {found.detail}{advice}", flush=True)

    diagnosis = examining.examine(place, lab, radio, repeats, (lambda _: None) if as_json else tell, plan, nodes, cable)
    if as_json:
        print_json(diagnosis)
    if not diagnosis.ok:
        raise typer.Exit(1)


@app.command()
def init(
    out: Annotated[Path, typer.Option(help="The lab file to write.", metavar="LAB.toml")] = Path("bench.toml"),
    name: Annotated[str, typer.Option(help="Name of the lab, and of the folder of its keys and states.")] = "bench",
    at: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Further address to search: ip:192.168.3.1, usb:1.5.5. May be repeated.", metavar="ADDRESS"),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask: the first device is Alice's, the second Bob's, the third Eve's.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Look for radios and serial ports on this machine, ask which belongs to which node, and write a lab file.

    Example: testbed init --out bench.toml --at ip:192.168.2.1
    """
    logs.configure(False)
    import sys

    from testbed.lab import init as starting

    starting.check(out, name)
    seen = starting.look(at or ())
    for driver, why in seen.untried.items():
        aside(quiet)(f"{driver}: not searched: {why}")
    if not seen.radios:
        raise InputError(
            "no radio answers on this machine; accepted: --at with its address, or write a lab file by hand"
        )

    def ask(question: str, proposed: str, accepted: Sequence[str]) -> str:
        if yes or as_json or not sys.stdin.isatty():
            return proposed
        while (answer := str(typer.prompt(f"{question} ({', '.join(accepted)})", proposed, err=True))) not in accepted:
            say(f"{answer!r}: accepted: {', '.join(accepted)}")
        return answer

    roles = starting.assign(seen, ask)
    starting.write(out, name, roles, seen)
    nodes = {role: {"driver": driver, **radio.options} for role, (driver, radio) in roles.items()}
    if as_json:
        print_json({"lab": str(out), "nodes": nodes, "ports": seen.ports, "not_looked_for": seen.untried})
        return
    for role, (driver, radio) in roles.items():
        print(f"{role}: {driver}, {radio.words}, serial number {radio.serial or 'not stated'}")
    print(f"{out}: written; next: testbed keygen-certs --lab {out}, then testbed doctor --lab {out}")


ris = typer.Typer(no_args_is_help=True, help="Show, set, or search for a pattern of the lab's surface.")


app.add_typer(ris, name="ris")


PatternArgument = Annotated[str, typer.Argument(help="A pattern's name, 0xHEX, or a saved .json.", metavar="PATTERN")]


@ris.command("show")
def ris_show(
    pattern: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Show this pattern instead of the one that the board holds.", metavar="PATTERN"),
    ] = None,
    lab: LabOption = "sim",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the lab's surface and the pattern that it holds, or show PATTERN as this surface would hold it.

    Example: testbed ris show "beam(30, 0)" --lab sim
    """
    logs.configure(False)
    from testbed.lab import surface

    shown = surface.show(config.load_lab(lab), lab, pattern)
    if as_json:
        print_json({k: v for k, v in shown.items() if k != "picture"})
        return
    identity = ", ".join(f"{k} {v}" for k, v in shown["identity"].items())
    print(f"{shown['node']}: {shown['size']}" + (f"; {identity}" if identity else ""))
    if shown["capabilities"]:
        print(", ".join(f"{k} {v}" for k, v in shown["capabilities"].items()))
    print(f"pattern {shown['digest']}\n{shown['picture']}")


@ris.command("apply")
def ris_apply(
    pattern: PatternArgument, lab: LabOption = "sim", quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Set a pattern on the lab's surface, read it back, and say how long it took.

    A simulated surface loses the pattern when the command ends, because the simulated air ends with it.
    Example: testbed ris apply best.json --lab bench.toml
    """
    logs.configure(False)
    from testbed.lab import surface

    applied = surface.apply(config.load_lab(lab), lab, pattern)
    if as_json:
        print_json(applied)
    else:
        print(f"{applied['node']} holds {applied['digest']}, applied and read back in {applied['apply_ms']:.1f} ms")


@ris.command("optimise")
def ris_optimise(
    lab: LabOption = "sim",
    experiment: Annotated[
        str, typer.Option(help="Experiment whose radio, probing and scene are used.", metavar="EXPERIMENT")
    ] = "static_room",
    method: Annotated[str, typer.Option(help="hadamard, greedy, conditional_mean, random_search")] = "hadamard",
    objective: Annotated[str, typer.Option(help="power, correlation, key_rate, leakage")] = "power",
    probes: Annotated[int, typer.Option(min=1, help="Number of rounds in which each pattern is measured.")] = 1,
    budget: Annotated[int, typer.Option(min=20, help="Largest number of rounds.", metavar="ROUNDS")] = 6000,
    start: Annotated[str, typer.Option(help="Pattern to begin with.", metavar="PATTERN")] = "random(1)",
    model: Annotated[
        str,
        typer.Option(
            help="Use of the pattern computed from the scene's geometry: start (of the search), answer, none."
        ),
    ] = "none",
    seed: Annotated[Optional[int], typer.Option(min=0, max=2**62, help="Seed in place of the file's.")] = None,  # noqa: UP045
    save: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where the pattern is saved; default: best.json in the run's folder.", metavar="FILE.json"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which the run's folder is made.")] = Path("runs"),
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Search for the best pattern by measuring; Ctrl-C keeps the best one found so far.

    Use the result in an experiment: [surface] policy = "fixed", options = { pattern = "FILE.json" }
    Example: testbed ris optimise --lab sim --method greedy --save best.json
    """
    logs.configure(verbose)
    from testbed.lab import surface
    from testbed.lab.run import check_world, plan_of

    place = config.load_lab(lab)
    plan = surface.plan(plan_of(experiment, budget, seed), experiment, place, method, objective, probes, start, model)
    check_world(plan, place, lab)
    config.check_drivers(place, lab)
    config.check_limits(plan, place, experiment)
    if save is not None and (save.suffix != ".json" or save.is_dir() or not os.access(save.parent, os.W_OK)):
        raise InputError(f"--save {save}: cannot be used; accepted: a .json file in a folder that can be written")
    found = surface.optimise(plan, place, lab, experiment, save, out, aside(quiet), stop_on_signals)
    if as_json:
        print_json(found)
    elif found["digest"] is None:
        if found["status"] != "failed":
            say("no pattern was measured")
    else:
        gained = "" if found["gain"] is None else f", {found['gain']:+.3f} against the start"
        sure = "" if found["confirmed"] else " (not measured again: the search was stopped early)"
        print(f"{found['after']:.3f} {found['unit']}{gained} after {found['rounds']} rounds{sure}: {found['saved']}")
    if found["status"] == "failed":
        say(f"search failed: {found['detail']}")
        raise typer.Exit(1)
    if found["status"] == "stopped":
        raise typer.Exit(130)


@app.command("keygen-certs")
def keygen_certs(
    names: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Daemons of this machine; default: those that are local by the lab file.", metavar="NAME"),
    ] = None,
    lab: LabOption = "sim",
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make the transport keys of this machine's daemons where they are missing, and say in which folder they are.

    Each machine keeps its own `.secret` files; copy the `.public` ones to the same folder on the others.

    Example: testbed keygen-certs --lab bench.toml bob
    """
    from testbed.lab import processes

    place = config.load_lab(lab)
    known = processes.daemon_names(place)
    for name in names or ():
        if name not in known:
            raise InputError(f"{lab}: no daemon {name!r}; accepted: {', '.join(known)}")
    own = names or processes.local_names(place)
    folder = processes.make_keys(place, own)
    if as_json:
        print_json({"folder": str(folder), "daemons": own})
    else:
        print(folder)
