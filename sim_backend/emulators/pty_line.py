"""A serial line in software: a pty between a real driver and a simulated device, with the speed of a real line.

A pty has no speed limit, so both directions are limited here to the baud rate at ten bits per byte. Bytes from the host
reach the device when a real line would have delivered them. The device's answers are sent byte after byte, and delayed
by the adapter's latency timer if the line has one. The methods marked as faults make the line silent, late, noisy or
unplugged.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import itertools
import os
import select
import termios
import threading
import time
import tty
from collections import deque
from pathlib import Path
from typing import Protocol

from testbed.core.errors import InputError

_BITS_A_BYTE = 10
_LONGEST_QUEUE = 1 << 16
"""Most bytes that may wait on the wire in either direction; more are lost, as with a full buffer."""
_AT_ONCE = 1024
_IDLE_LOOK_S = 1.0


class Device(Protocol):
    """The device at the line."""

    ends: bytes
    """Terminator of a command or answer, whose bytes then all arrive with its last byte. Empty: bytes arrive as
    written."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they arrive, in order; return the immediate answer. Called in the line's thread.

        Later answers are sent with `PtyLine.send`.
        """


class PtyLine:
    """The line of one device; `uri` is the path that a driver opens, the same one after every `vanish`."""

    def __init__(self, uri: Path, baud: int, latency_s: float = 0.0) -> None:
        self.uri, self.baud = str(uri), baud
        self.latency_s = latency_s
        """Delay with which an adapter passes on received bytes."""
        self.device: Device | None = None
        self._byte_s = _BITS_A_BYTE / baud
        self._lock = threading.RLock()
        self._later: list[tuple[float, int, bytes]] = []
        """Heap of the device's output: (earliest time, order, bytes)."""
        self._order = itertools.count()
        self._to_device: deque[tuple[float, bytes]] = deque()
        """Data from the host on their way to the device: (time at which all of them are received, bytes)."""
        self._device_busy_s = self._host_busy_s = 0.0
        """Time until which each direction of the wire is occupied."""
        self._to_host: deque[tuple[float, bytes]] = deque()
        self._swallow = 0
        self._silent = False
        self._delay_s = 0.0
        self._delays_left = 0
        self._copies = 0
        self._master = self._slave = -1
        self._back_s: float | None = None
        self._wake_r, self._wake_w = os.pipe()
        os.set_blocking(self._wake_r, False)
        os.set_blocking(self._wake_w, False)
        self._closed = False
        try:
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
            self._appear()
        except OSError as exc:
            for fd in (self._wake_r, self._wake_w):
                os.close(fd)
            raise InputError(f"emulated serial line {uri}: cannot be made: {exc.strerror}") from exc
        self._thread = threading.Thread(target=self._run, name=f"line {uri.name}", daemon=True)

    def start(self, device: Device) -> None:
        """Connect the device to the line."""
        self.device = device
        self._thread.start()

    def close(self) -> None:
        """End the thread and remove the port; may be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._nudge()
            self._thread.join()
        with self._lock:
            self._disappear()
            for fd in (self._wake_r, self._wake_w):
                os.close(fd)

    # ---------------------------------------------------------------- for the device

    def send(self, data: bytes, delay_s: float = 0.0) -> None:
        """Send the device's data in `delay_s`; may be called from any thread."""
        with self._lock:
            if self._silent or not data:
                return
            if self._delays_left:
                self._delays_left -= 1
                delay_s += self._delay_s
            now_s = time.monotonic()
            for _ in range(1 + self._copies):
                self._put(now_s + delay_s, data)
            self._copies = 0
        self._nudge()

    # ---------------------------------------------------------------- faults

    def silence(self, silent: bool = True) -> None:
        """Suppress everything that the device sends, until called again with False."""
        with self._lock:
            self._silent = silent

    def garbage(self, data: bytes, delay_s: float = 0.0) -> None:
        """Insert these bytes on the way to the host."""
        with self._lock:
            self._put(time.monotonic() + delay_s, data)
        self._nudge()

    def delay_answers(self, delay_s: float, n: int = 1) -> None:
        """Delay the next `n` answers by this time."""
        with self._lock:
            self._delay_s, self._delays_left = delay_s, n

    def duplicate_answer(self, n: int = 1) -> None:
        """Repeat the next answer n times."""
        with self._lock:
            self._copies = n

    def swallow(self, n_bytes: int) -> None:
        """Lose the next `n_bytes` bytes on their way to the device."""
        with self._lock:
            self._swallow = n_bytes

    def vanish(self, back_after_s: float | None) -> None:
        """Unplug the port with all data on the wire; plug it in again after this time, or with `appear`."""
        with self._lock:
            self._disappear()
            self._back_s = None if back_after_s is None else time.monotonic() + back_after_s
        self._nudge()

    def appear(self) -> None:
        """Plug the port in again."""
        with self._lock:
            self._back_s = None
            if self._master < 0 and not self._closed:
                self._appear()
        self._nudge()

    # ---------------------------------------------------------------- the wire

    def _put(self, when_s: float, data: bytes) -> None:
        if len(self._later) < _LONGEST_QUEUE:
            heapq.heappush(self._later, (when_s, next(self._order), data))

    def _appear(self) -> None:
        master, slave = os.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        # The slave is kept open here; otherwise the master would report a hang-up while no driver has it open.
        self._master, self._slave = master, slave
        link = Path(self.uri)
        fresh = link.with_name(f".{link.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        fresh.symlink_to(os.ttyname(slave))
        fresh.replace(link)

    def _disappear(self) -> None:
        if self._master >= 0:
            with contextlib.suppress(OSError):
                Path(self.uri).unlink()
            os.close(self._master)
            os.close(self._slave)
            self._master = self._slave = -1
        self._later.clear()
        self._to_device.clear()
        self._to_host.clear()
        self._device_busy_s = self._host_busy_s = 0.0

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_w, b".")

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                wait_s = self._turn(time.monotonic())
                fds = [self._wake_r] + ([self._master] if self._master >= 0 else [])
            # select(), because poll() counts whole milliseconds, in which 11 bytes pass at 115200 baud
            with contextlib.suppress(OSError, ValueError):  # a descriptor was closed meanwhile
                select.select(fds, [], [], wait_s)
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_r, 4096)

    def _turn(self, now_s: float) -> float:
        """Move everything that is due; return the time until the next data are due."""
        if self._back_s is not None and now_s >= self._back_s:
            self._back_s = None
            self._appear()
        if self._master >= 0:
            self._hear_host(now_s)
        while self._to_device and self._to_device[0][0] <= now_s:
            when_s, data = self._to_device.popleft()
            assert self.device is not None
            self.send(self.device.feed(data))
        while self._later and self._later[0][0] <= now_s:
            when_s, _, data = heapq.heappop(self._later)
            self._pace_out(when_s, data)
        if self._master >= 0:
            self._tell_host(now_s)
        due = [self._back_s] if self._back_s is not None else []
        due += [queue[0][0] for queue in (self._to_device, self._to_host) if queue]
        due += [self._later[0][0]] if self._later else []
        return min([_IDLE_LOOK_S, *(max(0.0, when_s - time.monotonic()) for when_s in due)])

    def _hear_host(self, now_s: float) -> None:
        try:
            data = os.read(self._master, _AT_ONCE)
        except BlockingIOError:
            return
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise
            return
        if termios.tcgetattr(self._slave)[5] != getattr(termios, f"B{self.baud}", None):
            data = bytes(b | 0x80 for b in data)  # the driver uses another baud rate, which gives framing errors
        lost = min(self._swallow, len(data))
        self._swallow -= lost
        begin_s = max(now_s, self._device_busy_s) + lost * self._byte_s
        self._device_busy_s = begin_s + (len(data) - lost) * self._byte_s
        if len(data) > lost and sum(len(d) for _, d in self._to_device) < _LONGEST_QUEUE:
            for piece in self._pieces(data[lost:]):
                begin_s += len(piece) * self._byte_s
                self._to_device.append((begin_s, piece))

    def _pace_out(self, when_s: float, data: bytes) -> None:
        self._host_busy_s = max(when_s, self._host_busy_s)
        for piece in self._pieces(data):
            self._host_busy_s += len(piece) * self._byte_s
            self._to_host.append((self._host_busy_s + self.latency_s, piece))

    def _pieces(self, data: bytes) -> list[bytes]:
        ends = self.device.ends if self.device is not None else b""
        if not ends or data.count(ends) < 2:
            return [data]
        *whole, rest = data.split(ends)
        return [piece + ends for piece in whole] + ([rest] if rest else [])

    def _tell_host(self, now_s: float) -> None:
        while self._to_host and self._to_host[0][0] <= now_s:
            _, data = self._to_host.popleft()
            try:
                os.write(self._master, data)
            except BlockingIOError:
                return  # lost, because there is no reader and the buffer is full
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
