"""A device's requests to the World."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import zmq

from sim_backend.messages import PROTOCOL, Attach, Declare, Detach, Reply, decode_reply, encode
from testbed.core.errors import DeviceError, DeviceTimeout, KeyRefused, LateTransmit
from testbed.core.handshakes import Handshakes
from testbed.core.identity import Identity, secure
from testbed.core.sockets import end_context
from testbed.core.world import DriverContext

_LOOK_UP_S = 0.05
"""Seconds between two checks of a waiting request whether it should still wait."""
_ENDS_WITHIN_S = 2.0
ANSWER_S = 5.0
"""How long the World may take for an immediate answer (it may be computing for another device)."""


class OffAir(DeviceError):
    """The World does not know this device: it was dropped or replaced, or the World was restarted."""


class Replaced(OffAir):
    """Another process attached under this device's name."""


class NewWorld(DeviceError):
    """The World was reset since this device's last request; `seed` is the new one's."""

    seed = 0


_ERRORS: dict[str, type[DeviceError]] = {
    "late": LateTransmit,
    "timeout": DeviceTimeout,
    "off_air": OffAir,
    "replaced": Replaced,
    "new_world": NewWorld,
}


class Link:
    """Requests to the World at `endpoint`, answered one by one; usable from several threads.

    Each thread uses a socket of its own, so that one may silence the radio while another waits for samples.
    """

    _pack: Callable[[Any], Any] = staticmethod(encode)
    """Makes what is sent of a request."""
    _unpack: Callable[[Any], Reply] = staticmethod(decode_reply)
    """Makes an answer of what is received."""

    def __init__(self, name: str, endpoint: str, identity: Identity | None) -> None:
        self._name, self._endpoint, self._identity = name, endpoint, identity
        self._context = self._new_context()
        self._now_s: Callable[[], float] = time.monotonic
        self._local: Any = threading.local()
        self._ids = itertools.count(1)
        self._handshakes: Handshakes | None = None
        """Those of the first socket: the others have the same keys."""
        self._rests = threading.Condition()
        """Guards the next two values."""
        self._asking = 0
        """How many requests of other threads are under way."""
        self._closed_by = 0
        """The thread that closes this link; 0 before."""
        self.session = ""

    def share(self) -> None:
        """Use one socket in all threads, which then have to take turns."""
        self._local = SimpleNamespace()

    def ask(
        self, request: Any, state: str, payload: Any = None, timeout_s: float = ANSWER_S,
        check: Callable[[], None] = lambda: None,
    ) -> tuple[Reply, bytes]:  # fmt: skip
        """Send a request and wait for its answer; `check` is called every 50 ms meanwhile, and may raise.

        Raises the World's refusal (LateTransmit, DeviceTimeout, OffAir, DeviceError), and DeviceTimeout where it does
        not answer.
        """
        operation = type(request).__struct_config__.tag
        packed = self._pack(request)
        with self._under_way(operation, state):
            self._socket(operation, state).send_multipart([packed] if payload is None else [packed, payload])
            return self._answer(request, operation, state, timeout_s, check)

    @contextmanager
    def _under_way(self, operation: str, state: str) -> Iterator[None]:
        """Keep the sockets open in the block; raises DeviceError where another thread closes this link."""
        if self._closed_by == threading.get_ident():
            yield
            return
        with self._rests:
            self._refuse_if_closed(operation, state)
            self._asking += 1
        try:
            yield
        finally:
            with self._rests:
                self._asking -= 1
                self._rests.notify_all()

    def _refuse_if_closed(self, operation: str, state: str) -> None:
        if self._closed_by not in (0, threading.get_ident()):
            raise DeviceError(self._name, operation, state, "the link to the world is closed")

    def ask_many(
        self, requests: Sequence[Any], payloads: Sequence[Any], state: str
    ) -> list[tuple[Reply, bytes] | DeviceError]:
        """Send several requests, then wait for their answers; returns each one's answer, or what was refused."""
        operation = type(requests[0]).__struct_config__.tag
        out: list[tuple[Reply, bytes] | DeviceError] = []
        with self._under_way(operation, state):
            socket = self._socket(operation, state)
            for request, payload in zip(requests, payloads, strict=True):
                socket.send_multipart([self._pack(request), payload])
            for request in requests:
                try:
                    out.append(self._answer(request, operation, state, ANSWER_S))
                except DeviceError as exc:
                    out.append(exc)
        return out

    def _answer(
        self, request: Any, operation: str, state: str, timeout_s: float, check: Callable[[], None] = lambda: None
    ) -> tuple[Reply, bytes]:
        """Wait for the answer to a request, or for the refusal of an earlier one that was sent by `tell`."""
        socket = self._local.socket
        told: dict[int, str] = self._local.told
        deadline = self._now_s() + timeout_s
        while True:
            check()
            self._refuse_if_closed(operation, state)
            left_s = deadline - self._now_s()
            if left_s > 0 and not socket.poll(1e3 * min(left_s, _LOOK_UP_S)):
                continue
            if left_s <= 0:
                raise self._late(operation, state, timeout_s)
            frames = socket.recv_multipart()
            reply = self._unpack(frames[0])
            if reply.id in told:
                operation = told[reply.id]
                break
            if reply.id == request.id:  # any other answer belongs to a request that was given up
                break
        told.clear()
        if reply.error:
            error = _ERRORS.get(reply.error, DeviceError)(self._name, operation, state, reply.detail)
            if isinstance(error, NewWorld):
                error.seed = reply.seed
            raise error
        return reply, frames[1] if len(frames) > 1 else b""

    def _late(self, operation: str, state: str, timeout_s: float) -> DeviceTimeout:
        """Return the error of a request that was not answered, with a wrong key where the handshakes show one."""
        detail, why = f"the world at {self._endpoint} did not answer within {timeout_s:g} s", None
        if self._handshakes is not None and self._identity is not None:
            why = self._handshakes.trouble("the world", "world.public", f"{self._identity.name}.public")
        kind = DeviceTimeout if why is None else KeyRefused
        return kind(self._name, operation, state, detail if why is None else f"{detail}: {why}")

    def tell(self, request: Any, state: str, payload: Any) -> None:
        """Send a request that is answered only if it is refused; this thread's next `ask` then raises the refusal."""
        operation = type(request).__struct_config__.tag
        self._socket(operation, state).send_multipart([self._pack(request), payload])
        self._local.told[request.id] = operation

    def forget_told(self) -> None:
        """Do not raise refusals of this thread's earlier `tell`s any more."""
        if getattr(self._local, "socket", None) is not None:
            self._local.told.clear()

    def declare(self, until: int, state: str) -> None:
        """Declare silence until a tick; this has no answer."""
        self._socket("declare", state).send(self._pack(Declare(id=0, session=self.session, until=until)))

    def attach(self, kind: str, state: str) -> None:
        """Attach the device; an attached device of the same name is replaced."""
        request = Attach(id=self.next_id(), protocol=PROTOCOL, name=self._name, kind=kind)  # type: ignore[arg-type]
        self.session = self.ask(request, state)[0].session

    def next_id(self) -> int:
        return next(self._ids)

    def close(self, state: str) -> None:
        """Detach, if the World answers, and close the sockets; requests of other threads end first."""
        self._let_others_end()
        try:
            if self.session:
                self.ask(Detach(id=self.next_id(), session=self.session), state, timeout_s=1.0)
        except DeviceError:
            pass  # it is already detached
        finally:
            self._end(linger_ms=0)

    def leave(self, state: str) -> None:
        """Detach without waiting for an answer, because the World itself may be gone."""
        self._let_others_end()
        if self.session:
            self._socket("detach", state).send(self._pack(Detach(id=0, session=self.session)))
        self._end(linger_ms=100)

    def _socket(self, operation: str, state: str) -> Any:
        self._refuse_if_closed(operation, state)
        if self._context.closed:
            raise DeviceError(self._name, operation, state, "the link to the world is closed")
        socket = getattr(self._local, "socket", None)
        if socket is None:
            socket = self._local.socket = self._new_socket()
            self._local.told = {}
        return socket

    def _let_others_end(self) -> None:
        """Have the requests of other threads fail, which poll sockets that will be closed; they look several times
        within the time that this takes at most."""
        with self._rests:
            self._closed_by = threading.get_ident()
            self._rests.wait_for(lambda: not self._asking, timeout=_ENDS_WITHIN_S)

    def _new_context(self) -> Any:
        return zmq.Context()

    def _end(self, linger_ms: int) -> None:
        if self._handshakes is not None:
            self._handshakes.stop()
        end_context(self._context, linger_ms)

    def _new_socket(self) -> Any:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        secure(socket, self._identity, "world")
        if self._handshakes is None and self._identity is not None:
            self._handshakes = Handshakes(self._context, socket)
        socket.connect(self._endpoint)
        return socket


HERE = "local:"
"""How the endpoint of a World in this process begins (`local.held`)."""
LINKS: dict[str, Callable[[str], Link]] = {}
"""Such an endpoint → what makes a device's link to it."""


def link_to(name: str, endpoint: str, identity: Identity | None) -> Link:
    """Return a link of this name to the World at an endpoint, in this process or by a socket."""
    if not endpoint.startswith(HERE):
        return Link(name, endpoint, identity)
    if endpoint not in LINKS:
        raise DeviceError(name, "open", "closed", f"this process has no world {endpoint!r}, or has one no more")
    return LINKS[endpoint](name)


def link_for(name: str, context: DriverContext) -> Link:
    """Return a link to the lab's world; raises DeviceError where the lab has none."""
    if context.world is None:
        raise DeviceError(name, "open", "closed", "a simulated device needs a [world] table in the lab file")
    return link_to(name, context.world, context.identity)
