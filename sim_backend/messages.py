"""What devices and the World say to each other: one msgpack header, then at most one frame of raw samples or levels.

Times are ticks (`ticks.py`). Every request is answered by one `Reply` of the same id, but for `Declare`, which has no
answer, and `Transmit`, which may go without one unless it is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from testbed.core.gate import Gate

PROTOCOL = 4
MAX_SAMPLES = 1 << 22
"""Of one request, all antennas together: 32 MiB."""
MAX_PATTERNS = 1024
"""Of one schedule."""
MAX_WINDOWS = 4096
"""Of one request."""
MAX_HEADER_BYTES = 1 << 20
"""A scene is the longest."""
MAX_FRAME_BYTES = 8 * MAX_SAMPLES + 1024
"""The longest frame on the wire: samples."""

Id = Annotated[int, Meta(ge=0, le=(1 << 53))]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,43}$(?!\n)")]
"""Of a node, with what an emulated device puts behind it (`-tx`)."""
Session = Annotated[str, Meta(pattern=r"^[0-9a-f]{0,32}$(?!\n)")]
Tick = Annotated[int, Meta(ge=-(1 << 61), le=1 << 61)]
Count = Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
Carrier = Annotated[float, Meta(ge=1e3, le=1e12)]
Rate = Annotated[float, Meta(ge=1e3, le=1e11)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Direction = Annotated[float, Meta(ge=-1e6, le=1e6)]


class _Request(Struct, forbid_unknown_fields=True, kw_only=True):
    id: Id
    session: Session = ""
    """From the answer to Attach."""


class Attach(_Request, tag="attach", kw_only=True):
    protocol: Id
    name: Name
    kind: Literal["radio", "board"]


class Detach(_Request, tag="detach", kw_only=True):
    pass


class Now(_Request, tag="now", kw_only=True):
    pass


class Tune(_Request, tag="tune", kw_only=True):
    place: Name
    carrier_hz: Carrier
    sample_rate_hz: Rate
    turnaround_s: Annotated[float, Meta(ge=0, le=3600)]
    free: bool = False
    """It starts and stops whenever it likes and cannot promise anything: nobody waits for it."""
    n_antennas: Annotated[int, Meta(ge=1, le=64)] = 1
    spacing_wavelengths: Annotated[float, Meta(gt=0, le=1e6)] = 0.5
    axis: tuple[Direction, Direction, Direction] = (1.0, 0.0, 0.0)


class Transmit(_Request, tag="transmit", kw_only=True):
    """Payload: complex64 (antenna, sample) in √mW."""

    start: Tick
    shift: Tick = 0
    cyclic: bool = False
    answer: bool = True
    """False: answer only where it is refused."""
    seed: Seed
    """Of the world that the samples were made for."""


class Receive(_Request, tag="receive", kw_only=True):
    """Answered by complex64 (antenna, sample) in √mW."""

    start: Tick
    shift: Tick = 0
    n_samples: Count
    timeout_s: Annotated[float, Meta(gt=0, le=3600)]
    seed: Seed
    """Of the world whose samples are wanted."""


class Window(Struct, forbid_unknown_fields=True, kw_only=True):
    """One reception of several."""

    start: Tick
    shift: Tick = 0
    n_samples: Count


class ReceiveMany(_Request, tag="receive_many", kw_only=True):
    """A train of receptions, answered once, by the samples of those that succeeded, one block after the other."""

    windows: Annotated[list[Window], Meta(min_length=1, max_length=MAX_WINDOWS)]
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)]
    """For all of them together."""
    seed: Seed


class Failure(Struct, kw_only=True, frozen=True):
    """Why one of several receptions failed."""

    window: int
    error: Literal["timeout", "device"]
    detail: str


class Declare(_Request, tag="declare", kw_only=True):
    """Never answered."""

    until: Tick


class Silence(_Request, tag="silence", kw_only=True):
    repeated_only: bool = False
    """What is sent once goes on."""


class Pass(_Request, tag="pass", kw_only=True):
    """Let time go by: nothing can be sent before `until` any more."""

    until: Tick


class Hang(_Request, tag="hang", kw_only=True):
    rows: Annotated[int, Meta(ge=1, le=1024)]
    columns: Annotated[int, Meta(ge=1, le=1024)]
    phase_bits: Annotated[int, Meta(ge=1, le=8)]


class Apply(_Request, tag="apply", kw_only=True):
    """Payload: uint8 (row, column)."""

    latency: Tick


class Schedule(_Request, tag="schedule", kw_only=True):
    """Payload: uint8 (pattern, row, column). All of them latch, each at its time, or none."""

    times: Annotated[list[Tick], Meta(min_length=1, max_length=MAX_PATTERNS)]
    latency: Tick


class Readback(_Request, tag="readback", kw_only=True):
    """Answered by uint8 (row, column)."""


class Reset(_Request, tag="reset", kw_only=True):
    scene: dict[str, Any]
    carrier_hz: Carrier
    seed: Seed


Request = (
    Attach | Detach | Now | Tune | Transmit | Receive | ReceiveMany | Declare | Silence | Pass | Hang | Apply | Schedule
    | Readback | Reset
)  # fmt: skip


class Reply(Struct, kw_only=True, frozen=True):
    id: int
    error: Literal["", "late", "timeout", "off_air", "replaced", "new_world", "device"] = ""
    detail: str = ""
    session: str = ""
    now: int = 0
    """The device's present: the earliest instant at which it could still do something."""
    runs: bool = False
    """Tune: time passes by itself (wall pace), so that what was not late when it was sent may be so when it arrives."""
    time: int = 0
    """Apply: first tick that sees the pattern."""
    times: tuple[int, ...] = ()
    """Schedule: the same of each pattern."""
    seed: int = 0
    """Of the world as last reset."""
    failed: tuple[Failure, ...] = ()
    """ReceiveMany: the windows without samples, ascending."""


encode = msgspec.msgpack.Encoder().encode
decode_request = Gate[Request](Request, "request", MAX_HEADER_BYTES).read
"""Raises ProtocolError, and nothing else, for what is no request."""
decode_reply = Gate[Reply](Reply, "reply", MAX_HEADER_BYTES).read
