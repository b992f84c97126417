"""Input (events) and output (instructions to the daemon) of a node's state machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from testbed.core.types import CsiFrame, Key
from testbed.net import messages as m
from testbed.nodes.known import Begun, Decided, Past

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Received:
    """A message from the coordinator arrived."""

    body: Any


@dataclass(frozen=True, slots=True)
class Discussed:
    """A message of the public discussion arrived: the peer's, or for Eve that of either end."""

    envelope: m.PublicEnvelope


@dataclass(frozen=True, slots=True)
class ModelFound:
    """The node's folder holds a model of the run that it was just welcomed to: it was trained before a restart."""

    model: bytes


@dataclass(frozen=True, slots=True)
class PastFound:
    """The node's folder holds what an earlier life of Alice's kept of the run that she was just welcomed to."""

    past: Past


@dataclass(frozen=True, slots=True)
class ProbeDone:
    """The device has done the slots of a train, and the CSI is estimated."""

    reports: list[m.Probed]
    """One, or several where one would be too large."""
    csi: dict[int, dict[str, CsiFrame]]
    """By round and role of the transmitter."""


@dataclass(frozen=True, slots=True)
class DeviceDone:
    """A device operation whose report is sent on unchanged (settings accepted, clock read, pattern applied)."""

    report: Any


@dataclass(frozen=True, slots=True)
class DeviceFault:
    """A device operation failed."""

    operation: str
    detail: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""

    now_s: float


# ---------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Report:
    """Send a message to the coordinator."""

    body: Any


@dataclass(frozen=True, slots=True)
class Publish:
    """Send a message to the public discussion. Where Alice's node sends it, `index` is its place in the transcript."""

    envelope: m.PublicEnvelope
    to_peer: bool
    """False: the peer sent it; it is only published for the listeners."""


@dataclass(frozen=True, slots=True)
class Operate:
    """Carry out this order with the device."""

    body: m.Configure | m.ReadClock | m.Apply | m.ApplyNext | m.Schedule | m.ReadSurface | m.Probe | m.Step


@dataclass(frozen=True, slots=True)
class StoreKey:
    """Write a verified key into the node's key store."""

    key: Key


@dataclass(frozen=True, slots=True)
class DropKey:
    """Delete the key of a block where one is kept: the other end has none, or none that is known of."""

    block: int


@dataclass(frozen=True, slots=True)
class StoreKnown:
    """Keep this for a restart within this run, before anything that follows in the list is said."""

    part: Begun | Decided


@dataclass(frozen=True, slots=True)
class ForgetKnown:
    """Delete what was kept of this run: it is over."""


@dataclass(frozen=True, slots=True)
class SealKeys:
    """Delete no key of this run any more, whoever orders it: the run has ended well."""


@dataclass(frozen=True, slots=True)
class StorePool:
    """Write what is left of the node's pool of one-time authentication before any later instruction is carried out."""

    pool: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoreModel:
    """Keep the result of the training, for a restart within this run."""

    model: bytes


@dataclass(frozen=True, slots=True)
class Silence:
    """Silence the transmitter."""


@dataclass(frozen=True, slots=True)
class Exit:
    """End the process with this status."""

    code: int
    reason: str


Event = Received | Discussed | ModelFound | PastFound | ProbeDone | DeviceDone | DeviceFault | Tick
Instruction = (
    Report | Publish | Operate | StoreKey | DropKey | SealKeys | StoreKnown | ForgetKnown | StorePool | StoreModel
    | Silence | Exit
)  # fmt: skip


class OrderRefused(Exception):
    """The node cannot do what the coordinator orders; it reports the reason and goes on. Never leaves the machine."""
