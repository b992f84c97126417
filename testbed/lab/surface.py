"""The surface of a lab by hand: show its board, set a pattern, search for a good one by probes (`testbed ris`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from testbed import config
from testbed.coordinator.server import Coordinator, Progress
from testbed.core import patterns, registry
from testbed.core.config import Accounting, ChainPlan, Experiment, Lab, SurfacePlan, Training
from testbed.core.errors import InputError, TestbedError
from testbed.core.ris import Board
from testbed.core.types import SurfacePattern
from testbed.lab import processes
from testbed.report import html
from testbed.surface.objectives import Objective
from testbed.surface.policies.closed_loop import ClosedLoop

_SCENE = "static_room"
"""The bundled experiment whose scene is put into a simulated air while `testbed ris` uses its board."""
_LARGEST = (1024, 1024, 8)
"""Largest rows, columns and phase bits of a board."""
_GLYPHS = {1: "·█", 2: "·░▓█"}


# ---------------------------------------------------------------- one board


def picture(pattern: SurfacePattern) -> str:
    """Return rows of text, two characters per element, element 1 top left. A darker character means a larger phase;
    with 3 bits or more, the level is printed as a number.
    """
    glyphs = _GLYPHS.get(pattern.phase_bits)
    if glyphs is None:
        return "\n".join(" ".join(f"{level:x}" for level in row) for row in pattern.levels)
    return "\n".join("".join(2 * glyphs[level] for level in row) for row in pattern.levels)


def show(lab: Lab, lab_name: str, spec: str | None) -> dict[str, Any]:
    """Return a lab's board and its present pattern; with `spec`, return that pattern, without opening the board if the
    lab file states its size."""
    node = _surface_node(lab, lab_name)
    identity: dict[str, Any] = {}
    capabilities: dict[str, Any] = {}
    if spec is not None and (size := _size_given(lab, node)) is not None:
        pattern = patterns.make(spec, size[:2], size[2])
    else:
        with _open_board(lab, lab_name) as board:
            identity = board.identity()
            capabilities = {k: getattr(board.capabilities, k) for k in type(board.capabilities).__slots__}
            pattern = board.readback() if spec is None else patterns.make(spec, board.shape, board.phase_bits)
    rows, columns = pattern.levels.shape
    return {
        "node": node,
        "identity": identity,
        "capabilities": capabilities,
        "rows": rows,
        "columns": columns,
        "phase_bits": pattern.phase_bits,
        "size": f"{rows} × {columns} elements of {pattern.phase_bits} bit",
        "levels": patterns.to_hex(pattern),
        "digest": pattern.digest,
        "picture": picture(pattern),
    }


def apply(lab: Lab, lab_name: str, spec: str) -> dict[str, Any]:
    """Set a pattern and read it back; raises TestbedError where the board then holds another."""
    patterns.check(spec)
    node = _surface_node(lab, lab_name)
    with _open_board(lab, lab_name) as board:
        pattern = patterns.make(spec, board.shape, board.phase_bits)
        began_s = time.monotonic()
        applied = board.apply(pattern)
        took_s = time.monotonic() - began_s
        held = board.readback()
        if held.digest != pattern.digest:
            wrong = int(np.count_nonzero(held.levels != pattern.levels))
            raise TestbedError(
                f"{node}: {wrong} of {board.n_elements} elements were read back differently from what was set"
            )
        return {
            "node": node, "digest": applied.digest, "levels": patterns.to_hex(held), "board_time_s": applied.time_s,
            "apply_ms": 1e3 * took_s,
        }  # fmt: skip


def _size_given(lab: Lab, node: str) -> tuple[int, int, int] | None:
    """Return (rows, columns, phase bits) where the lab file states them; None where the board must be asked."""
    emulated = {} if lab.world is None else lab.world.emulators.get(node, {})
    try:
        kind: type[Board] = registry.load_driver("boards", lab.node[node].driver)
    except InputError:  # a missing option is reported when the board is opened
        return None
    size = kind.size_given({**emulated, **lab.node[node].options})
    # A size that no board can have is also reported when the board is opened.
    return None if size is None or not all(1 <= n <= most for n, most in zip(size, _LARGEST, strict=True)) else size


def _surface_node(lab: Lab, lab_name: str) -> str:
    name = lab.by_role("ris")
    if name is None:
        raise InputError(f"{lab_name}: no node has role = 'ris': this lab has no surface")
    return name


@contextmanager
def _open_board(lab: Lab, lab_name: str) -> Iterator[Board]:
    """Open the lab's board in this process, on its simulated air where it has one."""
    name = _surface_node(lab, lab_name)
    if not lab.node[name].local:
        raise InputError(
            f"{lab_name}: table [node.{name}]: the board is attached to {lab.node[name].host}: run this command there"
        )
    config.check_drivers(lab, lab_name, [name])
    if lab.curve:
        processes.make_keys(lab, ["coordinator", *processes.local_names(lab)])
    with ExitStack() as stack:
        crew = processes.Crew(lab, lab_name)
        stack.callback(crew.stop)
        air = None
        if lab.world is not None:
            scene = config.load_experiment(_SCENE)
            air = processes.start_air(lab, crew, scene.scene, scene.radio, scene.seed)
        try:
            board = stack.enter_context(processes.open_device(lab, name, crew, air))
        except InputError as exc:
            raise InputError(f"{lab_name}: {exc}") from exc
        assert isinstance(board, Board)
        yield board


# ---------------------------------------------------------------- the search


def plan(
    experiment: Experiment, name: str, lab: Lab, method: str, objective: str, probes: int, start: str,
    model: str = "none",
) -> Experiment:  # fmt: skip
    """Return the experiment of a search: it has `experiment.rounds` rounds, ends with the search, and makes no key.

    `model`: how the pattern from the scene's geometry is used: as the search's start or as its result (`ClosedLoop`).
    """
    if model not in ("none", "start", "answer"):
        raise InputError(f"--model {model!r}: accepted: start, answer, none")
    options = {
        "search": method, "objective": objective, "probes": probes, "start": start, "budget": experiment.rounds,
        "search_only": True, "model": model,
    }  # fmt: skip
    out = msgspec.structs.replace(
        experiment, surface=SurfacePlan(policy="closed_loop", options=options),
        chain=ChainPlan(), training=Training(), accounting=Accounting(),
    )  # fmt: skip
    config.check_experiment(out, name)
    node = lab.by_role("ris")
    if node is not None and (size := _size_given(lab, node)) is not None:
        patterns.make(start, size[:2], size[2])
    needs = registry.make_stage("policy", "closed_loop", options).objective.needs
    if any("eve" in link for link in needs) and (out.scene.eve is None or lab.by_role("eve") is None):
        raise InputError(f"objective {objective!r} needs an Eve: a table [scene.eve] and a node with role = 'eve'")
    return out


def optimise(
    experiment: Experiment,
    lab: Lab,
    lab_name: str,
    experiment_name: str,
    save: Path | None,
    out: Path,
    say: Callable[[str], None] = lambda _: None,
    on_coordinator: Callable[[Coordinator, processes.Crew], None] = lambda *_: None,
) -> dict[str, Any]:
    """Run a search planned by `plan`, save the pattern and return the result; `say` is called with the progress."""
    folder = processes.new_run_folder(out, "ris-optimise")
    held: list[ClosedLoop] = []
    told_at = [-np.inf, -1.0]

    def begun(coordinator: Coordinator, crew: processes.Crew) -> None:
        policy = coordinator.state.policy
        assert isinstance(policy, ClosedLoop)
        held.append(policy)
        on_coordinator(coordinator, crew)

    def progress(p: Progress) -> None:
        if p.message is not None:
            say(p.message)
        now_s = time.monotonic()
        if held and held[0].best is not None and (now_s >= told_at[0] + 2.0 or p.phase != "probing"):
            if p.round != told_at[1]:
                say(_progress(held[0], p))
            told_at[:] = now_s, p.round

    outcome = processes.run(experiment, lab, lab_name, folder, progress, begun)
    html.make(folder)
    policy = held[0]
    objective = policy.objective
    found: dict[str, Any] = {
        "status": outcome.status, "detail": outcome.detail, "folder": str(folder), "lab": lab.name,
        "experiment": experiment_name, "seed": experiment.seed, "method": experiment.surface.options["search"],
        "model": experiment.surface.options["model"],
        "objective": experiment.surface.options["objective"], "unit": objective.unit,
        "probes": experiment.surface.options["probes"], "rounds": outcome.summary["rounds"],
        "patterns_tried": policy.tried, "confirmed": policy.after is not None,
        "before": None if policy.before is None else objective.shown(policy.before),
        "after": None, "gain": None, "digest": None, "levels": None, "saved": None,
    }  # fmt: skip
    if policy.best is not None:
        pattern, worth = policy.best
        found["after"] = objective.shown(worth)
        found["gain"] = None if found["before"] is None else found["after"] - found["before"]
        found |= {"digest": pattern.digest, "levels": patterns.to_hex(pattern)}
        told = {k: v for k, v in found.items() if k not in ("digest", "levels", "saved")}
        kept = folder / "best.json"
        patterns.save(kept, pattern, told)
        found["saved"] = str(kept)
        if save is not None:
            try:
                patterns.save(save, pattern, told)
            except InputError as exc:  # the folder was removed during the search
                raise TestbedError(f"{exc}; the pattern is in {kept}") from exc
            found["saved"] = str(save)
    elif outcome.status == "finished":
        found |= {
            "status": "failed",
            "detail": f"no round measured the links that the objective needs: {', '.join(objective.needs)}",
        }
    return found


def _progress(policy: ClosedLoop, p: Progress) -> str:
    objective: Objective = policy.objective
    assert policy.best is not None
    began = "" if policy.before is None else f", start {objective.text(policy.before)}"
    return (
        f"{p.round}/{p.rounds} rounds  {policy.phase}: best {objective.text(policy.best[1])}{began}, "
        f"{policy.tried} patterns tried, {p.rounds_per_s:.0f} rounds/s"
    )
