"""A recorded run in memory, whether it was read from a journal or from lasting files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import C64, F64, I64, U8, CsiSeries, SurfacePattern
from testbed.records.documents import Block, Descriptor, Event, Start, Stop

Names = NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """All probes of one link, rounds ascending. Every array's first axis is the probe."""

    rounds: I64
    """(probe,) round numbers."""
    time_s: F64
    """(probe,) receiver's device time of the frame's first sample."""
    snr_db: F64
    """(probe,) mean over subcarriers."""
    cfo_hz: F64
    """(probe,) transmitter's carrier minus receiver's."""
    rssi_dbfs: F64
    """(probe,) received level relative to full scale, dB."""
    surface: Names
    """(probe,) digest of the acknowledged surface pattern, '' where there is none."""
    csi: C64 | None
    """(probe, rx antenna, tx antenna, subcarrier), NaN where a probe gave none; None where none was recorded."""


@dataclass(frozen=True, slots=True)
class RoundTable:
    """The outcome of every round, rounds ascending."""

    rounds: I64
    """(round,) numbers."""
    kept: NDArray[np.bool_]
    """(round,) whether it was kept."""
    reason: Names
    """(round,) why it was rejected, '' where it was kept."""
    surface: Names
    """(round,) digest, '' where there is none."""
    t0_s: F64
    """(round,) coordinator's time at which the round began."""


BitsKey = tuple[int, str, str]
"""(block, node, kind)."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """The contents of a run's folder."""

    folder: Path
    state: Literal["closed", "live", "killed"]
    """live: another process is writing it; killed: its process died and the journal has not been recovered."""
    start: Start
    descriptors: list[Descriptor]
    events: list[Event]
    stop: Stop | None
    links: dict[str, LinkRecord]
    """'tx>rx' → probes."""
    rounds: RoundTable
    patterns: dict[str, SurfacePattern]
    """digest → pattern, in the order of first use."""
    bits: dict[BitsKey, U8]
    blocks: list[Block]
    """By ascending number."""
    summary: dict[str, Any] | None
    files: dict[str, str] = field(default_factory=dict)
    """name → sha512, of a closed run."""

    @property
    def subcarrier_hz(self) -> F64 | None:
        """(subcarrier,) offsets from the carrier."""
        axis = self.start.subcarrier_hz
        return None if axis is None else np.asarray(axis, dtype=np.float64)

    def series(self, link: str) -> CsiSeries | None:
        """Return a link's CSI in the form that the key chain takes; None where the link or its CSI was not recorded."""
        record, axis = self.links.get(link), self.subcarrier_hz
        if record is None or record.csi is None or axis is None:
            return None
        return CsiSeries(h=record.csi, rounds=record.rounds, subcarrier_hz=axis)

    def node(self, role: str) -> str | None:
        """Return the name of the node with a role, by the lab file or, failing that, by its own name."""
        names = {name for link in self.links for name in link.split(">")} | set(self.start.lab.get("node", {}))
        return next((name for name in sorted(names) if self.start.role(name) == role), None)
