"""Input (events) and output (instructions to its shell) of the coordinator's state machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from testbed.core.outcomes import AgreeReport, EveReport, KeyReport, TrainReport
from testbed.core.types import SurfacePattern
from testbed.net import messages as m

FinishKind = Literal["stop", "abort", "halt"]
RunStatus = Literal["finished", "stopped", "failed"]


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Received:
    """A message of a node arrived; `incarnation` is that of the process that sent it."""

    node: str
    incarnation: str
    body: Any


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed; the first event of a run is one of these."""

    now_s: float


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """The launcher found that the process of a local node, or of the simulated air, has ended."""

    node: str
    detail: str
    is_final: bool = False
    """It is not started again."""


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The connection to a node's main loop was lost, or was made again."""

    node: str
    is_up: bool


@dataclass(frozen=True, slots=True)
class OrdersDropped:
    """So many orders for a node's present process were dropped, in all, because too many waited for it."""

    node: str
    orders: int


@dataclass(frozen=True, slots=True)
class KeyRefused:
    """A connection was refused because of a wrong key: that of the peer, or the peer's copy of the coordinator's."""

    detail: str


@dataclass(frozen=True, slots=True)
class VersionRefused:
    """Messages were refused because their sender speaks another version of the protocol."""

    detail: str


@dataclass(frozen=True, slots=True)
class DiskLow:
    """There is just enough disk space left to close the records, and no more came in time."""

    detail: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A person asked for the end of the run."""

    kind: FinishKind


@dataclass(frozen=True, slots=True)
class PauseAsked:
    """A person asked to pause the run, so that no round is begun, or to let it go on."""

    paused: bool


# ---------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a node."""

    node: str
    body: Any


@dataclass(frozen=True, slots=True)
class HaltNode:
    """Have a node silence its transmitter at once, even if its main loop is busy."""

    node: str


@dataclass(frozen=True, slots=True)
class WithdrawOrders:
    """Withdraw orders of rounds and patterns that have not reached the node."""

    node: str


@dataclass(frozen=True, slots=True)
class ResetWorld:
    """Put the experiment's scene into the simulated air (labs that have one)."""


@dataclass(frozen=True, slots=True)
class AdvanceWorld:
    """Let the simulated air's time advance to `until_s`: needed with radios that cannot time their samples."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Note:
    """Something for the record and the log."""

    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class NewPattern:
    """A pattern is ordered for the first time or again: record it."""

    pattern: SurfacePattern
    name: str
    """Name of the surface's state: the pattern's digest, or the opaque name of a secret one."""


@dataclass(frozen=True, slots=True)
class RoundOver:
    """A round was kept or rejected. A later event of the same number replaces this one: a kept round may be rejected
    after all.
    """

    round: int
    kept: bool
    reason: str | None
    surface: str | None
    start_s: float
    """Start on the reference timeline."""
    links: dict[str, list[m.LinkResult]]
    """Results by receiving node."""


@dataclass(frozen=True, slots=True)
class BlockOver:
    """A block is closed, with a key, without one, or with a trained enhancer."""

    block: int
    rounds: list[int]
    alice: AgreeReport | None
    bob: AgreeReport | None
    eve: EveReport | None
    key_alice: KeyReport | None
    key_bob: KeyReport | None
    failure: str | None
    raw: dict[str, bytes]
    """Raw bits by role (experiment mode)."""
    digests: dict[str, str]
    """Key digests by role (experiment mode)."""
    p_values: dict[str, float]
    """Randomness tests on Alice's key (experiment mode)."""
    training: bool = False
    """Whether the enhancer trained on these rounds; then all fields but `failure` and `trained` are empty."""
    trained: dict[str, TrainReport] = field(default_factory=dict)
    """By role."""


@dataclass(frozen=True, slots=True)
class RunOver:
    """The run is over; `detail` says why."""

    status: RunStatus
    detail: str


Event = (
    Received
    | Tick
    | ProcessEnded
    | LinkChanged
    | OrdersDropped
    | KeyRefused
    | VersionRefused
    | DiskLow
    | StopAsked
    | PauseAsked
)
Instruction = (
    Send | HaltNode | WithdrawOrders | ResetWorld | AdvanceWorld | Note | NewPattern | RoundOver | BlockOver | RunOver
)


@dataclass(frozen=True, slots=True)
class RunFails:
    """Tells the state machine that the run cannot go on. A part of the state returns it as its last effect; it is never
    handed to the shell.
    """

    detail: str


Effect = Instruction | RunFails
