"""A run whose coordinator dies while it ends: resumed, it is closed as it had ended, with every key at both ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_resumed_runs import check, keys, resume

from testbed import config
from testbed.config import state_root
from testbed.core.config import Experiment
from testbed.records import reader

ROUNDS = 250

DIES = """
import os, signal, sys
from testbed.net.messages import Finish
from testbed.net.transport import Hub
from testbed.records.writer import RunWriter

def dies_before(kind, name, holds):
    method = getattr(kind, name)
    def instead(self, *arguments, **more):
        if holds(*arguments, **more):
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *arguments, **more)
    setattr(kind, name, instead)

if sys.argv.pop(1) == "before any node is told":
    dies_before(Hub, "send", lambda name, body, **_: isinstance(body, Finish))
else:
    dies_before(RunWriter, "close", lambda *_: True)
from testbed.__main__ import main
main()
"""


def died(folder: Path, moment: str, *how: str) -> Path:
    """Run to the end, where the coordinator is killed at this moment; returns the run's folder."""
    room = folder / "room.toml"
    text = config.find(Experiment, "mobile_room").read_text()
    room.write_text(text.replace("block_rounds = 800", f"block_rounds = {ROUNDS}"))
    words = ["run", str(room), "--rounds", str(ROUNDS), "--out", str(folder / "runs"), *how]
    done = subprocess.run([sys.executable, "-c", DIES, moment, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == -9, done.stderr
    return next((folder / "runs").iterdir())


def stored(pattern: str) -> dict[str, list[str]]:
    """Return names of files of either end."""
    return {role: sorted(p.name for p in (state_root() / "sim" / role).glob(pattern)) for role in ("alice", "bob")}


@pytest.mark.parametrize(
    ("moment", "nodes_know", "how"),
    [
        pytest.param("before any node is told", False, [], marks=pytest.mark.long),
        pytest.param("before the record is closed", True, [], marks=pytest.mark.long),
        ("before the record is closed", True, ["--in-process"]),
    ],
)
def test_a_run_that_had_ended_is_closed_as_it_had_ended(
    tmp_path: Path, moment: str, nodes_know: bool, how: list[str]
) -> None:
    folder = died(tmp_path, moment, *how)
    before = reader.load(folder)
    assert before.stop is None
    assert [e.data["status"] for e in before.events if e.kind == "run_ending"] == ["finished"]
    first = keys("alice")
    assert len(first) == 1
    assert keys("bob") == first
    assert stored("rehearsals/*/*.confirmed") == {role: ["block-0000.confirmed"] for role in ("alice", "bob")}
    nothing: dict[str, list[str]] = {"alice": [], "bob": []}
    kept = {"alice": ["block-0000.begun", "block-0000.decided"], "bob": ["latest.numbered"]}
    assert stored("known/*/*") == (nothing if nodes_know else kept)
    (mark,) = (state_root() / "sim" / "bob").glob("rehearsals/*/*.confirmed")
    mark.unlink()  # as if he had not been told before his process died
    done = resume(folder, *how)
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    run = check(before, folder, ROUNDS)
    assert run.rounds.reason.tolist() == before.rounds.reason.tolist()  # nothing was measured, and nothing rejected
    assert [b.block for b in run.blocks] == [0]
    assert keys("alice") == first
    assert stored("known/*/*") == nothing
