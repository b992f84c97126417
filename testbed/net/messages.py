"""Every message between coordinator and nodes, as typed structs in one schema.

On the wire a message is one msgpack map `{"header": …, "body": {"type": …, …}}`; anything that does not decode against
the schema, ranges and names included, is refused and counted (`core.gate`) before anything acts on it. Times are on the
clock of the addressed node's device, unless stated otherwise.
Integrity and authenticity are the transport's (CURVE): the header carries no signature of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from testbed.core.config import Accounting, BeamPlan, ChainPlan, ProbingPlan, RadioPlan, SurfacePlan
from testbed.core.errors import ProtocolError
from testbed.core.gate import (
    Delay,
    Duration,
    Finite,
    Gate,
    Identifier,
    IdentifierOrNone,
    Instant,
    Number,
    Span,
    Tally,
    Text,
)
from testbed.core.ledger import PublicMessage
from testbed.core.outcomes import AgreeReport, EveReport, KeyReport, SurfaceRecord, TrainReport
from testbed.core.schedule import MAX_TRAIN

VERSION = 10
"""Raised with every incompatible change; a peer of another version is refused with the reason."""


MAX_MESSAGE_BYTES = 1 << 24
"""Largest message to or from the coordinator, in bytes. The longest content is a block's raw bits, a byte each."""
MAX_PUBLIC_BYTES = 1 << 25
"""Largest message of the discussion, in bytes. The longest content is the CSI of a training."""
MAX_IDENTITY_BYTES = 1 << 14
"""Largest identity of a device in bytes; it is recorded whenever its node joins."""
MAX_ELEMENTS = 1 << 20
"""Largest number of elements of a surface."""
MAX_KEPT = 4096
"""Largest number of blocks in one order to keep their keys."""

Role = Annotated[str, Meta(pattern=r"^(alice|bob|eve|ris)$(?!\n)")]
Transmitter = Annotated[str, Meta(pattern=r"^(alice|bob|eve)$(?!\n)")]
Antennas = Annotated[int, Meta(ge=1, le=256)]
PhaseBits = Annotated[int, Meta(ge=0, le=8)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Endpoint = Annotated[str, Meta(pattern=r"^(tcp://[A-Za-z0-9.:\[\]_*-]{1,260}:[0-9]{1,5})?$(?!\n)")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{1,128}$(?!\n)")]
Edge = Annotated[int, Meta(ge=0, le=4096)]
Reason = Annotated[str, Meta(pattern=r"^[a-z_]{1,40}$(?!\n)")]
"""A short code, such as a reason; messages are counted by it."""
Rounds = Annotated[list[Number], Meta(max_length=1 << 20)]


class Header(Struct, frozen=True):
    msg_id: Tally
    """Number of the message, from 0 up in each session of a sender (`net.session`); a repeated one is refused. In
    `Here` and in its answer: the number that the sender's next message will have."""
    version: Number
    sender: Identifier
    incarnation: Identifier
    """A random word that each process draws at its start, so that a restarted node has a new one."""
    run: IdentifierOrNone = ""
    """The run to which this message belongs; empty before a node was welcomed."""
    parent: Tally | None = None
    """msg_id of the message that this one answers."""
    seen: Annotated[int, Meta(ge=-1, le=1 << 53)] = -1
    """Highest msg_id that the sender has received in order from its peer; −1: none yet."""


class _Body(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


# ---------------------------------------------------------------- node → coordinator


class Hello(_Body, frozen=True):
    """A node wants to take part."""

    role: Literal["alice", "bob", "eve", "ris"]
    identity: dict[str, Any]
    pid: Tally
    discussion_port: Port = 0
    transcript_port: Port = 0
    """Ports of Alice's node: that of her link to Bob, and that at which all nodes can read the public discussion."""
    timed: bool = True
    turnaround_s: Delay = 0.0
    """The turn-around time that the driver states."""
    host_turnaround_s: Delay = 0.0
    """The turn-around time that `testbed doctor` measured on the host's clock, 0 where it did not. It has no meaning in
    virtual time."""
    timing_spread_s: Delay = 0.0
    """Standard deviation of arrivals about their schedule, as the doctor measured it; 0 where it did not."""
    surface_shape: tuple[Edge, Edge] | None = None
    phase_bits: PhaseBits = 0
    schedule_size: Number = 0
    """Number of patterns that the surface can hold in a schedule and latch at their times."""
    latency_s: Delay = 0.0
    """How long before its time the surface must have a pattern of a schedule."""
    n_antennas: Antennas = 1
    longest_capture: Tally = 0
    """Largest number of samples of one reception, 0: no limit of the device's own."""


class Heartbeat(_Body, frozen=True):
    """A sign that the node is alive. A separate thread sends it, also while the main loop is busy."""

    state: Text
    dropped: Tally = 0
    """Number of messages that this process of the node has dropped because too many of them waited."""


class Here(_Body, frozen=True):
    """Sent by the main loop, when it is idle, on the connection of the orders: how many messages it has received and
    sent. It reveals a broken connection; the messages that were lost with the connection are then sent again."""


class Configured(_Body, frozen=True):
    """The settings that the device accepted."""

    accepted: dict[str, Finite]


class ClockReading(_Body, frozen=True):
    device_time_s: Instant


class ApplyNext(_Body, frozen=True):
    """Hold the secret pattern of this round, which the surface's node draws itself."""

    round: Number


class Applied(_Body, frozen=True):
    """The surface holds the pattern."""

    round: Number
    digest: Identifier
    """Digest of the ordered pattern or, if it is secret, the opaque name of the state."""
    device_time_s: Instant
    levels: Annotated[bytes, Meta(max_length=MAX_ELEMENTS)] | None = None
    """Levels of a secret pattern, (row, column) uint8, for the record; in experiment mode only."""
    shape: tuple[Edge, Edge] = (0, 0)
    phase_bits: PhaseBits = 1


class PatternSet(Struct, frozen=True, kw_only=True):
    """One pattern of a schedule."""

    round: Number
    digest: Identifier
    """As in `Applied`."""
    device_time_s: Instant
    """Device time at which it latches."""
    levels: Annotated[bytes, Meta(max_length=MAX_ELEMENTS)] | None = None
    """As in `Applied`."""


class Scheduled(_Body, frozen=True):
    """The surface has the patterns of a train, and will latch each at its time."""

    patterns: Annotated[list[PatternSet], Meta(min_length=1, max_length=MAX_TRAIN)]
    device_time_s: Instant
    """Now."""
    shape: tuple[Edge, Edge] = (0, 0)
    phase_bits: PhaseBits = 1

    @property
    def round(self) -> int:
        return self.patterns[0].round


class SurfaceHeld(_Body, frozen=True):
    """The pattern that the surface holds, as read back."""

    round: Number
    digest: Identifier


class Captured(_Body, frozen=True):
    """All slots of a train are over and this node has its samples, so the air is free. Sent on request, before
    estimation."""

    round: Number
    """Number of the train's first round."""


class Stepped(_Body, frozen=True):
    """A step of untimed rounds is done: the transmitter is on, the samples are captured, or the transmitter is
    silent."""

    round: Number
    """Number of the train's first round."""
    step: Number
    air_s: Span = 0.0
    """How long the device took for it, on the node's monotonic clock."""


class LinkResult(Struct, frozen=True, kw_only=True):
    """The result of one transmission at one receiver."""

    tx: Transmitter
    """Role of the transmitter."""
    reason: Reason | None
    """Why it was rejected; None where there is an estimate."""
    detail: Text = ""
    timing_error_s: Instant = 0.0
    """Arrival of the frame minus its scheduled time."""
    device_time_s: Instant = 0.0
    snr_db: Finite = 0.0
    """Median over subcarriers."""
    cfo_hz: Finite = 0.0
    rssi_dbfs: Finite = 0.0
    shape: tuple[Number, Number, Number] = (0, 0, 0)
    csi: bytes | None = None
    """complex64 in C order, in experiment mode only."""


class RoundResult(Struct, frozen=True, kw_only=True):
    """What one node measured in one round."""

    round: Number
    links: Annotated[list[LinkResult], Meta(max_length=64)]
    fault: Reason | None = None
    """Reject reason where this node could not do its part (late transmission, device error)."""
    detail: Text = ""


class Probed(_Body, frozen=True):
    """What one node measured in a train of rounds, in their order."""

    rounds: Annotated[list[RoundResult], Meta(min_length=1, max_length=MAX_TRAIN)]
    correction_ppm: Finite | None = None
    """New correction in ppm of this radio's carrier, which holds from the next but one train on; None: no change."""
    air_s: Span = 0.0
    """How long the train was captured, from when the device began to work on it, on the node's monotonic clock; 0 in
    all but the last report of a train, and for rounds that were ordered step by step (`Stepped`)."""
    estimate_s: Span = 0.0
    """How long the estimates of the train took."""


class Agreed(_Body, frozen=True):
    report: AgreeReport
    raw_bits: bytes | None = None
    """One byte a bit, experiment mode only."""
    public_messages: Tally = 0
    """Alice's number of messages in the block's transcript so far, by which Eve can check that she has all of them."""


class Trained(_Body, frozen=True):
    report: TrainReport
    public_messages: Tally = 0
    """As in `Agreed`."""


class Attacked(_Body, frozen=True):
    report: EveReport
    guess: bytes | None = None
    """Eve's guess of the raw bits, one byte a bit, experiment mode only."""


class Amplified(_Body, frozen=True):
    report: KeyReport
    digest: Digest | None = None
    """SHA-256 of run, block and key, experiment mode only: shows whether two nodes hold the same key."""
    public_messages: Tally = 0
    p_values: dict[str, Finite] = {}
    """Randomness tests on the key, experiment mode only: they depend on its bits."""


class KeyGuessed(_Body, frozen=True):
    """Eve's guess of the final key, as its digest."""

    block: Number
    digest: Digest | None


class Failed(_Body, frozen=True):
    """An operation failed at a node; the node itself goes on."""

    operation: Text
    state: Text
    detail: Text


class Stopped(_Body, frozen=True):
    """The node's transmitter is silent and its records are closed."""

    kind: Text


# ---------------------------------------------------------------- coordinator → node


class Welcome(_Body, frozen=True):
    run: Identifier
    """Name of the run this node is now part of."""
    lost_after_s: Duration
    """Silence of the coordinator after which a node leaves the run."""


class Refused(_Body, frozen=True):
    """The coordinator does not accept this node, which should exit with the reason."""

    reason: Text


class Pulse(_Body, frozen=True):
    """Answer to a heartbeat, and to a `Here`: the coordinator is alive."""


class Withdrawn(_Body, frozen=True):
    """Takes the place of an order that was withdrawn before it reached the node, so that no number is missing."""


class Configure(_Body, frozen=True):
    radio: RadioPlan
    probing: ProbingPlan
    chain: ChainPlan
    accounting: Accounting
    experiment_mode: bool
    record_iq: bool
    seed: Annotated[int, Meta(ge=0, le=2**62)]
    timed: bool = True
    """False: at least one radio cannot time its samples, so that all of them work untimed."""
    beams: BeamPlan = msgspec.field(default_factory=BeamPlan)
    antennas: dict[Role, Antennas] = {}
    """Number of antennas by role; 1 for a role that is missing here."""
    blocks: Annotated[int, Meta(ge=1, le=1 << 31)] = 1
    """How many blocks the run plans."""
    rehearsal: bool = False
    """Whether the run follows from its seed: nothing in it is secret, and its keys are stored in a folder of their own.
    """
    surface: SurfacePlan = msgspec.field(default_factory=SurfacePlan)
    discussion: Endpoint = ""
    """Endpoint of Alice's discussion socket (Bob's message)."""
    transcript: Endpoint = ""
    """Endpoint of the public transcript (Eve's message)."""


class ReadClock(_Body, frozen=True):
    pass


class Apply(_Body, frozen=True):
    round: Number
    levels: Annotated[bytes, Meta(max_length=MAX_ELEMENTS)]
    """uint8 in C order."""
    shape: tuple[Edge, Edge]
    phase_bits: PhaseBits


class PatternPlan(Struct, frozen=True, kw_only=True):
    """One pattern of a schedule."""

    round: Number
    at_s: Instant
    """Device time at which it latches."""
    levels: Annotated[bytes, Meta(max_length=MAX_ELEMENTS)] | None = None
    """As in `Apply`; None: the surface's node draws the round's pattern itself."""


class Schedule(_Body, frozen=True):
    """Latch the patterns of a train of rounds, each at its time."""

    patterns: Annotated[list[PatternPlan], Meta(min_length=1, max_length=MAX_TRAIN)]
    """By strictly ascending rounds."""
    shape: tuple[Edge, Edge]
    phase_bits: PhaseBits

    @property
    def round(self) -> int:
        return self.patterns[0].round


class ReadSurface(_Body, frozen=True):
    """Read the surface's pattern back, to confirm the rounds before this one."""

    round: Number


class SlotPlan(Struct, frozen=True):
    tx: Transmitter
    rx: Annotated[list[Transmitter], Meta(max_length=8)]
    start_s: Instant
    """Device time at which receivers open their window; the transmitter starts `margin_s` later."""


class RoundPlan(Struct, frozen=True, kw_only=True):
    """When the slots of one round happen."""

    round: Number
    slots: Annotated[list[SlotPlan], Meta(max_length=64)]
    margin_s: Annotated[float, Meta(ge=0, le=1)]
    """How much longer than the frame a receiver listens on either side."""
    end_s: Instant
    """Device time of the round's end, until which this node transmits nothing else."""


class Probe(_Body, frozen=True):
    """A train of rounds: its transmissions and receptions are queued, captured, estimated and reported together."""

    rounds: Annotated[list[RoundPlan], Meta(min_length=1, max_length=MAX_TRAIN)]
    """The rounds, by strictly ascending numbers and in the order of time."""
    report_captured: bool = True
    """Send `Captured` before estimating."""
    sounding: bool = False
    """The round sounds all antennas, for the beams only."""
    paced: bool = False
    """Whether the run is on the wall clock: the next train is then queued in the device while this one is on the air.
    In virtual time it is not, because nothing may depend on the moment at which an order arrives."""

    @property
    def round(self) -> int:
        """Number of the first round, which identifies the train."""
        return self.rounds[0].round


class Step(_Body, frozen=True):
    """One step of a train of rounds whose radios cannot time their samples; the next one is ordered when this one is
    reported.

    transmit: repeat the frame until the next order; receive: capture `tx`'s transmission, longer than all periods of
    the train; silence: stop transmitting.
    """

    round: Number
    """Number of the first round."""
    step: Number
    action: Literal["transmit", "receive", "silence"]
    tx: Transmitter
    """Role of the slot's transmitter."""
    last: bool
    """This node's part of the rounds ends with this step: it then reports what it measured."""
    rounds: Annotated[int, Meta(ge=1, le=MAX_TRAIN)] = 1
    """Number of rounds: the i-th frame of a capture belongs to the i-th of them."""
    period: Number = 0
    """Samples from the start of one frame to that of the next; 0: those of the frame."""


class Distil(_Body, frozen=True):
    """Quantize these rounds, reconcile and verify with the peer."""

    block: Number
    rounds: Annotated[list[Number], Meta(min_length=1, max_length=1 << 20)]
    """Strictly ascending; none of them in an earlier block."""
    timeout_s: Duration
    purpose: Literal["key", "training"] = "key"
    """"training": the enhancer is trained on these rounds, and they make no key."""


class Attack(_Body, frozen=True):
    """Eve guesses the block's bits from her CSI and from everything that was published."""

    block: Number
    rounds: Rounds
    public_messages: Tally
    purpose: Literal["key", "training"] = "key"


class Amplify(_Body, frozen=True):
    block: Number
    eve: EveReport | None
    timeout_s: Duration
    surface: SurfaceRecord | None = None
    """The public part of the surface's states in the block's rounds."""


class GuessKey(_Body, frozen=True):
    """Eve hashes her reconciled guess by the published seed: her guess of the key."""

    block: Number
    public_messages: Tally


class Abandon(_Body, frozen=True):
    """Give up this block's discussion, and delete its bits."""

    block: Number
    reason: Text


class KeepKeys(_Body, frozen=True):
    """Both ends have reported a key of each of these blocks, and the record says so: the keys are final."""

    blocks: Annotated[list[Number], Meta(min_length=1, max_length=MAX_KEPT)]


class Finish(_Body, frozen=True):
    """End the run and exit. stop: the last train was finished; abort: it was dropped; halt: silence the transmitter at
    once."""

    kind: Literal["stop", "abort", "halt"]
    recorded: bool = False
    """Whether the record on the disk says that the run is over, so that no block can follow: what a node keeps for a
    restart within the run may be deleted."""


class Envelope(Struct, frozen=True):
    header: Header
    body: (
        # from nodes
        Hello | Heartbeat | Here | Configured | ClockReading | Applied | Scheduled | SurfaceHeld | Captured | Stepped
        | Probed | Failed | Stopped | Agreed | Trained | Attacked | Amplified | KeyGuessed
        # to nodes
        | Welcome | Refused | Pulse | Withdrawn | Configure | ReadClock | Apply | ApplyNext | Schedule | ReadSurface
        | Probe | Step | Abandon | KeepKeys | Finish
        | Distil | Attack | Amplify | GuessKey
    )  # fmt: skip


FROM_NODES = (
    Hello, Heartbeat, Here, Configured, ClockReading, Applied, Scheduled, SurfaceHeld, Captured, Stepped, Probed,
    Failed, Stopped, Agreed, Trained, Attacked, Amplified, KeyGuessed,
)  # fmt: skip
"""The messages that the coordinator accepts; an order that comes from a node is refused."""
TO_NODES = (
    Welcome, Refused, Pulse, Withdrawn, Configure, ReadClock, Apply, ApplyNext, Schedule, ReadSurface, Probe, Step,
    Abandon, KeepKeys, Finish, Distil, Attack, Amplify, GuessKey,
)  # fmt: skip


class PublicEnvelope(Struct, frozen=True):
    """One message of the public discussion, as Alice, Bob and every listener receives it."""

    run: Identifier
    block: Number
    phase: Literal["agree", "amplify"]
    index: Annotated[int, Meta(ge=-1, le=1 << 31)]
    """Position in the block's transcript, counted by Alice's node; −1 on Bob's own link."""
    sender: Literal["alice", "bob"]
    message: PublicMessage
    number: Annotated[int, Meta(ge=-1, le=1 << 31)] = -1
    """Between Alice and Bob: counted by its sender, for what is lost with a connection to be sent again."""
    seen: Annotated[int, Meta(ge=-1, le=1 << 31)] = -1
    """The highest number that its sender has received in order."""


def _check(envelope: Envelope) -> None:
    """Raise ValueError where parts of a message contradict one another; the schema cannot express this."""
    match envelope.body:
        case Hello(identity=identity):
            if (size := len(_encoder.encode(identity))) > MAX_IDENTITY_BYTES:
                raise ValueError(f"an identity of {size} bytes, accepted: up to {MAX_IDENTITY_BYTES}")
        case Probed(rounds=rounds):
            _check_ascending(rounds)
            for link in (x for r in rounds for x in r.links):
                if link.csi is not None and len(link.csi) != 8 * math.prod(link.shape):
                    raise ValueError(f"CSI of {len(link.csi)} bytes, accepted: 8 for each of shape {link.shape}")
        case Probe(rounds=rounds):
            _check_ascending(rounds)
        case Schedule(patterns=patterns, shape=shape) | Scheduled(patterns=patterns, shape=shape):
            _check_ascending(patterns)
            for levels in (x.levels for x in patterns if x.levels is not None):
                if len(levels) != math.prod(shape):
                    raise ValueError(f"{len(levels)} levels for a surface of shape {shape}")
        case Apply(levels=bytes(levels), shape=shape) | Applied(levels=bytes(levels), shape=shape):
            if len(levels) != math.prod(shape):
                raise ValueError(f"{len(levels)} levels for a surface of shape {shape}")


def _check_ascending(rounds: Sequence[RoundPlan | RoundResult | PatternPlan | PatternSet]) -> None:
    if any(later.round <= earlier.round for earlier, later in pairwise(rounds)):
        raise ValueError("the rounds of a train repeat or are out of order, accepted: strictly ascending")


_encoder = msgspec.msgpack.Encoder()
_envelopes: Gate[Envelope] = Gate(Envelope, "message", MAX_MESSAGE_BYTES, _check)
_public: Gate[PublicEnvelope] = Gate(PublicEnvelope, "public message", MAX_PUBLIC_BYTES)


def encode(message: Envelope | PublicEnvelope) -> bytes:
    return _encoder.encode(message)


class OtherVersion(ProtocolError):
    """The sender speaks another version of the protocol."""


def decode(data: bytes) -> Envelope:
    """Decode and check one message; raises ProtocolError that says what does not fit, and no other error."""
    try:
        envelope = _envelopes.read(data)
    except ProtocolError:
        if (version := _version_of(data)) not in (None, VERSION):
            raise OtherVersion(f"message of protocol version {version}, accepted: {VERSION}") from None
        raise
    if envelope.header.version != VERSION:
        raise OtherVersion(f"message of protocol version {envelope.header.version}, accepted: {VERSION}")
    return envelope


class _Versioned(Struct):
    class Header(Struct):
        version: Number

    header: Header


def _version_of(data: bytes) -> int | None:
    """Return the version of a message that does not fit this one's schema; None where it states none."""
    try:
        return msgspec.msgpack.decode(data, type=_Versioned).header.version if len(data) <= MAX_MESSAGE_BYTES else None
    except Exception:  # decoders raise errors of many kinds
        return None


def decode_public(data: bytes) -> PublicEnvelope:
    """Decode and check one message of the discussion; raises ProtocolError, and no other error."""
    return _public.read(data)
