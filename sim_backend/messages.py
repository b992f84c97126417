"""What devices and the World say to each other: one msgpack header, then at most one frame of raw samples or levels.

Times are ticks (`ticks.py`). Every request is answered by one `Reply` of the same id, but for `Declare`, which has no
answer, and `Transmit`, which may go without one unless it is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

PROTOCOL = 3
MAX_SAMPLES = 1 << 22

Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,40}$")]
Tick = Annotated[int, Meta(ge=-(1 << 61), le=1 << 61)]
Count = Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
Positive = Annotated[float, Meta(gt=0)]


class _Request(Struct, forbid_unknown_fields=True, kw_only=True):
    id: int
    session: str = ""
    """From the answer to Attach."""


class Attach(_Request, tag="attach", kw_only=True):
    protocol: int
    name: Name
    kind: Literal["radio", "board"]


class Detach(_Request, tag="detach", kw_only=True):
    pass


class Now(_Request, tag="now", kw_only=True):
    pass


class Tune(_Request, tag="tune", kw_only=True):
    place: str
    carrier_hz: Positive
    sample_rate_hz: Positive
    turnaround_s: Annotated[float, Meta(ge=0)]
    free: bool = False
    """It starts and stops whenever it likes and cannot promise anything: nobody waits for it."""
    n_antennas: Annotated[int, Meta(ge=1, le=64)] = 1
    spacing_wavelengths: Positive = 0.5
    axis: tuple[float, float, float] = (1.0, 0.0, 0.0)


class Transmit(_Request, tag="transmit", kw_only=True):
    """Payload: complex64 (antenna, sample) in √mW."""

    start: Tick
    shift: Tick = 0
    cyclic: bool = False
    answer: bool = True
    """False: answer only where it is refused."""
    seed: int
    """Of the world that the samples were made for."""


class Receive(_Request, tag="receive", kw_only=True):
    """Answered by complex64 (antenna, sample) in √mW."""

    start: Tick
    shift: Tick = 0
    n_samples: Count
    timeout_s: Positive
    seed: int
    """Of the world whose samples are wanted."""


class Window(Struct, forbid_unknown_fields=True, kw_only=True):
    """One reception of several."""

    start: Tick
    shift: Tick = 0
    n_samples: Count


class ReceiveMany(_Request, tag="receive_many", kw_only=True):
    """A train of receptions, answered once, by the samples of those that succeeded, one block after the other."""

    windows: Annotated[list[Window], Meta(min_length=1, max_length=4096)]
    timeout_s: Positive
    """For all of them together."""
    seed: int


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
    rows: Annotated[int, Meta(ge=1, le=4096)]
    columns: Annotated[int, Meta(ge=1, le=4096)]
    phase_bits: Annotated[int, Meta(ge=1, le=8)]


class Apply(_Request, tag="apply", kw_only=True):
    """Payload: uint8 (row, column)."""

    latency: Tick


class Readback(_Request, tag="readback", kw_only=True):
    """Answered by uint8 (row, column)."""


class Reset(_Request, tag="reset", kw_only=True):
    scene: dict[str, Any]
    carrier_hz: Positive
    seed: Annotated[int, Meta(ge=0)]


Request = (
    Attach | Detach | Now | Tune | Transmit | Receive | ReceiveMany | Declare | Silence | Pass | Hang | Apply | Readback
    | Reset
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
    seed: int = 0
    """Of the world as last reset."""
    failed: tuple[Failure, ...] = ()
    """ReceiveMany: the windows without samples, ascending."""


encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
