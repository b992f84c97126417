"""Watches the handshakes of a ZeroMQ socket: libzmq reports a wrong key only there; otherwise it looks like silence."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

_numbers = itertools.count()
MANY = 5
"""Number of failed handshakes in a row after which a wrong key of the server is suspected."""


class Handshakes:
    """What happens in a socket's handshakes. Make it before the socket is bound or connected, look now and then, and
    stop it before the socket is closed: libzmq's own thread would block for ever if nobody received these events.
    """

    def __init__(self, context: Any, socket: Any) -> None:
        import zmq

        self._socket = socket
        address = f"inproc://handshakes-{next(_numbers)}"
        socket.monitor(
            address,
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        )  # fmt: skip
        self._events = context.socket(zmq.PAIR)
        self._events.rcvhwm = 0  # a full queue would hold up libzmq's own thread
        self._events.linger = 0
        self._events.connect(address)
        self.is_over = False
        self.succeeded = 0
        self.refused_key = 0
        """The server does not know the client's key."""
        self.not_understood = 0
        """Number of failed handshakes in a row in which the client used a wrong key of the server, was no ZeroMQ peer,
        or lost its connection."""

    def look(self) -> None:
        """Count what has happened since the last look."""
        import zmq
        from zmq.utils.monitor import parse_monitor_message

        while int(self._events.get(zmq.EVENTS)) & zmq.POLLIN:  # costs a third of a poll
            event = parse_monitor_message(self._events.recv_multipart())["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.succeeded += 1
                self.not_understood = 0  # the earlier ones were connections that broke
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.refused_key += 1
            else:
                self.not_understood += 1

    def trouble(self, server: str, its_key: str, own_key: str) -> str | None:
        """Return why a client has no connection, as far as its handshakes show; None where they show nothing.

        `server`: the other end, in words; `its_key` and `own_key`: files of public keys, in words.
        """
        if not self.is_over:
            self.look()
        if self.refused_key and not self.succeeded:
            return f"{server} does not have this public key: copy {own_key} to its machine"
        if not self.succeeded and self.not_understood >= MANY:
            again = "copy it again from its machine"
            return f"{server} takes no greeting: {its_key} is not its key ({again}), or something else listens there"
        return None

    def stop(self) -> None:
        """End the watching, before the socket or its context is closed."""
        import zmq

        with contextlib.suppress(zmq.ZMQError):  # closed already
            self._socket.disable_monitor()
        self._events.close()
        self.is_over = True
