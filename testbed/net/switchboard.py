"""The messages of a run in one process: what `transport` does by sockets, in memory and in order.

Every message is encoded, checked and decoded as on the wire. The state machines therefore get what they would get from
a socket, and never share an object. Messages cannot be lost, repeated or forged, so that no sessions and keys are
needed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import zmq

from testbed.core.errors import ProtocolError
from testbed.core.world import Turns
from testbed.net import messages as m

_INCARNATION = "here"
"""Incarnation of the coordinator, which is started only once."""
_PORTS = 1, 2
"""In place of the ports of Alice's discussion; 0 would mean that she has none."""


class Inbox:
    """Waiting messages, oldest first, with the part of a socket's interface that the daemons use.

    `wait` is called by `poll` if no message waits, before it looks again.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.waiting: deque[bytes] = deque()
        self._wait = wait

    def poll(self, within_ms: float = 0) -> bool:
        if not self.waiting:
            self._wait()
        return bool(self.waiting)

    def close(self, linger: int = 0) -> None:
        self.waiting.clear()


class Switchboard:
    """Connects coordinator and nodes of one process, and Alice, Bob and Eve. `turns`: how they take turns."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self._hub = Hub(turns.give_way)
        self._to_alice, self._to_bob = Inbox(), Inbox()
        self._ears: list[Inbox] = []

    def hub(self, host: str, port: int) -> Hub:
        return self._hub

    def link(self, endpoint: str, name: str, incarnation: str) -> Link:
        link = self._hub.links[name] = Link(self._hub, name, incarnation)
        return link

    def discussion_host(self, host: str, port: int, bob: str) -> Discussion:
        return Discussion(self._to_alice, self._to_bob, "bob", self._ears)

    def discussion_guest(self, endpoint: str, alice: str) -> Discussion:
        return Discussion(self._to_bob, self._to_alice, "alice")

    def eavesdropper(self, endpoint: str, alice: str) -> Discussion:
        self._ears[:] = [Inbox()]
        return Discussion(self._ears[0], Inbox(), "")

    def poller(self) -> Poller:
        return Poller()

    def close(self) -> None:
        """Do nothing: there are no sockets to close."""


class Poller:
    """Returns which inboxes contain messages, without waiting."""

    def __init__(self) -> None:
        self._inboxes: list[Inbox] = []

    def register(self, inbox: Inbox, flags: int) -> None:
        self._inboxes.append(inbox)

    def unregister(self, inbox: Inbox) -> None:
        self._inboxes.remove(inbox)

    def poll(self, within_ms: float) -> Iterator[tuple[Inbox, int]]:
        return ((inbox, zmq.POLLIN) for inbox in self._inboxes if inbox.waiting)


class Hub:
    """The coordinator's end. Polling it while no message waits gives a node a turn."""

    def __init__(self, give_way: Callable[[], None]) -> None:
        self.socket = Inbox(give_way)
        self.links: dict[str, Link] = {}
        self.port, self.run, self.other_version = 0, "", ""
        self.refused: Counter[str] = Counter()
        self.handshakes = SimpleNamespace(look=lambda: None, refused_key=0, not_understood=0)
        self._numbers: Counter[str] = Counter()

    def receive(self) -> tuple[str, m.Header, Any] | None:
        """Return (node, header, body), None if the message was refused; raises zmq.Again if none waits."""
        if not self.socket.waiting:
            raise zmq.Again
        return self._decoded(self.socket.waiting.popleft(), m.FROM_NODES)

    def _decoded(self, data: bytes, accepted: tuple[type, ...]) -> tuple[str, m.Header, Any] | None:
        try:
            envelope = m.decode(data)
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        if not isinstance(envelope.body, accepted):
            self.refused["direction"] += 1
            return None
        return envelope.header.sender, envelope.header, envelope.body

    def send(self, name: str, body: Any, to_pulse: bool = False) -> None:
        """Send to a node's main loop; nodes of one process have no heartbeat threads."""
        if to_pulse or name not in self.links:
            return
        self.links[name].socket.waiting.append(self._encoded("coordinator", _INCARNATION, self.run, body))

    def said(self, name: str, incarnation: str, run: str, body: Any) -> None:
        """Take a node's message."""
        self.socket.waiting.append(self._encoded(name, incarnation, run, body))

    def _encoded(self, name: str, incarnation: str, run: str, body: Any) -> bytes:
        number, self._numbers[name] = self._numbers[name], self._numbers[name] + 1
        return m.encode(m.Envelope(m.Header(number, m.VERSION, name, incarnation, run), body))

    def order_to(self, link: Link) -> tuple[m.Header, Any] | None:
        """Return a node's next order."""
        found = self._decoded(link.socket.waiting.popleft(), m.TO_NODES)
        return None if found is None else found[1:]

    def withdraw(self, name: str, kinds: tuple[type, ...]) -> None:
        """Withdraw orders of these kinds that the node has not taken."""
        if name not in self.links:
            return
        waiting = self.links[name].socket.waiting
        kept = [data for data in waiting if not isinstance(m.decode(data).body, kinds)]
        waiting.clear()
        waiting.extend(kept)

    def link_changes(self) -> list[tuple[str, bool]]:
        return []

    def drops(self) -> list[tuple[str, int]]:
        return []

    def strike(self, name: str, reason: str) -> None:
        self.refused[reason] += 1

    def blame(self, name: str) -> None:
        """Ignore all further messages of a node whose message could not be handled."""
        self.links.pop(name, None)


class Link:
    """A node's end."""

    handshakes = None
    dropped = 0

    def __init__(self, hub: Hub, name: str, incarnation: str) -> None:
        self._hub, self.name, self._incarnation = hub, name, incarnation
        self.socket = Inbox()
        self.run = ""
        self.met = _INCARNATION

    def waiting(self) -> bool:
        return bool(self.socket.waiting)

    def receive(self) -> tuple[m.Header, Any] | None:
        return self._hub.order_to(self)

    def send(self, body: Any, parent: int | None = None) -> None:
        if self.name in self._hub.links:
            self._hub.said(self.name, self._incarnation, self.run, body)

    def say_here(self) -> None:
        self.send(m.Here())

    def renew_if_silent(self) -> None:
        """Do nothing: a connection in memory cannot break."""


class Discussion:
    """One end of the public discussion: receives `peer`'s messages from `inbox`, sends to `to`, publishes to `ears`."""

    port, transcript_port = _PORTS
    handshakes = None
    dropped = 0

    def __init__(self, inbox: Inbox, to: Inbox, peer: str, ears: list[Inbox] | None = None) -> None:
        self.socket, self._to, self._peer, self._ears = inbox, to, peer, ears
        self.refused: Counter[str] = Counter()

    def receive(self) -> m.PublicEnvelope | None:
        try:
            envelope = m.decode_public(self.socket.waiting.popleft())
        except ProtocolError:
            self.refused["schema"] += 1
            return None
        return envelope if self._peer in ("", envelope.sender) else None

    def send(self, envelope: m.PublicEnvelope) -> None:
        self._to.waiting.append(m.encode(envelope))

    def say_here(self) -> None:
        """Do nothing: a message in memory cannot be lost."""

    def publish(self, envelope: m.PublicEnvelope) -> None:
        data = m.encode(envelope)
        for ear in self._ears or ():
            ear.waiting.append(data)
