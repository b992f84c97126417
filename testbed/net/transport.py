"""Authenticated ZeroMQ sockets: a hub at the coordinator, links at the nodes, the discussion between Alice and Bob.

With CURVE the sender is identified by the key of its connection and not by the name in a message; a message in which
the two differ is refused and counted. A bad message affects its sender only: it is counted, and after a few of them the
connection is ignored. Memory does not grow with what a peer sends: frames, queues and tables have limits, and the limit
of frames holds even before the peer is authenticated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
import uuid
from collections import Counter, OrderedDict
from typing import Any

import msgspec
import zmq

from testbed.core.errors import InputError, ProtocolError
from testbed.core.gate import Strikes
from testbed.core.handshakes import Handshakes
from testbed.core.identity import Identity, secure, start_authenticator
from testbed.core.sockets import end_context
from testbed.net import messages as m
from testbed.net.session import Session

log = logging.getLogger("testbed.net")

# ZMTP heartbeats run in libzmq's own thread: they detect a vanished peer even while Python is busy or stopped.
_ZMTP_HEARTBEAT_MS = 1000
_ZMTP_TIMEOUT_MS = 5000


_HANDSHAKE_MS = 5000
"""Time after which a peer that has not authenticated itself is disconnected."""
_QUEUED = 1000
"""Largest number of messages that wait to be sent on a connection; TCP slows down a peer that sends faster."""
_RECEIVED = 64
"""The same for what was received and not read yet: 1 GiB of the longest messages. What is more waits at its sender."""
_QUEUED_PUBLIC = 1 << 16
"""Both for a discussion; a listener that does not read during a whole block still loses no message."""
HERE = struct.Struct(">8sqqqq")
"""What an end of a discussion sends of itself: incarnation, the number of the oldest message that may not have arrived
and of its next one, the highest it has received in order, and the number of the other's next one that it was told."""
_RENEW_DISCUSSION_S = 15.0
"""The same as `_RENEW_S` for Bob's end of a discussion; Alice's answers when no long computation is under way."""
_RENEW_S = 2.0
"""Silence of the coordinator, which answers twice a second, after which a node makes a new connection …"""
_RENEW_AGAIN_S = _HANDSHAKE_MS / 1000 + 1.0
"""… and again where it still hears nothing: a handshake that is under way gets the time that it may take."""
MAX_EARLY = 64
"""Largest number of messages for Bob that wait until he is connected: the first messages of one or two blocks."""
_AGAIN_S = 0.1
"""Least time between two repetitions of all unacknowledged messages, whatever the other end says that it lacks."""
_MOST_NUMBER = 1 << 31
"""Numbers of messages are smaller: a run sends some thousands a second at most."""
_ROUTES_A_NAME = 4
_NAMES = 64
"""Largest number of names that are stored: more than the nodes of any lab."""


def _tune(socket: Any, most_bytes: int, queued: int) -> None:
    socket.linger = 200  # ms for a last message; a dead peer cannot delay the exit any longer
    socket.sndhwm = queued
    socket.rcvhwm = queued if queued == _QUEUED_PUBLIC else _RECEIVED
    # libzmq compares it with the length that a frame's header states, also in the handshake.
    socket.maxmsgsize = most_bytes
    socket.handshake_ivl = _HANDSHAKE_MS
    socket.heartbeat_ivl = _ZMTP_HEARTBEAT_MS
    socket.heartbeat_timeout = _ZMTP_TIMEOUT_MS


def _send(socket: Any, frames: list[bytes], refused: Counter[str]) -> None:
    """Send without waiting. If the queue of a peer that does not read is full, the message is lost and counted."""
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


def _connect(socket: Any, endpoint: str) -> None:
    """Connect a socket; raises InputError naming the address, and closes the socket, where it is none."""
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as exc:
        socket.close(0)
        raise InputError(f"cannot connect to {endpoint}: {exc}; accepted: tcp://HOST:PORT") from exc


class Wire:
    """A process's ZeroMQ context and authenticator. Close it last."""

    def __init__(self, identity: Identity | None) -> None:
        self.identity = identity
        self.context = zmq.Context()
        self._names = {key: name for name, key in identity.known.items()} if identity is not None else {}
        try:
            self._authenticator = start_authenticator(self.context, identity)
        except BaseException:
            end_context(self.context, linger_ms=0)
            raise
        self.watched: list[Handshakes] = []
        """Handshakes of open sockets."""

    def socket(
        self,
        kind: int,
        server: str | None = None,
        most_bytes: int = m.MAX_MESSAGE_BYTES,
        queued: int = _QUEUED,
        only: str | None = None,
    ) -> Any:
        """Make a socket that serves (None) everybody, or `only` one peer, or that talks to the named peer."""
        socket = self.context.socket(kind)
        _tune(socket, most_bytes, queued)
        secure(socket, self.identity, server, only)
        return socket

    def hub(self, host: str, port: int) -> Hub:
        return Hub(self, host, port)

    def link(self, endpoint: str, name: str, incarnation: str) -> Link:
        return Link(self, endpoint, name, incarnation)

    def discussion_host(self, host: str, port: int, bob: str) -> DiscussionHost:
        return DiscussionHost(self, host, port, bob)

    def discussion_guest(self, endpoint: str, alice: str) -> DiscussionGuest:
        return DiscussionGuest(self, endpoint, alice)

    def eavesdropper(self, endpoint: str, alice: str) -> Eavesdropper:
        return Eavesdropper(self, endpoint, alice)

    def handshakes(self, socket: Any) -> Handshakes:
        """Watch the handshakes of a socket, before it is bound or connected."""
        found = Handshakes(self.context, socket)
        self.watched = [*(x for x in self.watched if not x.is_over), found]
        return found

    def poller(self) -> Any:
        return zmq.Poller()

    def sender_of(self, frame: Any) -> str | None:
        """Return the authenticated name behind a received frame; None where links are not authenticated."""
        return None if self.identity is None else self._names.get(frame.get("User-Id"), "?")

    def close(self) -> None:
        for handshakes in self.watched:
            handshakes.stop()
        end_context(self.context, linger_ms=200, authenticator=self._authenticator)


class Hub:
    """The coordinator's end: one ROUTER for all nodes."""

    def __init__(self, wire: Wire, host: str, port: int) -> None:
        self._wire = wire
        self.socket = wire.socket(zmq.ROUTER)
        self.socket.router_mandatory = 1  # sending to an unknown route raises an error instead of doing nothing
        self.handshakes = wire.handshakes(self.socket)
        self.port = _bind(self.socket, host, port)
        self.run = ""
        self.other_version = ""
        """Who speaks another version of the protocol, and which."""
        self.refused: Counter[str] = Counter()
        self._incarnation = new_incarnation()
        self._sessions: dict[str, Session] = {}
        """Name → session with the main loop of the node's latest process."""
        self._routes: dict[tuple[str, bool], bytes] = {}
        """(node, is it its heartbeat thread) → route, learned from authenticated messages only, so that an impostor
        gains nothing by choosing the routing id of another node."""
        self._pulses = 0
        """Number of answers to heartbeats so far; these are numbered but not kept."""
        self._last_seen: OrderedDict[str, OrderedDict[bytes, tuple[str, int]]] = OrderedDict()
        """name → route → (incarnation, highest msg_id). TCP keeps the order, so a message with no higher number is a
        repetition."""
        self._strikes = Strikes()
        self._unreachable: set[str] = set()
        """Nodes that have no connection at present."""
        self._changes: list[tuple[str, bool]] = []
        self._dropped: dict[str, int] = {}
        """Node → number of orders for its present process that were dropped, where that has changed."""

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
            if isinstance(exc, m.OtherVersion):
                self.other_version = f"{self._wire.sender_of(frames[1]) or 'a node'}: {exc}"
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
        is_pulse = isinstance(envelope.body, m.Heartbeat)
        if header.incarnation != incarnation or (is_pulse and header.msg_id <= last):
            self._strike(route, "duplicate")  # a connection belongs to one process
            return None
        seen[route] = header.incarnation, max(last, header.msg_id)
        seen.move_to_end(route)
        self._forget(name)
        if is_pulse:
            self._routes[name, True] = route
            return name, header, envelope.body
        return (name, header, envelope.body) if self._is_next(name, route, header, envelope.body) else None

    def _is_next(self, name: str, route: bytes, header: m.Header, body: Any) -> bool:
        """Take a message of a main loop into its session; returns whether it is to be acted on."""
        session = self._sessions.get(name)
        if session is None or (isinstance(body, m.Hello) and session.incarnation != header.incarnation):
            session = self._sessions[name] = Session(header.incarnation, first=header.msg_id)
        if session.incarnation != header.incarnation:
            return True  # from a process that was replaced, which the state machine handles
        has_moved = self._routes.get((name, False)) != route
        self._routes[name, False] = route
        if name in self._unreachable:
            self._unreachable.discard(name)
            self._changes.append((name, True))
        session.acknowledged(header.seen)
        is_here = isinstance(body, m.Here)
        verdict = "next" if is_here else session.take(header.msg_id)
        if has_moved or (is_here and session.has_lost(header.seen, header.parent)):
            self._send_again(name, session)
        if is_here:
            self._transmit(name, session, session.next_id, m.Pulse(), header.msg_id)
        if verdict != "next":
            self.refused[verdict] += 1
        return verdict == "next"

    def blame(self, name: str) -> None:
        """Stop listening to a node whose message could not be handled; it may come back as a new process."""
        for route in self._last_seen.pop(name, {}):
            while not self._strikes.muted(route):
                self._strikes.count(route)

    def strike(self, name: str, reason: str) -> None:
        """Count a message of a node that was decoded and still cannot be used."""
        route = self._routes.get((name, False))
        if route is not None:
            self._strike(route, reason)

    def _strike(self, route: bytes, reason: str, why: Exception | None = None) -> None:
        self.refused[reason] += 1
        if self._strikes.count(route):
            log.warning("a connection is ignored after too many bad messages: %s", why or reason)

    def _forget(self, name: str) -> None:
        """Keep the latest connections of a name, and the names from which messages came last."""
        while len(self._last_seen[name]) > _ROUTES_A_NAME:
            self._last_seen[name].popitem(last=False)
        while len(self._last_seen) > _NAMES:
            gone, _ = self._last_seen.popitem(last=False)
            self._sessions.pop(gone, None)
            for pulse in (False, True):
                self._routes.pop((gone, pulse), None)

    def send(self, name: str, body: Any, to_pulse: bool = False) -> None:
        """Send to a node's main loop or to its heartbeat thread.

        Messages to the main loop that are lost because a connection broke are sent again once the connection is back,
        in order and once; `link_changes` reports a node without a connection. Messages to the heartbeat thread may be
        lost.
        """
        if to_pulse:
            self._pulses += 1
            self._route(name, True, m.Header(self._pulses, m.VERSION, "coordinator", self._incarnation, self.run), body)
            return
        session = self._sessions.get(name)
        if session is None:
            return  # it has never sent a greeting
        number = session.say(body)
        if number is None:
            self.refused["queue_full"] += 1
            self._dropped[name] = session.dropped
            return
        self._transmit(name, session, number, body, None)

    def drops(self) -> list[tuple[str, int]]:
        """Return (node, number of orders for it that were dropped because too many waited) for every change since the
        last call."""
        dropped, self._dropped = self._dropped, {}
        return list(dropped.items())

    def link_changes(self) -> list[tuple[str, bool]]:
        """Return (node, is it connected now) for every change since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def withdraw(self, name: str, kinds: tuple[type, ...]) -> None:
        """Withdraw orders of these kinds that have not been acknowledged; one that has arrived is carried out."""
        if (session := self._sessions.get(name)) is not None:
            session.withdraw(lambda body: isinstance(body, kinds), m.Withdrawn())

    def _send_again(self, name: str, session: Session) -> None:
        if not _may_repeat(session):
            return  # the node says again what it lacks
        for number, body, parent in list(session.owed):
            self._transmit(name, session, number, body, parent)

    def _transmit(self, name: str, session: Session, number: int, body: Any, parent: int | None) -> None:
        header = m.Header(
            number, m.VERSION, "coordinator", self._incarnation, self.run, parent=parent, seen=session.seen
        )
        self._route(name, False, header, body)

    def _route(self, name: str, to_pulse: bool, header: m.Header, body: Any) -> None:
        route = self._routes.get((name, to_pulse))
        if route is None:
            return
        try:
            _send(self.socket, [route, m.encode(m.Envelope(header, body))], self.refused)
        except zmq.ZMQError as exc:
            if exc.errno != zmq.EHOSTUNREACH:
                raise
            self.refused["unreachable"] += 1
            del self._routes[name, to_pulse]
            if not to_pulse and name not in self._unreachable:
                self._unreachable.add(name)
                self._changes.append((name, False))


class Link:
    """A node's end of its connection to the coordinator. It belongs to one thread; the heartbeat thread has its own."""

    is_watched = True
    """Whether its handshakes are watched."""

    def __init__(self, wire: Wire, endpoint: str, name: str, incarnation: str) -> None:
        self.name, self._incarnation = name, incarnation
        self.socket = wire.socket(zmq.DEALER, "coordinator")
        self.handshakes = wire.handshakes(self.socket) if self.is_watched else None
        self._endpoint = endpoint
        self.socket.connect(endpoint)
        self.heard_s = time.monotonic()
        """Time of the coordinator's last message, or of the last new connection."""
        self._renew_after_s = _RENEW_S
        self.run = ""
        self.refused: Counter[str] = Counter()
        self._session = Session("")
        self._answered: int | None = None
        """The number of the coordinator's next order, by its latest `Pulse`."""

    @property
    def met(self) -> str:
        """Incarnation of the coordinator from which the last message came; '' before the first one."""
        return self._session.incarnation

    @property
    def dropped(self) -> int:
        """Number of messages that were dropped because too many waited to be acknowledged."""
        return self._session.dropped

    def waiting(self) -> bool:
        """Return whether a message can be received without waiting; costs a third of a poll."""
        return bool(self.socket.get(zmq.EVENTS) & zmq.POLLIN)

    def receive(self) -> tuple[m.Header, Any] | None:
        try:
            envelope = m.decode(self.socket.recv())
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        header, body = envelope.header, envelope.body
        if not isinstance(body, m.TO_NODES):
            self.refused["direction"] += 1
            return None
        self.heard_s, self._renew_after_s = time.monotonic(), _RENEW_S
        if header.incarnation != self._session.incarnation:
            self._meet(header.incarnation)
        self._session.acknowledged(header.seen)
        if isinstance(body, m.Pulse) and header.parent is not None:
            self._answered = header.msg_id
            if self._session.has_lost(header.seen, header.parent):
                self._send_again()
            return header, body
        verdict = self._verdict(header.msg_id)
        if verdict != "next":
            self.refused[verdict] += 1
            return None
        return header, body

    def _verdict(self, number: int) -> str:
        return self._session.take(number)

    def _meet(self, incarnation: str) -> None:
        """Begin a new session with a restarted coordinator, whose messages are numbered from 0."""
        self._session.incarnation, self._session.seen, self._answered = incarnation, -1, None

    def send(self, body: Any, parent: int | None = None) -> None:
        """Send a message; one that is lost with a connection is sent again, in order."""
        number = self._session.say(body, parent)
        if number is None:
            self.refused["queue_full"] += 1
            return
        self._transmit(number, body, parent)

    def renew_if_silent(self) -> None:
        """Make a new connection if the coordinator was silent for so long that the present one may be dead.

        libzmq reconnects by itself when a connection closes, but not after a frame that broke the protocol.
        """
        now_s = time.monotonic()
        if now_s - self.heard_s < self._renew_after_s:
            return
        self.heard_s, self._renew_after_s = now_s, _RENEW_AGAIN_S
        with contextlib.suppress(zmq.ZMQError):  # the socket may have no connection any more
            self.socket.disconnect(self._endpoint)
        self.socket.connect(self._endpoint)

    def say_here(self) -> None:
        """Send the coordinator this end's state of the session; to be called from time to time."""
        self._transmit(self._session.next_id, m.Here(), self._answered)

    def _send_again(self) -> None:
        for number, body, parent in list(self._session.owed):
            self._transmit(number, body, parent)

    def _transmit(self, number: int, body: Any, parent: int | None) -> None:
        header = m.Header(
            number, m.VERSION, self.name, self._incarnation, self.run, parent=parent, seen=self._session.seen
        )
        _send(self.socket, [m.encode(m.Envelope(header, body))], self.refused)


class PulseLink(Link):
    """The link of a node's heartbeat thread. A lost heartbeat is never sent again, because the next one replaces it."""

    is_watched = False

    def send(self, body: Any, parent: int | None = None) -> None:
        session = self._session
        number, session.next_id = session.next_id, session.next_id + 1
        self._transmit(number, body, parent)

    def _verdict(self, number: int) -> str:
        if number <= self._session.seen:
            return "duplicate"
        self._session.seen = number
        return "next"


def _may_repeat(session: Session) -> bool:
    """Return whether enough time has passed since all that is owed was last sent again, and note that it is now."""
    now_s = time.monotonic()
    if now_s - session.repeated_s < _AGAIN_S:
        return False
    session.repeated_s = now_s
    return True


class _Discusser:
    """What both ends of a discussion do so that a break of its connection costs time and no message.

    Bob's end sends its state (`HERE`) twice a second, and Alice's answers with its own: both know what did not arrive.
    """

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self._incarnation = os.urandom(8)
        self._session = Session("", most=_QUEUED_PUBLIC)
        self._answered = -1
        """The number of the other end's next message, by the latest that it sent of itself."""

    @property
    def dropped(self) -> int:
        """Number of messages that were dropped because too many waited to be acknowledged."""
        return self._session.dropped

    def _here(self, parent: int) -> bytes:
        session = self._session
        first = session.owed[0][0] if session.owed else session.next_id
        return HERE.pack(self._incarnation, first, session.next_id, session.seen, parent)

    def _hear(self, data: bytes) -> bool:
        """Take what the other end sent of itself; returns whether something is to be sent to it again.

        Raises ProtocolError for numbers that no session has.
        """
        incarnation, first, next_id, seen, parent = HERE.unpack(data)
        if not (0 <= first <= next_id < _MOST_NUMBER and -1 <= seen < _MOST_NUMBER and -1 <= parent < _MOST_NUMBER):
            raise ProtocolError("the state of a discussion's end with numbers that no session has")
        session = self._session
        if session.incarnation != incarnation.hex():  # another process
            session.incarnation, session.seen = incarnation.hex(), first - 1
        self._answered = next_id
        session.acknowledged(seen)
        return session.has_lost(seen, parent)

    def _send_again(self) -> None:
        if not _may_repeat(self._session):
            return  # the other end says again what it lacks
        for number, envelope, _ in list(self._session.owed):
            self._transmit(number, envelope)

    def _next(self, envelope: m.PublicEnvelope) -> m.PublicEnvelope | None:
        """Return a message if it is the next one; any other has arrived already, or will come again."""
        if not self._session.incarnation:
            self.refused["gap"] += 1
            return None
        self._session.acknowledged(envelope.seen)
        verdict = self._session.take(envelope.number)
        if verdict != "next":
            self.refused[verdict] += 1
            return None
        return envelope

    def send(self, envelope: m.PublicEnvelope) -> None:
        """Send a message; one that is lost with a connection is sent again, in order."""
        number = self._session.say(envelope)
        if number is None:
            self.refused["queue_full"] += 1
            return
        self._transmit(number, envelope)

    def _transmit(self, number: int, envelope: m.PublicEnvelope) -> None:
        self._give(m.encode(msgspec.structs.replace(envelope, number=number, seen=self._session.seen)))

    def _give(self, data: bytes) -> None:
        raise NotImplementedError


class DiscussionHost(_Discusser):
    """Alice's end of the public discussion: receives from Bob, answers him, and publishes everything to listeners."""

    def __init__(self, wire: Wire, host: str, port: int, bob: str) -> None:
        super().__init__()
        self._wire, self._bob = wire, bob
        self.handshakes = None
        # no other node can connect, whose long queue would wait here until it is discarded
        self.socket = wire.socket(zmq.ROUTER, None, m.MAX_PUBLIC_BYTES, _QUEUED_PUBLIC, only=bob)
        self.port = _bind(self.socket, host, port)
        self._transcript = wire.socket(zmq.PUB, None, m.MAX_PUBLIC_BYTES, _QUEUED_PUBLIC)
        self.transcript_port = _bind(self._transcript, host, port + 1 if port else 0)
        self._route: bytes | None = None
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
        if len(data) == HERE.size:
            self._meet(route, data)
            return None
        try:
            envelope = m.decode_public(data)
        except ProtocolError:
            self._strike(route, "schema")
            return None
        if envelope.sender != "bob":
            self._strike(route, "impostor")
            return None
        return self._next(envelope)

    def _meet(self, route: bytes, data: bytes) -> None:
        before = self._session.incarnation
        try:
            has_lost = self._hear(data)
        except ProtocolError:
            self._strike(route, "schema")
            return
        if before not in ("", self._session.incarnation):
            self._session.owed.clear()  # it was for another process of Bob's
        has_moved, self._route = route != self._route, route
        self._give(self._here(self._answered))  # first: he takes nothing from a process that he does not know
        if has_lost or has_moved:
            self._send_again()

    def _strike(self, route: bytes, reason: str) -> None:
        self.refused[reason] += 1
        self._strikes.count(route)

    def send(self, envelope: m.PublicEnvelope) -> None:
        if self._route is None and len(self._session.owed) >= MAX_EARLY:
            self.refused["queue_full"] += 1
            self._session.dropped += 1
            return
        super().send(envelope)

    def _give(self, data: bytes) -> None:
        if self._route is not None:
            _send(self.socket, [self._route, data], self.refused)

    def publish(self, envelope: m.PublicEnvelope) -> None:
        _send(self._transcript, [m.encode(envelope)], self.refused)


class DiscussionGuest(_Discusser):
    """Bob's end."""

    def __init__(self, wire: Wire, endpoint: str, alice: str) -> None:
        super().__init__()
        self.socket = wire.socket(zmq.DEALER, alice, m.MAX_PUBLIC_BYTES, _QUEUED_PUBLIC)
        self.handshakes = wire.handshakes(self.socket)
        self._endpoint = endpoint
        _connect(self.socket, endpoint)
        self._heard_s = time.monotonic()
        self.say_here()  # gives Alice's socket the route to this one

    def receive(self) -> m.PublicEnvelope | None:
        data = self.socket.recv()
        self._heard_s = time.monotonic()
        try:
            if len(data) == HERE.size:
                if self._hear(data):
                    self._send_again()
                return None
            envelope = m.decode_public(data)
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        return self._next(envelope) if envelope.sender == "alice" else None

    def say_here(self) -> None:
        """Send Alice this end's state of the discussion; to be called from time to time.

        It connects anew where nothing was heard for so long that the connection may be dead although it stands.
        """
        now_s = time.monotonic()
        if now_s - self._heard_s >= _RENEW_DISCUSSION_S:
            self._heard_s = now_s
            with contextlib.suppress(zmq.ZMQError):  # it has none any more
                self.socket.disconnect(self._endpoint)
            self.socket.connect(self._endpoint)
        self._give(self._here(self._answered))

    def _give(self, data: bytes) -> None:
        _send(self.socket, [data], self.refused)


class Eavesdropper:
    """A listener to the public discussion."""

    def __init__(self, wire: Wire, endpoint: str, alice: str) -> None:
        self.socket = wire.socket(zmq.SUB, alice, m.MAX_PUBLIC_BYTES, _QUEUED_PUBLIC)
        self.handshakes = wire.handshakes(self.socket)
        self.socket.subscribe(b"")
        _connect(self.socket, endpoint)

    def receive(self) -> m.PublicEnvelope | None:
        try:
            return m.decode_public(self.socket.recv())
        except ProtocolError:
            return None


def new_incarnation() -> str:
    return f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
