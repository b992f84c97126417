"""The gate: any input gives a message of the schema or one `ProtocolError`, and has no other effect."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
import pytest
from msgspec import inspect

from sim_backend import messages as w
from testbed.core import gate
from testbed.core.errors import ProtocolError
from testbed.core.ledger import PublicMessage
from testbed.net import messages as m

ROOT = Path(__file__).parents[2]


def plain(message: Any) -> Any:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message))


def envelope(body: Any) -> dict[str, Any]:
    return plain(m.Envelope(m.Header(0, m.VERSION, "bob", "1", "run-1"), body))


HELLO = envelope(m.Hello(role="bob", identity={"driver": "sim"}, pid=1, turnaround_s=1e-4))
PROBED = envelope(
    m.Probed(
        rounds=[m.RoundResult(round=1, links=[m.LinkResult(tx="alice", reason=None, shape=(1, 1, 4), csi=bytes(32))])]
    )
)
WELCOME = envelope(m.Welcome(run="run-1", lost_after_s=8.0))
DISTIL = envelope(m.Distil(block=0, rounds=[1, 2], timeout_s=60.0))
PROBE = envelope(
    m.Probe(rounds=[m.RoundPlan(round=1, slots=[m.SlotPlan("alice", ["bob"], 1.0)], margin_s=1e-6, end_s=2.0)])
)
APPLY = envelope(m.Apply(round=1, levels=bytes(4), shape=(2, 2), phase_bits=1))
STEP = envelope(m.Step(round=1, step=0, action="transmit", tx="alice", last=False))
STEPPED = envelope(m.Stepped(round=1, step=0, air_s=0.5))
PUBLIC = plain(m.PublicEnvelope("run-1", 0, "agree", -1, "bob", PublicMessage(kind="hi", body={"n": [1, 2]})))


def deep(n: int) -> Any:
    value: Any = 1
    for _ in range(n):
        value = {"x": value}
    return value


def packed(value: Any) -> bytes:
    """Encode by hand: nested deeper than the encoder goes."""
    if isinstance(value, dict):
        out = b""
        while isinstance(value, dict) and list(value) == ["x"]:
            out, value = out + b"\x81\xa1x", value["x"]
        return out + (msgspec.msgpack.encode(value))
    return msgspec.msgpack.encode(value)


def changed(message: Any, path: str, value: Any) -> bytes:
    out = copy.deepcopy(message)
    at = out
    *folders, last = [int(p) if p.isdigit() else p for p in path.split("/")]
    for key in folders:
        at = at[key]
    at[last] = value
    return msgspec.msgpack.encode(out)


NAN, INF = float("nan"), float("inf")
NOT_NAMES = ["", "..", "../x", "/etc/passwd", "a/b", "a\0b", "a\n", "a b", "-x", "é", "a" * 101, "a>b"]


@pytest.mark.parametrize("message", [HELLO, PROBED, WELCOME, DISTIL, PROBE, APPLY, STEP, STEPPED])
def test_the_messages_that_are_damaged_below_are_valid(message: Any) -> None:
    assert m.decode(msgspec.msgpack.encode(message)).header.sender == "bob"


@pytest.mark.parametrize(
    ("message", "path", "value"),
    [
        (HELLO, "body/turnaround_s", NAN),
        (HELLO, "body/turnaround_s", INF),
        (HELLO, "body/turnaround_s", -1.0),
        (HELLO, "body/turnaround_s", 1e9),
        (HELLO, "body/host_turnaround_s", NAN),
        (HELLO, "body/timing_spread_s", NAN),
        (HELLO, "body/discussion_port", 70000),
        (HELLO, "body/n_antennas", 0),
        (HELLO, "body/n_antennas", 1 << 40),
        (HELLO, "body/surface_shape", [1 << 40, 1 << 40]),
        (HELLO, "body/identity", deep(40)),
        (HELLO, "body/identity", {"x": NAN}),
        (HELLO, "body/identity", {"x": msgspec.msgpack.Ext(5, b"x")}),
        (HELLO, "body/identity", {"x": {(1, 2): 3}}),
        (HELLO, "body/identity", {"x": {1: 2}}),
        (HELLO, "body/identity", {"x": "y" * (gate.MAX_TEXT + 1)}),
        (HELLO, "body/identity", {"x": "y" * m.MAX_IDENTITY_BYTES}),
        (HELLO, "header/msg_id", -1),
        *[(HELLO, "header/sender", name) for name in NOT_NAMES],
        *[(HELLO, "header/incarnation", name) for name in NOT_NAMES],
        *[(WELCOME, "body/run", name) for name in NOT_NAMES],
        (WELCOME, "body/lost_after_s", NAN),
        (WELCOME, "body/lost_after_s", INF),
        (WELCOME, "body/lost_after_s", 0.0),
        (WELCOME, "body/lost_after_s", 1e9),
        (DISTIL, "body/timeout_s", NAN),
        (DISTIL, "body/timeout_s", INF),
        (DISTIL, "body/rounds", []),
        (DISTIL, "body/rounds", [-1]),
        (DISTIL, "body/block", -1),
        (DISTIL, "body/block", 1 << 40),
        (PROBE, "body/margin_s", NAN),
        (PROBE, "body/margin_s", 3600.0),
        (PROBE, "body/end_s", INF),
        (PROBE, "body/rounds/0/slots/0/start_s", NAN),
        (PROBE, "body/rounds/0/slots/0/tx", "../x"),
        (PROBE, "body/rounds/0/slots/0/rx", ["bob\0"]),
        (PROBED, "body/rounds/0/links/0/tx", ""),
        (PROBED, "body/rounds/0/links/0/tx", "../x"),
        (PROBED, "body/rounds/0/links/0/reason", "no reason\n"),
        (PROBED, "body/rounds/0/links/0/snr_db", NAN),
        (PROBED, "body/rounds/0/links/0/timing_error_s", INF),
        (PROBED, "body/rounds/0/links/0/shape", [1, 1, 5]),
        (PROBED, "body/rounds/0/links/0/shape", [-1, -1, 4]),
        (PROBED, "body/rounds/0/links/0/csi", bytes(31)),
        (APPLY, "body/levels", bytes(5)),
        (APPLY, "body/shape", [1 << 31, 1 << 31]),
        (APPLY, "body/phase_bits", 64),
        (STEP, "body/tx", "nobody"),
        *[(PROBED, f"body/{name}", value) for name in ("air_s", "estimate_s") for value in (NAN, INF, -1e-9, 1e7)],
        *[(STEPPED, "body/air_s", value) for value in (NAN, INF, -1e-9, 1e7)],
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_by_the_schema(message: Any, path: str, value: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        m.decode(changed(message, path, value))
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "data",
    [
        packed({"header": HELLO["header"], "body": {**HELLO["body"], "identity": 0}}).replace(
            b"\xa8identity\x00", b"\xa8identity" + packed(deep(3000))
        ),
        b"\x81" * 100_000,
        b"\x91" * 3_000_000,
        b"\x81\xa6header\xa2\xff\xfe",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"",
        bytes(m.MAX_MESSAGE_BYTES + 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("decode", [m.decode, m.decode_public, w.decode_request, w.decode_reply])
def test_bytes_that_are_no_message_are_one_error(decode: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("run", "../x"),
        ("block", -1),
        ("index", -2),
        ("message/leaked_bits", -1),
        ("message/leaked_bits", 1 << 60),
        ("message/kind", "x" * 81),
        ("message/body", deep(40)),
        ("message/body", {"x": NAN}),
        ("message/body", {"x": msgspec.msgpack.Ext(5, b"x")}),
        ("message/body", [1]),
    ],
)
def test_public_messages_pass_the_same_gate(path: str, value: Any) -> None:
    assert m.decode_public(msgspec.msgpack.encode(PUBLIC)).message.body == {"n": [1, 2]}
    with pytest.raises(ProtocolError):
        m.decode_public(changed(PUBLIC, path, value))


TUNE = {
    "type": "tune", "id": 1, "session": "", "place": "bob", "carrier_hz": 2.4e9, "sample_rate_hz": 4e7,
    "turnaround_s": 1e-4,
}  # fmt: skip
RECEIVE = {"type": "receive", "id": 1, "start": 0, "n_samples": 10, "timeout_s": 1.0, "seed": 1}


@pytest.mark.parametrize(
    ("message", "key", "value"),
    [
        (TUNE, "sample_rate_hz", 1e-300),
        (TUNE, "sample_rate_hz", NAN),
        (TUNE, "sample_rate_hz", INF),
        (TUNE, "carrier_hz", NAN),
        (TUNE, "turnaround_s", INF),
        (TUNE, "place", "../x"),
        (TUNE, "axis", [NAN, 0.0, 0.0]),
        (TUNE, "id", -1),
        (TUNE, "session", "x" * 1000),
        (RECEIVE, "timeout_s", NAN),
        (RECEIVE, "timeout_s", INF),
        (RECEIVE, "n_samples", 1 << 40),
        (RECEIVE, "start", 1 << 62),
        (RECEIVE, "seed", -1),
    ],
)
def test_the_worlds_requests_pass_the_same_gate(message: dict[str, Any], key: str, value: Any) -> None:
    assert w.decode_request(msgspec.msgpack.encode(message)).id == 1
    with pytest.raises(ProtocolError):
        w.decode_request(msgspec.msgpack.encode({**message, key: value}))


def test_a_name_is_one_thing_everywhere() -> None:
    for name in NOT_NAMES:
        assert not gate.is_identifier(name)
        assert gate.is_identifier(gate.identifier(name))
    assert gate.identifier("20260101-120000-static_room") == "20260101-120000-static_room"
    assert gate.link_ends("alice>bob") == ("alice", "bob")
    for link in ("", ">", "alice>", ">bob", "a>b>c", "a>../x", "alice", None):
        assert gate.link_ends(link) is None
    assert gate.printable("a\x1b[2Jb\n") == "a?[2Jb?"
    assert json.loads(json.dumps(gate.IDENTIFIER)) == gate.IDENTIFIER


def test_strikes_end_a_connection_and_the_oldest_are_dropped() -> None:
    strikes = gate.Strikes(most=3, connections=10)
    assert [strikes.count("eve") for _ in range(4)] == [False, False, True, False]
    assert strikes.muted("eve")
    assert not strikes.muted("bob")
    for n in range(100_000):
        strikes.count(n)
    assert len(strikes._counts) == 10


def test_every_message_has_one_direction() -> None:
    """What is in neither list would be refused by both ends."""
    both = {*m.FROM_NODES} & {*m.TO_NODES}
    assert {*m.FROM_NODES} | {*m.TO_NODES} == set(get_args(get_type_hints(m.Envelope)["body"]))
    assert not both


class _Loose(msgspec.Struct):
    """A message whose schema leaves much open."""

    anything: Any = None
    half: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    long: Annotated[str, msgspec.Meta(pattern=r"^[a-z]+$(?!\n)")] = "a"
    part: Annotated[str, msgspec.Meta(pattern=r"^[a-z]{1,9}")] = "a"
    inner: list[tuple[float, int]] = []
    name: gate.Identifier = "a"
    words: gate.Text = ""
    number: gate.Finite = 0.0
    flags: list[bool] = []


def numbers_without_limits(about: Any, path: str, seen: set[Any]) -> list[str]:
    """Return the paths of all numbers in a schema that have no least or no largest value."""
    match about:
        case inspect.StructType() if about.cls not in seen:
            seen.add(about.cls)
            return [
                x for f in about.fields
                for x in numbers_without_limits(f.type, f"{about.cls.__name__}.{f.encode_name}", seen)
            ]  # fmt: skip
        case inspect.IntType() | inspect.FloatType():
            has_both = (about.ge, about.gt) != (None, None) and (about.le, about.lt) != (None, None)
            return [] if has_both else [path]
        case inspect.UnionType():
            inner = about.types
        case inspect.ListType() | inspect.VarTupleType():
            inner = (about.item_type,)
        case inspect.TupleType():
            inner = about.item_types
        case inspect.DictType():
            inner = (about.value_type,)
        case _:
            return []
    return [x for kind in inner for x in numbers_without_limits(kind, path, seen)]


@pytest.mark.parametrize("schema", [m.Envelope, m.PublicEnvelope, w.Request, w.Reply])
def test_every_number_of_every_message_has_a_range(schema: Any) -> None:
    assert numbers_without_limits(inspect.type_info(schema), "", set()) == []


def test_what_a_schema_leaves_open_is_looked_at_and_nothing_else() -> None:
    assert gate.open_fields(_Loose) == ("anything", "half", "long", "part", "inner")
    assert gate.open_fields(m.Probed) == gate.open_fields(m.Probe) == ()
    assert gate.open_fields(m.Hello) == ("identity",)
    read = gate.Gate[_Loose](_Loose, "loose", 1 << 24).read
    good = _Loose(anything={"a": [1.0, "b"]}, inner=[(1.0, 2)], flags=[True])
    assert read(msgspec.msgpack.encode(good)) == good
    for bad in (
        {"anything": {"a": [1.0, float("inf")]}}, {"half": float("inf")}, {"half": float("nan")},
        {"long": "a" * (gate.MAX_TEXT + 1)}, {"part": "a" * (gate.MAX_TEXT + 1)}, {"inner": [(float("nan"), 2)]},
        {"number": float("nan")}, {"number": float("inf")}, {"words": "a" * (1 << 17)}, {"name": "a" * 101},
    ):  # fmt: skip
        with pytest.raises(ProtocolError):
            read(msgspec.msgpack.encode(bad))
