"""Work in forked children: results, ends of every kind, and what must not be left behind."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from testbed.core import forks
from testbed.core.forks import ChildLost, Children, forked

TWO = Children(2, limit_s=60.0)
pytestmark = pytest.mark.skipif(not forks.are_safe(), reason="children end with their parent on Linux only")


def kill_self(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def nested(work: Callable[[], object]) -> object:
    return TWO.each([work, work])


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def until(done: Callable[[], object], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.01)


def until_gone(pids: list[int]) -> list[int]:
    """Return those that still run after a while; the end of a child takes milliseconds."""
    until(lambda: not any(is_alive(pid) for pid in pids))
    return [pid for pid in pids if is_alive(pid)]


def test_pieces_are_taken_one_by_one(tmp_path: Path) -> None:
    """The first piece ends after the third has been done, which the same child would take in a fixed division."""

    def first() -> int:
        until((tmp_path / "third").exists)
        return os.getpid()

    def third() -> int:
        (tmp_path / "third").touch()
        return os.getpid()

    before = sorted(os.listdir("/proc/self/fd"))
    one, two, three = TWO.shared([first, os.getpid, third])
    assert (tmp_path / "third").exists()
    assert one != two == three
    assert TWO.shared([]) == []
    with pytest.raises(ChildLost, match="failed: ZeroDivisionError"):
        TWO.shared([os.getpid, lambda: 1 // 0])
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_results_come_back_in_order_and_whole() -> None:
    here = os.getpid()
    large = np.arange(400_000.0)
    pids, told = TWO.each([os.getpid, lambda: large * 2.0])
    assert pids != here
    assert np.array_equal(told, large * 2.0)
    assert TWO.one(lambda: nested(lambda: 7)) == [7, 7]


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (kill_self, "was ended by SIGKILL"),
        (lambda: kill_self(signal.SIGUSR2), "was ended by SIGUSR2"),
        (lambda: 1 // 0, "failed: ZeroDivisionError: integer division or modulo by zero"),
        (lambda: os._exit(3), "ended without a result"),
        (lambda: sys.exit("enough"), "failed: SystemExit: enough"),
        (lambda: nested(kill_self), "was ended by SIGKILL"),
    ],
)
def test_a_child_without_a_result_is_told(work: Callable[[], object], said: str) -> None:
    with pytest.raises(ChildLost) as lost:
        TWO.each([lambda: 1, work])
    assert str(lost.value) == said


def test_what_takes_too_long_or_is_not_wanted_any_more_ends_with_all_children(tmp_path: Path) -> None:
    def hang() -> bytes:
        (tmp_path / str(os.getpid())).touch()
        nested(lambda: (tmp_path / str(os.getpid())).touch() or time.sleep(600))
        return b""

    def all_begun() -> bool:
        return len(list(tmp_path.iterdir())) >= 3

    with pytest.raises(ChildLost, match="was stopped"):
        forked([hang], 600.0, all_begun)
    with pytest.raises(ChildLost, match=r"was not done within 0\.05 s"):
        forked([hang], 0.05)
    assert until_gone([int(p.name) for p in tmp_path.iterdir()]) == []


def test_a_whole_result_counts_although_another_process_holds_the_pipe_open() -> None:
    def begin_another() -> bytes:
        pid = os.fork()
        if not pid:
            time.sleep(600)
            os._exit(0)
        return str(pid).encode()

    (told,) = forked([begin_another], 60.0)  # its end was awaited: "was not done within 60 s"
    assert is_alive(int(told))
    os.kill(int(told), signal.SIGKILL)


def test_a_result_that_is_there_counts_although_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after this process was suspended: its clock goes on, and the child has ended meanwhile."""
    told, asked = tmp_path / "pid", iter((0.0,))

    def now_s() -> float:
        first = next(asked, None)
        if first is None:
            until(lambda: told.exists() and told.read_text())
            assert until_gone([int(told.read_text())]) == []
        return 1e9 if first is None else first

    monkeypatch.setattr(forks, "time", SimpleNamespace(monotonic=now_s))
    words = b"x" * 30_000  # as much as a pipe holds without a reader
    assert forked([lambda: told.write_text(str(os.getpid())) and words], 1.0) == [words]


_PARENT = """
import os, time
from testbed.core.forks import Children
two = Children(2, limit_s=60.0)
def tell():
    os.write(1, b"%d\\n" % os.getpid())
two.one(lambda: tell() or two.each(2 * [lambda: tell() or time.sleep(60)]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_is_left_where_the_parent_is_killed(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(3)]
        assert all(is_alive(pid) for pid in pids)
        parent.send_signal(number)
        assert parent.wait(60) == -number
    assert until_gone(pids) == []


def test_handlers_of_this_process_do_not_run_in_a_child() -> None:
    handled: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    try:
        with pytest.raises(ChildLost, match="was ended by SIGTERM"):
            TWO.one(lambda: kill_self(signal.SIGTERM))
        assert TWO.one(lambda: handled) == []
        os.kill(os.getpid(), signal.SIGTERM)  # they run here as before
        assert handled == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_a_terminal_sends_to_this_process_does_not_end_its_children(number: signal.Signals) -> None:
    assert TWO.one(lambda: (kill_self(number), 7)[1]) == 7


def test_locks_that_other_threads_hold_do_not_hold_up_a_child() -> None:
    log = logging.getLogger("test_forks")
    handler = logging.StreamHandler()
    log.addHandler(handler)
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with handler.lock:  # type: ignore[union-attr]
            held.set()
            over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        assert TWO.one(lambda: log.warning("from a child") or 5) == 5
    finally:
        over.set()
        thread.join()
        log.removeHandler(handler)


def test_the_memory_of_a_child_goes_back_to_the_system() -> None:
    def held_mb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

    kept: list[np.ndarray] = []

    def work() -> int:
        began = held_mb()
        kept.append(np.ones(16_000_000))
        return held_mb() - began

    before = held_mb()
    assert TWO.one(work) >= 100
    assert held_mb() < before + 50


def test_a_process_that_cannot_fork_says_so_and_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = len(os.listdir("/proc/self/fd"))
    TWO.each([lambda: 1, lambda: 2])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", full)
        with pytest.raises(BlockingIOError):
            TWO.one(lambda: 7)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_child_is_ended_before_others_where_memory_is_short() -> None:
    assert TWO.one(lambda: Path("/proc/self/oom_score_adj").read_text()) == "1000\n"


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, used in ({0}, 1), ({3, 7}, 2), (set(range(64)), 4):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        assert forks.usable_cores() == used
