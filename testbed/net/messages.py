"""Every message between coordinator and nodes, as typed structs in one schema.

On the wire a message is one msgpack map `{"header": …, "body": {"type": …, …}}`; anything that does not decode against
the schema is refused and counted. Times are on the clock of the device of the node addressed, unless said otherwise.
Integrity and authenticity are the transport's (CURVE): the header carries no signature of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from testbed.core.config import Accounting, BeamPlan, ChainPlan, ProbingPlan, RadioPlan, SurfacePlan
from testbed.core.errors import ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.core.outcomes import AgreeReport, EveReport, KeyReport, SurfaceRecord, TrainReport

VERSION = 4
"""Raised with every incompatible change; peers of another version are refused with a reason."""


class Header(Struct, frozen=True):
    msg_id: Annotated[int, Meta(ge=0)]
    """Counts up from 0 in each incarnation of a sender; a repeated one is refused."""
    version: int
    sender: str
    incarnation: str
    """Drawn by each process at its start: tells a node that came back from one that never left."""
    run: str = ""
    """The run this belongs to; empty before a node was welcomed."""
    parent: int | None = None
    """msg_id of the message this answers."""


class _Body(Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    pass


# ---------------------------------------------------------------- node → coordinator


class Hello(_Body, frozen=True):
    """A node wants to take part."""

    role: Literal["alice", "bob", "eve", "ris"]
    identity: dict[str, Any]
    pid: int
    discussion_port: int = 0
    transcript_port: int = 0
    """Alice's: where Bob talks to her, and where everybody reads what was said."""
    timed: bool = True
    turnaround_s: float = 0.0
    """As the driver states it."""
    host_turnaround_s: float = 0.0
    """As `testbed doctor` measured it on the host's clock; 0 where it did not. Without meaning in virtual time."""
    timing_spread_s: float = 0.0
    """Standard deviation of arrivals about their schedule, as the doctor measured it; 0 where it did not."""
    surface_shape: tuple[int, int] | None = None
    phase_bits: int = 0
    n_antennas: int = 1


class Heartbeat(_Body, frozen=True):
    """Sent by a thread of its own, whatever the node is busy with."""

    state: str


class Configured(_Body, frozen=True):
    """The settings that the device accepted."""

    accepted: dict[str, float]


class ClockReading(_Body, frozen=True):
    device_time_s: float


class ApplyNext(_Body, frozen=True):
    """Hold the secret pattern of this round, which the surface's node draws itself."""

    round: int


class Applied(_Body, frozen=True):
    """The surface holds the pattern."""

    round: int
    digest: str
    """Of an ordered pattern its digest; of a secret one the opaque name of the state."""
    device_time_s: float
    levels: bytes | None = None
    """Of a secret pattern, (row, column) uint8, in experiment mode only: for the record."""
    shape: tuple[int, int] = (0, 0)
    phase_bits: int = 1


class SurfaceHeld(_Body, frozen=True):
    """What the surface holds, read back."""

    round: int
    digest: str


class Captured(_Body, frozen=True):
    """Both slots are over and the samples are in: the air is free, estimation goes on. Sent where it was asked for."""

    round: int


class Stepped(_Body, frozen=True):
    """A step of an untimed round is done: on the air, samples in, or silent."""

    round: int
    step: int


class LinkResult(Struct, frozen=True, kw_only=True):
    """What one receiver made of one transmission."""

    tx: str
    """Role of the transmitter."""
    reason: str | None
    """Why it was rejected; None where there is an estimate."""
    detail: str = ""
    timing_error_s: float = 0.0
    """Arrival of the frame minus when the schedule expected it."""
    device_time_s: float = 0.0
    snr_db: float = 0.0
    """Median over subcarriers."""
    cfo_hz: float = 0.0
    rssi_dbfs: float = 0.0
    shape: tuple[int, int, int] = (0, 0, 0)
    csi: bytes | None = None
    """complex64 in C order, in experiment mode only."""


class Probed(_Body, frozen=True):
    round: int
    links: list[LinkResult]
    fault: str | None = None
    """Reject reason where this node could not do its part (late transmission, device error)."""
    detail: str = ""


class Agreed(_Body, frozen=True):
    report: AgreeReport
    raw_bits: bytes | None = None
    """One byte a bit, experiment mode only."""
    public_messages: int = 0
    """Alice's count of the block's transcript so far, so that Eve knows whether she heard all."""


class Trained(_Body, frozen=True):
    report: TrainReport
    public_messages: int = 0
    """As in `Agreed`."""


class Attacked(_Body, frozen=True):
    report: EveReport
    guess: bytes | None = None
    """Eve's guess of the raw bits, one byte a bit, experiment mode only."""


class Amplified(_Body, frozen=True):
    report: KeyReport
    digest: str | None = None
    """SHA-256 of run, block and key, experiment mode only: shows whether two nodes hold the same key."""
    public_messages: int = 0
    p_values: dict[str, float] = {}
    """Randomness tests on the key, experiment mode only: they tell something about its bits."""


class KeyGuessed(_Body, frozen=True):
    """Eve's guess of the final key, as its digest."""

    block: int
    digest: str | None


class Failed(_Body, frozen=True):
    """An operation failed at a node; the node itself goes on."""

    operation: str
    state: str
    detail: str


class Stopped(_Body, frozen=True):
    """The node's transmitter is silent and its records are closed."""

    kind: str


# ---------------------------------------------------------------- coordinator → node


class Welcome(_Body, frozen=True):
    run: str
    """Name of the run this node is now part of."""
    lost_after_s: float
    """Silence of the coordinator after which a node gives up on it."""


class Refused(_Body, frozen=True):
    """The coordinator will not take this node; it should exit with the reason."""

    reason: str


class Pulse(_Body, frozen=True):
    """Answer to a heartbeat: the coordinator lives."""


class Configure(_Body, frozen=True):
    radio: RadioPlan
    probing: ProbingPlan
    chain: ChainPlan
    accounting: Accounting
    experiment_mode: bool
    record_iq: bool
    seed: int
    timed: bool = True
    """False: somebody's radio cannot time its samples, so nobody's does."""
    beams: BeamPlan = msgspec.field(default_factory=BeamPlan)
    antennas: dict[str, int] = {}
    """How many antennas each role has; one where it is not named."""
    blocks: int = 1
    """How many blocks the run plans."""
    rehearsal: bool = False
    """The run follows from its seed: nothing that it makes is a secret, and its keys are kept apart."""
    surface: SurfacePlan = msgspec.field(default_factory=SurfacePlan)
    discussion: str = ""
    """Endpoint of Alice's discussion socket (Bob's message)."""
    transcript: str = ""
    """Endpoint of the public transcript (Eve's message)."""


class ReadClock(_Body, frozen=True):
    pass


class Apply(_Body, frozen=True):
    round: int
    levels: bytes
    """uint8 in C order."""
    shape: tuple[int, int]
    phase_bits: int


class ReadSurface(_Body, frozen=True):
    """Read the surface's pattern back: the rounds before this one count on it."""

    round: int


class SlotPlan(Struct, frozen=True):
    tx: str
    rx: list[str]
    start_s: float
    """Device time at which receivers open their window; the transmitter starts `margin_s` later."""


class Probe(_Body, frozen=True):
    round: int
    slots: list[SlotPlan]
    margin_s: float
    end_s: float
    """Device time until which this node transmits nothing else."""
    tell_captured: bool = True
    """Say `Captured` before estimating."""
    sounding: bool = False
    """All antennas are sounded, for the beams and nothing else."""


class Step(_Body, frozen=True):
    """One step of a round whose radios cannot time their samples; the next is told when this one is reported.

    transmit: repeat the frame until told otherwise; receive: capture `tx`'s transmission, longer than a period;
    silence: stop transmitting.
    """

    round: int
    step: int
    action: Literal["transmit", "receive", "silence"]
    tx: str
    """Role of the slot's transmitter."""
    last: bool
    """This node's part of the round ends here: it reports what it measured."""


class Distil(_Body, frozen=True):
    """Quantize these rounds, reconcile and verify with the peer."""

    block: int
    rounds: Annotated[list[int], Meta(min_length=1)]
    """Strictly ascending; none of them in an earlier block."""
    timeout_s: float
    purpose: Literal["key", "training"] = "key"
    """training: the enhancer learns from these rounds, and no bit of them enters a key."""


class Attack(_Body, frozen=True):
    """Eve: do what you can with this block."""

    block: int
    rounds: list[int]
    public_messages: int
    purpose: Literal["key", "training"] = "key"


class Amplify(_Body, frozen=True):
    block: int
    eve: EveReport | None
    timeout_s: float
    surface: SurfaceRecord | None = None
    """What is public of the surface in the block's rounds."""


class GuessKey(_Body, frozen=True):
    """Eve: hash your reconciled guess by the published seed."""

    block: int
    public_messages: int


class Abandon(_Body, frozen=True):
    """Give up this block's discussion; its bits are gone."""

    block: int
    reason: str


class Finish(_Body, frozen=True):
    """stop: the round was finished; abort: it was dropped; halt: transmitters silent at once. Then exit."""

    kind: Literal["stop", "abort", "halt"]


class Envelope(Struct, frozen=True):
    header: Header
    body: (
        # from nodes
        Hello | Heartbeat | Configured | ClockReading | Applied | SurfaceHeld | Captured | Stepped | Probed | Failed
        | Stopped | Agreed | Trained | Attacked | Amplified | KeyGuessed
        # to nodes
        | Welcome | Refused | Pulse | Configure | ReadClock | Apply | ApplyNext | ReadSurface | Probe | Step | Abandon
        | Finish
        | Distil | Attack | Amplify | GuessKey
    )  # fmt: skip


class PublicEnvelope(Struct, frozen=True):
    """One message of the public discussion, as Alice, Bob and everybody who listens sees it."""

    run: str
    block: int
    phase: Literal["agree", "amplify"]
    index: int
    """Position in the block's transcript, counted by Alice's node; −1 on Bob's own link."""
    sender: Literal["alice", "bob"]
    message: PublicMessage


_encoder = msgspec.msgpack.Encoder()
_envelopes = msgspec.msgpack.Decoder(Envelope)
_public = msgspec.msgpack.Decoder(PublicEnvelope)


def encode(message: Envelope | PublicEnvelope) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> Envelope:
    """Decode and check one message; raises ProtocolError saying what does not fit."""
    try:
        envelope = _envelopes.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as exc:
        raise ProtocolError(f"message refused: {exc}") from exc
    if envelope.header.version != VERSION:
        raise ProtocolError(f"message of protocol version {envelope.header.version}, accepted: {VERSION}")
    return envelope


def decode_public(data: bytes) -> PublicEnvelope:
    """Decode and check one message of the discussion; raises ProtocolError."""
    try:
        return _public.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as exc:
        raise ProtocolError(f"public message refused: {exc}") from exc
