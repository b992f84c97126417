"""Reads HDF5 files that somebody else may have written: the library reads and writes beyond its memory on some damaged
ones, which ends the process without a word. So a fork of this process reads first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from testbed.core.forks import ChildLost, forked

T = TypeVar("T")
_LIMIT_S = 600.0
"""Longest time that a file's reading may take."""


def survived(read: Callable[[], T]) -> T:
    """Return what `read` gives; raises ValueError where reading would end this process, and what `read` raises.

    `read` opens the file itself, as no open file of the library may be shared with a fork. An OSError says that this
    process may not fork, or has no file number left.
    """

    def try_it() -> bytes:
        with contextlib.suppress(BaseException):  # of any kind: it comes again, and is told, when this process reads
            read()
        return b""  # and nothing of what was read: a damaged file may have changed anything in the child

    try:
        forked([try_it], _LIMIT_S, silent=True)
    except ChildLost as exc:
        raise ValueError(f"damaged: reading it ends a process ({exc.by or exc})") from None
    return read()
