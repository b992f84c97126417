"""The daemons of `testbed run`, which are forked from it: killed, and stopped by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from testbed.config import state_root
from testbed.core import forks
from testbed.records import reader

pytestmark = pytest.mark.skipif(not forks.are_safe(), reason="daemons are forked on Linux only")


def daemons(parent: int) -> dict[str, tuple[int, bool]]:
    """Return, of a process's daemons, name → (number, whether it was forked from it)."""
    found = {}
    begun = Path(f"/proc/{parent}/environ").read_bytes()
    for path in Path("/proc").iterdir():
        try:
            words = (path / "cmdline").read_bytes().decode().rstrip("\0").split("\0")
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                name = words[4] if words[3] == "node" else words[3]
                found[name] = (int(path.name), (path / "environ").read_bytes() == begun)
        except (OSError, ValueError, IndexError):  # it is no process, or has ended
            continue
    return found


def until_gone(pids: list[int]) -> None:
    deadline_s = time.monotonic() + 120.0
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_killed_one_is_started_again_and_ctrl_c_ends_all(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "testbed", "run", "mobile_room", "--rounds", "100000", "--out", str(tmp_path / "runs")],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines = iter(process.stderr)
        next(line for line in lines if "200/" in line)
        first = daemons(process.pid)
        assert sorted(first) == ["alice", "bob", "eve", "sim"]
        assert {(os.getsid(pid) == pid, is_forked) for pid, is_forked in first.values()} == {(True, True)}
        os.kill(first["bob"][0], signal.SIGKILL)
        said = next(line for line in lines if "process ended" in line)  # its link may be reported before
        assert "node bob" in said
        assert "killed by SIGKILL; it is restarted" in said
        next(line for line in lines if "rejoined" in line)
        second = daemons(process.pid)
        assert second["bob"][0] != first["bob"][0]
        assert {name: is_forked for name, (_, is_forked) in second.items()} == {
            "alice": True, "bob": False, "eve": True, "sim": True,
        }  # fmt: skip
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does
        process.stderr.read()
        assert process.wait(timeout=240) == 130
    finally:
        process.kill()
        process.wait(timeout=60)
    until_gone([pid for seen in (first, second) for pid, _ in seen.values()])
    run = reader.load(next((tmp_path / "runs").iterdir()))
    assert run.stop is not None
    assert run.stop.exit_status == "aborted"
    assert not (state_root() / "sim" / "logs" / "alice.log").read_text()
