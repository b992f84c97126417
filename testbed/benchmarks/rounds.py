"""Rounds per second through the whole process chain: Alice, Bob, Eve, a surface and the air as processes.

In virtual time without and with a pattern that changes every round, and on the wall clock with rounds every 2 ms. Each
is measured with the trains that the experiment gets by default and with trains of one round, so that the ratio states
the gain by ordering rounds together. Then the stand-in for UHD on the wall clock, the share of the air that a train of
two-way frames of 200 µs uses, and the runs in virtual time in one process. The last rows compare with the work of a
round in other people's ways (`_rounds_peers`), and with the estimates alone. Ratios to these are of CPU time.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from testbed import config
from testbed.assess.pace import PARTS
from testbed.benchmarks import BenchRow, _rounds_peers, tell
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
TWO_WAY_S = 200e-6
"""A published prober's interval (4C6C), which the slots fit into with a shorter turn-around than the default."""
_TURNAROUND_S = 20e-6


@dataclass(frozen=True)
class Pace:
    """What a run took, for each round after the first ones."""

    wall_s: float
    cpu_s: float
    """Seconds of CPU of all its processes; NaN where the system does not tell."""
    kept: int
    asked: int
    gap_s: float
    """Median time between the starts of two rounds, on the reference timeline: that inside trains."""
    parts: str = ""
    """Where the time of a round went, in words."""

    def __str__(self) -> str:
        cpu = "" if math.isnan(self.cpu_s) else f", {1e3 * self.cpu_s:.2f} ms of CPU a round"
        load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        return f"{1 / self.wall_s:.0f} rounds/s{cpu}{self.parts}, {self.kept} of {self.asked} kept, {load}"


def run() -> list[BenchRow]:
    """Measure runs of two experiments with CURVE and records on, then the peers."""
    rows, paces = [], {}
    for name in ("mobile_room", "static_room"):
        row, paces[name] = _trains(name)
        rows.append(row)
    rows += [_trains("mobile_room", wall=True)[0], _stand_in(paces["mobile_room"]), _airtime()]
    for name, in_processes in paces.items():
        row, alone = _in_process(name, in_processes)
        rows.append(row)
        if name == "mobile_room":
            rows += _peers(alone)
    return rows


def _trains(experiment: str, wall: bool = False) -> tuple[BenchRow, Pace]:
    """Measure one experiment with trains as they are by default, and the same with trains of one."""
    changes: dict[str, Any] = {"interval_s": WALL_S} if wall else {}
    alone = _pace("sim", ROUNDS // 2, SETTLED, experiment, wall, train=1, **changes)
    ours = _pace("sim", ROUNDS, SETTLED, experiment, wall, **changes)
    pace = f"wall clock, every {WALL_S * 1e3:g} ms asked for" if wall else "virtual time"
    row = BenchRow(
        name=f"rounds {experiment}{' in real time' if wall else ''}",
        ours_s=ours.wall_s,
        peer="trains of one",
        peer_s=alone.wall_s,
        ratio=alone.wall_s / ours.wall_s,
        note=f"{ours}, {pace}, CURVE, journal",
    )
    return row, ours


def _stand_in(simulated: Pace) -> BenchRow:
    """Measure the driver for USRPs on the stand-in for UHD, on the wall clock."""
    ours = _pace("usrp_standin", ROUNDS, SETTLED, "mobile_room", True, interval_s=WALL_S)
    return BenchRow(
        name="rounds mobile_room in real time, USRP stand-in",
        ours_s=ours.wall_s,
        peer="interval asked for",
        peer_s=WALL_S,
        ratio=WALL_S / ours.wall_s,
        note=f"{ours}, wall clock; simulated radios in virtual time: {1e3 * simulated.cpu_s:.2f} ms of CPU a round",
    )


def _airtime() -> BenchRow:
    """Measure how closely rounds follow one another inside trains on the wall clock."""
    ours = _pace(
        "sim", ROUNDS, SETTLED, "mobile_room", True, interval_s=TWO_WAY_S, turnaround_s=_TURNAROUND_S
    )  # fmt: skip
    return BenchRow(
        name="airtime inside a train",
        ours_s=ours.gap_s,
        peer=f"two-way frames of {TWO_WAY_S * 1e6:g} µs",
        peer_s=TWO_WAY_S,
        ratio=TWO_WAY_S / ours.gap_s,
        note=f"median time from round to round; over the whole run {ours}, wall clock",
    )


def _in_process(experiment: str, processes: Pace) -> tuple[BenchRow, Pace]:
    """Measure one experiment in one process; `processes`: the same run in processes."""
    ours = in_one_process(config.load_experiment(experiment), config.load_lab("sim"), ROUNDS, SETTLED)
    row = BenchRow(
        name=f"rounds {experiment} in one process",
        ours_s=ours.wall_s,
        peer="processes",
        peer_s=processes.wall_s,
        ratio=processes.wall_s / ours.wall_s,
        note=f"{ours}, of which one is used, virtual time, journal",
    )
    return row, ours


def _peers(alone: Pace) -> list[BenchRow]:
    """Compare the CPU of a round in one process with the same work in other people's ways."""
    plan = config.load_experiment("mobile_room")
    peers = [*_rounds_peers.measured(plan), ("estimates alone: four receptions one by one", _signal_only(plan))]
    return [
        BenchRow(
            name="rounds mobile_room in one process, CPU",
            ours_s=alone.cpu_s,
            peer=name,
            peer_s=cpu_s,
            ratio=cpu_s / alone.cpu_s,
            note=f"{1e3 * alone.cpu_s:.2f} ms of CPU a round, the peer {1e3 * cpu_s:.2f} ms",
        )
        for name, cpu_s in peers
    ]


def round_s(
    lab: str, rounds: int, settled: int, experiment: str = "mobile_room", wall: bool = False, **probing: float
) -> tuple[float, int]:
    """Return (seconds a round of an experiment takes on a bundled lab after the first `settled`, rounds kept).

    `wall`: the simulated air goes no faster than real time; `probing`: keys of the experiment's table to change.
    """
    found = _pace(lab, rounds, settled, experiment, wall, **probing)
    return found.wall_s, found.kept


def _pace(lab: str, rounds: int, settled: int, experiment: str, wall: bool = False, **probing: float) -> Pace:
    """Measure a run in processes, as `round_s` does."""
    plan = config.load_experiment(experiment)
    plan = msgspec.structs.replace(plan, probing=msgspec.structs.replace(plan.probing, **probing))
    with tempfile.TemporaryDirectory() as folder:
        if wall:
            lab = str(_in_real_time(lab, Path(folder)))
        return _timed(plan, config.load_lab(lab), lab, rounds, settled, Path(folder), in_process=False)


def in_one_process(plan: Experiment, lab: Lab, rounds: int, settled: int) -> Pace:
    """Measure a run in this process."""
    with tempfile.TemporaryDirectory() as folder:
        return _timed(plan, lab, lab.name, rounds, settled, Path(folder), in_process=True)


def _timed(
    plan: Experiment, lab: Lab, lab_name: str, rounds: int, settled: int, folder: Path, in_process: bool
) -> Pace:  # fmt: skip
    from testbed.records import reader

    # one block after the last round, because the time of distilling must not count
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=10 * rounds)
    plan = msgspec.structs.replace(plan, rounds=rounds, accounting=accounting)
    marks: list[tuple[int, float, float]] = []
    pids = [os.getpid()]

    def progress(p: Progress) -> None:
        if p.round >= (rounds if marks else settled) and len(marks) < 2:
            marks.append((p.round, time.perf_counter(), cpu_s(pids)))
        tell(None, f"{plan.title}: {p.round} of {rounds} rounds")

    def begun(server: Coordinator, crew: Crew | None) -> None:
        if crew is not None:
            pids.extend(crew.pids())

    outcome = drive(plan, lab, lab_name, folder, progress, begun, in_process)
    gap_s = float(np.median(np.diff(reader.load(outcome.folder).rounds.t0_s)))
    first, last = marks
    wall_s, work_s = ((last[i] - first[i]) / (last[0] - first[0]) for i in (1, 2))
    return Pace(wall_s, work_s, int(outcome.summary["pairs_kept"]), rounds, gap_s, _parts(outcome.summary["pace"]))


def _parts(pace: Mapping[str, Any]) -> str:
    """Return where the time of a round went, as a part of a row's note; '' where it was not measured."""
    if (found := pace.get("round")) is None:
        return ""
    told = ", ".join(f"{name} {1e3 * found[name]['time_s']:.2f}" for name in PARTS)
    return f" (of {1e3 * found['mean_s']:.2f} ms: {told})"


def drive(
    plan: Experiment, lab: Lab, lab_name: str, folder: Path, progress: Callable[[Progress], None],
    begun: Callable[[Coordinator, Crew | None], None] = lambda *_: None, in_process: bool = False,
) -> Outcome:  # fmt: skip
    """Run an experiment in `folder`, with keys and states of its own; `begun` is called once everything has started."""
    from testbed.lab import one_process, processes

    state = os.environ.get("TESTBED_STATE")
    os.environ["TESTBED_STATE"] = str(folder / "state")
    try:
        run = one_process.run if in_process else processes.run
        return run(plan, lab, lab_name, folder / "run", progress, begun)
    finally:
        if state is None:
            del os.environ["TESTBED_STATE"]
        else:
            os.environ["TESTBED_STATE"] = state


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time in s that all threads of some processes have taken so far; NaN where Linux's /proc is not
    there."""
    total = 0.0
    for pid in pids:
        if pid == os.getpid():
            total += time.process_time()
            continue
        threads = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
        if not threads:
            return math.nan
        for thread in threads:
            with contextlib.suppress(OSError, IndexError, ValueError):  # a thread that has ended meanwhile
                total += 1e-9 * int(thread.read_text().split()[0])
    return total


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
