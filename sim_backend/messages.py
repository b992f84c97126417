"""Messages between devices and the World: one msgpack header, then at most one frame of raw samples or levels.

Times are ticks (`ticks.py`). Every request is answered by one `Reply` of the same id, except `Declare`, which has no
answer, and those that transmit, which may have none unless they are refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from testbed.core.gate import Gate, Text

PROTOCOL = 6
MAX_SAMPLES = 1 << 22
"""Largest number of samples of one request, over all antennas: 32 MiB."""
MAX_PATTERNS = 1024
"""Largest number of patterns of one schedule."""
MAX_WINDOWS = 4096
"""Largest number of windows of one request."""
MAX_HEADER_BYTES = 1 << 20
"""Longest header; a scene is the longest content."""
MAX_FRAME_BYTES = 8 * MAX_SAMPLES + 1024
"""The longest frame on the wire: samples."""

Id = Annotated[int, Meta(ge=0, le=(1 << 53))]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,43}$(?!\n)")]
"""Name of a node, with the suffix of an emulated device (`-tx`)."""
Session = Annotated[str, Meta(pattern=r"^[0-9a-f]{0,32}$(?!\n)")]
Tick = Annotated[int, Meta(ge=-(1 << 61), le=1 << 61)]
Later = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]
"""A tick in an answer, which may come after that of a request."""
Count = Annotated[int, Meta(ge=1, le=MAX_SAMPLES)]
Carrier = Annotated[float, Meta(ge=1e3, le=1e12)]
Rate = Annotated[float, Meta(ge=1e3, le=1e11)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Direction = Annotated[float, Meta(ge=-1e6, le=1e6)]


class _Request(Struct, forbid_unknown_fields=True, kw_only=True):
    id: Id
    session: Session = ""
    """The session from the answer to Attach."""


class Attach(_Request, tag="attach", kw_only=True):
    protocol: Id
    name: Name
    kind: Literal["radio", "board"]


class Detach(_Request, tag="detach", kw_only=True):
    pass


class Now(_Request, tag="now", kw_only=True):
    receiving: bool = False
    """Whether a radio asks from when on it may receive, rather than for its present."""


class Tune(_Request, tag="tune", kw_only=True):
    place: Name
    carrier_hz: Carrier
    sample_rate_hz: Rate
    turnaround_s: Annotated[float, Meta(ge=0, le=3600)]
    free: bool = False
    """Whether the radio starts and stops at any time without declarations, so that other radios do not wait for it."""
    n_antennas: Annotated[int, Meta(ge=1, le=64)] = 1
    spacing_wavelengths: Annotated[float, Meta(gt=0, le=1e6)] = 0.5
    axis: tuple[Direction, Direction, Direction] = (1.0, 0.0, 0.0)


class Transmit(_Request, tag="transmit", kw_only=True):
    """Payload: complex64 (antenna, sample) in √mW."""

    start: Tick
    shift: Tick = 0
    cyclic: bool = False
    answer: bool = True
    """Whether the request is answered in any case; false: only if it is refused."""
    seed: Seed
    """Seed of the world for which the samples were made."""


class Window(Struct, forbid_unknown_fields=True, kw_only=True):
    """One of several transmissions or receptions."""

    start: Tick
    shift: Tick = 0
    n_samples: Count


class TransmitMany(_Request, tag="transmit_many", kw_only=True):
    """A train of transmissions; there is an answer only where one is refused, and then none after it is on the air.

    Payload: their samples as in `Transmit`, one block after the other.
    """

    frames: Annotated[list[Window], Meta(min_length=1, max_length=MAX_WINDOWS)]
    seed: Seed


class Receive(_Request, tag="receive", kw_only=True):
    """Answered by complex64 (antenna, sample) in √mW."""

    start: Tick
    shift: Tick = 0
    n_samples: Count
    timeout_s: Annotated[float, Meta(gt=0, le=3600)]
    seed: Seed
    """Seed of the world whose samples are requested."""


class ReceiveMany(_Request, tag="receive_many", kw_only=True):
    """A train of receptions, answered once, by the samples of those that succeeded, one block after the other."""

    windows: Annotated[list[Window], Meta(min_length=1, max_length=MAX_WINDOWS)]
    timeout_s: Annotated[float, Meta(gt=0, le=86_400)]
    """Time limit for all of them together."""
    seed: Seed


class Failure(Struct, kw_only=True, frozen=True):
    """Failure of one of several receptions."""

    window: Annotated[int, Meta(ge=0, le=MAX_SAMPLES)]
    error: Literal["timeout", "device"]
    detail: Text


class Declare(_Request, tag="declare", kw_only=True):
    """Declares silence; never answered."""

    until: Tick


class Silence(_Request, tag="silence", kw_only=True):
    final: bool = False
    """Whether transmissions are refused from now on, until the radio is tuned: some may be on their way."""
    repeated_only: bool = False
    """Whether single transmissions continue."""


class Pass(_Request, tag="pass", kw_only=True):
    """Let time pass: from then on, no transmission can start before `until`."""

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
    Attach | Detach | Now | Tune | Transmit | TransmitMany | Receive | ReceiveMany | Declare | Silence | Pass | Hang
    | Apply | Schedule | Readback | Reset
)  # fmt: skip


class Reply(Struct, kw_only=True, frozen=True):
    id: Id
    error: Literal["", "late", "timeout", "off_air", "replaced", "new_world", "device"] = ""
    detail: Text = ""
    session: Session = ""
    now: Later = 0
    """The device's current time: the earliest instant at which it can still transmit or change."""
    runs: bool = False
    """Tune: whether the air is in wall pace, so that a request can become late on its way."""
    time: Later = 0
    """Apply: the first tick with the new pattern."""
    times: tuple[Later, ...] = ()
    """Schedule: the first tick with each pattern."""
    seed: Seed = 0
    """Seed of the world since its last reset."""
    failed: tuple[Failure, ...] = ()
    """ReceiveMany: the windows without samples, ascending."""


encode = msgspec.msgpack.Encoder().encode
decode_request = Gate[Request](Request, "request", MAX_HEADER_BYTES).read
"""Decodes a request; raises ProtocolError, and nothing else, for anything else."""
decode_reply = Gate[Reply](Reply, "reply", MAX_HEADER_BYTES).read
