"""A World in this process: `held` without any socket for a run in one process, `world_in_thread` for tests.

A lab runs it as a process otherwise (`server.SimWorld`).
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sim_backend.link import HERE, LINKS, Link
from sim_backend.messages import Reply, Request
from sim_backend.server import Server, SimWorld, serve
from testbed.core.config import RadioPlan, Scene
from testbed.core.world import Turns

_numbers = itertools.count()
_START_S = 60.0
"""Longest time that a World in a thread may take to begin, or to end: others may use the processor."""


@contextmanager
def held(turns: Turns, peer_timeout_s: float) -> Iterator[str]:
    """Hold a World in virtual time until the block is left; yields its endpoint for devices of this process.

    While a device waits for an answer, `turns` lets the other nodes act.
    """
    endpoint, air = f"{HERE}{next(_numbers)}", _Air(turns, peer_timeout_s)
    LINKS[endpoint] = lambda name: _LocalLink(name, endpoint, air)
    try:
        yield endpoint
    finally:
        del LINKS[endpoint]


class _Air:
    """One World, whose clients are all in this process. Their requests are calls, and nothing is encoded."""

    def __init__(self, turns: Turns, peer_timeout_s: float) -> None:
        self.turns = turns
        self.server = Server(lambda route, frames: None, "virtual", peer_timeout_s)
        """All its answers are taken by lines, none is sent."""

    def call(self, route: bytes, request: Request, payload: bytes) -> None:
        self.server.call(route, request, payload, self.turns.now_s())

    def settle(self) -> None:
        self.server.settle(self.turns.now_s())


class _Line:
    """One client's connection to the air: the part of a socket's and of its context's interface that `Link` uses."""

    def __init__(self, air: _Air, route: bytes) -> None:
        self._air, self._route, self.closed = air, route, False
        self._answers: deque[list[Any]] = deque()
        air.server.lines[route] = self._take

    def _take(self, reply: Reply, payload: Any) -> None:
        self._answers.append([reply] if payload is None else [reply, payload.tobytes()])

    def send(self, request: Request) -> None:
        self._air.call(self._route, request, b"")

    def send_multipart(self, parts: list[Any]) -> None:
        self._air.call(self._route, parts[0], bytes(parts[1]) if len(parts) > 1 else b"")

    def poll(self, within_ms: float) -> bool:
        """Return whether an answer has arrived; if there is none yet, the other nodes have a turn first."""
        if not self._answers:
            self._air.settle()
        if not self._answers:
            self._air.turns.give_way()
        return bool(self._answers)

    def recv_multipart(self) -> list[Any]:
        return self._answers.popleft()

    def close(self) -> None:
        self.closed = True
        self._air.server.lines.pop(self._route, None)


class _LocalLink(Link):
    """A link to an air in this process. It has only one line, because there are no other threads."""

    _pack = staticmethod(lambda request: request)
    _unpack = staticmethod(lambda reply: reply)

    def __init__(self, name: str, endpoint: str, air: _Air) -> None:
        self._air = air
        super().__init__(name, endpoint, None)
        self._now_s = air.turns.now_s

    def _new_context(self) -> Any:
        return _Line(self._air, f"{self._name}/{next(_numbers)}".encode())

    def _new_socket(self) -> Any:
        return self._context

    def _end(self, linger_ms: int) -> None:
        self._context.close()


@contextmanager
def world_in_thread(
    scene: Scene | None,
    seed: int = 1,
    pace: str = "virtual",
    peer_timeout_s: float = 2.0,
    radio: RadioPlan | None = None,
) -> Iterator[str]:
    """Serve on a free loopback port until the block is left; yields the endpoint. `scene` None: a client sets it."""
    stop, ready = threading.Event(), threading.Event()
    endpoints: list[str] = []

    def note(endpoint: str) -> None:
        endpoints.append(endpoint)
        ready.set()

    thread = threading.Thread(
        target=serve, args=("tcp://127.0.0.1:0", None, pace, peer_timeout_s, note, stop), daemon=True
    )
    thread.start()
    try:
        if not ready.wait(_START_S):
            raise RuntimeError(f"the world did not start within {_START_S:g} s")
        if scene is not None:
            SimWorld.reset(endpoints[0], None, scene, radio or RadioPlan(), seed, timeout_s=_START_S)
        yield endpoints[0]
    finally:
        stop.set()
        thread.join(_START_S)
