"""A run whose coordinator was killed goes on in the same record, and ends with all its rounds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sites import when
from test_survival import cli

from testbed import config
from testbed.config import state_root
from testbed.core.config import Experiment
from testbed.records import files, reader
from testbed.records.recorded import RecordedRun


def killed(out: Path, block_rounds: int, moment: Callable[[str], bool], *arguments: str) -> Path:
    """Start a run, kill its coordinator at a moment told by its progress; returns the folder."""
    room = out.with_name("room.toml")
    text = config.find(Experiment, "mobile_room").read_text()
    room.write_text(text.replace("block_rounds = 800", f"block_rounds = {block_rounds}"))
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed", "run", str(room), *arguments, "--out", str(out), "--verbose"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        when(process.stderr, moment)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=240)
    return next(out.iterdir())


def resume(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return cli("run", "--resume", str(folder), *arguments)


def keys(role: str) -> dict[str, str]:
    """Return the bits of a node's keys by run and block; rehearsals are kept as keys are."""
    return {
        f"{p.parent.name}/{p.stem}": json.loads(p.read_text())["hex"]
        for p in (state_root() / "sim" / role / "rehearsals").glob("*/*.key")
    }


def check(before: RecordedRun, folder: Path, rounds: int) -> RecordedRun:
    """Check what holds of every run that was resumed and ended."""
    run = reader.load(folder)
    assert run.stop is not None
    assert run.stop.exit_status == "ok", run.stop.reason
    assert run.rounds.rounds.tolist() == list(range(rounds))
    n = before.rounds.rounds.size
    assert run.rounds.t0_s[:n].tolist() == before.rounds.t0_s.tolist()  # nothing measured was touched
    assert (run.rounds.t0_s[1:] > run.rounds.t0_s[:-1]).all()
    for name, link in before.links.items():
        assert run.links[name].rounds[: link.rounds.size].tolist() == link.rounds.tolist()
    begun = [e.data["block"] for e in run.events if e.kind == "block_begun"]
    assert begun == sorted(set(begun))
    used = [r for b in run.blocks for r in b.rounds]
    assert len(used) == len(set(used))
    assert run.summary is not None
    assert run.summary["keys_mismatched"] == 0
    assert keys("alice") == keys("bob")
    return run


@pytest.mark.long
def test_keys_of_a_resumed_run_go_on_where_they_were(tmp_path: Path) -> None:
    folder = killed(tmp_path / "runs", 250, lambda line: "400/660" in line, "--rounds", "660")
    before = reader.load(folder)
    first = keys("alice")
    assert first
    done = resume(folder)
    assert done.returncode == 0, done.stderr
    run = check(before, folder, 660)
    # Alice's node knows what was said before, though its process is another: later blocks make keys, too
    after = [e.seq for e in run.events if e.kind == "run_resumed"]
    assert len(after) == 1
    later = [e.data["block"] for e in run.events if e.kind == "block_begun" and e.seq > after[0]]
    last = next(b for b in run.blocks if b.block == later[-1])
    assert all("earlier_blocks_unknown" not in (k.failure or "") for k in last.key.values())
    assert set(first) <= set(keys("alice"))  # no key file was overwritten
    assert all(keys("alice")[k] == v for k, v in first.items())


def test_a_run_whose_coordinator_was_killed_is_resumed_and_ends_with_all_its_rounds(tmp_path: Path) -> None:
    folder = killed(tmp_path / "runs", 100, lambda line: "block begun: block 1" in line, "--rounds", "260")
    before = reader.load(folder)
    begun = {e.data["block"] for e in before.events if e.kind == "block_begun"}
    assert begun - {b.block for b in before.blocks}  # one was under way
    done = resume(folder)
    assert done.returncode == 0, done.stderr
    run = check(before, folder, 260)
    failed = [e.data for e in run.events if e.kind == "block_failed"]
    assert any(x["why"] == "the coordinator's process died" for x in failed)
    assert run.summary is not None
    (told,) = [x["detail"] for x in run.summary["health"] if x["check"] == "blocks_give_keys"]
    assert f"1 of {len(run.blocks)} blocks: the coordinator's process died" in told
    assert "stopped reporting" not in told
    again = resume(folder)
    assert again.returncode == 2
    assert "this run is over (ok)" in again.stderr
    assert len(again.stderr.strip().splitlines()) == 1


def test_what_cannot_be_resumed_is_refused_in_one_line(tmp_path: Path, here: Any) -> None:
    folder = killed(tmp_path / "runs", 800, lambda line: "200/100000" in line, "--rounds", "100000", "--seed", "5")
    for arguments, words in (
        (["--rounds", "300"], "the run was started with 100000"),
        (["static_room"], "the run had"),
        (["--lab", "sim_rough"], "the run had"),
    ):
        done = here("run", "--resume", str(folder), *arguments)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    done = here("coordinator", "--resume", str(folder))
    assert done.returncode == 2
    assert "was started by `testbed run`" in done.stderr
    lock = files.Lock(folder)
    done = here("run", "--resume", str(folder))
    lock.release(remove=False)
    assert done.returncode == 2
    assert "a process is driving this run" in done.stderr
    assert here("run", "--resume", str(tmp_path)).returncode == 2


@pytest.mark.parametrize("arguments", [[], ["--resume", "nowhere"]])
def test_nothing_to_run_is_one_line(arguments: list[str], here: Any) -> None:
    done = here("run", *arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
