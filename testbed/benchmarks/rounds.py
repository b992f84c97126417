"""Rounds per second through the whole process chain: Alice, Bob, Eve, a surface and the air as processes.

Three figures: in virtual time without and with a pattern that changes every round, and on the wall clock with rounds
every 2 ms. Each is measured with the trains that the experiment gets by default and with trains of one round, so that
the ratio states the gain by ordering rounds together. Then the runs in virtual time are measured in one process. The
last row compares with the same work without either: one loop sends the same waveform through a flat channel and
estimates it at three receivers. It has no sockets, authentication, scheduling, records or simulated air.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from testbed import config
from testbed.benchmarks import BenchRow, tell
from testbed.core import registry
from testbed.core.config import Experiment, Lab
from testbed.core.types import IqBlock

if TYPE_CHECKING:
    from testbed.coordinator.server import Coordinator, Outcome, Progress
    from testbed.lab.processes import Crew

ROUNDS = 600
SETTLED = 100
"""Rounds before the clock starts, in which processes start up and caches fill."""
WALL_S = 2e-3
"""Interval asked for on the wall clock."""


def run() -> list[BenchRow]:
    """Run two experiments on the `sim` lab with CURVE and records on, and one of them in real time."""
    rows = [_trains("mobile_room"), _trains("static_room"), _trains("mobile_room", wall=True)]
    rows += [_in_process(name, rows[i].ours_s) for i, name in enumerate(("mobile_room", "static_room"))]
    peer_s = _signal_only(config.load_experiment("mobile_room"))
    ours_s = rows[0].ours_s
    peer = BenchRow(
        name="rounds", ours_s=ours_s, peer="estimation alone, one process", peer_s=peer_s, ratio=peer_s / ours_s,
        note=rows[0].note,
    )  # fmt: skip
    return [*rows, peer]


def _trains(experiment: str, wall: bool = False) -> BenchRow:
    """Measure one experiment with trains as they are by default, and the same with trains of one."""
    changes: dict[str, Any] = {"interval_s": WALL_S} if wall else {}
    alone_s, _ = round_s("sim", ROUNDS // 2, SETTLED, experiment, wall, train=1, **changes)
    ours_s, kept = round_s("sim", ROUNDS, SETTLED, experiment, wall, **changes)
    pace = f"wall clock, every {WALL_S * 1e3:g} ms asked for" if wall else "virtual time"
    return BenchRow(
        name=f"rounds {experiment}{' in real time' if wall else ''}",
        ours_s=ours_s,
        peer="trains of one",
        peer_s=alone_s,
        ratio=alone_s / ours_s,
        note=f"{1 / ours_s:.0f} rounds/s, {kept} of {ROUNDS} kept, {pace}, CURVE, journal, {os.cpu_count()} cores",
    )


def _in_process(experiment: str, processes_s: float) -> BenchRow:
    """Measure one experiment in one process; `processes_s`: what a round of it takes in processes."""
    ours_s, cpu_s, kept = _pace("sim", ROUNDS, SETTLED, experiment, in_process=True)
    return BenchRow(
        name=f"rounds {experiment} in one process",
        ours_s=ours_s,
        peer="processes",
        peer_s=processes_s,
        ratio=processes_s / ours_s,
        note=f"{1 / ours_s:.0f} rounds/s, {1e3 * cpu_s:.2f} ms of CPU a round, {kept} of {ROUNDS} kept, virtual time, "
        f"journal, one core of {os.cpu_count()}, load {os.getloadavg()[0]:.1f}",
    )


def round_s(
    lab: str, rounds: int, settled: int, experiment: str = "mobile_room", wall: bool = False, **probing: float
) -> tuple[float, int]:
    """Return (seconds a round of an experiment takes on a bundled lab after the first `settled`, rounds kept).

    `wall`: the simulated air goes no faster than real time; `probing`: keys of the experiment's table to change.
    """
    wall_s, _, kept = _pace(lab, rounds, settled, experiment, wall, False, **probing)
    return wall_s, kept


def _pace(
    lab: str, rounds: int, settled: int, experiment: str, wall: bool = False, in_process: bool = False, **probing: float
) -> tuple[float, float, int]:
    """Return (seconds of a round, seconds of this process's CPU of it, rounds kept), as `round_s` does."""
    plan = config.load_experiment(experiment)
    # one block after the last round, because the time of distilling must not count
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=10 * rounds)
    changed = msgspec.structs.replace(plan.probing, **probing)
    plan = msgspec.structs.replace(plan, rounds=rounds, accounting=accounting, probing=changed)
    marks: list[tuple[int, float, float]] = []

    def progress(p: Progress) -> None:
        if p.round >= settled:
            marks.append((p.round, time.perf_counter(), time.process_time()))
        tell(None, f"{experiment}: {p.round} of {rounds} rounds")

    with tempfile.TemporaryDirectory() as folder:
        if wall:
            lab = str(_in_real_time(lab, Path(folder)))
        outcome = drive(plan, lab, Path(folder), progress, in_process=in_process)
    first, last = marks[0], next(mark for mark in marks if mark[0] == rounds)
    wall_s, cpu_s = ((last[i] - first[i]) / (last[0] - first[0]) for i in (1, 2))
    return wall_s, cpu_s, int(outcome.summary["pairs_kept"])


def drive(
    plan: Experiment, lab: str, folder: Path, progress: Callable[[Progress], None],
    begun: Callable[[Coordinator, Crew | None], None] = lambda *_: None, in_process: bool = False,
) -> Outcome:  # fmt: skip
    """Run an experiment in `folder`, with keys and states of its own; `begun` is called once everything has started."""
    from testbed.lab import one_process, processes

    state = os.environ.get("TESTBED_STATE")
    os.environ["TESTBED_STATE"] = str(folder / "state")
    try:
        run = one_process.run if in_process else processes.run
        return run(plan, config.load_lab(lab), lab, folder / "run", progress, begun)
    finally:
        if state is None:
            del os.environ["TESTBED_STATE"]
        else:
            os.environ["TESTBED_STATE"] = state


def _in_real_time(lab: str, folder: Path) -> Path:
    """Write a bundled lab's file with its air in real time: the nodes' processes read it by themselves."""
    text = config.find(Lab, lab).read_text(encoding="utf-8")
    path = folder / "lab.toml"
    path.write_text(text.replace('pace = "virtual"', 'pace = "wall"'), encoding="utf-8")
    return path


def _signal_only(plan: Experiment, n: int = 100) -> float:
    """Return the seconds per round when only its four receptions are estimated."""
    frame = registry.make_stage("probing", plan.probing.waveform, plan.probing.waveform_options).frame(
        plan.radio.sample_rate_hz
    )
    estimator = registry.make_stage("csi", plan.probing.estimator, plan.probing.estimator_options)
    margin = int(np.ceil(plan.probing.guard_s * frame.sample_rate_hz))
    rng = np.random.default_rng(1)
    silence = np.zeros(margin, np.complex64)
    clean = np.concatenate([silence, 0.3 * frame.samples, silence])
    took = []
    for _ in range(n):
        blocks = [
            IqBlock(
                (clean + 0.01 * rng.standard_normal(clean.size)).astype(np.complex64)[None, :],
                frame.sample_rate_hz,
                0.0,
            )
            for _ in range(4)
        ]
        began = time.perf_counter()
        for block in blocks:
            estimator.estimate(block, frame)
        took.append(time.perf_counter() - began)
    return float(np.median(took))
