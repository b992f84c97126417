"""What the nodes of Alice and Bob store of every block of a run on their own disks, for a restart within the run. Pure.

Alice's node still knows after a restart what others may know of earlier strings: the CSI of a block is stored before
anything of the block is published (`Begun`), and Eve's reports when the key's length is decided (`Decided`). These
files are as secret as keys are: a key follows from them and the public discussion. Bob's node stores only the number of
its latest block (`Numbered`). All of it is deleted when the record says that the run is over.
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


class Numbered(msgspec.Struct, frozen=True, tag=True):
    """Bob: the latest block that was begun; no other block may have its number."""

    block: int


Stored = Begun | Decided | Numbered


def begun(block: int, first: int, series: CsiSeries) -> Begun:
    """Return what is stored of a block before it is discussed."""
    return Begun(
        block, first, series.h.shape, np.ascontiguousarray(series.h, "<c8").tobytes(),
        np.ascontiguousarray(series.rounds, "<i8").tobytes(),
        np.ascontiguousarray(series.subcarrier_hz, "<f8").tobytes(),
    )  # fmt: skip


def encode(part: Stored) -> bytes:
    return msgspec.msgpack.encode(part)


def decode(data: bytes) -> Stored:
    """Return the stored part; raises ValueError where the data are not one, or its sizes contradict one another."""
    part = msgspec.msgpack.decode(data, type=Stored)
    if isinstance(part, Begun):
        _ = part.series
    return part


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier process of this node has stored of a run, by ascending blocks."""

    begun: tuple[Begun, ...]
    decided: tuple[Decided, ...]
    latest: int = -1
    """The highest number of a block that was begun; −1 where there was none."""

    @classmethod
    def of(cls, parts: Iterable[Stored]) -> Past:
        parts = sorted(parts, key=lambda part: part.block)
        return cls(
            tuple(p for p in parts if isinstance(p, Begun)),
            tuple(p for p in parts if isinstance(p, Decided)),
            max((p.block for p in parts), default=-1),
        )

    @property
    def first(self) -> int:
        """The first known block; 0 where nothing was discussed before."""
        return max((b.first for b in self.begun), default=0)
