"""Runs whose experiment has [faults]: what was planned is made and on record, and the run ends as one without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_survival import cli

from testbed import config
from testbed.core.config import Experiment
from testbed.lab import fault_plan
from testbed.records import reader

FAULTS = """
[faults]
delay_s = 0.0005
loss = 0.004
reordering = 0.002
resets = 20
partitions = 5
partition_s = 1.0
pauses = 5
pause_s = 1.0
kills = 8
clock_steps = 12
clock_step_s = 5000.0
disk_full = 12
disk_full_s = 1.5
"""


def write(folder: Path, faults: str, block_rounds: int = 100) -> Path:
    text = config.find(Experiment, "mobile_room").read_text()
    path = folder / "faulty.toml"
    path.write_text(text.replace("block_rounds = 800", f"block_rounds = {block_rounds}") + faults)
    return path


def test_a_run_under_faults_makes_what_was_planned_and_ends_with_all_its_rounds(tmp_path: Path) -> None:
    path = write(tmp_path, FAULTS)
    plan = msgspec.structs.replace(config.load_experiment(str(path)), rounds=240)
    assert plan.faults is not None
    wanted = fault_plan.plan(plan.faults, plan, ["alice", "bob", "eve"])
    assert {f.kind for f in wanted} >= {"reset", "kill", "clock_step", "disk_full"}
    done = cli("run", str(path), "--rounds", "240", "--out", str(tmp_path / "runs"), "--json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    run = reader.load(next((tmp_path / "runs").iterdir()))
    made = [(e.data["round"], e.data["kind"], e.data["node"]) for e in run.events if e.kind == "fault_made"]
    assert made == [(f.round, f.kind, f.node) for f in wanted]
    assert run.rounds.rounds.tolist() == list(range(240))
    good = run.rounds.kept | (run.rounds.reason == "measured")
    assert good.mean() > 0.9
    summary: dict[str, Any] = json.loads(done.stdout)
    assert summary["keys_mismatched"] == 0
    # the time of day is 5000 s ahead, or right, and how long it took is known nevertheless
    steps_s = [e.data["by_s"] for e in run.events if e.kind == "clock_stepped"]
    assert steps_s  # two within a second are none
    assert sum(steps_s) == pytest.approx(sum(f.length_s for f in wanted if f.kind == "clock_step"), abs=2.0)
    assert 0.0 < summary["wall_s"] < 600.0
    assert any(e.kind == "disk_was_full" and e.data["paused_s"] >= 1.0 for e in run.events)
    assert "the run is paused, goes on when there is space" in done.stderr


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ("[faults]\nloss = 0.9\n", "loss"),
        ("[faults]\nlosses = 0.1\n", "losses"),
        ('[faults]\nnodes = ["carol"]\n', "key 'nodes': 'carol'; accepted: alice, bob, eve"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(tmp_path: Path, faults: str, words: str) -> None:
    done = cli("run", str(write(tmp_path, faults)), "--out", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_coordinator_without_nodes_of_its_own_makes_no_faults(tmp_path: Path) -> None:
    done = cli("coordinator", str(write(tmp_path, FAULTS)), "--lab", "sim", "--out", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "which injects the faults" in done.stderr


@pytest.mark.long
def test_the_kill_command_kills_and_finds_nothing(tmp_path: Path) -> None:
    done = cli("bench", "kills", "--kills", "2", "--minutes", "1", "--out", str(tmp_path / "site"), "--json")
    (found,) = json.loads(done.stdout)
    assert done.returncode == 0, found["findings"]
    assert 1 <= found["figures"]["kills"] <= 2


@pytest.mark.parametrize("arguments", [["cascade", "--kills", "3"], ["kills", "--out", "."]])
def test_options_that_do_not_belong_are_one_line(arguments: list[str]) -> None:
    done = cli("bench", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
