"""Reads HDF5 files that somebody else may have written: the library reads and writes beyond its memory on some damaged
ones, which ends the process without a word. So a fork of this process reads first."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LIMIT_S = 600
"""Longest time that a file's reading may take."""


def survived(read: Callable[[], T]) -> T:
    """Return what `read` gives; raises ValueError where reading would end this process, and what `read` raises.

    `read` opens the file itself, as no open file of the library may be shared with a fork.
    """
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_LIMIT_S)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the last words of the C library
            read()
        except BaseException:  # of any kind: it comes again, and is told, when this process reads
            pass
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        raise ValueError(f"damaged: reading it ends a process ({signal.Signals(os.WTERMSIG(status)).name})")
    return read()
