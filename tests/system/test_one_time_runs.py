"""Runs whose discussion is authenticated by one-time tags, with real processes: one that loses a node in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed import config
from testbed.core.config import Lab
from testbed.lab import pools, processes


@pytest.mark.long
def test_a_node_that_is_killed_in_the_middle_comes_back_in_step(tmp_path: Path) -> None:
    plan = config.load_experiment("mobile_room")
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=300, epsilon_log2=32)
    plan = msgspec.structs.replace(plan, rounds=1200, accounting=accounting, mode="private", seed=3)
    path = tmp_path / "lab.toml"
    text = config.find(Lab, "sim").read_text(encoding="utf-8")
    path.write_text(text.replace('name = "sim"', 'name = "sim"\nwegman_carter = true'))
    lab = config.load_lab(str(path))
    crews: list[Any] = []
    killed: list[int] = []

    def kill_bob(progress: Any) -> None:
        if progress.round >= 450 and not killed:  # the first block is a key already
            killed.append(progress.round)
            os.kill(crews[0].pid("bob"), signal.SIGKILL)

    outcome = processes.run(plan, lab, str(path), tmp_path / "run", kill_bob, lambda _, crew: crews.append(crew))
    summary = outcome.summary
    assert (outcome.status, len(killed)) == ("finished", 1)
    assert summary["keys_verified"] >= 2
    paid = summary["authentication"]
    assert paid["spent_bits"] == paid["refill_bits"] == 256 * summary["keys_verified"]
    assert paid["hashed_bits"] == summary["key_bits"] + paid["refill_bits"]
    alice, bob = (pools.of(lab, name) for name in ("alice", "bob"))
    assert alice is not None
    assert bob is not None
    assert alice.dump() == bob.dump()


def test_a_used_up_pool_ends_the_run_before_a_round_is_probed_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    text = config.find(Lab, "sim").read_text(encoding="utf-8")
    path.write_text(text.replace('name = "sim"', 'name = "sim"\nwegman_carter = true\ncurve = false'))
    lab = config.load_lab(str(path))
    for file in pools.make(lab, ["alice", "bob"], 256, None).values():
        file.write_bytes(msgspec.json.encode({**msgspec.json.decode(file.read_bytes()), "portions": {}}))
    plan = msgspec.structs.replace(config.load_experiment("mobile_room"), mode="private", rounds=20)
    outcome = processes.run(plan, lab, str(path), tmp_path / "run")
    assert outcome.status == "failed"
    assert outcome.detail.startswith(("alice: configure: wegman_carter: ", "bob: configure: wegman_carter: "))
    assert "used up" in outcome.detail
    assert "\n" not in outcome.detail
    assert outcome.summary["rounds"] == 0
