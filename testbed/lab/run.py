"""One call from two names to a finished run: what `testbed run` and `testbed.run` do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from testbed import config
from testbed.core.config import Experiment, Lab
from testbed.core.errors import InputError
from testbed.lab import processes
from testbed.nodes import floors

if TYPE_CHECKING:
    from testbed.coordinator.server import Coordinator, Outcome, Progress
    from testbed.lab.processes import Crew

log = logging.getLogger(__name__)


def plan_of(experiment: str, rounds: int | None = None, seed: int | None = None) -> Experiment:
    """Read an experiment, by path or bundled name, with some of its values replaced.

    Raises InputError where the file cannot be used, or a value given here would be refused in it.
    """
    plan = config.load_experiment(experiment)
    changes = {name: value for name, value in (("rounds", rounds), ("seed", seed)) if value is not None}
    return config.convert(msgspec.to_builtins(plan) | changes, Experiment, f"{experiment}, as changed by its caller")


def check_world(plan: Experiment, place: Lab, lab: str) -> None:
    """Raise InputError where an experiment asks for what the lab does not have (a surface, or nodes that record), or
    for less than its local nodes demand. A remote node's demands are in its own file, and it refuses by itself.
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
        what = "only the discussion is authenticated" if place.wegman_carter else "keys are for experiments only"
        log.warning("%s: curve = false: links here are not authenticated; %s", lab, what)
    if plan.surface.policy != "none" and place.by_role("ris") is None:
        raise InputError(f"{lab}: the experiment moves a surface, but no node has role = 'ris'")


def run(
    experiment: str,
    lab: str = "sim",
    *,
    rounds: int | None = None,
    seed: int | None = None,
    out: str | Path = "runs",
    progress: Callable[[Progress], None] = lambda _: None,
    on_folder: Callable[[Path], None] = lambda _: None,
    on_coordinator: Callable[[Coordinator, Crew], None] = lambda *_: None,
) -> Outcome:
    """Run an experiment on a lab, both by path or bundled name, and return its outcome: folder, summary, status.

    Starts the lab's local daemons, drives all rounds, distils keys and writes the run's folder under `out`; `rounds`
    and `seed` replace the file's. `progress` is called with the progress, `on_folder` with the folder before anything
    starts, `on_coordinator` with the coordinator once everything has started.

    Example: `testbed.run("static_room", rounds=200).summary["key_bits"]`

    Raises InputError for bad input, TestbedError where the run cannot start; a run that fails reports it in `status`.
    """
    plan, place = plan_of(experiment, rounds, seed), config.load_lab(lab)
    config.check_run(plan, experiment, place)
    check_world(plan, place, lab)
    config.check_drivers(place, lab)
    processes.make_lab_folder(place)
    folder = processes.new_run_folder(Path(out), Path(experiment).stem)
    with processes.unless_empty(folder):
        on_folder(folder)
        return processes.run(plan, place, lab, folder, progress, on_coordinator)
