"""Reads and writes HDF5 files in a fork of this process first: the library reads and writes beyond its memory on some
damaged files, and also where the disk becomes full while it writes, which ends the process without a word."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from typing import TypeVar

from testbed.core.forks import ChildLost, forked
from testbed.core.gate import printable

T = TypeVar("T")
_LIMIT_S = 600.0
"""Longest time that a file's reading may take."""
_WRITES_WITHIN_S = 6 * 3600.0
"""Longest time that a file's writing may take: that of a week's record on a slow disk, beside other work."""


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


def written(write: Callable[[], None]) -> None:
    """Have `write`, which opens all of its files itself, write a file in a fork of this process.

    Raises OSError where it fails, in any way: on a full disk the library ends the process, or prints hundreds of lines.
    """

    def do() -> bytes:
        write()
        return b""

    try:
        forked([do], _WRITES_WITHIN_S, silent=True)
    except ChildLost as exc:
        raise OSError(errno.EIO, f"the process that writes it {printable(str(exc), 300)}") from None
