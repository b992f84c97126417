"""Spare processes that become daemons: what they inherit and what not, and all ways in which they end."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from typing import Any

import pytest

from testbed.core import forks
from testbed.lab import spares

pytestmark = pytest.mark.skipif(not forks.are_safe(), reason="children end with their parent on Linux only")

CODE = """
import json, os, random, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path

import numpy as np

from testbed.core.threads import _loaded_blas
from testbed.lab.spares import Spares, can_fork

folder = Path(sys.argv[1])
lasting = open(folder / "lasting", "w")
os.set_inheritable(lasting.fileno(), True)
os.environ["FROM_PARENT"] = "yes"
out = {"can_fork": can_fork()}


def work(command, options):
    if command == "tell":
        print(json.dumps({
            "options": options, "session": os.getsid(0), "pid": os.getpid(), "files": os.listdir("/proc/self/fd"),
            "words": Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0").decode().split("\\0"),
            "new": os.environ.get("NEW"), "old": os.environ["FROM_PARENT"], "omp": os.environ.get("OMP_NUM_THREADS"),
            "threads": [count() for count, _ in _loaded_blas()], "random": random.random(),
            "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        }), flush=True)
        print("an error", file=sys.stderr)
        threading.Thread(target=lambda: (time.sleep(0.05), print("of a thread"))).start()
        return 7
    if command == "raise":
        raise ValueError("no such work")
    if command == "leave":
        sys.exit(3)
    while True:
        time.sleep(1.0)


def begin(spare, command, stdout=subprocess.PIPE, log="log", **options):
    spare.begin(command, options, {"NEW": "new"}, folder / log, stdout)
    return spare


with Spares() as spares:
    spares.fork(7, work)
    (folder / "log").write_text("before\\n")
    first = begin(spares.take(), "tell", name="alice", lab="sim")
    second = begin(spares.take(), "tell", name="bob", lab="sim")
    told = [json.loads(s.stdout.readline()) for s in (first, second)]
    rest = first.stdout.read().decode()
    out |= {"told": told, "rest": rest, "status": [first.wait(60), second.wait(60), first.poll()], "pid": first.pid}
    out["log"] = (folder / "log").read_text()
    broken = begin(spares.take(), "raise", log="broken", stdout=subprocess.DEVNULL)
    out |= {"raised": broken.wait(60), "traceback": (folder / "broken").read_text(), "unheard": broken.stdout is None}
    out["left"] = begin(spares.take(), "leave").wait(60)

    killed = begin(spares.take(), "wait")
    try:
        killed.wait(0.01)
    except subprocess.TimeoutExpired as exc:
        out["timeout"] = exc.timeout
    out["running"] = killed.poll()
    killed.kill()
    out["killed"] = killed.wait(60)
    killed.send_signal(signal.SIGSTOP)  # has no effect

    # Its input ends although other processes that were forked after it are there.
    unneeded = spares.take()
    unneeded.stdin.close()
    out["unneeded"] = unneeded.wait(60)

    last = spares._waiting[0]
    os.kill(last.pid, signal.SIGKILL)
    os.waitid(os.P_PID, last.pid, os.WEXITED | os.WNOWAIT)
    out["dead_one_is_taken"] = spares.take() is not None

before = len(os.listdir("/proc/self/fd"))
with Spares() as spares:
    spares.fork(2, work)
    waiting = list(spares._waiting)
out["closed"] = [s.poll() for s in waiting]
real = os.fork
def fork():
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = fork
with Spares() as spares:
    spares.fork(2, work)
    out["unforkable"] = spares.take() is None
out["files_left"] = len(os.listdir("/proc/self/fd")) - before
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process saw that forked spares. It is one of its own, because pytest's has files and threads."""
    folder = tmp_path_factory.mktemp("spares")
    done = subprocess.run([sys.executable, "-c", CODE, str(folder)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"stderr": done.stderr}


def test_a_spare_is_like_a_new_process(seen: dict[str, Any]) -> None:
    one, other = seen["told"]
    assert seen["can_fork"]
    assert one["options"] == {"name": "alice", "lab": "sim"}
    assert one["pid"] == one["session"] == seen["pid"]  # Ctrl-C in the terminal does not reach it
    assert len(one["files"]) == 4  # its three streams, and the folder that it lists
    assert one["words"] == ["python", "-m", "testbed", "tell", "alice"]
    assert (one["new"], one["old"], one["omp"]) == ("new", "yes", "1")
    assert one["threads"]
    assert set(one["threads"]) == {1}
    assert one["random"] != other["random"]
    assert one["blocked"] == 0


def test_its_status_output_and_errors_are_where_a_new_processs_are(seen: dict[str, Any]) -> None:
    assert seen["status"] == [7, 7, 7]
    assert seen["rest"] == "of a thread\n"  # a thread that outlives the work is awaited
    assert seen["log"] == "before\nan error\nan error\n"
    assert seen["unheard"]
    assert seen["stderr"] == ""


def test_every_end_has_its_status(seen: dict[str, Any]) -> None:
    assert seen["raised"] == 1
    assert seen["traceback"].endswith("ValueError: no such work\n")
    assert seen["left"] == 3
    assert seen["timeout"] == 0.01
    assert seen["running"] is None
    assert seen["killed"] == -9
    assert seen["unneeded"] == 1


def test_those_without_work_end_and_a_dead_one_gets_none(seen: dict[str, Any]) -> None:
    assert not seen["dead_one_is_taken"]
    assert all(status is not None for status in seen["closed"])
    assert seen["unforkable"]
    assert seen["files_left"] == 0


def test_a_process_with_threads_or_other_streams_forks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "_is_own", lambda _: True)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert spares.can_fork()
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert not spares.can_fork()
    monkeypatch.undo()
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not spares.can_fork()
