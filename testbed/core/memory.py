"""When memory is collected, and returned to the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator

_SELDOM = 10_000
"""Number of new objects after which Python looks for unreachable ones; its default is 700."""


@contextlib.contextmanager
def collected_seldom() -> Iterator[None]:
    """Have Python look less often for objects that are unreachable, and not among those that exist already.

    A round makes hundreds of small objects, most of which are freed without any search. With Python's defaults, the
    search takes a fiftieth of the processor time of a round. Afterwards, all is as it was before.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def give_back() -> None:
    """Return freed memory to the system, after work that needed much of it for a short time.

    The C library of Linux keeps freed memory for its next use: after it had decided the length of one key, Alice's
    process held 550 MB, of which 90 MB were in use. Does nothing with another C library. Objects that refer to one
    another are collected before that, because Python itself may wait for long before it does so.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
