"""What Alice's node stores of every block of a run on its own disk, so that the node still knows after a restart what
others may know of earlier strings. Pure.

The CSI of a block is stored before anything of the block is published (`Begun`), and Eve's reports when the key's
length is decided (`Decided`). The files are as secret as keys are: a key follows from them and the public discussion.
They are deleted when the run ends.
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
    """The first block of the run that this node knows."""
    shape: tuple[int, ...]
    """Shape of `h`: (probe, rx antenna, tx antenna, subcarrier)."""
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
    """A block for which a key's length is decided now; its share of ε counts as spent."""

    block: int
    heard: tuple[HeardSeries, ...] = ()
    """What Eve's node has reported so far."""


def begun(block: int, first: int, series: CsiSeries) -> Begun:
    """Return what is stored of a block before it is discussed."""
    return Begun(
        block, first, series.h.shape, np.ascontiguousarray(series.h, "<c8").tobytes(),
        np.ascontiguousarray(series.rounds, "<i8").tobytes(),
        np.ascontiguousarray(series.subcarrier_hz, "<f8").tobytes(),
    )  # fmt: skip


def encode(part: Begun | Decided) -> bytes:
    return msgspec.msgpack.encode(part)


def decode(data: bytes) -> Begun | Decided:
    """Return the stored part; raises ValueError where the data are not one, or its sizes contradict one another."""
    part = msgspec.msgpack.decode(data, type=Begun | Decided)
    if isinstance(part, Begun):
        _ = part.series
    return part


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier process of this node has stored of a run, by ascending blocks."""

    begun: tuple[Begun, ...]
    decided: tuple[Decided, ...]

    @classmethod
    def of(cls, parts: Iterable[Begun | Decided]) -> Past:
        parts = sorted(parts, key=lambda part: part.block)
        return cls(tuple(p for p in parts if isinstance(p, Begun)), tuple(p for p in parts if isinstance(p, Decided)))

    @property
    def first(self) -> int:
        """The first known block; 0 where nothing was discussed before."""
        return max((b.first for b in self.begun), default=0)
