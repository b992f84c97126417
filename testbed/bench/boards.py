"""Boards through their production drivers against their twins: patterns per second, against what the wire allows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from testbed.bench import BenchRow
from testbed.core import patterns, registry
from testbed.core.world import DriverContext

PATTERNS = 200
_BYTES = {True: 68 + 4 + 9 + 68, False: 68 + 4}
"""On the wire for one pattern, replies included, read back or not."""


def run() -> list[BenchRow]:
    """Apply patterns to an emulated OpenSourceRIS board over a paced pty, with and without reading them back."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        context = DriverContext(seed=1, world=None, identity=None, state_dir=Path(folder))
        twin = registry.load_driver("worlds", "sim").emulate("ris", "opensourceris", context, {})
        try:
            for verify, n_bytes in _BYTES.items():
                with registry.load_driver("boards", "opensourceris")(
                    "ris", context, uri=twin.uri, verify=verify
                ) as board:
                    wanted = [patterns.make(f"random({i})", board.shape, board.phase_bits) for i in range(PATTERNS)]
                    board.apply(wanted[0])
                    cpu_s, begin_s = time.thread_time(), time.perf_counter()
                    for pattern in wanted:
                        board.apply(pattern)
                    each_s = (time.perf_counter() - begin_s) / PATTERNS
                    cpu_s = (time.thread_time() - cpu_s) / PATTERNS
                wire_s = n_bytes * 10 / 115200
                note = f"{1 / each_s:.0f} patterns/s, driver CPU {cpu_s * 1e6:.0f} µs a pattern, apply to applied"
                name = "opensourceris, " + ("read back" if verify else "not read back")
                rows.append(
                    BenchRow(name=name, ours_s=each_s, peer="the wire", peer_s=wire_s, ratio=wire_s / each_s, note=note)
                )
        finally:
            twin.close()
    return rows
