"""Boards through their production drivers and their emulators: patterns per second, compared with the wire's limit.

There are two limits. If every command waits for its reply, the bytes of both add up (ten bits each, 8N1). If requests
are sent ahead (`apply_many` of ris595), both directions are in use at once and the busier one counts. The emulators run
in a process of their own, so the driver's CPU time excludes theirs. `1 ms adapter`: a USB adapter in its low-latency
mode delivers received bytes that much later, which delays every command that waits for its reply.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from testbed.benchmarks import BenchRow
from testbed.core import patterns, registry
from testbed.core.errors import TestbedError
from testbed.core.ris import Board
from testbed.core.types import SurfacePattern
from testbed.core.world import DriverContext

PATTERNS = 200
_LAPS = 5
_START_S = 60.0
_OSR, _OURS = "opensourceris", "ris595"
# driver, baud, adapter's latency in s, options, bytes on the wire for a pattern of 16×16 elements, per command and
# reply
_CASES: dict[str, tuple[str, int, float, dict[str, Any], int]] = {
    "opensourceris, read back": (_OSR, 115_200, 0.0, {"verify": True}, 68 + 4 + 9 + 69),
    "opensourceris, not read back": (_OSR, 115_200, 0.0, {"verify": False}, 68 + 4),
    "ris595, one by one": (_OURS, 500_000, 0.0, {}, 40 + 13 + 17),
    "ris595, by index, one by one": (_OURS, 500_000, 0.0, {}, 10 + 17),
    "ris595, many": (_OURS, 500_000, 0.0, {}, max(40, 13 + 17)),
    "ris595, by index, many": (_OURS, 500_000, 0.0, {}, max(10, 17)),
    "ris595, one by one, 1 ms adapter": (_OURS, 500_000, 1e-3, {}, 40 + 13 + 17),
    "ris595, many, 1 ms adapter": (_OURS, 500_000, 1e-3, {}, max(40, 13 + 17)),
}


def run() -> list[BenchRow]:
    """Apply patterns to emulated boards over paced ptys."""
    rows = []
    for name, (driver, baud, latency_s, options, n_bytes) in _CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            context = _context(folder)
            with (
                _twin(driver, folder, {"baud": baud, "latency_s": latency_s}) as uri,
                registry.load_driver("boards", driver)("ris", context, uri=uri, **options) as board,
            ):
                each_s, cpu_s, waited_s = _time(board, by_index="by index" in name, many="many" in name)
        wire_s = n_bytes * 10 / baud
        note = f"{1 / each_s:.0f} patterns/s at {baud} baud, driver CPU {cpu_s * 1e6:.0f} µs a pattern"
        if waited_s:
            note += f", apply to applied {1e3 * np.median(waited_s):.2f} ms (median), {1e3 * max(waited_s):.2f} at most"
        rows.append(
            BenchRow(name=name, ours_s=each_s, peer="the wire", peer_s=wire_s, ratio=wire_s / each_s, note=note)
        )
    return rows


def _time(board: Board, by_index: bool, many: bool) -> tuple[float, float, list[float]]:
    """Return seconds and CPU seconds of this thread for one pattern, and (one by one) the duration of each."""
    wanted = [patterns.make(f"random({i})", board.shape, board.phase_bits) for i in range(PATTERNS)]
    if by_index:
        board.upload(wanted)
    board.apply(wanted[0])
    steps: list[SurfacePattern | int] = list(range(PATTERNS)) if by_index else list(wanted)
    waited_s: list[float] = []
    cpu_s, begin_s = time.thread_time(), time.perf_counter()
    n = len(steps)
    if many:  # more of them, because the first and the last one do not overlap with others on the wire
        n = sum(1 for _ in board.apply_many(_LAPS * steps))
    else:
        for step in steps:
            began_s = time.perf_counter()
            if isinstance(step, SurfacePattern):
                board.apply(step)
            else:
                board.apply_index(step)
            waited_s.append(time.perf_counter() - began_s)
    return (time.perf_counter() - begin_s) / n, (time.thread_time() - cpu_s) / n, waited_s


def _context(folder: str) -> DriverContext:
    return DriverContext(seed=1, world=None, identity=None, state_dir=Path(folder) / "ris")


@contextmanager
def _twin(driver: str, folder: str, options: dict[str, Any]) -> Iterator[str]:
    """Yield the port of an emulator in another process."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(driver, folder, options, there), daemon=True)
    process.start()
    there.close()
    try:
        try:
            uri = here.recv() if here.poll(_START_S) else None
        except EOFError:
            uri = None
        if uri is None:
            raise TestbedError(f"bench boards: the emulator of {driver} did not start within {_START_S:g} s")
        yield uri
    finally:
        here.close()
        process.join(_START_S)


def _serve(driver: str, folder: str, options: dict[str, Any], there: Connection) -> None:
    twin = registry.load_driver("worlds", "sim").emulate("ris", driver, _context(folder), options)
    try:
        there.send(twin.uri)
        there.recv()
    except EOFError:
        pass  # the other process has finished
    finally:
        twin.close()
