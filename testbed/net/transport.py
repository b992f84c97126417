"""Authenticated ZeroMQ sockets: a hub at the coordinator, links at the nodes, the discussion between Alice and Bob.

With CURVE the key a message came with, not the name it claims, says who sent it: a mismatch is refused and counted.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from typing import Any

import zmq

from testbed.core.errors import InputError, ProtocolError
from testbed.core.identity import Identity, secure, start_authenticator
from testbed.net import messages as m

# ZMTP heartbeats run in libzmq's own thread: they notice a vanished peer even while Python is busy or stopped.
_ZMTP_HEARTBEAT_MS = 1000
_ZMTP_TIMEOUT_MS = 5000


def _tune(socket: Any) -> None:
    socket.linger = 200  # a goodbye may still leave, but a dead peer cannot hold up the exit
    socket.sndhwm = 0
    socket.rcvhwm = 0
    socket.heartbeat_ivl = _ZMTP_HEARTBEAT_MS
    socket.heartbeat_timeout = _ZMTP_TIMEOUT_MS


def _bind(socket: Any, host: str, port: int) -> int:
    """Bind and return the port; raises InputError naming the address."""
    try:
        if port:
            socket.bind(f"tcp://{host}:{port}")
            return port
        return int(socket.bind_to_random_port(f"tcp://{host}"))
    except zmq.ZMQError as exc:
        raise InputError(
            f"cannot listen on {host}:{port}: {exc}; choose a free port or another host in the lab file"
        ) from exc


class Wire:
    """A process's ZeroMQ context and gatekeeper. Close it last."""

    def __init__(self, identity: Identity | None) -> None:
        self.identity = identity
        self.context = zmq.Context()
        self._names = {key: name for name, key in identity.known.items()} if identity is not None else {}
        self._authenticator = start_authenticator(self.context, identity)

    def socket(self, kind: int, server: str | None = None) -> Any:
        """Make a socket that serves (None) or talks to the named peer."""
        socket = self.context.socket(kind)
        _tune(socket)
        secure(socket, self.identity, server)
        return socket

    def sender_of(self, frame: Any) -> str | None:
        """Return the authenticated name behind a received frame; None where links are not authenticated."""
        return None if self.identity is None else self._names.get(frame.get("User-Id"), "?")

    def close(self) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self.context.destroy(linger=200)


class Hub:
    """The coordinator's end: one ROUTER for everybody."""

    def __init__(self, wire: Wire, host: str, port: int) -> None:
        self._wire = wire
        self.socket = wire.socket(zmq.ROUTER)
        self.port = _bind(self.socket, host, port)
        self.run = ""
        self.refused: Counter[str] = Counter()
        self._incarnation = new_incarnation()
        self._next_id = 0
        self._routes: dict[tuple[str, bool], bytes] = {}
        """(node, is it its heartbeat thread) → route, learned from authenticated messages only: choosing somebody
        else's routing id gains an impostor nothing."""
        self._last_seen: dict[tuple[bytes, str], int] = {}
        """(route, incarnation) → highest msg_id: TCP keeps order, so anything not above it is a repeat."""

    def receive(self) -> tuple[str, m.Header, Any] | None:
        """Return (authenticated node, header, body) or None where the message was refused (counted by reason).

        Raises zmq.Again where nothing is waiting.
        """
        frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        if len(frames) != 2:
            self.refused["frames"] += 1
            return None
        try:
            envelope = m.decode(frames[1].bytes)
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        header = envelope.header
        name = self._wire.sender_of(frames[1]) or header.sender
        if name != header.sender:
            self.refused["impostor"] += 1
            return None
        key = (frames[0].bytes, header.incarnation)
        if header.msg_id <= self._last_seen.get(key, -1):
            self.refused["duplicate"] += 1
            return None
        self._last_seen[key] = header.msg_id
        self._routes[name, isinstance(envelope.body, m.Heartbeat)] = frames[0].bytes
        return name, header, envelope.body

    def send(self, name: str, body: Any, to_pulse: bool = False) -> None:
        """Send to a node's main loop or to its heartbeat thread. A vanished node is not an error here."""
        route = self._routes.get((name, to_pulse))
        if route is None:
            return
        header = m.Header(self._next_id, m.VERSION, "coordinator", self._incarnation, self.run)
        self._next_id += 1
        self.socket.send_multipart([route, m.encode(m.Envelope(header, body))])


class Link:
    """A node's end. Not shared between threads: the heartbeat thread has its own."""

    def __init__(self, wire: Wire, endpoint: str, name: str, incarnation: str) -> None:
        self.name, self._incarnation = name, incarnation
        self.socket = wire.socket(zmq.DEALER, "coordinator")
        self.socket.connect(endpoint)
        self.run = ""
        self.refused: Counter[str] = Counter()
        self._next_id = 0
        self._last: dict[str, int] = {}

    def waiting(self) -> bool:
        """Return whether a message can be received without waiting; a third of the price of a poll."""
        return bool(self.socket.get(zmq.EVENTS) & zmq.POLLIN)

    def receive(self) -> tuple[m.Header, Any] | None:
        try:
            envelope = m.decode(self.socket.recv())
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        header = envelope.header
        if header.msg_id <= self._last.get(header.incarnation, -1):
            self.refused["duplicate"] += 1
            return None
        self._last[header.incarnation] = header.msg_id
        return header, envelope.body

    def send(self, body: Any, parent: int | None = None) -> None:
        header = m.Header(self._next_id, m.VERSION, self.name, self._incarnation, self.run, parent)
        self._next_id += 1
        self.socket.send(m.encode(m.Envelope(header, body)))


class DiscussionHost:
    """Alice's end of the public discussion: hears Bob, answers him, and publishes everything to whoever listens."""

    def __init__(self, wire: Wire, host: str, port: int, bob: str) -> None:
        self._wire, self._bob = wire, bob
        self.socket = wire.socket(zmq.ROUTER)
        self.port = _bind(self.socket, host, port)
        self._transcript = wire.socket(zmq.PUB)
        self.transcript_port = _bind(self._transcript, host, port + 1 if port else 0)
        self.refused: Counter[str] = Counter()
        self._route: bytes | None = None
        self._waiting: list[bytes] = []
        """Said before Bob was there."""

    def receive(self) -> m.PublicEnvelope | None:
        frames = self.socket.recv_multipart(copy=False)
        name = self._wire.sender_of(frames[-1]) or self._bob
        if len(frames) != 2 or name != self._bob:
            self.refused["impostor"] += 1
            return None
        self._route = frames[0].bytes
        for data in self._waiting:
            self.socket.send_multipart([self._route, data])
        self._waiting.clear()
        if not frames[1].bytes:  # Bob's greeting on connecting
            return None
        try:
            envelope = m.decode_public(frames[1].bytes)
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        if envelope.sender != "bob":
            self.refused["impostor"] += 1
            return None
        return envelope

    def send(self, envelope: m.PublicEnvelope) -> None:
        if self._route is None:
            self._waiting.append(m.encode(envelope))
        else:
            self.socket.send_multipart([self._route, m.encode(envelope)])

    def publish(self, envelope: m.PublicEnvelope) -> None:
        self._transcript.send(m.encode(envelope))


class DiscussionGuest:
    """Bob's end."""

    def __init__(self, wire: Wire, endpoint: str, alice: str) -> None:
        self.socket = wire.socket(zmq.DEALER, alice)
        self.socket.connect(endpoint)
        self.socket.send(b"")  # tells Alice's socket the way back
        self.refused: Counter[str] = Counter()

    def receive(self) -> m.PublicEnvelope | None:
        try:
            envelope = m.decode_public(self.socket.recv())
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        return envelope if envelope.sender == "alice" else None

    def send(self, envelope: m.PublicEnvelope) -> None:
        self.socket.send(m.encode(envelope))


class Eavesdropper:
    """Anybody's ear on the public discussion."""

    def __init__(self, wire: Wire, endpoint: str, alice: str) -> None:
        self.socket = wire.socket(zmq.SUB, alice)
        self.socket.subscribe(b"")
        self.socket.connect(endpoint)

    def receive(self) -> m.PublicEnvelope | None:
        try:
            return m.decode_public(self.socket.recv())
        except ProtocolError:
            return None


def new_incarnation() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
