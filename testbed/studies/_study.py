"""What a study collects while it runs, and how it spreads its work."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from testbed.core.errors import InputError, TestbedError

T = TypeVar("T")
R = TypeVar("R")


class Study:
    """Figures, tables and claims of one run of a study.

    `quick`: under a minute on two cores, with fewer points but the same claims.
    """

    def __init__(self, name: str, paper: str, quick: bool, scheduler: str | None = None) -> None:
        self.name, self.paper, self.quick = name, paper, quick
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
        """Add a claim: what is said, the paper's number, ours, and whether it holds.

        `must_hold`: the study fails where it does not (a property of our own code, not of the paper's prose).
        """
        row = {"claim": claim, "paper": paper, "measured": _plain(measured), "holds": bool(holds)}
        self._claims.append({**row, "must_hold": must_hold})

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return function(item) of every item, in order, computed on all cores or by the Dask scheduler.

        `function` and the items are sent to other processes: module-level functions and plain data.
        """
        todo = list(items)
        if self._scheduler is not None:
            pool = self._pool = self._pool or _dask(self._scheduler)
            return list(pool.gather(pool.map(function, todo, pure=False)))
        workers = min(os.cpu_count() or 1, len(todo))
        if workers < 2:
            return [function(item) for item in todo]
        if self._pool is None:
            # spawned, not forked: torch's threads do not survive a fork
            self._pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread)
        return list(self._pool.map(function, todo))

    def results(self, seconds: float) -> dict[str, Any]:
        """Return what results.json holds."""
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
                self._pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    """Keep every worker to one core: BLAS and torch threads of two workers would only fight for them."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _dask(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as exc:
        raise InputError("--scheduler needs Dask: pip install 'ris-skg-testbed[cluster]'") from exc
    try:
        return Client(address, timeout="10s")
    except (OSError, ValueError) as exc:
        raise TestbedError(f"--scheduler {address}: no Dask scheduler answers there ({exc})") from exc


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
