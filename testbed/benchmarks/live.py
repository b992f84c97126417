"""Rounds per second with the live page, as a ratio to those without it, in pairs of runs.

A page is either read as a browser reads it, by a process of its own, or opened and never read. A ratio of 1 means that
the page does not slow the run; at least 0.97 is demanded. On a machine with other load the ratios of single pairs vary
by more than that: quote the median only if the spread in the note is small.
"""

from __future__ import annotations

import queue
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from testbed.benchmarks import BenchRow
from testbed.benchmarks.rounds import Beside as Watch
from testbed.benchmarks.rounds import round_s
from testbed.live.beside import Beside

PAIRS = 5
ROUNDS, SETTLED = 600, 100
_START_S = 120.0
_READ = "import sys, urllib.request\nfor line in urllib.request.urlopen(sys.argv[1]): pass"


def run() -> list[BenchRow]:
    """Measure both kinds of page; the runs with and without one alternate."""
    Beside.check()
    return [_row("live, read", read), _row("live, never read", never_read)]


def _row(name: str, watched_by: Watch) -> BenchRow:
    pairs = []
    for _ in range(PAIRS):
        with_s, _ = round_s("sim", ROUNDS, SETTLED, beside=watched_by)
        pairs.append((with_s, round_s("sim", ROUNDS, SETTLED)[0]))
    ratios = sorted(without / watched for watched, without in pairs)
    return BenchRow(
        name=name,
        ours_s=statistics.median(watched for watched, _ in pairs),
        peer="no page",
        peer_s=statistics.median(without for _, without in pairs),
        ratio=statistics.median(ratios),
        note=f"rounds/s with a page over those without, median of {PAIRS} pairs ({ratios[0]:.3f} to {ratios[-1]:.3f})",
    )


@contextmanager
def read(folder: Path) -> Iterator[None]:
    """Serve a run's page, and read its events in a process of its own."""
    with _page(folder) as url:
        reader = subprocess.Popen([sys.executable, "-c", _READ, f"{url}events"], stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            reader.kill()
            reader.wait()


@contextmanager
def never_read(folder: Path) -> Iterator[None]:
    """Serve a run's page, and ask for its events without reading them."""
    with _page(folder) as url:
        host, port = str(urlsplit(url).hostname), int(urlsplit(url).port or 0)
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asking.connect((host, port))
            asking.sendall(f"GET /events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
            yield


@contextmanager
def _page(folder: Path) -> Iterator[str]:
    said: queue.Queue[str] = queue.Queue()
    with Beside(said.put) as page:
        page.start(folder)
        yield said.get(timeout=_START_S).removeprefix("live: ")
