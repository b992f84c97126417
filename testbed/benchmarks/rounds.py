"""Rounds per second of the whole testbed in virtual time, with Alice, Bob, Eve and the simulated air as processes.

The peer does the same work without processes: one loop sends the same waveform through a flat channel and estimates it
at three receivers. It has no sockets, authentication, scheduling, records or simulated air. The ratio therefore gives
the share of the time that is spent on the signal itself.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from testbed import config
from testbed.benchmarks import BenchRow
from testbed.core import registry
from testbed.core.config import Experiment
from testbed.core.types import IqBlock

ROUNDS = 600
SETTLED = 100
"""Rounds before the clock starts, in which processes start up and caches fill."""


def run() -> list[BenchRow]:
    """Run `mobile_room` on the `sim` lab with three nodes, CURVE and records."""
    ours_s, kept = round_s("sim", ROUNDS, SETTLED)
    peer_s = _signal_only(config.load_experiment("mobile_room"))
    note = f"{1 / ours_s:.0f} rounds/s, {kept} of {ROUNDS} kept, 3 radios, CURVE and journal on, {os.cpu_count()} cores"
    return [
        BenchRow(
            name="rounds",
            ours_s=ours_s,
            peer="estimation alone, one process",
            peer_s=peer_s,
            ratio=peer_s / ours_s,
            note=note,
        )
    ]


def round_s(lab: str, rounds: int, settled: int, experiment: str = "mobile_room") -> tuple[float, int]:
    """Return (seconds per round of an experiment on a bundled lab after the first `settled`, rounds kept)."""
    from testbed.coordinator.server import Progress
    from testbed.lab import processes

    plan = config.load_experiment(experiment)
    # one block after the last round, because the time of distilling must not count
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=10 * rounds)
    plan = msgspec.structs.replace(plan, rounds=rounds, accounting=accounting)
    marks: dict[int, float] = {}

    def progress(p: Progress) -> None:
        if p.round in (settled, rounds):
            marks.setdefault(p.round, time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        state = os.environ.get("TESTBED_STATE")
        os.environ["TESTBED_STATE"] = str(Path(folder) / "state")
        try:
            outcome = processes.run(plan, config.load_lab(lab), lab, Path(folder) / "run", progress)
        finally:
            if state is None:
                del os.environ["TESTBED_STATE"]
            else:
                os.environ["TESTBED_STATE"] = state
    return (marks[rounds] - marks[settled]) / (rounds - settled), int(outcome.summary["pairs_kept"])


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
