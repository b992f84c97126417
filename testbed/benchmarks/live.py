"""Rounds per second with the live page, as a ratio to those without it, in pairs of stretches of one run.

A page is either read as a browser reads it, by a process of its own, or opened and never read. In every second stretch
of rounds, the processes of the page and of its reader are halted (SIGSTOP), so that the run goes on as without a page;
pairs begin with either kind in turn. The first rounds of a stretch are not measured: the page then catches up, or the
run's processes get used to the free processor. A ratio of 1 means that the page does not slow the run; at least 0.97 is
demanded.

Each stretch is measured twice: on the wall clock, and by the CPU time of the run's own processes. Other work on the
machine changes the first from one stretch to the next, and the second hardly. The page's own CPU time is in the note:
on a machine whose cores are all occupied, it is what the page can take away from the run.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from testbed import config
from testbed.benchmarks import BenchRow, tell
from testbed.benchmarks.rounds import cpu_s, drive
from testbed.core.errors import TestbedError
from testbed.live.beside import Beside
from testbed.records import files

if TYPE_CHECKING:
    from testbed.coordinator.server import Coordinator, Progress
    from testbed.lab.processes import Crew

PAIRS = 16
"""Most pairs of stretches for each kind of page."""
STRETCH, UNMEASURED = 300, 30
"""Rounds that are measured in a stretch, and rounds before them. A stretch takes a second or more, in which the page
reads the journal several times."""
SETTLED = 100
"""Rounds before the first stretch, in which processes start up and caches fill."""
LIMIT_S = 45.0
"""Longest time of the pairs for each kind of page; on a slow machine there are fewer pairs."""
LEAST_PAIRS = 3
_START_S = 120.0
_STOPS = 10_000
"""How often it is looked, once a millisecond, whether a process has stopped."""
_READ = "import sys, urllib.request\nfor line in urllib.request.urlopen(sys.argv[1]): pass"


def run(pairs: int = PAIRS, limit_s: float = LIMIT_S) -> list[BenchRow]:
    """Measure both kinds of page, each in a run of its own of at most `pairs` pairs and about `limit_s` seconds."""
    Beside.check()
    rows = []
    for i, (name, opened) in enumerate((("read", read), ("never read", never_read))):
        tell(i / 2, f"a page that is {name}: starting a run")
        found = Pairs(
            pairs, limit_s, lambda share, what, i=i, name=name: tell((i + share) / 2, f"a page that is {name}: {what}")
        )
        _run(found, opened)
        rows += found.rows(f"live, {name}")
    return rows


def _run(pairs: Pairs, opened: Any) -> None:
    """Drive one run in which `pairs` is measured."""
    # nothing moves and the pattern stays: every round costs the same, and closing the record takes a few seconds
    plan = config.load_experiment("static_room_fixed")
    most = SETTLED + 2 * pairs.most * (STRETCH + UNMEASURED) + STRETCH
    # no block is complete while pairs are measured, because the time of distilling must not count
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=10 * most)
    plan = msgspec.structs.replace(plan, rounds=most, accounting=accounting)

    def begun(server: Coordinator, crew: Crew | None) -> None:
        pairs.page_pids = stack.enter_context(opened(server.folder))
        pairs.run_pids = [os.getpid(), *([] if crew is None else crew.pids())]
        pairs.end = lambda: server.ask_stop("abort")  # after "stop", the rounds so far are distilled

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.callback(pairs.let_go)
        outcome = drive(plan, config.load_lab("sim"), "sim", Path(folder), pairs.progress, begun)
    if not pairs.done:
        raise TestbedError(f"the run ended before the first pair was measured: {outcome.detail}")


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a round took in one stretch, as means over its rounds."""

    wall_s: float
    cpu_s: float
    """CPU time of the run's processes; NaN where this system does not report it."""
    page_s: float
    """CPU time of the page's processes."""


@dataclass(slots=True)
class Pairs:
    """Measures stretches with and without a page while one run goes on; `progress` is called after its rounds."""

    most: int
    limit_s: float
    tell: Any = lambda share, what: None
    run_pids: list[int] = field(default_factory=list)
    page_pids: list[int] = field(default_factory=list)
    end: Any = lambda: None
    """Asks the run to end."""
    done: list[tuple[Stretch, Stretch]] = field(default_factory=list)
    """(with the page, without it) of every pair."""
    _first: dict[bool, Stretch] = field(default_factory=dict)
    _watched: bool = True
    _begins: int = SETTLED
    _mark: tuple[int, float, float, float] | None = None
    _began_s: float | None = None

    def progress(self, p: Progress) -> None:
        """Note the times where a stretch begins or ends."""
        due = self._begins + UNMEASURED if self._mark is None else self._mark[0] + STRETCH
        if len(self.done) >= self.most or p.round < due:
            return
        now = (p.round, time.perf_counter(), cpu_s(self.run_pids), cpu_s(self.page_pids))
        if self._began_s is None:
            self._began_s = now[1]
        if self._mark is None:
            self._mark = now
        else:
            n = p.round - self._mark[0]
            self._ended(Stretch(*((a - b) / n for a, b in zip(now[1:], self._mark[1:], strict=True))), p.round)
            if len(self.done) >= self.most or self._is_late(now[1]):
                self.most = len(self.done)
                self.end()

    def _is_late(self, now_s: float) -> bool:
        return len(self.done) >= LEAST_PAIRS and now_s - (self._began_s or now_s) > self.limit_s

    def _ended(self, stretch: Stretch, round: int) -> None:
        """Store a stretch; the next one is of the other kind, or of the same after a pair: with, without, without …"""
        self._first[self._watched] = stretch
        self._begins, self._mark = round, None
        if len(self._first) == 2:
            self.done.append((self._first[True], self._first[False]))
            self._first = {}
            told = f"{self.ratios('wall_s')[-1]:.3f} of the rounds/s without one"
            self.tell(len(self.done) / self.most, f"pair {len(self.done)} of {self.most}: {told}")
        else:
            self._watched = not self._watched
            if self._watched:
                _signal(self.page_pids, signal.SIGCONT)
            else:
                halt(self.page_pids)

    def let_go(self) -> None:
        """Let a halted page go on, so that it can end."""
        _signal(self.page_pids, signal.SIGCONT)

    def ratios(self, of: str) -> list[float]:
        """Return what a round took without the page over what it took with it, of each pair: above 1 is faster."""
        return [getattr(without, of) / getattr(watched, of) for watched, without in self.done]

    def rows(self, name: str) -> list[BenchRow]:
        """Return the rows of the wall clock and of the CPU time."""
        page_s = statistics.median(watched.page_s for watched, _ in self.done)
        load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        rows = [self._row(name, "wall_s", f"rounds/s with a page over those without; {load}")]
        if math.isfinite(page_s):
            note = f"CPU time of a round in the run's processes; the page itself takes {1e3 * page_s:.2f} ms a round"
            rows.append(self._row(f"{name}, CPU of the run", "cpu_s", note))
        return rows

    def _row(self, name: str, of: str, what: str) -> BenchRow:
        ratios = self.ratios(of)
        sure = median_interval(ratios)
        told = "too few for a confidence" if sure is None else f"with 95 % confidence {sure[0]:.3f} to {sure[1]:.3f}"
        spread = f"{told}, single pairs {min(ratios):.3f} to {max(ratios):.3f}"
        return BenchRow(
            name=name,
            ours_s=statistics.median(getattr(watched, of) for watched, _ in self.done),
            peer="no page",
            peer_s=statistics.median(getattr(without, of) for _, without in self.done),
            ratio=statistics.median(ratios),
            note=f"{what}; median of {len(ratios)} pairs of {STRETCH} rounds, {spread}",
        )


def median_interval(values: list[float]) -> tuple[float, float] | None:
    """Return the interval between two of the values that contains the median of their distribution, whatever it is,
    with at least 95 % confidence; None for fewer than 6 values, of which not even the extremes do.
    """
    ordered, n = sorted(values), len(values)
    # the chance that fewer than k of n values are below the median, for each end of the interval
    below = [sum(math.comb(n, i) for i in range(k)) / 2**n for k in range(n // 2 + 1)]
    k = max((k for k, chance in enumerate(below) if chance <= 0.025), default=0)
    return (ordered[k - 1], ordered[n - k]) if k else None


def halt(pids: Iterable[int], tries: int = 200) -> None:
    """Halt processes at an instant at which none of them has the journal open: a reader that is halted in the middle
    would keep the run from clearing the journal's log.
    """
    for _ in range(tries):
        _signal(pids, signal.SIGSTOP)
        # A stop signal takes effect after os.kill has returned: until then the process may still open the journal.
        for _ in range(_STOPS):
            if not any(map(_goes_on, pids)):
                break
            time.sleep(0.001)
        if not any(map(_has_journal_open, pids)):
            return
        _signal(pids, signal.SIGCONT)
        time.sleep(0.01)


def _goes_on(pid: int) -> bool:
    """Return whether a process is there and neither stopped nor ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "TtZXx"
    except OSError:
        return False


def _has_journal_open(pid: int) -> bool:
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            if files.JOURNAL in os.readlink(link):
                return True
    return False


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextmanager
def read(folder: Path) -> Iterator[list[int]]:
    """Serve a run's page, and read its events in a process of its own; gives the numbers of both processes."""
    with _page(folder) as (url, pid):
        reader = subprocess.Popen([sys.executable, "-c", _READ, f"{url}events"], stderr=subprocess.DEVNULL)
        try:
            yield [pid, reader.pid]
        finally:
            reader.kill()
            reader.wait()


@contextmanager
def never_read(folder: Path) -> Iterator[list[int]]:
    """Serve a run's page, and ask for its events without reading them; gives the number of its process."""
    with _page(folder) as (url, pid):
        host, port = str(urlsplit(url).hostname), int(urlsplit(url).port or 0)
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asking.connect((host, port))
            asking.sendall(f"GET /events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            yield [pid]


@contextmanager
def _page(folder: Path) -> Iterator[tuple[str, int]]:
    said: queue.Queue[str] = queue.Queue()
    with Beside(said.put) as page:
        page.start(folder)
        yield said.get(timeout=_START_S).removeprefix("live: "), page.pid
