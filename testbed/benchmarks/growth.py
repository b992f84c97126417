"""How the time of a round grows with subcarriers, antennas, surface elements and scatterers.

Runs in one process, in virtual time. The exponent of each row is fitted to the logarithms of size and time: 0 where the
size does not matter, 1 where a round takes twice as long with twice the size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from testbed import config
from testbed.benchmarks import BenchRow
from testbed.benchmarks.rounds import in_one_process
from testbed.core.config import Experiment, Lab

ROUNDS, SETTLED = 96, 32


def run() -> list[BenchRow]:
    """Measure every size in turn, after a run that is not counted: the first one of a process is slower."""
    in_one_process(*scatterers(10), ROUNDS, SETTLED)
    return [
        row(name, {size: make(size) for size in sizes})
        for name, sizes, make in (
            ("subcarriers", (64, 256, 1024), subcarriers),
            ("antennas", (1, 4, 16), antennas),
            ("elements", (256, 1024, 4096), elements),
            ("scatterers", (10, 70, 500), scatterers),
        )
    ]


def row(name: str, plans: dict[int, tuple[Experiment, Lab]], measure: Callable[..., float] | None = None) -> BenchRow:
    """Return the figures of runs by size; `measure` gives the seconds of CPU of a round of an experiment on a lab."""
    took = measure or (lambda plan, lab: in_one_process(plan, lab, ROUNDS, SETTLED).cpu_s)
    times_s = {size: took(*plan) for size, plan in plans.items()}
    low, high = min(times_s), max(times_s)
    exponent = float(np.polyfit(np.log(list(times_s)), np.log(list(times_s.values())), 1)[0])
    linear_s = times_s[low] * high / low
    told = ", ".join(f"{size}: {1 / each_s:.0f}" for size, each_s in times_s.items())
    return BenchRow(
        name=f"growth {name}",
        ours_s=times_s[high],
        peer=f"{low} {name}, scaled linearly",
        peer_s=linear_s,
        ratio=linear_s / times_s[high],
        note=f"exponent {exponent:.2f}; rounds per second of CPU by {name}: {told}",
    )


def _plan(experiment: str, lab: str) -> tuple[Experiment, Lab]:
    return config.load_experiment(experiment), config.load_lab(lab)


def subcarriers(n: int) -> tuple[Experiment, Lab]:
    """Return the walk in a hall with a frame of n subcarriers, whose symbols are longer accordingly."""
    plan, lab = _plan("mobile_room", "sim")
    probing = msgspec.structs.replace(plan.probing, waveform_options={"n_subcarriers": n, "n_fft": 2 * n})
    return msgspec.structs.replace(plan, probing=probing), lab


def antennas(n: int) -> tuple[Experiment, Lab]:
    """Return the same with n antennas at each end of the link."""
    plan, lab = _plan("mobile_room", "sim")
    return plan, _with_options(lab, ("alice", "bob"), n_antennas=n)


def elements(n: int) -> tuple[Experiment, Lab]:
    """Return the room whose surface has n elements, and another pattern in every round."""
    plan, lab = _plan("static_room", "sim")
    side = round(np.sqrt(n))
    return plan, _with_options(lab, ("ris",), rows=side, columns=n // side)


def scatterers(n: int) -> tuple[Experiment, Lab]:
    """Return the walk among n bodies."""
    plan, lab = _plan("mobile_room", "sim")
    assert plan.scene.multipath is not None
    multipath = msgspec.structs.replace(plan.scene.multipath, n_scatterers=n)
    return msgspec.structs.replace(plan, scene=msgspec.structs.replace(plan.scene, multipath=multipath)), lab


def _with_options(lab: Lab, names: tuple[str, ...], **options: Any) -> Lab:
    nodes = {
        name: msgspec.structs.replace(place, options={**place.options, **options}) if name in names else place
        for name, place in lab.node.items()
    }
    return msgspec.structs.replace(lab, node=nodes)
