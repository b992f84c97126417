"""Limits numerical libraries to one thread, so that daemons do not compete for cores and results do not depend on them.

With several threads, the terms of a matrix product are added in another order, so that the last bits differ.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Environment variables that libraries read when they are loaded."""
_MAPS = Path("/proc/self/maps")
"""Linux: the libraries that this process has loaded."""


@contextmanager
def one_thread_when_loaded() -> Iterator[None]:
    """Limit libraries that are loaded in the block, and processes that are started in it, to one thread."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit this process to one thread, and restore the earlier limits afterwards.

    Of the libraries that are loaded already, only OpenBLAS (the one of numpy and scipy) is limited, and only on Linux.
    """
    with one_thread_when_loaded(), ExitStack() as stack:
        for count, limit in _loaded_blas():
            stack.callback(limit, count())
            limit(1)
        yield


def limit_to_one() -> None:
    """Limit this process to one thread for good, as a process that was started with `ONE_THREAD`; see `one_thread`."""
    os.environ.update(ONE_THREAD)
    for _, limit in _loaded_blas():
        limit(1)


def _loaded_blas() -> Iterator[tuple[Callable[[], int], Callable[[int], None]]]:
    """Yield what returns and what sets the number of threads of each OpenBLAS that is loaded."""
    if not _MAPS.exists():
        return
    lines = (line.split(maxsplit=5) for line in _MAPS.read_text(errors="replace").splitlines())
    paths = {fields[5] for fields in lines if len(fields) == 6 and "openblas" in Path(fields[5]).name}
    for path in sorted(paths):
        library = ctypes.CDLL(path)
        for name in ("{}openblas_{}_num_threads" + end for end in ("64_", "")):
            for prefix in ("scipy_", ""):
                if hasattr(library, name.format(prefix, "set")):
                    yield getattr(library, name.format(prefix, "get")), getattr(library, name.format(prefix, "set"))
