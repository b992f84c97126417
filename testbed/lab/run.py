"""Carries out a whole run, given an experiment and a lab by name: what `testbed run` and `testbed.run` call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from testbed import config
from testbed.core.config import Experiment, Lab
from testbed.core.errors import InputError
from testbed.lab import fault_plan, one_process, processes
from testbed.nodes import floors

if TYPE_CHECKING:
    from testbed.coordinator.past import Origin
    from testbed.coordinator.server import Coordinator, Outcome, Progress
    from testbed.lab.processes import Crew
    from testbed.lab.spares import Spares
    from testbed.records.recorded import RecordedRun

log = logging.getLogger(__name__)


def plan_of(experiment: str, rounds: int | None = None, seed: int | None = None) -> Experiment:
    """Read an experiment, by path or bundled name, with some of its values replaced.

    Raises InputError where the file cannot be used, or a value given here would be refused in it.
    """
    plan = config.load_experiment(experiment)
    changes = {name: value for name, value in (("rounds", rounds), ("seed", seed)) if value is not None}
    return config.convert(msgspec.to_builtins(plan) | changes, Experiment, f"{experiment}, as changed by its caller")


def check_world(plan: Experiment, place: Lab, lab: str) -> None:
    """Raise InputError where an experiment needs something that the lab does not have (a surface, or nodes that may
    record), or does not meet the floors of its local nodes. Remote nodes check the floors in their own lab files.
    """
    config.check_mode(plan, place, lab)
    for name, node in place.node.items():
        why = floors.refusal(node.floors, plan.accounting, plan.mode == "experiment") if node.local else None
        if why is not None:
            raise InputError(f"{lab}: table [node.{name}.floors]: {why}")
        if node.local and node.private and plan.mode == "experiment":
            raise InputError(
                f"{lab}: table [node.{name}]: key 'private': true, but the experiment records CSI and raw bits; "
                "accepted: false, or an experiment of mode = 'private'"
            )
    if not place.curve:
        what = "only the discussion is authenticated" if place.wegman_carter else "the keys must not be used"
        log.warning("%s: curve = false: links here are not authenticated; %s", lab, what)
    if plan.faults is not None:
        fault_plan.nodes_of(plan.faults, plan, place, lab)
    if plan.surface.policy != "none" and place.by_role("ris") is None:
        raise InputError(f"{lab}: the experiment moves a surface, but no node has role = 'ris'")


def origin_of(command: str, experiment: str, lab: str) -> Origin:
    """Return how a run is started, so that it can be resumed from any folder."""
    from testbed.coordinator.past import Origin

    return Origin(command, *(str(Path(x).resolve()) if Path(x).is_file() else x for x in (lab, experiment)))


@dataclass(frozen=True, slots=True)
class Resumable:
    """A run whose process died, and the experiment and lab with which it is resumed."""

    dead: RecordedRun
    origin: Origin
    plan: Experiment
    lab: str
    place: Lab


def resumable(
    folder: Path, command: str, experiment: str | None = None, lab: str | None = None, rounds: int | None = None,
    seed: int | None = None,
) -> Resumable:  # fmt: skip
    """Return what is needed to resume the run in `folder`, whose process died.

    Without an experiment or a lab, those of the record are used. Raises InputError where the run is over or is still
    driven, where it was started by another command, or where a given value differs from that at its start.
    """
    from testbed.coordinator.past import origin_of
    from testbed.records import reader

    run = reader.load(folder)
    if run.state == "live":
        raise InputError(f"{folder}: a process is driving this run; accepted: a run whose process died")
    if run.stop is not None:
        how = f"{run.stop.exit_status}: {run.stop.reason}" if run.stop.reason else run.stop.exit_status
        raise InputError(
            f"{folder}: this run is over ({how}) and its record is closed; accepted: a run whose process died, before "
            "`testbed report` has closed its record"
        )
    origin = origin_of(run)[0]
    if origin.command != command:
        raise InputError(
            f"{folder}: was started by `testbed {origin.command}`; accepted here: runs that `testbed {command}` started"
        )
    source = f"{folder}: the recorded experiment"
    recorded = config.convert(run.start.experiment, Experiment, source)
    plan = recorded if experiment is None else plan_of(experiment, rounds, seed)
    for name, value in (("rounds", rounds), ("seed", seed)):
        if value is not None and value != getattr(recorded, name):
            raise InputError(f"{folder}: --{name} {value}: the run was started with {getattr(recorded, name)}")
    lab = lab or origin.lab
    place = config.load_lab(lab)
    for what, then, now in (
        (experiment or "experiment", msgspec.to_builtins(recorded), msgspec.to_builtins(plan)),
        (lab, run.start.lab, msgspec.to_builtins(place)),
    ):
        if (difference := _first_difference(then, now)) is not None:
            raise InputError(f"{what}: {difference}; accepted: what the run in {folder} was started with")
    return Resumable(run, origin, plan, lab, place)


def _first_difference(then: Any, now: Any, where: str = "") -> str | None:
    """Return the first key in which two plain values differ, with both values; None where they are equal."""
    if isinstance(then, dict) and isinstance(now, dict):
        found = (
            _first_difference(then.get(key), now.get(key), f"{where}.{key}" if where else key)
            for key in dict.fromkeys([*then, *now])
        )
        return next((x for x in found if x is not None), None)
    return None if then == now else f"key {where!r}: {now!r}, the run had {then!r}"


def run(
    experiment: str | None = None,
    lab: str | None = None,
    *,
    rounds: int | None = None,
    seed: int | None = None,
    out: str | Path = "runs",
    resume: str | Path | None = None,
    in_process: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    on_folder: Callable[[Path], None] = lambda _: None,
    on_coordinator: Callable[[Coordinator, Crew | None], None] = lambda *_: None,
    spares: Spares | None = None,
) -> Outcome:
    """Run an experiment on a lab, both by path or bundled name, and return its outcome: folder, summary, status.

    Starts the lab's local daemons, drives all rounds, distils keys and writes the run's folder under `out`; `rounds`
    and `seed` replace the file's; the lab is `sim` where none is given. `resume`: the folder of a run whose process
    died; it is continued with its next round, with experiment and lab of its record. `in_process`: no daemon is
    started; coordinator, nodes and air take turns in this process, which needs a lab that is simulated in virtual time;
    the results of a seed are the same. `progress` is called with the progress, `on_folder` with the folder before
    anything starts, `on_coordinator` with the coordinator and the daemons (None if there are none) once everything has
    started. `spares`: processes that become the daemons, as far as there are any.

    Example: `testbed.run("static_room", rounds=200).summary["key_bits"]`

    Raises InputError for bad input, TestbedError where the run cannot start; a run that fails reports it in `status`.
    """
    dead, origin, folder = None, None, None
    if resume is not None:
        folder = Path(resume)
        found = resumable(folder, "run", experiment, lab, rounds, seed)
        dead, origin, plan, lab, place = found.dead, found.origin, found.plan, found.lab, found.place
        experiment = origin.experiment
    elif experiment is None:
        raise InputError("no experiment is given; accepted: an experiment file, a bundled name, or --resume RUN")
    else:
        lab = lab or "sim"
        plan, place = plan_of(experiment, rounds, seed), config.load_lab(lab)
    config.check_run(plan, experiment, place)
    check_world(plan, place, lab)
    config.check_drivers(place, lab)
    if in_process:
        one_process.check(plan, place, lab)
    processes.make_lab_folder(place)
    if folder is None:
        folder, origin = processes.new_run_folder(Path(out), Path(experiment).stem), origin_of("run", experiment, lab)
    with processes.unless_empty(folder):
        on_folder(folder)
        if in_process:
            return one_process.run(plan, place, lab, folder, progress, on_coordinator, origin, dead)
        return processes.run(plan, place, lab, folder, progress, on_coordinator, origin, dead, spares)
