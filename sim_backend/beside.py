"""Devices that are emulated in the World's own process: their requests are calls, not messages.

A request is served in the thread that makes it. These threads and the loop that serves everybody else by a socket
take turns; an answer that a device's thread finds for one of the socket's clients is left to the loop, which owns the
socket.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sim_backend.link import Link, link_for
from sim_backend.messages import Reply
from testbed.core.world import DriverContext

Send = Callable[[bytes, list[Any]], None]


class Serves(Protocol):
    """The part of `server.Server` that a device of this process needs."""

    lines: dict[bytes, Callable[[Reply, Any], None]]

    def call(self, route: bytes, request: Any, payload: bytes, now: float) -> None: ...
    def settle(self, now: float) -> None: ...
    def due_in_s(self, now: float) -> float: ...
    @property
    def has_waiting(self) -> bool: ...


class Hall:
    """Where the devices of this process meet the World's loop, whose thread makes it. `send` sends by the socket."""

    server: Serves

    def __init__(self, send: Send) -> None:
        self.turn = threading.Condition()
        """Held by whoever uses the server."""
        self._send, self._loop = send, threading.get_ident()
        self._left: deque[tuple[bytes, list[Any]]] = deque()
        """Answers that are left to the loop."""
        self.bell, self._rope = socket.socketpair()
        """`bell` becomes readable where answers are left to the loop."""
        self.bell.setblocking(False)
        self._rope.setblocking(False)

    def send(self, route: bytes, frames: list[Any]) -> None:
        """Send an answer to a client of the socket, or leave that to the loop."""
        if threading.get_ident() == self._loop:
            self._send(route, frames)
            return
        self._left.append((route, frames))
        try:
            self._rope.send(b"\0")
        except OSError:  # it rings already, or the loop has ended
            pass

    def send_left(self) -> None:
        """Send the answers that were left to the loop."""
        try:
            while self.bell.recv(4096):
                pass
        except BlockingIOError:
            pass
        while self._left:
            self._send(*self._left.popleft())

    def close(self) -> None:
        self.bell.close()
        self._rope.close()


class _Line:
    """One device's line to the server: the part of a socket's and of its context's interface that `Link` uses.

    What goes through it are requests and answers themselves, not encoded ones.
    """

    def __init__(self, hall: Hall) -> None:
        self._hall, self.closed = hall, False
        self._answers: deque[list[Any]] = deque()
        self._route = secrets.token_bytes(16)  # no client of the socket has the same
        with hall.turn:
            hall.server.lines[self._route] = self._take

    def _take(self, reply: Reply, payload: Any) -> None:
        self._answers.append([reply] if payload is None else [reply, payload])
        self._hall.turn.notify_all()

    def send(self, request: Any) -> None:
        self.send_multipart([request])

    def send_multipart(self, parts: list[Any]) -> None:
        hall = self._hall
        with hall.turn:
            now = time.monotonic()
            hall.server.call(self._route, parts[0], bytes(parts[1]) if len(parts) > 1 else b"", now)
            if hall.server.has_waiting:
                hall.server.settle(now)

    def poll(self, within_ms: float) -> bool:
        """Return whether there is an answer, for which it waits no longer than until the server has something to do."""
        hall = self._hall
        with hall.turn:
            if not self._answers:
                hall.turn.wait(min(1e-3 * within_ms, hall.server.due_in_s(time.monotonic())))
            if not self._answers:
                hall.server.settle(time.monotonic())
            return bool(self._answers)

    def recv_multipart(self) -> list[Any]:
        return self._answers.popleft()

    def close(self) -> None:
        self.closed = True
        with self._hall.turn:
            self._hall.server.lines.pop(self._route, None)


class _Beside(Link):
    """A link without a socket. The threads that use it take turns."""

    _pack = staticmethod(lambda request: request)
    _unpack = staticmethod(lambda reply: reply)

    def __init__(self, name: str, endpoint: str, hall: Hall) -> None:
        self._hall = hall
        super().__init__(name, endpoint, None)
        self.share()

    def _new_context(self) -> Any:
        return _Line(self._hall)

    def _new_socket(self) -> Any:
        return self._context

    def _end(self, linger_ms: int) -> None:
        self._context.close()


_HALLS: dict[str, Hall] = {}
"""Endpoint of a World that this process serves → where its own devices meet it."""


@contextmanager
def offered(endpoint: str, hall: Hall) -> Iterator[None]:
    """Let the devices of this process use a hall in place of the socket at `endpoint`, until the block is left."""
    _HALLS[endpoint] = hall
    try:
        yield
    finally:
        del _HALLS[endpoint]
        hall.close()


def link_beside(name: str, context: DriverContext) -> Link:
    """Return a link for threads that take turns: without a socket where this process serves the World."""
    hall = _HALLS.get(context.world or "")
    if hall is not None:
        return _Beside(name, str(context.world), hall)
    link = link_for(name, context)
    link.share()
    return link
