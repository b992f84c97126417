"""Trains of rounds through all processes: the same run whatever their length, and the interval kept in real time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from measured_bytes import recorded
from trains_seen import Trains

from testbed import config
from testbed.assess.pace import PARTS
from testbed.core.config import Lab
from testbed.core.errors import Reject
from testbed.lab import processes
from testbed.records import reader


def run(folder: Path, name: str, rounds: int, lab: str = "sim", act: Any = None, **probing: float) -> Any:
    plan = config.load_experiment(name)
    plan = msgspec.structs.replace(
        plan, rounds=rounds, probing=msgspec.structs.replace(plan.probing, **probing),
        accounting=msgspec.structs.replace(plan.accounting, block_rounds=rounds, epsilon_log2=16),
    )  # fmt: skip
    handles: list[Any] = []

    def progress(p: Any) -> None:
        if act is not None and handles:
            act(p, *handles)

    return processes.run(
        plan, config.load_lab(lab), lab, folder / "run", progress, lambda *found: handles.extend(found)
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "rounds", "interval_s", "longest"),
    [("mobile_room", 340, 0.05, 64), ("static_room", 130, 0.05, 64), ("mobile_room", 200, 0.002, 64)],
)
def test_trains_of_any_length_give_the_same_csi_bits_and_keys(
    name: str, rounds: int, interval_s: float, longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for train in (1, 7, longest):
        folder = tmp_path / str(train)
        monkeypatch.setenv("TESTBED_STATE", str(folder / "state"))
        assert run(folder, name, rounds, train=train, interval_s=interval_s).status == "finished"
        found.append(recorded(folder))
    assert sum(key.startswith("links/") for key in found[0]) >= 4
    assert any("block-" in key for key in found[0]) == (rounds == 340)
    assert found[0] == found[1] == found[2]


def in_real_time(folder: Path, lab: str) -> str:
    """Write a bundled lab with its air in real time: the nodes' processes read it by themselves."""
    path = folder / "lab.toml"
    text = config.find(Lab, lab).read_text(encoding="utf-8")
    # no answer is late for want of a processor
    text = text.replace('pace = "virtual"', 'pace = "wall"') + "\n[coordinator]\noperation_timeout_s = 60.0\n"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("lab", ["sim", "usrp_standin"])
def test_an_interval_of_2_ms_is_kept_in_real_time(lab: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: on a busy machine trains come later and are shorter, and rounds for which no processor was
    free in time are late; nothing else is lost, and within each train the interval is kept. Where so many are late
    that trains have one or two rounds, the run is too slow. How many are kept where the processors are free is in
    `test_interval_kept.py`."""
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    trains, began_s = Trains(monkeypatch), time.monotonic()

    def end(p: Any, coordinator: Any, crew: Any) -> None:
        if p.round >= (300 if time.monotonic() - began_s < 60.0 else 100):  # without distilling anything
            coordinator.ask_stop("abort")

    outcome = run(tmp_path, "mobile_room", 10_000, in_real_time(tmp_path, lab), act=end, interval_s=2e-3)
    assert outcome.status == "stopped"
    record, rejected = reader.load(outcome.folder).rounds, outcome.summary["pairs_rejected"]
    assert record.rounds.tolist() == sorted(trains.of)  # all that were asked for
    assert outcome.summary["pairs_kept"] + sum(rejected.values()) == len(trains.of) >= 100
    assert set(rejected) <= {Reject.LATE_TX.value, Reject.LOW_SNR.value, Reject.ABORTED.value}
    assert outcome.summary["pairs_kept"] > 30
    verdict = next(h for h in outcome.summary["health"] if h["check"] == "interval_kept")
    assert verdict["ok"] or rejected[Reject.LATE_TX.value] > 0.1 * len(trains.of), verdict["detail"]
    assert np.allclose(trains.gaps_s(record), 2e-3, rtol=0, atol=1e-9)
    parts = outcome.summary["pace"]["round"]
    assert sum(parts[name]["time_s"] for name in PARTS) == pytest.approx(parts["mean_s"])
    assert parts["air"]["time_s"] > 0.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_bob_who_is_killed_or_paused_in_the_middle_of_trains_costs_those(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    struck: list[int] = []

    def strike(p: Any, coordinator: Any, crew: Any) -> None:
        pid = crew.pid("bob")
        if p.round >= 100 and not struck:
            struck.append(pid)
            os.kill(pid, number)
        elif struck and number == signal.SIGSTOP and p.message and "silent" in p.message:
            os.kill(struck[0], signal.SIGCONT)
        elif p.round >= 500:  # without distilling anything
            coordinator.ask_stop("abort")

    outcome = run(tmp_path, "mobile_room", 10_000, act=strike, interval_s=2e-3)
    assert outcome.status == "stopped"
    rejected = outcome.summary["pairs_rejected"]
    assert outcome.summary["pairs_kept"] > 150
    assert outcome.summary["pairs_kept"] + sum(rejected.values()) == outcome.summary["rounds"]
    assert 1 <= rejected["node_lost"] <= 2 * 64
    assert set(rejected) <= {"node_lost", "measured", "low_snr", "no_preamble", "truncated", "aborted"}
