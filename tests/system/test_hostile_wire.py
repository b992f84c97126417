"""Strangers, nodes of the lab and damaged lines attack the sockets: no lasting effect, and none on others."""

from __future__ import annotations

import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from test_transport import HELLO, House, said

from sim_backend import messages as w
from sim_backend import server as world
from testbed import config
from testbed.core.config import to_dict
from testbed.net import messages as m
from testbed.net import transport
from testbed.net.session import MAX_OWED, Session


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "keys")
    yield house
    for held in house.sockets:
        held.close(linger=0)
    for wire in reversed(house.wires):
        wire.close()


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)


MUCH = 1 << 26


def pushed(port: int, length: int, greeting: bytes = GREETING) -> int:
    """Speak ZMTP up to the handshake, declare a frame of `length`, and send it; return how many bytes of it went out
    until the other end hung up, `MUCH` where it did not.

    Without a limit it takes them all; buffers on the way hold a few MiB.
    """
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.settimeout(60)
        wire.sendall(greeting)
        heard = b""
        while len(heard) < 64:
            heard += wire.recv(64 - len(heard))
        sent = 0
        try:
            wire.sendall(b"\x06" + struct.pack(">Q", length))
            while sent < MUCH:
                sent += wire.send(bytes(1 << 16))
        except (ConnectionResetError, BrokenPipeError):
            pass
        return sent


def test_a_frame_of_2_gib_in_the_handshake_ends_the_connection(house: House) -> None:
    host = transport.DiscussionHost(house.wire("alice"), "127.0.0.1", 0, "bob")
    house.sockets += [host.socket, host._transcript]
    for port in (house.hub.port, host.port, host.transcript_port):
        assert pushed(port, 1 << 31) < MUCH / 2
        assert pushed(port, (1 << 63) + 5) < MUCH / 2
    house.link(house.wire("bob"), "bob").send(HELLO)
    assert house.take()[0] == "bob"


def test_every_socket_has_its_limits(house: House) -> None:
    host = transport.DiscussionHost(house.wire("alice"), "127.0.0.1", 0, "bob")
    guest = transport.DiscussionGuest(house.wire("bob"), f"tcp://127.0.0.1:{host.port}", "alice")
    ear = transport.Eavesdropper(house.wire("eve"), f"tcp://127.0.0.1:{host.transcript_port}", "alice")
    link = house.link(house.wire("bob"), "bob")
    sockets = [host.socket, host._transcript, guest.socket, ear.socket]
    house.sockets += sockets
    for held in [house.hub.socket, link.socket]:  # any node of the lab can fill these
        assert held.rcvhwm * held.maxmsgsize <= 1 << 30
    for held in [house.hub.socket, link.socket, *sockets]:
        assert 0 < held.maxmsgsize <= m.MAX_PUBLIC_BYTES
        assert 0 < held.rcvhwm <= 1 << 16
        assert 0 < held.sndhwm <= 1 << 16


def test_20000_incarnations_leave_no_trace(house: House) -> None:
    """One key of the lab, ever new lives over a few connections."""
    wire = house.wire("bob")
    links = [house.link(wire, "bob") for _ in range(3)]
    for n in range(20_000):
        link = links[n % len(links)]
        link._incarnation, link._session = f"life{n}", Session("")
        link.send(HELLO)
        while house.hub.socket.poll(0):
            house.hub.receive()
    assert sum(map(len, house.hub._last_seen.values())) <= 4
    assert len(house.hub._strikes._counts) <= 3
    assert house.hub.refused["muted"] + house.hub.refused["duplicate"] > 10_000


def test_after_a_few_bad_messages_a_connection_is_not_heard_and_the_others_are(house: House) -> None:
    eve, bob = house.link(house.wire("eve"), "eve"), house.link(house.wire("bob"), "bob")
    for n in range(20):
        eve.socket.send(b"\xc1" * (n + 1))
        assert house.take() is None
    assert house.hub.refused == {"schema": 5, "muted": 15}
    eve.send(HELLO)
    assert house.take() is None
    bob.send(HELLO)
    assert house.take()[0] == "bob"
    again = house.link(house.wires[-2], "eve")  # a new connection is a new start
    again.send(HELLO)
    assert house.take()[0] == "eve"


def _probed(link: m.LinkResult) -> bytes:
    result = m.RoundResult(round=1, links=[link])
    return m.encode(m.Envelope(m.Header(0, m.VERSION, "eve", "1"), m.Probed(rounds=[result])))


def _sent(**changes: Any) -> bytes:
    """A greeting of Bob's with parts of its body replaced."""
    tree = msgspec.msgpack.decode(m.encode(m.Envelope(m.Header(0, m.VERSION, "eve", "1"), HELLO)))
    tree["body"] |= changes
    return msgspec.msgpack.encode(tree)


NESTED = m.encode(m.Envelope(m.Header(0, m.VERSION, "eve", "1"), HELLO)).replace(
    b"\xa8identity\x80", b"\xa8identity" + b"\x81\xa1x" * 3000 + b"\x80"
)
STOPPED_A_RUN: dict[str, bytes] = {
    "a Hello nested 3000 deep": NESTED,
    "an extension": _sent(identity={"x": msgspec.msgpack.Ext(5, b"x")}),
    "a list as a key": _sent(identity={(1, 2): 3}),
    "a map as a key": NESTED.replace(b"\x81\xa1x" * 3000 + b"\x80", b"\x81\x81\xa1x\x01\x02"),
    "a NaN turn-around": _sent(turnaround_s=float("nan")),
    "an infinite turn-around": _sent(turnaround_s=float("inf")),
    "a wrong role": _sent(role="coordinator"),
    "another type": _sent(type="finish", kind="halt"),
    "no type": _sent(type=None),
    "a long identity": _sent(identity={"x": "y" * 100_000}),
    "a surface of 2^40 elements": _sent(surface_shape=[1 << 20, 1 << 20]),
    "CSI of a wrong shape": _probed(m.LinkResult(tx="alice", reason=None, shape=(3, 1, 64), csi=bytes(8))),
    "an empty link": _probed(m.LinkResult(tx="", reason=None)),
    "../x": _probed(m.LinkResult(tx="../x", reason=None)),
    "NUL": _probed(m.LinkResult(tx="bob\0", reason=None)),
    "bad UTF-8": m.encode(m.Envelope(m.Header(0, m.VERSION, "eve", "1"), HELLO)).replace(b"bob", b"b\xffb"),
}  # fmt: skip


def test_what_members_sent_to_stop_a_run(house: House) -> None:
    """Each ended the coordinator, or hung it; now it is refused, and Bob is served."""
    bob = house.link(house.wire("bob"), "bob")
    bob.send(HELLO)
    assert house.take()[0] == "bob"
    wire = house.wire("eve")
    for n, data in enumerate(STOPPED_A_RUN.values()):
        house.link(wire, "eve").socket.send(data)
        assert house.take() is None
        assert sum(house.hub.refused.values()) == n + 1
        bob.send(m.Heartbeat(state="ready"))
        assert house.take()[2] == m.Heartbeat(state="ready")
    assert set(house.hub.refused) == {"schema"}


def test_orders_do_not_come_from_nodes_nor_reports_from_the_coordinator(house: House) -> None:
    link = house.link(house.wire("bob"), "bob")
    link.send(m.Finish(kind="halt"))
    assert house.take() is None
    assert house.hub.refused == {"direction": 1}
    link.send(HELLO)
    assert house.take() is not None
    house.hub.send("bob", HELLO)
    assert link.socket.poll(60_000)
    assert link.receive() is None
    assert link.refused == {"direction": 1}


def test_what_is_said_before_bob_is_there_is_kept_up_to_a_limit(house: House) -> None:
    host = transport.DiscussionHost(house.wire("alice"), "127.0.0.1", 0, "bob")
    house.sockets += [host.socket, host._transcript]
    for _ in range(10_000):
        host.send(said("alice"))
    assert len(host._session.owed) == transport.MAX_EARLY
    assert host.refused["queue_full"] == host.dropped == 10_000 - transport.MAX_EARLY


def test_a_peer_that_reads_nothing_cannot_hold_up_who_sends(house: House) -> None:
    link = house.link(house.wire("bob"), "bob")
    link.send(HELLO)
    assert house.take() is not None
    began_s = time.monotonic()
    for _ in range(5000):
        house.hub.send("bob", m.Refused(reason="x" * 2000))
    for _ in range(5000):
        link.send(m.Failed(operation="x" * 2000, state="", detail=""))
    assert time.monotonic() - began_s < 60
    assert link.refused["queue_full"] > 0  # the hub did not read them from its socket
    # nothing was acknowledged: neither an order, nor the greeting and what followed it
    assert house.hub.drops() == [("bob", 5000 - MAX_OWED)]
    assert house.hub.drops() == []
    assert link.dropped == 5001 - MAX_OWED


# ---------------------------------------------------------------- the simulated air


class Airspace:
    """A world served by a thread."""

    def __init__(self) -> None:
        self.stop, ready = threading.Event(), threading.Event()
        self.endpoint = ""

        def announce(endpoint: str) -> None:
            self.endpoint = endpoint
            ready.set()

        self.thread = threading.Thread(
            target=world.serve, args=("tcp://127.0.0.1:*", None, "virtual", 1.0, announce, self.stop), daemon=True
        )
        self.thread.start()
        assert ready.wait(120)
        self.context = zmq.Context()

    def client(self) -> Any:
        held = self.context.socket(zmq.DEALER)
        held.setsockopt(zmq.LINGER, 0)
        held.connect(self.endpoint)
        return held

    def ask(self, client: Any, request: Any, *payload: bytes) -> w.Reply:
        client.send_multipart([w.encode(request), *payload])
        assert client.poll(60_000), "no answer"
        return w.decode_reply(client.recv_multipart()[0])

    def close(self) -> None:
        self.stop.set()
        self.thread.join(60)
        self.context.destroy(linger=0)
        assert not self.thread.is_alive()


@pytest.fixture
def air() -> Iterator[Airspace]:
    air = Airspace()
    yield air
    air.close()


def radio(air: Airspace, name: str = "bob") -> tuple[Any, str]:
    """Attach and tune a radio; return its socket and session."""
    client = air.client()
    scene = to_dict(config.load_experiment("static_room").scene)
    assert not air.ask(client, w.Reset(id=1, scene=scene, carrier_hz=2.4e9, seed=1)).error
    session = air.ask(client, w.Attach(id=2, protocol=w.PROTOCOL, name=name, kind="radio")).session  # type: ignore[arg-type]
    tuned = w.Tune(id=3, session=session, place=name, carrier_hz=2.4e9, sample_rate_hz=4e7, turnaround_s=1e-5)
    assert not air.ask(client, tuned).error
    return client, session


TUNE = {"type": "tune", "id": 3, "place": "x", "carrier_hz": 2e9, "sample_rate_hz": 4e7, "turnaround_s": 0.0}


@pytest.mark.parametrize(
    "frames",
    [
        [b""], [b"\xc1"], [b"\xff\xfe\xa1\xff"], [b"\x81\xa4type\xa3\xff\xfe\xfd"], [b"\x81" * 100_000],
        [b"\x91" * 100_000],
        [b"a", b"b", b"c"], [],
        [w.encode({**TUNE, "sample_rate_hz": 1e-300})], [w.encode({**TUNE, "place": "../x"})],
        [w.encode({"type": "receive", "id": 3, "start": 0, "n_samples": 4, "timeout_s": float("nan"), "seed": 1})],
        [w.encode({"type": "attach", "id": 3, "protocol": 2, "name": "../x", "kind": "radio"})],
        [w.encode({"type": "reset", "id": 3, "scene": {"x": float("nan")}, "carrier_hz": 2e9, "seed": 1})],
        [w.encode({"type": "reset", "id": 3, "scene": {}, "carrier_hz": 2e9, "seed": 1})],
    ],
)  # fmt: skip
def test_garbage_costs_the_world_nothing(air: Airspace, frames: list[bytes]) -> None:
    bad = air.client()
    for _ in range(30):
        bad.send_multipart(frames or [b""])
    client, session = radio(air)
    assert not air.ask(client, w.Now(id=9, session=session)).error
    assert air.thread.is_alive()


def test_samples_that_are_no_numbers_and_levels_that_do_not_fit_are_survived(air: Airspace) -> None:
    client, session = radio(air)
    other, second = radio(air, "alice")
    nan = np.full(1000, np.nan + 1j * np.inf, np.complex64).tobytes()
    for payload in (nan, b"", b"abc", bytes(8)):
        air.ask(client, w.Transmit(id=4, session=session, start=10**9, seed=1), payload)
    air.ask(client, w.Transmit(id=4, session=session, start=(1 << 61) - 1, seed=1), nan)
    client.send(w.encode(w.Declare(id=0, session=session, until=1 << 61)))
    air.ask(other, w.Receive(id=5, session=second, start=0, n_samples=100, timeout_s=1.0, seed=1))
    air.ask(other, w.Apply(id=6, session=second, latency=-5), b"xx")
    air.ask(other, w.Readback(id=7, session=second))
    big = w.Hang(id=8, session=second, rows=1024, columns=1024, phase_bits=8)
    air.ask(other, big)
    assert not air.ask(other, w.Now(id=9, session=second)).error


def test_an_exception_in_the_air_ends_the_session_and_not_the_world(air: Airspace, monkeypatch: Any) -> None:
    client, session = radio(air)

    def broken(*_: Any) -> None:
        raise AssertionError("a fault of ours")

    monkeypatch.setattr("sim_backend.world.Air.silence", broken)
    reply = air.ask(client, w.Silence(id=4, session=session))
    assert reply.error == "device"
    assert "a fault of ours" in reply.detail
    monkeypatch.undo()
    other, second = radio(air, "alice")
    assert not air.ask(other, w.Silence(id=4, session=second)).error
    assert air.ask(client, w.Silence(id=5, session=session)).error == "off_air"


def test_the_world_hangs_up_on_a_frame_of_2_gib(air: Airspace) -> None:
    port = int(air.endpoint.rpartition(":")[2])
    assert pushed(port, 1 << 31, GREETING.replace(b"CURVE", b"NULL\0")) < MUCH / 2


def test_more_devices_than_any_lab_has_are_refused(air: Airspace) -> None:
    client = air.client()
    replies = [
        air.ask(client, w.Attach(id=n, protocol=w.PROTOCOL, name=f"n{n}", kind="radio"))  # type: ignore[arg-type]
        for n in range(world.MAX_SESSIONS + 20)
    ]
    assert sum(not r.error for r in replies) == world.MAX_SESSIONS
    assert all("accepted: no more" in r.detail for r in replies if r.error)


def test_unheard_samples_have_a_limit() -> None:
    """A radio that is never listened to cannot fill the world's memory."""
    from sim_backend.world import MAX_UNHEARD, Air, Refused

    air = Air()
    air.reset(config.load_experiment("static_room").scene, 2.4e9, 1)
    air.tune("bob", "bob", 2.4e9, 4e7, 0.0)
    samples = np.zeros(1 << 22, np.complex64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for n in range(MAX_UNHEARD // samples.size + 1):
        air.transmit("bob", n * 10**12, samples)
    with pytest.raises(Refused, match="accepted: no more"):
        air.transmit("bob", 10**15, samples)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
