"""A serial port with deadlines, which every board driver uses.

No call takes longer than its time limit, and none returns without a result or an error. pyserial's own timeouts are set
to zero, because they apply to a call, whereas a deadline applies to a whole exchange.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import Any

from testbed.core.errors import DeviceError, DeviceTimeout

_LOOK_AGAIN_S = 0.02
"""How often `reopen` checks whether the port is back."""
_AT_ONCE = 4096
_DRAIN_S = 0.1
"""Time in which a full buffer can be read; if data still come after it, the device is sending."""


class PortLost(DeviceError):
    """The port vanished (unplugged, or its adapter was reset): `reopen` waits until it is back."""


class SerialLink:
    """The port of board `device` at `port` (a path such as /dev/ttyUSB0), 8N1 at `baud`, held exclusively."""

    def __init__(self, device: str, port: str, baud: int) -> None:
        self.device, self.port, self.baud = device, port, baud
        self._serial: Any = None
        self._pending = b""
        """Bytes received after a terminator."""

    @property
    def is_open(self) -> bool:
        return self._serial is not None

    def open(self) -> None:
        """Open the port; raises DeviceError, one line that says what to do, where that is not possible."""
        if self._serial is not None:
            return
        try:
            import serial
        except ImportError as exc:
            raise self._error("open", "a serial board needs pyserial: pip install pyserial") from exc
        try:
            made = serial.Serial(self.port, self.baud, timeout=0, write_timeout=0, exclusive=True)
        except (OSError, ValueError) as exc:  # SerialException is an OSError
            raise self._error("open", _why_not(self.port, self.baud, exc)) from exc
        # Adapters delay short answers by up to 16 ms; a port without such a timer (a pty) refuses the setting.
        with contextlib.suppress(OSError, ValueError, NotImplementedError):
            made.set_low_latency_mode(True)
        self._serial, self._pending = made, b""

    def reopen(self, timeout_s: float) -> None:
        """Close the port and open it as soon as it is there; raises PortLost where it is not within `timeout_s`."""
        self.close()
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                return self.open()
            except DeviceError as exc:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise PortLost(self.device, "open", "lost", exc.detail) from exc
                time.sleep(min(_LOOK_AGAIN_S, left_s))

    def write(self, data: bytes, timeout_s: float) -> None:
        """Write all of `data` to the port; raises DeviceTimeout where it accepts no more, PortLost where it is gone."""
        deadline_s = time.monotonic() + timeout_s
        left = memoryview(data)
        while left:
            fd = self._fd("write")
            try:
                left = left[os.write(fd, left) :]
            except BlockingIOError:
                pass
            except OSError as exc:
                raise self._lost("write", exc) from exc
            if left and not self._wait("write", fd, deadline_s, writing=True):
                raise DeviceTimeout(
                    self.device, "write", "open", f"{self.port} took {len(data) - len(left)} of {len(data)} bytes "
                    f"within {timeout_s:g} s: the adapter may hang: unplug it and plug it in again",
                )  # fmt: skip

    def read_until(self, terminator: bytes, timeout_s: float, limit: int = 1024) -> bytes:
        """Return the bytes up to and including `terminator`; later ones stay for the next read.

        Raises DeviceTimeout (its detail quotes the bytes) after `timeout_s`, DeviceError beyond `limit` bytes.
        """
        deadline_s = time.monotonic() + timeout_s
        got = self._pending
        while terminator not in got:
            if len(got) >= limit:
                self._pending = b""
                raise self._error("read", f"{len(got)} bytes from {self.port} without {terminator!r}: {quote(got)}")
            self._pending = got
            more = self._read_some(_AT_ONCE, deadline_s)
            if not more:
                came = f"only {quote(got)}" if got else "nothing"
                raise DeviceTimeout(self.device, "read", "open", f"{came} from {self.port} within {timeout_s:g} s")
            got += more
        end = got.index(terminator) + len(terminator)
        self._pending = got[end:]
        return got[:end]

    def read(self, n_max: int, timeout_s: float) -> bytes:
        """Return 1 to `n_max` bytes as soon as there are any; b"" where none came within `timeout_s`."""
        got = self._pending or self._read_some(n_max, time.monotonic() + timeout_s)
        self._pending = got[n_max:]
        return got[:n_max]

    def drain(self, timeout_s: float = _DRAIN_S) -> bytes:
        """Discard the received bytes, and return the last of them; raises PortLost where the port is gone.

        Returns after `timeout_s` even if more bytes arrive.
        """
        deadline_s = time.monotonic() + timeout_s
        got, self._pending = self._pending, b""
        while (more := self._read_some(_AT_ONCE, 0.0)) and time.monotonic() < deadline_s:
            got = (got + more)[-_AT_ONCE:]
        return got or more

    def close(self) -> None:
        """Release the port; may be called twice."""
        port, self._serial = self._serial, None
        self._pending = b""
        if port is not None:
            with contextlib.suppress(OSError):
                port.close()

    def _read_some(self, n_max: int, deadline_s: float) -> bytes:
        fd = self._fd("read")
        if not self._wait("read", fd, deadline_s):
            return b""
        try:
            got = os.read(fd, n_max)
        except BlockingIOError:
            return b""
        except OSError as exc:
            raise self._lost("read", exc) from exc
        if not got:  # a vanished adapter is reported as ready without data
            raise self._lost("read", None)
        return got

    def _wait(self, operation: str, fd: int, deadline_s: float, writing: bool = False) -> bool:
        """Return whether the port is ready before the deadline. It is checked at least once."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT if writing else select.POLLIN)
        try:
            ready = poll.poll(max(0.0, deadline_s - time.monotonic()) * 1e3)
        except OSError as exc:
            raise self._lost(operation, exc) from exc
        if ready and not ready[0][1] & (select.POLLIN | select.POLLOUT):  # an error or a hang-up and nothing else
            raise self._lost(operation, None)
        return bool(ready)

    def _fd(self, operation: str) -> int:
        if self._serial is None:
            raise PortLost(self.device, operation, "closed", f"{self.port} is not open")
        return int(self._serial.fileno())

    def _lost(self, operation: str, exc: OSError | None) -> PortLost:
        self.close()
        why = f" ({exc.strerror})" if exc is not None and exc.strerror else ""
        return PortLost(self.device, operation, "lost", f"{self.port} vanished{why}: check the cable")

    def _error(self, operation: str, detail: str) -> DeviceError:
        return DeviceError(self.device, operation, "open" if self.is_open else "closed", detail)


def quote(data: bytes) -> str:
    """Return bytes for an error line: at most the first 40, in Python's notation."""
    return repr(data[:40])[1:] + ("…" if len(data) > 40 else "")


def _why_not(port: str, baud: int, exc: Exception) -> str:
    """Return why a port could not be opened, and what to do."""
    number = getattr(exc, "errno", None)
    if number in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return f"no port {port}: check cable and power, `python -m serial.tools.list_ports` lists what is there"
    if number in (errno.EACCES, errno.EPERM):
        return f"no permission for {port}: add yourself to its group (usermod -aG dialout $USER), then log in again"
    if number in (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK):
        return f"{port} is in use by another program: close it (`fuser {port}` names it)"
    if isinstance(exc, ValueError):
        return f"{port} does not do {baud} baud: {exc}"
    if number in (errno.ENOTTY, errno.EINVAL, errno.EISDIR) or (number is None and _no_terminal(port)):
        return f"{port} is no serial port: give one such as /dev/ttyUSB0"
    return f"{port} cannot be opened: {exc}"


def _no_terminal(port: str) -> bool:
    """Return whether `port` is no terminal; pyserial hides the number of that error."""
    try:
        fd = os.open(port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not os.isatty(fd)
    finally:
        os.close(fd)
