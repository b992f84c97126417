"""Boards through their production drivers against their twins: patterns per second, against what the wire allows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from testbed.bench import BenchRow
from testbed.core import patterns, registry
from testbed.core.ris import Board
from testbed.core.world import DriverContext

PATTERNS = 200
_OSR, _OURS = "opensourceris", "ris595"
# bytes on the wire for one pattern of 16×16 elements, replies included
_CASES = {
    "opensourceris, read back": (_OSR, 115_200, {"verify": True}, 68 + 4 + 9 + 68),
    "opensourceris, not read back": (_OSR, 115_200, {"verify": False}, 68 + 4),
    "ris595": (_OURS, 500_000, {}, 40 + 13 + 17),
    "ris595, by index": (_OURS, 500_000, {}, 10 + 17),
}


def run() -> list[BenchRow]:
    """Apply patterns to emulated boards over paced ptys."""
    rows = []
    for name, (driver, baud, options, n_bytes) in _CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            context = DriverContext(seed=1, world=None, identity=None, state_dir=Path(folder) / "ris")
            twin = registry.load_driver("worlds", "sim").emulate("ris", driver, context, {"baud": baud})
            try:
                with registry.load_driver("boards", driver)("ris", context, uri=twin.uri, **options) as board:
                    each_s, cpu_s = _time(board, by_index="index" in name)
            finally:
                twin.close()
        wire_s = n_bytes * 10 / baud
        note = (
            f"{1 / each_s:.0f} patterns/s at {baud} baud, driver CPU {cpu_s * 1e6:.0f} µs a pattern, apply to applied"
        )
        rows.append(
            BenchRow(name=name, ours_s=each_s, peer="the wire", peer_s=wire_s, ratio=wire_s / each_s, note=note)
        )
    return rows


def _time(board: Board, by_index: bool) -> tuple[float, float]:
    """Return seconds and CPU seconds of this thread for one pattern."""
    wanted = [patterns.make(f"random({i})", board.shape, board.phase_bits) for i in range(PATTERNS)]
    if by_index:
        board.upload(wanted)
    board.apply(wanted[0])
    cpu_s, begin_s = time.thread_time(), time.perf_counter()
    for i, pattern in enumerate(wanted):
        if by_index:
            board.apply_index(i)
        else:
            board.apply(pattern)
    return (time.perf_counter() - begin_s) / PATTERNS, (time.thread_time() - cpu_s) / PATTERNS
