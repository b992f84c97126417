"""A TCP line between two processes that a test can break, as networks do."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class Line:
    """Forwards every connection to `port` on this machine; clients connect to `self.port`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._passes = threading.Event()
        self._passes.set()
        self._ends: list[socket.socket] = []
        self._lock = threading.Lock()
        self.connections = 0
        """How many were made so far."""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # there is no server yet
                    client.close()
                    continue
                with self._lock:
                    self._ends += [client, server]
                    self.connections += 1
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self._passes.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def reset(self) -> int:
        """Reset every connection, as a router does that forgot it; returns how many ends that were."""
        with self._lock:
            ends, self._ends = self._ends, []
        for end in ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RDWR)
                end.close()
        return len(ends)

    def pull(self) -> None:
        """Let nothing through any more, as if the cable were unplugged; the connections stay open."""
        self._passes.clear()

    def plug(self) -> None:
        """Let everything through again."""
        self._passes.set()

    def close(self) -> None:
        self._listener.close()
        self.plug()
        self.reset()
