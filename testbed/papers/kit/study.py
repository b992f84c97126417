"""The results that a study collects while it runs, and the distribution of its work."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from testbed.core.threads import one_thread_when_loaded
from testbed.lab import cluster

T = TypeVar("T")
R = TypeVar("R")


class Study:
    """Figures, tables and claims of one run of a study.

    `quick`: under a minute on two cores, with fewer points but the same claims.
    """

    def __init__(
        self,
        name: str,
        paper: str,
        quick: bool,
        scheduler: str | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`say` is called with the study's progress, a line at a time."""
        self.name, self.paper, self.quick = name, paper, quick
        self._say, self._began_s, self._said_s, self._maps = say, time.monotonic(), 0.0, 0
        self.parameters: dict[str, Any] = {}
        self._figures: dict[str, Any] = {}
        self._tables: dict[str, Any] = {}
        self._claims: list[dict[str, Any]] = []
        self._scheduler = scheduler
        self._pool: Any = None

    def figure(
        self,
        name: str,
        title: str,
        x: Sequence[float] | np.ndarray,
        x_label: str,
        y_label: str,
        curves: Mapping[str, Any],
        errors: Mapping[str, Any] | None = None,
        log_y: bool = False,
        log_x: bool = False,
    ) -> None:
        """Add a figure: curves (x,) over x (x,), with standard errors (x,) where there are several seeds."""
        self._figures[name] = {
            "title": title, "x": _plain(x), "x_label": x_label, "y_label": y_label,
            "curves": {k: _plain(v) for k, v in curves.items()},
            "errors": {k: _plain(v) for k, v in (errors or {}).items()},
            "log_x": log_x, "log_y": log_y,
        }  # fmt: skip

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add a table: rows of the same columns."""
        self._tables[name] = [{k: _plain(v) for k, v in row.items()} for row in rows]

    def claim(self, claim: str, paper: float | str | None, measured: Any, holds: bool, must_hold: bool = False) -> None:
        """Add a claim: its text, the paper's number, ours, and whether it holds.

        `must_hold`: the study fails if the claim does not hold. Use it for a property of our own code, not for a
        statement of the paper.
        """
        row = {"claim": claim, "paper": paper, "measured": _plain(measured), "holds": bool(holds)}
        self._claims.append({**row, "must_hold": must_hold})

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return function(item) of every item, in order, computed on all cores or by the Dask scheduler.

        `function` and the items are sent to other processes: module-level functions and plain data.
        """
        todo = list(items)
        self._maps += 1
        if self._scheduler is not None:
            pool = self._pool = self._pool or cluster.connect(self._scheduler)
            from distributed import as_completed as as_finished

            return self._gathered(pool.map(function, todo, pure=False), as_finished)
        workers = os.cpu_count() or 1
        if min(workers, len(todo)) < 2:
            out = []
            for item in todo:
                out.append(function(item))
                self._tell(len(out), len(todo))
            return out
        if self._pool is None:
            # spawned, not forked: torch's threads do not survive a fork; at most one process for each item
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), _leave_ctrl_c)
        with one_thread_when_loaded():  # workers are started when they get work
            futures = [self._pool.submit(function, item) for item in todo]
        return self._gathered(futures, as_completed)

    def _gathered(self, futures: list[Any], in_order_of_end: Callable[[list[Any]], Iterable[Any]]) -> list[Any]:
        for done, future in enumerate(in_order_of_end(futures), start=1):
            future.result()  # an error ends the study at once
            self._tell(done, len(futures))
        return [future.result() for future in futures]

    def _tell(self, done: int, of: int) -> None:
        """Report the share of a step that is done, about once a second."""
        now_s = time.monotonic()
        if done == of or now_s >= self._said_s + 1.0:
            self._said_s = now_s
            self._say(f"{self.name}: step {self._maps}: {done} of {of} done, {now_s - self._began_s:.0f} s")

    def results(self, seconds: float) -> dict[str, Any]:
        """Return the content of results.json."""
        return {
            "study": self.name, "paper": self.paper, "quick": self.quick,
            "parameters": {k: _plain(v) for k, v in self.parameters.items()}, "seconds": round(seconds, 2),
            "figures": self._figures, "tables": self._tables, "claims": self._claims,
        }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._pool is not None:
            if self._scheduler is not None:
                self._pool.close()
            else:
                if exc is not None:  # nobody wants what the workers compute, which may take minutes
                    for worker in [*(self._pool._processes or {}).values()]:
                        worker.terminate()
                self._pool.shutdown(cancel_futures=True)


def _leave_ctrl_c() -> None:
    """Leave Ctrl-C, which a terminal sends to every process of the command, to the process that ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _plain(value: Any) -> Any:
    """Return plain JSON values: arrays as lists, numbers that are not finite as None."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value
