"""iiod's text protocol (libiio 0.2x) over TCP, for an unmodified libiio at the other end of `ip:HOST:PORT`.

One thread a connection; libiio uses one for attributes and a new one for every buffer it opens, so that a thread serves
one connection after the other.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

from sim_backend.emulators.iio_tree import UNREADABLE, Device, Key, Tree

log = logging.getLogger(__name__)

VERSION = (0, 24, "emulate")
_REOPEN_S = 0.05
"""Time for which an OPEN waits for the CLOSE of the buffer before: the two come on two connections, in either order."""
_LONGEST_WRITE = 1 << 16
"""Longest value of an attribute: filters and gain tables have some kilobytes."""
_LONGEST_LINE = 1024
_LONGEST_TIMEOUT_MS = 3_600_000
_SHORT = 1 << 16
"""Bytes that are copied rather than sent apart."""
_MOST_SESSIONS = 64
"""Connections at a time, each of which takes a thread; libiio needs two or three."""
_IDLE_S = 60.0
"""Time without a command after which a connection that has no buffer open gives way, where all others are in use."""


class Stream:
    """An open buffer, of one direction or the other."""

    dribble_s = 0.0
    """Time over which a block is sent, to emulate a device that hardly responds."""
    longest_write = 0
    """Most bytes of one block to transmit."""

    def read(self, n_bytes: int, timeout_s: float) -> tuple[int, Iterator[memoryview]] | None:
        """Return the length of the next block, at most `n_bytes`, and an iterator over its bytes; None: the connection
        is to be dropped in the middle of the block. Raises OSError, also while the bytes are read."""
        raise OSError(errno.EINVAL, "not for reading")

    def write(self, data: bytes) -> None:
        """Take a block to transmit. Raises OSError."""
        raise OSError(errno.EINVAL, "not for writing")

    def close(self) -> None:
        """End the stream; the client may be gone."""


class Backend(Protocol):
    """The device behind the server. Its methods raise OSError with the errno that the client is to see."""

    tree: Tree

    def read_attribute(self, key: Key) -> str: ...
    def write_attribute(self, key: Key, value: str) -> None: ...
    def open(self, device: Device, n_samples: int, mask: int, cyclic: bool, n_blocks: int) -> Stream: ...


@dataclass(slots=True, eq=False)
class _Session:
    wire: socket.socket
    lines: BinaryIO
    open: dict[str, tuple[Stream, int]] = field(default_factory=dict)
    """Device → its buffer and the mask of channels in it."""
    since_s: float = field(default_factory=time.monotonic)
    """Time of its latest command."""


class IiodServer:
    """Serves one IIO context on a TCP port until `close`."""

    def __init__(self, backend: Backend, host: str = "127.0.0.1", port: int = 0) -> None:
        self._backend = backend
        self._listener = socket.create_server((host, port))
        self._host, self._port = self._listener.getsockname()[:2]
        self._sessions: set[_Session] = set()
        self._lock = threading.Lock()
        self._accepted: queue.SimpleQueue[_Session | None] = queue.SimpleQueue()
        """Connections that a thread is to serve; None ends a thread."""
        self._n_threads = self._n_busy = 0
        """Threads that serve connections, and how many have or will get one."""
        self._holders: dict[str, dict[_Session, bool]] = {}
        """Device → the sessions that have its buffer open, and whether for repeating, which excludes all others."""
        self.n_blocks: dict[str, int] = {}
        """Device → kernel buffers of its next open, as clients set them."""
        self._timeout_s = 2.5
        """Timeout of the device, hence of all its connections."""
        self.timeouts_ms: deque[int] = deque(maxlen=100)
        """The latest timeouts that clients set, in order."""
        threading.Thread(target=self._accept, name=f"iiod-{self._port}", daemon=True).start()

    @property
    def uri(self) -> str:
        return f"ip:{self._host}:{self._port}"

    def close(self) -> None:
        """Stop listening and close all connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for _ in range(self._n_threads):
            self._accepted.put(None)

    def hang_up(self) -> None:
        """Drop every connection, as a pulled cable does."""
        with self._lock:
            sessions = list(self._sessions)
        for s in sessions:
            with contextlib.suppress(OSError):
                s.wire.shutdown(socket.SHUT_RDWR)

    # ---------------------------------------------------------------- connections

    def _accept(self) -> None:
        while True:
            try:
                wire, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                is_full = len(self._sessions) >= _MOST_SESSIONS and not self._make_room()
                session = _Session(wire, wire.makefile("rb"))
                if not is_full:
                    self._sessions.add(session)
            if is_full:
                session.lines.close()
                wire.close()
                continue
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._accepted.put(session)
            with self._lock:
                self._n_busy += 1
                is_short = self._n_busy > self._n_threads
                self._n_threads += is_short
            if is_short:
                threading.Thread(target=self._work, name=f"iiod-{self._port}-client", daemon=True).start()

    def _work(self) -> None:
        """Serve one connection after the other."""
        while (session := self._accepted.get()) is not None:
            self._serve(session)
            with self._lock:
                self._n_busy -= 1

    def _make_room(self) -> bool:
        """Hang up on the connection that has been idle for the longest time, if that is long; return whether one was.

        Among these are clients that do not read their answers.
        """
        idle = min((s for s in self._sessions if not s.open), key=lambda s: s.since_s, default=None)
        if idle is None or time.monotonic() - idle.since_s < _IDLE_S:
            return False
        with contextlib.suppress(OSError):
            idle.wire.shutdown(socket.SHUT_RDWR)
        self._sessions.discard(idle)
        return True

    def _serve(self, session: _Session) -> None:
        wire = session.wire
        try:
            while (line := session.lines.readline(_LONGEST_LINE)).endswith(b"\n"):
                words = line.decode("ascii", "replace").split()
                session.since_s = time.monotonic()
                if words == ["EXIT"]:
                    break
                if words:
                    self._command(session, words)
        except (OSError, ValueError, _HangUp):
            pass  # the client ended, or was disconnected on purpose
        except Exception:
            log.exception("iiod on port %d: connection given up", self._port)
        finally:
            with self._lock:
                self._sessions.discard(session)
            for device in list(session.open):  # a dropped socket is an implicit CLOSE
                self._close_device(session, device)
            session.lines.close()
            wire.close()

    def _command(self, session: _Session, words: list[str]) -> None:
        try:
            match words:
                case ["VERSION"]:
                    session.wire.sendall(f"{VERSION[0]}.{VERSION[1]}.{VERSION[2]:<7.7}\n".encode())
                case ["PRINT"]:
                    xml = self._backend.tree.xml().encode()
                    session.wire.sendall(b"%d\n%b\n" % (len(xml), xml))
                case ["TIMEOUT", ms]:
                    if not 0 <= int(ms) <= _LONGEST_TIMEOUT_MS:
                        raise OSError(errno.EINVAL, "timeout")
                    self._timeout_s = int(ms) / 1000
                    self.timeouts_ms.append(int(ms))
                    self._answer(session, 0)
                case ["OPEN", name, n, mask, *cyclic] if cyclic in ([], ["CYCLIC"]):
                    self._open_device(session, self._device(name), int(n), mask, bool(cyclic))
                    self._answer(session, 0)
                case ["CLOSE", name]:
                    device = self._device(name)
                    if device.id not in session.open:
                        raise OSError(errno.ENXIO, "not open here")
                    self._close_device(session, device.id)
                    self._answer(session, 0)
                case ["READBUF", name, n]:
                    self._read_buffer(session, self._device(name), int(n))
                case ["WRITEBUF", name, n]:
                    self._write_buffer(session, self._device(name), int(n))
                case ["READ", name, *where]:
                    self._read(session, name, where)
                case ["WRITE", name, *where, n]:
                    # The data are read in any case, even if they are refused, so that they are not taken for commands.
                    n_bytes = int(n)
                    if not 0 <= n_bytes <= _LONGEST_WRITE:
                        self._answer(session, -errno.E2BIG)
                        raise _HangUp
                    payload = session.lines.read(n_bytes)
                    if len(payload) < n_bytes:
                        raise _HangUp
                    self._write(name, where, payload)
                    self._answer(session, n_bytes)
                case ["SET", name, "BUFFERS_COUNT", n]:
                    if not 1 <= int(n) <= 64:
                        raise OSError(errno.EINVAL, "number of buffers")
                    self.n_blocks[self._device(name).id] = int(n)
                    self._answer(session, 0)
                case ["GETTRIG", name]:
                    self._device(name)
                    raise OSError(errno.ENOENT, "no trigger")
                case _:  # ZPRINT and BINARY among them, without which libiio works, too
                    self._answer(session, -errno.EINVAL)
        except OSError as exc:
            if session.wire.fileno() < 0 or isinstance(exc, ConnectionError):
                raise
            self._answer(session, -(exc.errno or errno.EIO))
        except ValueError:
            self._answer(session, -errno.EINVAL)

    @staticmethod
    def _answer(session: _Session, value: int) -> None:
        session.wire.sendall(b"%d\n" % value)

    def _device(self, name: str) -> Device:
        device = self._backend.tree.device(name)
        if device is None:
            raise OSError(errno.ENODEV, name)
        return device

    # ---------------------------------------------------------------- attributes

    def _where(self, device: Device, where: list[str]) -> tuple[str, str | None, str | None]:
        """Return (place, channel, attribute or None for all) of what follows the device in READ and WRITE."""
        match where:
            case ["INPUT" | "OUTPUT" as place, channel, *rest] if len(rest) <= 1:
                if self._backend.tree.channel(device, place == "OUTPUT", channel) is None:
                    raise OSError(errno.ENXIO, channel)
                return place, channel, rest[0] if rest else None
            case ["DEBUG" | "BUFFER" as place, *rest] if len(rest) <= 1:
                return place, None, rest[0] if rest else None
            case [] | [_]:
                return "DEVICE", None, where[0] if where else None
        raise OSError(errno.EINVAL, "not a place")

    def _read(self, session: _Session, name: str, where: list[str]) -> None:
        device = self._device(name)
        place, channel, attribute = self._where(device, where)
        if attribute is not None:
            key = self._backend.tree.key(device, place, channel, attribute)
            if key is None:
                raise OSError(errno.ENOENT, attribute)
            data = self._value(key)
        else:  # all values: for each one its length as 32 bits, then the value, padded to 32 bits
            data = b""
            for _, key in self._backend.tree.keys(device, place, channel):
                try:
                    value = self._value(key)
                    data += struct.pack(">i", len(value)) + value + b"\0" * (-len(value) % 4)
                except OSError as exc:
                    data += struct.pack(">i", -(exc.errno or errno.EIO))
        session.wire.sendall(b"%d\n%b\n" % (len(data), data))

    def _value(self, key: Key) -> bytes:
        value = self._backend.read_attribute(key)
        if value == UNREADABLE:
            raise OSError(self._backend.tree.refusals.get(key, errno.EINVAL), "cannot be read")
        return value.encode() + b"\0"

    def _write(self, name: str, where: list[str], payload: bytes) -> None:
        device = self._device(name)
        place, channel, attribute = self._where(device, where)
        key = self._backend.tree.key(device, place, channel, attribute or "")
        if key is None:
            raise OSError(errno.ENOENT, "no such attribute")
        try:
            text = payload.split(b"\0")[0].decode("ascii").rstrip("\n")
        except UnicodeDecodeError as exc:
            raise OSError(errno.EINVAL, "not text") from exc
        self._backend.write_attribute(key, text)

    # ---------------------------------------------------------------- buffers

    def _open_device(self, session: _Session, device: Device, n_samples: int, mask: str, cyclic: bool) -> None:
        if len(mask) != 8 * ((len(device.channels) + 31) // 32) or n_samples < 1:
            raise OSError(errno.EINVAL, "mask or size")
        bits = int(mask, 16)
        scan = [i for i, c in enumerate(device.channels) if c.scan_format is not None]
        if not bits or bits & ~sum(1 << i for i in scan):
            raise OSError(errno.EINVAL, "mask")
        deadline_s = time.monotonic() + _REOPEN_S
        while not self._hold(session, device.id, cyclic):
            if time.monotonic() > deadline_s:
                raise OSError(errno.EBUSY, "buffer already open")
            time.sleep(1e-4)
        try:
            stream = self._backend.open(device, n_samples, bits, cyclic, self.n_blocks.get(device.id, 4))
            session.open[device.id] = stream, bits
        except BaseException:
            self._let_go(session, device.id)
            raise

    def _hold(self, session: _Session, device: str, cyclic: bool) -> bool:
        """Take a device's buffer, which several sessions may share unless one repeats its samples; return whether that
        succeeded."""
        with self._lock:
            holders = self._holders.setdefault(device, {})
            if session in holders or (holders and (cyclic or any(holders.values()))):
                return False
            holders[session] = cyclic
            return True

    def _let_go(self, session: _Session, device: str) -> None:
        with self._lock:
            self._holders.get(device, {}).pop(session, None)

    def _close_device(self, session: _Session, device: str) -> None:
        try:
            session.open.pop(device)[0].close()
        finally:
            self._let_go(session, device)

    @staticmethod
    def _stream(session: _Session, device: Device) -> tuple[Stream, int]:
        if device.id not in session.open:
            raise OSError(errno.EBADF, "not open here")
        return session.open[device.id]

    def _read_buffer(self, session: _Session, device: Device, n_bytes: int) -> None:
        (stream, mask), first = self._stream(session, device), b"%08x\n"
        while n_bytes > 0:
            block = stream.read(n_bytes, self._timeout_s)
            length = n_bytes if block is None else block[0]
            # the mask precedes only the first block of an answer
            head = b"%d\n" % length + (first % mask if first else b"")
            if block is None:
                session.wire.sendall(head + bytes(n_bytes // 2))
                raise _HangUp
            try:
                for piece in block[1]:
                    # a short piece is sent with the head, which would take as long alone
                    if len(piece) > _SHORT or stream.dribble_s:
                        session.wire.sendall(head)
                        self._send_piece(session, piece, stream.dribble_s * len(piece) / length)
                    else:
                        session.wire.sendall(head + piece)
                    head = b""
            except OSError as exc:  # too late to report, because the length was sent already
                raise _HangUp from exc
            n_bytes -= length
            first = b""

    @staticmethod
    def _send_piece(session: _Session, piece: memoryview, over_s: float) -> None:
        if not over_s:
            session.wire.sendall(piece)
            return
        step = max(len(piece) // 16, 1)
        for at in range(0, len(piece), step):
            session.wire.sendall(piece[at : at + step])
            ready, _, _ = select.select([session.wire], [], [], over_s / 16)
            if ready and not session.wire.recv(1, socket.MSG_PEEK):
                raise _HangUp

    def _write_buffer(self, session: _Session, device: Device, n_bytes: int) -> None:
        stream, _ = self._stream(session, device)
        if not 0 < n_bytes <= stream.longest_write:  # refused before any of it is taken
            raise OSError(errno.EINVAL, "size")
        self._answer(session, 0)
        data = session.lines.read(n_bytes)
        if len(data) < n_bytes:
            raise _HangUp
        stream.write(data)
        self._answer(session, n_bytes)


class _HangUp(Exception):
    """End this connection without an answer."""
