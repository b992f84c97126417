"""The windows in which to search for frames, in a capture of a transmitter that repeats one frame. Pure.

The receiver does not know where in the repetition its capture begins. A capture of a single round has frames without
gaps; in that of a train, one frame follows the other by a known period, and the train's rounds are as many of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from testbed.core.types import IqBlock

PERIODS = 3
"""How many periods of a repeated frame are captured for a single round."""
LONGEST_CAPTURE = 4_000_000
"""Largest number of samples in one capture, over all antennas: drivers and the simulated air accept no more, nor does
the kernel of a Pluto."""
_CRYSTALS = 100e-6
"""Largest difference of two sample clocks that is allowed for between one frame and another: crystals of ±25 ppm, and
twice as much again."""


def repeated_windows(block: IqBlock, period: int) -> Iterator[IqBlock]:
    """Yield the parts of a block of `PERIODS` periods (samples) in which to look for one frame, in this order.

    A window of a little more than two periods begins anywhere in the frame, so that it contains one whole frame and
    parts of two others. If almost all of the second frame is in the window, a receiver may find that one and reject it
    because its end is missing; in the next window, half a period later, that frame is complete.
    """
    for skip in (0, period // 2):
        window = block.samples[:, skip : skip + 2 * period + period // 8]
        yield replace(block, samples=window, time_s=block.time_s + skip / block.sample_rate_hz)


@dataclass(frozen=True, slots=True)
class FrameTrain:
    """Frames of `frame` samples, sent again every `period` samples, of which one capture contains `count` whole ones.

    >>> FrameTrain(frame=360, period=4000, count=8).n_samples
    32450
    """

    frame: int
    period: int
    count: int

    @property
    def margin(self) -> int:
        """How many samples earlier and later than expected a frame is looked for, less than a preamble has."""
        return self.frame // 8

    @property
    def n_samples(self) -> int:
        """Return the length of a capture that contains `count` whole frames with margins, wherever it begins."""
        return self.count * self.period + self.frame + 2 * self.margin

    @property
    def together(self) -> int:
        """How many frames in a row may be looked for before the next ones are expected by one that was found: until the
        clocks may be apart by half the margin."""
        return max(1, int(self.margin / 2 / (_CRYSTALS * self.period)))

    def searched(self, block: IqBlock) -> Iterator[IqBlock]:
        """Yield the parts of a capture in which to look for a first frame: each contains a whole one, and begins half a
        period after the one before, so that where almost a second frame is in one of them, it is not in the next."""
        length = self.period + self.frame + self.margin
        for i in range(2 * self.count - 1):
            yield _part(block, i * self.period // 2, length)

    def first_of(self, arrival: float) -> tuple[int, float]:
        """Return which of the `count` frames begins at `arrival` (in samples of the capture), from 0 on, and when the
        first one does: as early as possible, a margin after the capture's start at least."""
        number = min(max(int((arrival - self.margin) // self.period), 0), self.count - 1)
        return number, arrival - number * self.period

    def window(self, block: IqBlock, arrival: float) -> IqBlock:
        """Return the part of a capture in which to look for the frame that should begin at `arrival`."""
        length = self.frame + 2 * self.margin
        start = min(max(int(arrival) - self.margin, 0), block.samples.shape[1] - length)
        return _part(block, start, length)

    def runs(self, known: int) -> Iterator[list[int]]:
        """Yield all frames in lists that may be looked for together, nearest first, from frame `known` on: those after
        it, then those before."""
        for numbers in (range(known, self.count), range(known - 1, -1, -1)):
            for i in range(0, len(numbers), self.together):
                yield list(numbers[i : i + self.together])


def _part(block: IqBlock, start: int, length: int) -> IqBlock:
    samples = block.samples[:, start : start + length]
    return replace(block, samples=samples, time_s=block.time_s + start / block.sample_rate_hz)
