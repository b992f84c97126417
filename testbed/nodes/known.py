"""What Alice's node keeps on its own disk of every block of a run, so that a later life of it knows what others may
know of earlier strings. Pure.

Before anything of a block is published, its CSI is kept (`Begun`); when its length is decided, what Eve reported
(`Decided`). The files are as secret as keys are: a key follows from them and the public discussion. They are deleted
when the run ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np

from testbed.core.outcomes import HeardSeries
from testbed.core.types import CsiSeries


class Begun(msgspec.Struct, frozen=True, tag=True):
    """A block whose discussion, or training, begins now."""

    block: int
    first: int
    """The first block of the run that this node knows of; blocks before it are unknown to it."""
    shape: tuple[int, ...]
    """Of `h`: (probe, rx antenna, tx antenna, subcarrier)."""
    h: bytes
    """Little-endian complex64."""
    rounds: bytes
    """(probe,) little-endian int64."""
    subcarrier_hz: bytes
    """(subcarrier,) little-endian float64."""

    @property
    def series(self) -> CsiSeries:
        return CsiSeries(
            h=np.frombuffer(self.h, "<c8").reshape(self.shape),
            rounds=np.frombuffer(self.rounds, "<i8").astype(np.int64),
            subcarrier_hz=np.frombuffer(self.subcarrier_hz, "<f8").astype(np.float64),
        )


class Decided(msgspec.Struct, frozen=True, tag=True):
    """A block whose length is decided now: its share of ε is spent."""

    block: int
    heard: tuple[HeardSeries, ...] = ()
    """What Eve's node reported until then."""


def begun(block: int, first: int, series: CsiSeries) -> Begun:
    """Return what is kept of a block before it is discussed."""
    return Begun(
        block, first, series.h.shape, np.ascontiguousarray(series.h, "<c8").tobytes(),
        np.ascontiguousarray(series.rounds, "<i8").tobytes(),
        np.ascontiguousarray(series.subcarrier_hz, "<f8").tobytes(),
    )  # fmt: skip


def encode(part: Begun | Decided) -> bytes:
    return msgspec.msgpack.encode(part)


def decode(data: bytes) -> Begun | Decided:
    """Raises ValueError where the data are none of these, or do not go together."""
    part = msgspec.msgpack.decode(data, type=Begun | Decided)
    if isinstance(part, Begun):
        _ = part.series
    return part


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier life of this node has kept of a run, blocks ascending."""

    begun: tuple[Begun, ...]
    decided: tuple[Decided, ...]

    @classmethod
    def of(cls, parts: Iterable[Begun | Decided]) -> Past:
        parts = sorted(parts, key=lambda part: part.block)
        return cls(tuple(p for p in parts if isinstance(p, Begun)), tuple(p for p in parts if isinstance(p, Decided)))

    @property
    def first(self) -> int:
        """The first block that is known of; 0 where nothing was discussed before."""
        return max((b.first for b in self.begun), default=0)
