"""The windows in which to search for a frame, in a capture of a transmitter that repeats it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from testbed.core.types import IqBlock

PERIODS = 3
"""How many periods of a repeated frame are captured."""


def repeated_windows(block: IqBlock, period: int) -> Iterator[IqBlock]:
    """Yield the parts of a block of `PERIODS` periods (samples) in which to look for one frame, in this order.

    A window of a little more than two periods begins anywhere in the frame, so that it contains one whole frame and
    parts of two others. If almost all of the second frame is in the window, a receiver may find that one and reject it
    because its end is missing; in the next window, half a period later, that frame is complete.
    """
    for skip in (0, period // 2):
        window = block.samples[:, skip : skip + 2 * period + period // 8]
        yield replace(block, samples=window, time_s=block.time_s + skip / block.sample_rate_hz)
