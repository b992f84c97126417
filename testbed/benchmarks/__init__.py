"""Performance figures, each as a ratio to a peer measured in the same run. One module a topic, each with `run()`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from testbed.core import registry

if TYPE_CHECKING:
    from testbed.benchmarks._endurance import Endured


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One figure, as `testbed bench --json` prints it."""

    name: str
    ours_s: float
    peer: str
    """What ours is compared with."""
    peer_s: float
    ratio: float
    """peer_s / ours_s: above 1, ours is faster."""
    note: str
    """The figure in its own unit, and what was measured."""


def names() -> list[str]:
    """Return the names that `run` accepts: the modules of this folder and installed ones (`testbed.benchmarks`)."""
    return registry.names("benchmarks")


def run(name: str | None = None, progress: Callable[[float, str], None] = lambda share, what: None) -> list[BenchRow]:
    """Run one benchmark, or all; raises InputError naming the accepted ones.

    `progress` receives the share that is done and what was measured last.
    """
    rows: list[BenchRow] = []
    modules = [name] if name is not None else names()
    for done, module in enumerate(modules, start=1):
        rows += registry.find("benchmarks", module).run()
        progress(done / len(modules), module)
    return rows


def endure(
    name: str, folder: Path, amount: int | None, seed: int, minutes: float | None, say: Callable[[str], None]
) -> Endured:
    """Run `soak` (`amount` rounds) or `kills` (`amount` kills) in an empty folder, no longer than `minutes`."""
    from testbed.benchmarks import _kills, _soak

    if name == "soak":
        return _soak.soak(folder, amount or _soak.ROUNDS, seed, minutes, say)
    return _kills.kills(folder, amount or _kills.KILLS, seed, minutes, say)


def interleaved(ours: Callable[[], object], peer: Callable[[], object], n_pairs: int) -> tuple[float, float, float]:
    """Run both in turn `n_pairs` times, after one unmeasured call each.

    Returns the medians of ours and of the peer in seconds, and the median of the pairs' ratios peer/ours: other load on
    the machine slows both of a pair.
    """
    ours()
    peer()
    times = [(_seconds(ours), _seconds(peer)) for _ in range(n_pairs)]
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(b / a for a, b in times),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
