"""Performance figures, each as a ratio to a peer measured in the same run. One module a topic, each with `run()`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextvars import ContextVar
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


Progress = Callable[[float, str], None]
"""A function that is called with the share that is done, 0 to 1, and what was measured last."""
_inside: ContextVar[Callable[[float | None, str], None]] = ContextVar("inside", default=lambda share, what: None)


def tell(share: float | None, what: str) -> None:
    """Report from inside a benchmark that `share` (0 to 1) of it is done, and what comes next or was found last.

    None: the share is as before, or not known.
    """
    _inside.get()(share, what)


def names() -> list[str]:
    """Return the names that `run` accepts: the modules of this folder and installed ones (`testbed.benchmarks`)."""
    return registry.names("benchmarks")


def run(name: str | None = None, progress: Progress = lambda share, what: None) -> list[BenchRow]:
    """Run one benchmark, or all; raises InputError naming the accepted ones.

    `progress` is called after each benchmark, and with what a benchmark says by `tell` while it goes on.
    """
    rows: list[BenchRow] = []
    modules = [name] if name is not None else names()
    for done, module in enumerate(modules):
        token = _inside.set(_Inside(module, done, len(modules), progress).tell)
        try:
            rows += registry.find("benchmarks", module).run()
        finally:
            _inside.reset(token)
        progress((done + 1) / len(modules), module)
    return rows


class _Inside:
    """Turns the shares of one benchmark into those of all."""

    def __init__(self, module: str, done: int, of: int, progress: Progress) -> None:
        self._module, self._done, self._of, self._progress = module, done, of, progress
        self._share = 0.0

    def tell(self, share: float | None, what: str) -> None:
        self._share = self._share if share is None else share
        self._progress((self._done + self._share) / self._of, f"{self._module}: {what}")


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
    times = []
    for i in range(n_pairs):
        times.append((_seconds(ours), _seconds(peer)))
        tell(None, f"pair {i + 1} of {n_pairs}")
    return (
        statistics.median(a for a, _ in times),
        statistics.median(b for _, b in times),
        statistics.median(b / a for a, b in times),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
