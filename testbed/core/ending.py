"""The end of a process without the part of it that takes long: an interpreter that ends frees all of its memory first,
object by object, which takes 0.1 to 0.2 s of processor time once large libraries are loaded."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from typing import NoReturn


def end(status: int) -> NoReturn:
    """End this process: wait for its threads, call what is registered for its end, write what waits to be written."""
    # As the interpreter itself does it: pools of threads are told first that no work will come, for which they wait.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it
            stream.flush()
    os._exit(status)


def is_watched() -> bool:
    """Return whether a debugger or a profiler follows this process, which needs the interpreter's own end."""
    return sys.gettrace() is not None or sys.getprofile() is not None
