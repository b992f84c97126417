"""Input (events) and output (instructions to the daemon) of a node's state machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from testbed.core.types import CsiFrame, Key
from testbed.net import messages as m
from testbed.nodes.known import Past, Stored

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
    """The node's folder holds a model, trained before a restart, of the run to which the node was just welcomed."""

    model: bytes


@dataclass(frozen=True, slots=True)
class PastFound:
    """The folder of Alice or Bob holds data that an earlier process of the node stored of the run to which it was just
    welcomed."""

    past: Past


@dataclass(frozen=True, slots=True)
class ProbeDone:
    """The device has finished the slots of a train, and the CSI is estimated."""

    reports: list[m.Probed]
    """One report, or several where one message would be too large."""
    csi: dict[int, dict[str, CsiFrame]]
    """CSI by round and role of the transmitter."""


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
    """Publish a message in the discussion. If Alice's node publishes it, `index` is its place in the transcript."""

    envelope: m.PublicEnvelope
    to_peer: bool
    """Whether the message is sent to the peer; False: the peer sent it, and only the listeners get it."""


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
    """Delete the key of a block if one is stored: the other end has none, or it is unknown whether it has one."""

    block: int


@dataclass(frozen=True, slots=True)
class StoreKnown:
    """Store this for a restart within the run, before any later instruction of the list is carried out."""

    part: Stored


@dataclass(frozen=True, slots=True)
class ForgetKnown:
    """Delete what was stored for a restart within this run, because the run is over."""


@dataclass(frozen=True, slots=True)
class KeepKeys:
    """Mark the keys of these blocks as those that both ends have; whoever orders it later, they are not deleted."""

    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StorePool:
    """Write what is left of the node's pool of one-time authentication before any later instruction is carried out."""

    pool: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoreModel:
    """Store the trained model, for a restart within this run."""

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
    Report | Publish | Operate | StoreKey | DropKey | KeepKeys | StoreKnown | ForgetKnown | StorePool | StoreModel
    | Silence | Exit
)  # fmt: skip


class OrderRefused(Exception):
    """The node cannot carry out an order. It reports the reason and goes on. The state machine catches this error."""
