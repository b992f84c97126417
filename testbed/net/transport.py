"""Authenticated ZeroMQ sockets: a hub at the coordinator, links at the nodes, the discussion between Alice and Bob.

With CURVE the key a message came with, not the name it claims, says who sent it: a mismatch is refused and counted.
A bad message costs its sender, and nobody else: it is counted, and after a few his connection is not listened to.
Nothing here grows with what a peer sends: frames, queues and tables have their limits, the first of them already
before anybody has proved who he is.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections import Counter, OrderedDict
from typing import Any

import zmq

from testbed.core.errors import InputError, ProtocolError
from testbed.core.gate import Strikes
from testbed.core.identity import Identity, secure, start_authenticator
from testbed.net import messages as m

log = logging.getLogger("testbed.net")

# ZMTP heartbeats run in libzmq's own thread: they notice a vanished peer even while Python is busy or stopped.
_ZMTP_HEARTBEAT_MS = 1000
_ZMTP_TIMEOUT_MS = 5000


_HANDSHAKE_MS = 5000
"""Who has not proved by then who he is, is hung up on."""
_QUEUED = 1000
"""Messages that may wait on a connection, in either direction; a peer that sends faster is slowed down by TCP."""
_QUEUED_PUBLIC = 1 << 16
"""Of a discussion: listeners that are slow for a block's time do not lose any of it."""
MAX_EARLY = 64
"""What Alice may have to say before Bob is there: the first message of a block or two."""
_ROUTES_A_NAME = 4
_NAMES = 64
"""More nodes than any lab has."""


def _tune(socket: Any, most_bytes: int, queued: int) -> None:
    socket.linger = 200  # a goodbye may still leave, but a dead peer cannot hold up the exit
    socket.sndhwm = queued
    socket.rcvhwm = queued
    # libzmq checks it against the length that a frame declares, the handshake's frames included
    socket.maxmsgsize = most_bytes
    socket.handshake_ivl = _HANDSHAKE_MS
    socket.heartbeat_ivl = _ZMTP_HEARTBEAT_MS
    socket.heartbeat_timeout = _ZMTP_TIMEOUT_MS


def _send(socket: Any, frames: list[bytes], refused: Counter[str]) -> None:
    """Send without ever waiting; what does not fit into the queue of a peer that does not read is lost and counted."""
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)
    except zmq.Again:
        refused["queue_full"] += 1


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

    def socket(
        self, kind: int, server: str | None = None, most_bytes: int = m.MAX_MESSAGE_BYTES, queued: int = _QUEUED
    ) -> Any:
        """Make a socket that serves (None) or talks to the named peer."""
        socket = self.context.socket(kind)
        _tune(socket, most_bytes, queued)
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
        self._last_seen: OrderedDict[str, OrderedDict[bytes, tuple[str, int]]] = OrderedDict()
        """name → route → (incarnation, highest msg_id): TCP keeps order, so anything not above it is a repeat."""
        self._strikes = Strikes()

    def receive(self) -> tuple[str, m.Header, Any] | None:
        """Return (authenticated node, header, body) or None where the message was refused (counted by reason).

        Raises zmq.Again where nothing is waiting.
        """
        frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        route = frames[0].bytes
        if self._strikes.muted(route):
            self.refused["muted"] += 1
            return None
        if len(frames) != 2:
            self._strike(route, "frames")
            return None
        try:
            envelope = m.decode(frames[1].bytes)
        except ProtocolError as exc:
            self._strike(route, "schema", exc)
            return None
        header = envelope.header
        name = self._wire.sender_of(frames[1]) or header.sender
        if name != header.sender:
            self._strike(route, "impostor")
            return None
        if not isinstance(envelope.body, m.FROM_NODES):
            self._strike(route, "direction")
            return None
        seen = self._last_seen.setdefault(name, OrderedDict())
        self._last_seen.move_to_end(name)
        incarnation, last = seen.get(route, (header.incarnation, -1))
        if header.msg_id <= last or header.incarnation != incarnation:  # a connection belongs to one process
            self._strike(route, "duplicate")
            return None
        seen[route] = header.incarnation, header.msg_id
        seen.move_to_end(route)
        self._routes[name, isinstance(envelope.body, m.Heartbeat)] = route
        self._forget(name)
        return name, header, envelope.body

    def blame(self, name: str) -> None:
        """Stop listening to a node whose message could not be handled; it may come back as a new process."""
        for route in self._last_seen.pop(name, {}):
            while not self._strikes.muted(route):
                self._strikes.count(route)

    def strike(self, name: str, reason: str) -> None:
        """Count a message of a node that passed the gate and still cannot be used."""
        route = self._routes.get((name, False))
        if route is not None:
            self._strike(route, reason)

    def _strike(self, route: bytes, reason: str, why: Exception | None = None) -> None:
        self.refused[reason] += 1
        if self._strikes.count(route):
            log.warning("a connection is not listened to any more after too many bad messages: %s", why or reason)

    def _forget(self, name: str) -> None:
        """Keep the latest connections of a name, and the names that were heard last."""
        while len(self._last_seen[name]) > _ROUTES_A_NAME:
            self._last_seen[name].popitem(last=False)
        while len(self._last_seen) > _NAMES:
            gone, _ = self._last_seen.popitem(last=False)
            for pulse in (False, True):
                self._routes.pop((gone, pulse), None)

    def send(self, name: str, body: Any, to_pulse: bool = False) -> None:
        """Send to a node's main loop or to its heartbeat thread. A vanished node is not an error here."""
        route = self._routes.get((name, to_pulse))
        if route is None:
            return
        header = m.Header(self._next_id, m.VERSION, "coordinator", self._incarnation, self.run)
        self._next_id += 1
        _send(self.socket, [route, m.encode(m.Envelope(header, body))], self.refused)


class Link:
    """A node's end. Not shared between threads: the heartbeat thread has its own."""

    def __init__(self, wire: Wire, endpoint: str, name: str, incarnation: str) -> None:
        self.name, self._incarnation = name, incarnation
        self.socket = wire.socket(zmq.DEALER, "coordinator")
        self.socket.connect(endpoint)
        self.run = ""
        self.refused: Counter[str] = Counter()
        self._next_id = 0
        self._last = ("", -1)
        """Incarnation of the coordinator and its highest msg_id. One that started anew has another, and begins at 0."""

    def waiting(self) -> bool:
        """Return whether a message can be received without waiting; a third of the price of a poll."""
        return bool(self.socket.get(zmq.EVENTS) & zmq.POLLIN)

    def receive(self) -> tuple[m.Header, Any] | None:
        try:
            envelope = m.decode(self.socket.recv())
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        header, (incarnation, last) = envelope.header, self._last
        if not isinstance(envelope.body, m.TO_NODES):
            self.refused["direction"] += 1
            return None
        if header.incarnation == incarnation and header.msg_id <= last:
            self.refused["duplicate"] += 1
            return None
        self._last = header.incarnation, header.msg_id
        return header, envelope.body

    def send(self, body: Any, parent: int | None = None) -> None:
        header = m.Header(self._next_id, m.VERSION, self.name, self._incarnation, self.run, parent)
        self._next_id += 1
        _send(self.socket, [m.encode(m.Envelope(header, body))], self.refused)


class DiscussionHost:
    """Alice's end of the public discussion: hears Bob, answers him, and publishes everything to whoever listens."""

    def __init__(self, wire: Wire, host: str, port: int, bob: str) -> None:
        self._wire, self._bob = wire, bob
        self.socket = wire.socket(zmq.ROUTER, None, m.MAX_PUBLIC_BYTES, _QUEUED_PUBLIC)
        self.port = _bind(self.socket, host, port)
        self._transcript = wire.socket(zmq.PUB, None, m.MAX_PUBLIC_BYTES, _QUEUED_PUBLIC)
        self.transcript_port = _bind(self._transcript, host, port + 1 if port else 0)
        self.refused: Counter[str] = Counter()
        self._route: bytes | None = None
        self._waiting: list[bytes] = []
        """Said before Bob was there."""
        self._strikes = Strikes()

    def receive(self) -> m.PublicEnvelope | None:
        frames = self.socket.recv_multipart(copy=False)
        route = frames[0].bytes
        if self._strikes.muted(route):
            self.refused["muted"] += 1
            return None
        name = self._wire.sender_of(frames[-1]) or self._bob
        if len(frames) != 2 or name != self._bob:
            self._strike(route, "impostor")
            return None
        data = frames[1].bytes
        if not data:  # Bob's greeting on connecting
            self._meet(route)
            return None
        try:
            envelope = m.decode_public(data)
        except ProtocolError:
            self._strike(route, "schema")
            return None
        if envelope.sender != "bob":
            self._strike(route, "impostor")
            return None
        self._meet(route)
        return envelope

    def _meet(self, route: bytes) -> None:
        self._route = route
        for data in self._waiting:
            _send(self.socket, [route, data], self.refused)
        self._waiting.clear()

    def _strike(self, route: bytes, reason: str) -> None:
        self.refused[reason] += 1
        self._strikes.count(route)

    def send(self, envelope: m.PublicEnvelope) -> None:
        data = m.encode(envelope)
        if self._route is not None:
            _send(self.socket, [self._route, data], self.refused)
        elif len(self._waiting) < MAX_EARLY:
            self._waiting.append(data)
        else:
            self.refused["queue_full"] += 1

    def publish(self, envelope: m.PublicEnvelope) -> None:
        _send(self._transcript, [m.encode(envelope)], self.refused)


class DiscussionGuest:
    """Bob's end."""

    def __init__(self, wire: Wire, endpoint: str, alice: str) -> None:
        self.socket = wire.socket(zmq.DEALER, alice, m.MAX_PUBLIC_BYTES, _QUEUED_PUBLIC)
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
        _send(self.socket, [m.encode(envelope)], self.refused)


class Eavesdropper:
    """Anybody's ear on the public discussion."""

    def __init__(self, wire: Wire, endpoint: str, alice: str) -> None:
        self.socket = wire.socket(zmq.SUB, alice, m.MAX_PUBLIC_BYTES, _QUEUED_PUBLIC)
        self.socket.subscribe(b"")
        self.socket.connect(endpoint)

    def receive(self) -> m.PublicEnvelope | None:
        try:
            return m.decode_public(self.socket.recv())
        except ProtocolError:
            return None


def new_incarnation() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
