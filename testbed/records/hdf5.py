"""Reads HDF5 files that somebody else may have written: the library reads and writes beyond its memory on some damaged
ones, which ends the process without a word. So a fork of this process reads first."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
from collections.abc import Callable
from typing import NoReturn, TypeVar

T = TypeVar("T")
_BEGUN, _ENDED = b"b", b"e"
_LIMIT_S = 600
"""Longest time that a file's reading may take."""


def survived(read: Callable[[], T]) -> T:
    """Return what `read` gives; raises ValueError where reading would end this process, and what `read` raises.

    `read` opens the file itself, as no open file of the library may be shared with a fork. An OSError says that this
    process may not fork, or has no file number left.
    """
    told, tell = os.pipe()
    try:
        child = os.fork()
        if not child:
            _try(read, tell)
        os.close(tell)
        tell = -1
        words, status = b"", 0
        while more := os.read(told, 2):
            words += more
        with contextlib.suppress(ChildProcessError):  # where the ends of children are ignored
            status = os.waitpid(child, 0)[1]
    finally:
        os.close(told)
        if tell >= 0:
            os.close(tell)
    if words == _BEGUN:
        by = f" ({signal.Signals(os.WTERMSIG(status)).name})" if os.WIFSIGNALED(status) else ""
        raise ValueError(f"damaged: reading it ends a process{by}")
    if not words:
        raise OSError("a process that was to read it first could not begin")
    return read()


def _try(read: Callable[[], object], tell: int) -> NoReturn:
    """Read in the child, and tell when that begins and when it ended."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_LIMIT_S)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the last words of the C library
        os.write(tell, _BEGUN)
        with contextlib.suppress(BaseException):  # of any kind: it comes again, and is told, when this process reads
            read()
        os.write(tell, _ENDED)
    finally:
        os._exit(0)
