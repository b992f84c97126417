"""When memory is collected, and returned to the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterator, Mapping

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
    collect_seldom()
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


KEPT_BYTES: Mapping[int, int] = {-1: 64 << 20, -3: 32 << 20}
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of Linux's C library: the values at which it arrives by itself where arrays of
32 MiB are freed. Arrays of a train are smaller, and without this each train's are returned to the system and requested
anew."""


def keep_freed() -> None:
    """Have the C library keep freed memory for its next use, up to limits, as long as this process lives.

    A new page of 4 kB from the system takes up to 7 µs, more than the computation on it. Does nothing with another C
    library.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for parameter, n_bytes in KEPT_BYTES.items():
            library.mallopt(parameter, n_bytes)


def collect_seldom() -> None:
    """Have Python look less often for objects that are unreachable, as long as this process lives."""
    gc.set_threshold(_SELDOM, *gc.get_threshold()[1:])


def give_back() -> None:
    """Return freed memory to the system, after work that needed much of it for a short time.

    The C library of Linux keeps freed memory for its next use: after it had decided the length of one key, Alice's
    process held 550 MB, of which 90 MB were in use. Does nothing with another C library. Objects that refer to one
    another are collected before that, because Python itself may wait for long before it does so.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
