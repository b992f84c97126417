"""The authenticated sockets: strangers, impostors, repeats and garbage are refused and counted."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq

from testbed import config
from testbed.core import identity
from testbed.core.errors import InputError
from testbed.core.ledger import PublicMessage
from testbed.net import messages as m
from testbed.net import transport
from testbed.nodes.daemon import NodeDaemon

NAMES = ["coordinator", "alice", "bob", "eve"]
HELLO = m.Hello(role="bob", identity={}, pid=1)


class House:
    """A hub and all wires that a test makes, closed together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in NAMES:
            identity.make(folder, name)
        self.wires: list[transport.Wire] = []
        self.sockets: list[Any] = []
        self.hub = transport.Hub(self.wire("coordinator"), "127.0.0.1", 0)
        self.sockets.append(self.hub.socket)

    def wire(self, name: str, others: list[str] | None = None) -> transport.Wire:
        wire = transport.Wire(identity.load(self.folder, name, others or NAMES))
        self.wires.append(wire)
        return wire

    def link(self, wire: transport.Wire, name: str, incarnation: str = "1") -> transport.Link:
        link = transport.Link(wire, f"tcp://127.0.0.1:{self.hub.port}", name, incarnation)
        self.sockets.append(link.socket)
        return link

    def take(self) -> Any:
        assert self.hub.socket.poll(60_000)
        return self.hub.receive()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "keys")
    yield house
    for held in house.sockets:
        held.close(linger=0)
    for wire in reversed(house.wires):
        wire.close()


def test_a_known_node_is_heard_under_its_own_name_and_answered(house: House) -> None:
    link = house.link(house.wire("bob"), "bob")
    link.send(HELLO)
    name, header, body = house.take()
    assert (name, header.incarnation, body) == ("bob", "1", HELLO)
    house.hub.send("bob", m.Welcome(run="r", lost_after_s=1.0))
    assert link.socket.poll(60_000)
    received = link.receive()
    assert received is not None
    assert received[1] == m.Welcome(run="r", lost_after_s=1.0)


@pytest.mark.parametrize(
    ("whose", "operation", "said"),
    [
        ("bob", "authenticate", "the node 'alice' does not have this public key: copy /keys/bob.public to its machine"),
        ("alice", "discussion", "the node 'alice' takes no greeting: /keys/alice.public is not its key (copy it again"),
    ],
)
def test_a_wrong_key_between_alice_and_bob_is_reported(
    house: House, tmp_path: Path, whose: str, operation: str, said: str
) -> None:
    """It looked like a peer that stopped answering, after minutes in every block."""
    at_alice, at_bob = (identity.load(house.folder, name, NAMES) for name in ("alice", "bob"))
    identity.make(tmp_path, whose)
    wrong = {whose: identity.load(tmp_path, whose, []).public}
    if whose == "bob":
        at_alice = dataclasses.replace(at_alice, known=at_alice.known | wrong)
    else:
        at_bob = dataclasses.replace(at_bob, known=at_bob.known | wrong)
    house.wires += [transport.Wire(at_alice), transport.Wire(at_bob)]
    host = house.wires[-2].discussion_host("127.0.0.1", 0, "bob")
    guest = house.wires[-1].discussion_guest(f"tcp://127.0.0.1:{host.port}", "alice")
    house.sockets += [host.socket, host._transcript, guest.socket]
    node, told = NodeDaemon.__new__(NodeDaemon), []
    node.name, node.lab, node._keys_at, node._told_of = "bob", config.load_lab("sim"), "/keys", None
    node._public = {guest.socket: guest}
    node._link = SimpleNamespace(send=told.append)  # type: ignore[assignment]
    node.state = SimpleNamespace(name="ready")  # type: ignore[assignment]
    deadline_s = time.monotonic() + 120.0
    while not told and time.monotonic() < deadline_s:
        node._look_at_discussion()
        time.sleep(0.01)
    node._look_at_discussion()
    (failed,) = told  # once
    assert failed.operation == operation
    assert failed.detail.startswith(said)
    guest.handshakes.stop()


@pytest.mark.parametrize("body", [{"type": "greeting", "of": "the future"}, {"type": "Here"}])
def test_a_node_of_another_version_is_named_whatever_its_messages_have_become(
    house: House, body: dict[str, str]
) -> None:
    link = house.link(house.wire("bob"), "bob")
    header = {"msg_id": 0, "version": m.VERSION + 1, "sender": "bob", "incarnation": "1", "colour": "new"}
    link.socket.send(msgspec.msgpack.encode({"header": header, "body": body}))
    assert house.take() is None
    said = f"bob: message of protocol version {m.VERSION + 1}, accepted: {m.VERSION}"
    assert house.hub.other_version == said
    link.socket.send(msgspec.msgpack.encode({"header": header | {"version": "?"}, "body": body}))
    assert house.take() is None
    assert house.hub.refused["schema"] == 2
    assert house.hub.other_version == said


def test_a_known_key_under_another_name_is_refused(house: House) -> None:
    """Eve has a key of this lab; it does not make her Bob."""
    house.link(house.wire("eve"), "bob").send(HELLO)
    assert house.take() is None
    assert house.hub.refused == {"impostor": 1}
    house.hub.send("bob", m.Pulse())  # and she has not become the way to Bob either: this goes nowhere


def test_an_unknown_key_is_not_heard_at_all(house: House, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    identity.make(stranger, "bob")
    (stranger / "coordinator.public").write_text((house.folder / "coordinator.public").read_text())
    wire = transport.Wire(identity.load(stranger, "bob", ["coordinator"]))
    house.wires.append(wire)
    house.link(wire, "bob").send(HELLO)
    house.link(house.wire("bob"), "bob").send(HELLO)  # the real one comes later and is the only one
    assert house.take()[0] == "bob"
    assert not house.hub.socket.poll(300)


def test_repeats_are_refused(house: House) -> None:
    link = house.link(house.wire("bob"), "bob")
    link.send(HELLO)
    link._session.next_id = 0
    link.send(HELLO)
    assert house.take() is not None
    assert house.take() is None
    assert house.hub.refused == {"duplicate": 1}


@pytest.mark.parametrize(
    "garbage", [b"", b"\xc1", b"\x80", b"{}" * 1000, m.encode(m.Envelope(m.Header(0, 99, "bob", "1"), HELLO))]
)
def test_garbage_is_refused(house: House, garbage: bytes) -> None:
    house.link(house.wire("bob"), "bob").socket.send(garbage)
    assert house.take() is None
    assert house.hub.refused == {"schema": 1}


def test_a_taken_port_is_named(house: House) -> None:
    with pytest.raises(InputError, match=str(house.hub.port)):
        transport.Hub(house.wires[0], "127.0.0.1", house.hub.port)


def said(sender: Any, kind: str = "hi", index: int = -1) -> m.PublicEnvelope:
    return m.PublicEnvelope("run", 0, "agree", index, sender, PublicMessage(kind=kind, body={}))


def until(socket: Any, receive: Callable[[], Any]) -> Any:
    while socket.poll(60_000):
        got = receive()
        if got is not None:
            return got
    pytest.fail("nothing was heard")


def test_alice_and_bob_talk_and_eve_reads_all_of_it(house: House) -> None:
    host = transport.DiscussionHost(house.wire("alice"), "127.0.0.1", 0, "bob")
    ear = transport.Eavesdropper(house.wire("eve"), f"tcp://127.0.0.1:{host.transcript_port}", "alice")
    house.sockets += [host.socket, host._transcript, ear.socket]
    # said before Bob is there: kept for him
    host.send(said("alice", "early"))
    guest = transport.DiscussionGuest(house.wire("bob"), f"tcp://127.0.0.1:{host.port}", "alice")
    house.sockets.append(guest.socket)
    assert host.socket.poll(60_000)
    assert host.receive() is None  # his greeting opens the way
    assert until(guest.socket, guest.receive).message.kind == "early"
    guest.send(said("bob", "answer"))
    assert until(host.socket, host.receive).message.kind == "answer"
    while not ear.socket.poll(50):
        host.publish(said("alice", "on record", 0))
    heard = ear.receive()
    assert heard is not None
    assert heard.message.kind == "on record"


def test_nobody_but_bob_is_admitted_to_the_discussion(house: House) -> None:
    """Others of the lab would not be believed; and their messages would wait in Alice's memory until she read them."""
    host = transport.DiscussionHost(house.wire("alice"), "127.0.0.1", 0, "bob")
    house.sockets += [host.socket, host._transcript]
    endpoint = f"tcp://127.0.0.1:{host.port}"
    others = [transport.DiscussionGuest(house.wire(name), endpoint, "alice") for name in ("eve", "coordinator")]
    for guest in others:
        guest.send(said("bob", "forged"))
    bob = transport.DiscussionGuest(house.wire("bob"), endpoint, "alice")
    house.sockets += [bob.socket, *(guest.socket for guest in others)]
    bob.send(said("bob", "answer"))
    assert until(host.socket, host.receive).message.kind == "answer"
    assert not host.socket.poll(300)
    assert not host.refused


def test_eve_who_has_bobs_name_in_a_message_of_alices_is_not_bob() -> None:
    """Where links are not authenticated, the name in a message must still be the other end's."""
    wire = transport.Wire(None)
    host = transport.DiscussionHost(wire, "127.0.0.1", 0, "bob")
    guest = transport.DiscussionGuest(wire, f"tcp://127.0.0.1:{host.port}", "alice")
    try:
        guest._give(m.encode(said("alice", "reflected")))
        guest.send(said("bob", "answer"))
        assert until(host.socket, host.receive).message.kind == "answer"
        assert host.refused == {"impostor": 1}
    finally:
        for held in (host.socket, host._transcript, guest.socket):
            held.close(linger=0)
        wire.close()


def test_secrets_are_private_and_exposed_ones_are_refused(tmp_path: Path) -> None:
    identity.make(tmp_path, "bob")
    path = tmp_path / "bob.secret"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_text()
    identity.make(tmp_path, "bob")
    assert path.read_text() == before  # never replaced
    path.chmod(0o644)
    with pytest.raises(InputError, match=r"bob\.secret.*600"):
        identity.load(tmp_path, "bob", [])
    with pytest.raises(InputError, match=r"carol\.secret.*keygen-certs"):
        identity.load(tmp_path, "carol", [])


def test_every_wait_can_be_bounded(house: House) -> None:
    """A hub with nothing to hear raises at once instead of blocking."""
    with pytest.raises(zmq.Again):
        house.hub.receive()


def test_a_connection_that_is_made_anew_gets_the_time_of_a_handshake(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a slow machine a handshake takes longer than the silence after which a node connects anew."""
    now_s = [1000.0]
    monkeypatch.setattr(transport.time, "monotonic", lambda: now_s[0])
    link = house.link(house.wire("bob"), "bob")
    made: list[float] = []

    class Socket:
        def disconnect(self, endpoint: str) -> None:
            pass

        def connect(self, endpoint: str) -> None:
            made.append(now_s[0] - 1000.0)

        def recv(self) -> bytes:
            return m.encode(m.Envelope(m.Header(0, m.VERSION, "coordinator", "1"), m.Pulse()))

    monkeypatch.setattr(link, "socket", Socket())
    for _ in range(80):
        now_s[0] += 0.25
        link.renew_if_silent()
        if now_s[0] == 1015.0:
            link.receive()
    assert made == [2.0, 8.0, 14.0, 17.0]


class Wiretap:
    """A man in the middle of a connection: passes bytes on, and on request changes the last of the next ones."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.changing = threading.Event()
        self.changed = threading.Event()
        self._ear = socket.create_server(("127.0.0.1", 0))
        self.port = self._ear.getsockname()[1]
        self._open: list[socket.socket] = [self._ear]
        self._run(self._accept)

    def _run(self, work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed: the test is over
            while True:
                near, _ = self._ear.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                self._run(self._pass_on, near, far, True)
                self._run(self._pass_on, far, near, False)

    def _pass_on(self, source: socket.socket, sink: socket.socket, from_bob: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if from_bob and self.changing.is_set():
                    self.changing.clear()
                    self.changed.set()
                    data = data[:-1] + bytes([data[-1] ^ 1])
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for end in self._open:
            end.close()


def test_a_message_changed_on_the_wire_is_never_heard_and_comes_again_before_the_next_one(house: House) -> None:
    """Authenticated away, with its connection; both ends agree over the next one on what has not arrived."""
    host = transport.DiscussionHost(house.wire("alice"), "127.0.0.1", 0, "bob")
    house.sockets += [host.socket, host._transcript]
    tap = Wiretap(host.port)
    try:
        guest = transport.DiscussionGuest(house.wire("bob"), f"tcp://127.0.0.1:{tap.port}", "alice")
        house.sockets.append(guest.socket)
        guest.send(said("bob", "before"))
        assert until(host.socket, host.receive).message.kind == "before"
        tap.changing.set()
        guest.send(said("bob", "parities"))
        assert tap.changed.wait(120)
        heard: list[str] = []
        guest.send(said("bob", "after"))
        for _ in range(100):  # the socket mends the connection by itself
            guest.say_here()
            while len(heard) < 2 and host.socket.poll(100):
                heard += [envelope.message.kind for envelope in [host.receive()] if envelope is not None]
            while guest.socket.poll(0):
                guest.receive()
            if len(heard) == 2:
                break
        assert heard == ["parities", "after"]
        assert "schema" not in host.refused  # the changed one came not even as garbage
    finally:
        tap.close()


def test_a_state_with_impossible_numbers_is_refused_and_ends_nobody() -> None:
    wire = transport.Wire(None)
    host = transport.DiscussionHost(wire, "127.0.0.1", 0, "bob")
    bob = wire.context.socket(zmq.DEALER)
    bob.linger = 0
    bob.connect(f"tcp://127.0.0.1:{host.port}")
    frames = [(-(2**63), 0, 0, 0), (5, 4, 0, 0), (0, 2**31, 0, 0), (0, 0, -2, 0), (0, 0, 0, -(2**63))]
    for numbers in frames:
        bob.send(transport.HERE.pack(b"x" * 8, *numbers))
        assert until(host.socket, lambda: host.receive() is None)
    assert host.refused["schema"] == len(frames)
    bob.close()
    host.socket.close(0)
    host._transcript.close(0)
    wire.close()


def test_an_address_that_is_none_costs_a_node_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coordinator chooses where Bob and Eve connect, and may do so again and again."""
    wire, made = transport.Wire(None), []
    socket = wire.socket
    monkeypatch.setattr(wire, "socket", lambda *args: made.append(socket(*args)) or made[-1])
    for make in (transport.DiscussionGuest, transport.Eavesdropper):
        with pytest.raises(InputError, match=r"cannot connect to tcp://\*:5000"):
            make(wire, "tcp://*:5000", "alice")
    assert [x.closed for x in made] == [True, True]
    wire.close()


def test_what_is_owed_is_not_sent_again_for_each_frame_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = transport.Wire(None)
    hub = transport.Hub(wire, "127.0.0.1", 0)
    link = transport.Link(wire, f"tcp://127.0.0.1:{hub.port}", "eve", "1")
    link.send(HELLO)
    until(hub.socket, hub.receive)
    for number in range(20):
        hub.send("eve", m.ReadSurface(round=number))
    sent = []
    monkeypatch.setattr(hub, "_transmit", lambda name, session, number, body, parent: sent.append(number))
    clock = [transport.time.monotonic() + 10.0]
    monkeypatch.setattr(transport.time, "monotonic", lambda: clock[0])
    asks = m.encode(m.Envelope(m.Header(1, m.VERSION, "eve", "1", "", parent=5000, seen=-1), m.Here()))
    for _ in range(10):
        link.socket.send(asks)
        assert hub.socket.poll(60_000)
        hub.receive()
    assert sent.count(0) == 1  # all of it once; the other numbers are those of answers
    clock[0] += 1.0
    link.socket.send(asks)
    assert hub.socket.poll(60_000)
    hub.receive()
    assert sent.count(0) == 2
    link.socket.close(0)
    hub.socket.close(0)
    wire.close()
