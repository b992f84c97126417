"""TCP lines on loopback into which faults are injected: data sent to `Line.port` are delayed, dropped or forwarded.

Faults of messages act on whole messages: after the greeting of 64 bytes, the data are divided into ZMTP 3 frames
(RFC 37). Commands of the handshake always pass. With CURVE every frame has a number, which must rise. A lost frame does
not break the connection, but a frame that comes twice or in another order would, and libzmq 4.3 then ends the whole
process (stream_engine_base.cpp, "Assertion failed: !_io_error"). On `sealed` lines, which are authenticated, the
connection is therefore reset instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from testbed.lab.fault_plan import Traffic

_GREETING_BYTES = 64
_LONG, _COMMAND = 2, 4
_LOOKS_S = 0.02
_RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing a connection sends a reset and drops unsent data."""


class Frames:
    """Cuts one direction of a ZMTP connection into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._greeting_left = _GREETING_BYTES

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Take bytes as they come; yield (bytes, whether they are a message) for whatever is complete."""
        self._buffer += data
        if self._greeting_left and (n := min(self._greeting_left, len(self._buffer))):
            self._greeting_left -= n
            yield self._take(n), False  # in parts, because the other end answers the first half of the greeting
        while (size := self._size()) is not None and len(self._buffer) >= size:
            is_message = not self._buffer[0] & _COMMAND
            yield self._take(size), is_message

    def _size(self) -> int | None:
        """Return the length of the frame at the start of the buffer; None where its header is incomplete."""
        if len(self._buffer) < 2:
            return None
        if not self._buffer[0] & _LONG:
            return 2 + self._buffer[1]
        return 9 + int.from_bytes(self._buffer[1:9], "big") if len(self._buffer) >= 9 else None

    def _take(self, n: int) -> bytes:
        out = bytes(self._buffer[:n])
        del self._buffer[:n]
        return out


class Line:
    """Forwards connections to one address. Made by `Lines`; its methods may be called from any thread."""

    def __init__(
        self, lines: Lines, target: tuple[str, int], traffic: Callable[[], Traffic], messages: bool,
        sealed: bool,
    ) -> None:  # fmt: skip
        self._lines, self._target, self._traffic = lines, target, traffic
        self._messages, self._sealed = messages, sealed
        self.port = 0
        self.connections = 0
        """Number of connections so far."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            await self._passes.wait()  # while the line is cut, no connection is made
            there_reader, there = await asyncio.open_connection(*self._target)
            ends.append(there)
            self.connections += 1
            self._writers.update(ends)
            pumps = [self._pump(reader, there), self._pump(there_reader, writer)]
            await asyncio.wait([asyncio.create_task(p) for p in pumps], return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.CancelledError):  # nothing listens there yet, or the run is over
            pass
        finally:
            for end in ends:
                self._writers.discard(end)
                with contextlib.suppress(OSError):
                    end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        traffic, frames = self._traffic(), Frames()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        clock = asyncio.get_running_loop().time

        async def deliver() -> None:
            with contextlib.suppress(OSError):
                while True:
                    due_s, data = await queue.get()
                    if not data:
                        return
                    if (wait_s := due_s - clock()) > 0:
                        await asyncio.sleep(wait_s)
                    await self._passes.wait()
                    writer.write(data)
                    await writer.drain()

        delivery = asyncio.create_task(deliver())
        held, last_s = b"", 0.0
        try:
            while data := await reader.read(1 << 16):
                parts = frames.feed(data) if self._messages else iter([(data, False)])
                for part, is_message in parts:
                    last_s = max(last_s, clock() + traffic.delay_s())
                    fate = traffic.fate() if is_message else "passes"
                    if self._sealed and fate in ("twice", "swapped"):
                        writer.transport.abort()
                        return
                    if fate == "swapped" and not held:
                        held = part
                        continue
                    if fate != "lost":
                        queue.put_nowait((last_s, part + held + (part if fate == "twice" else b"")))
                        held = b""
            queue.put_nowait((last_s, b""))
            await delivery  # data that were sent before the connection was closed still arrive
        except OSError:
            pass
        finally:
            delivery.cancel()

    def reset(self) -> None:
        """Reset every connection, as a router does that has lost its table of connections."""
        self._lines.call(self._reset)

    def _reset(self) -> None:
        for writer in list(self._writers):
            with contextlib.suppress(OSError):
                sock: Any = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    def cut(self) -> None:
        """Forward nothing any more; neither end is notified."""
        self._lines.call(self._passes.clear)

    def mend(self) -> None:
        """Forward data again."""
        self._lines.call(self._passes.set)

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._passes.set()
        self._reset()


class Lines:
    """All lines of a run, served by one thread. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lines", daemon=True)
        self._thread.start()
        self.lines: list[Line] = []

    def to(self, endpoint: str, traffic: Callable[[], Traffic], messages: bool, sealed: bool) -> Line:
        """Open a line to `tcp://HOST:PORT`. `messages`: faults of whole ZMTP messages are injected, too; `sealed`:
        every message on its connections is authenticated (CURVE).
        """
        host, port = endpoint.removeprefix("tcp://").rsplit(":", 1)

        async def make() -> Line:
            line = Line(self, (host, int(port)), traffic, messages, sealed)
            await line.open()
            return line

        line = asyncio.run_coroutine_threadsafe(make(), self._loop).result(10.0)
        self.lines.append(line)
        return line

    def call(self, what: Callable[[], Any]) -> None:
        self._loop.call_soon_threadsafe(what)

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            for line in self.lines:
                line.stop()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()
