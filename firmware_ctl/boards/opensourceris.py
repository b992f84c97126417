"""OpenSourceRIS (TH Köln, github mheinri): 16×16 elements of one bit, ASCII lines at 115200 8N1.

Lines end in LF alone: the board ignores a command with a CR, or with anything else that it does not accept, and sends
no error. Replies have no number. Therefore commands are sent one at a time, and an `#OK` does not suffice: a pattern
counts as applied once the board has read it back. After a failure no reply counts until the line was quiet and the
board has answered a question. Each command has a time limit of its own, because the board takes about 3 s for the
Bluetooth key and a repeated command would start that again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct

from firmware_ctl.boards._serial import SerialLink, quote
from testbed.core import patterns
from testbed.core.errors import DeviceError, DeviceTimeout, InputError
from testbed.core.options import driver_options
from testbed.core.ris import Board
from testbed.core.types import AppliedPattern, SurfacePattern
from testbed.core.world import DriverContext

_SHAPE = (16, 16)
_READY = b"#READY!"
_SERIAL = rb"#SerNo:\s+(\d+)"
_OPEN_S = 3.0
"""Time from opening the port, which may reset the board, until it reports that it is ready."""
_BLUETOOTH_S = 4.0
"""The board restarts its Bluetooth module twice before it answers: 2.96 s, and the pass key may be stored twice."""


class OpenSourceRisOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `options` in its lab table."""

    uri: Annotated[str, Meta(min_length=1)] | None = None
    """The port, such as /dev/ttyUSB0; required unless the lab emulates the board."""
    baud: Annotated[int, Meta(gt=0)] = 115200
    verify: bool = True
    """Whether every pattern is read back; otherwise a late or repeated `#OK` may be mistaken for that of the next
    one."""
    answer_s: Annotated[float, Meta(gt=0)] = 0.2
    """How long the reply may take for commands that are answered at once (all but `!BT-Key`)."""
    quiet_s: Annotated[float, Meta(gt=0)] = 0.1
    """Time for which the line must be silent after a failure."""


class _Confused(Exception):
    """The board sent no reply, or another one than expected."""


class _OutOfTime(_Confused):
    """There was no time left for another command."""


class _AnotherBoard(DeviceError):
    """The board at the port has another serial number."""


class OpenSourceRis(Board):
    """The board at `uri`."""

    options_type = OpenSourceRisOptions

    @classmethod
    def size_given(cls, options: Mapping[str, Any]) -> tuple[int, int, int]:
        return (*_SHAPE, 1)

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        super().__init__(name)
        self._options = driver_options(options, OpenSourceRisOptions, name)
        if self._options.uri is None:
            raise InputError(f"table [node.{name}.options]: key 'uri': not given, accepted: a serial port")
        self._link = SerialLink(name, self._options.uri, self._options.baud)
        self._suspect = True
        """Replies to earlier commands may still arrive."""
        self._serial_number = b""
        self._link.open()
        try:
            self._identity = self._recognise()
        except BaseException:
            self._link.close()
            raise

    @property
    def shape(self) -> tuple[int, int]:
        return _SHAPE

    @property
    def phase_bits(self) -> int:
        return 1

    def identity(self) -> dict[str, Any]:
        return {"driver": "opensourceris", **self._identity}

    def now_s(self) -> float:
        return time.monotonic()

    def reset(self, timeout_s: float = 5.0) -> None:
        """Restart the board; returns once it reports that it is ready."""
        self._require_open("reset")
        deadline_s = time.monotonic() + timeout_s
        self._suspect = True
        self._link.drain()
        self._link.write(b"!Reset\n", timeout_s)
        while _READY not in self._link.read_until(b"\n", max(0.0, deadline_s - time.monotonic())):
            if time.monotonic() >= deadline_s:
                raise DeviceTimeout(
                    self.name, "reset", self.state, "it sends data, but does not report that it is ready"
                )

    def set_bluetooth_key(self, key: str, timeout_s: float = 10.0) -> None:
        """Set the six decimal digits that Bluetooth clients need, which takes the board about 3 s.

        Raises DeviceError where the board says that its Bluetooth module refused.
        """
        self._require_open("set_bluetooth_key")
        if not re.fullmatch("[0-9]{6}", key):
            raise DeviceError(self.name, "set_bluetooth_key", self.state, "accepted: six decimal digits")
        answer = self._try(
            "set_bluetooth_key", timeout_s, lambda end: self._ask(f"!BT-Key={key}", b"#(OK|ERROR)", end, _BLUETOOTH_S)
        )
        if answer[1] != b"OK":
            detail = "the board reported #ERROR: its Bluetooth module refused the key or does not answer; reset it"
            raise DeviceError(self.name, "set_bluetooth_key", self.state, detail)

    def _do_apply(self, pattern: SurfacePattern, timeout_s: float) -> AppliedPattern:
        wanted = patterns.to_hex(pattern)

        def once(end_s: float) -> AppliedPattern:
            self._ask("!" + wanted, b"#OK", end_s)
            if self._options.verify:
                held = self._ask("?Pattern", rb"#0X([0-9A-F]{64})", end_s)[1].decode()
                if held.lower() != wanted[2:]:
                    raise _Confused(f"the board holds 0x{held.lower()} instead")
                if self._suspect:  # a surplus reply could be mistaken for this one
                    self._same_board("apply", end_s)
            return AppliedPattern(pattern.digest, self.now_s())

        return self._try("apply", timeout_s, once)

    def _do_readback(self, timeout_s: float) -> SurfacePattern:
        def once(end_s: float) -> SurfacePattern:
            held = self._ask("?Pattern", rb"#0X([0-9A-F]{64})", end_s)[1].decode()
            if self._suspect:
                self._same_board("readback", end_s)
            return patterns.from_hex("0x" + held, _SHAPE, 1)

        return self._try("readback", timeout_s, once)

    def _do_close(self) -> None:
        self._link.close()

    def _recognise(self) -> dict[str, Any]:
        def once(end_s: float) -> dict[str, Any]:
            self._serial_number = self._ask("?SerialNo", _SERIAL, end_s)[1]
            vext = float(self._ask("?Vext", rb"#(\d+\.\d+) V", end_s)[1])
            return {"serial": self._serial_number.decode(), "vext_v": vext, "uri": self._options.uri}

        try:
            return self._try("open", _OPEN_S, once)
        except DeviceTimeout as exc:
            detail = f"no OpenSourceRIS board at {self._options.uri}, {self._options.baud} baud ({exc.detail}): "
            raise DeviceError(self.name, "open", self.state, detail + "check port, baud (115200) and power") from exc

    def _try(self, operation: str, timeout_s: float, once: Any) -> Any:
        """Return the result of `once(deadline)`, repeated after every failure until the time is over."""
        end_s = time.monotonic() + timeout_s
        last = "not tried"
        while True:
            try:
                if not self._link.is_open:
                    self._suspect = True
                    self._link.reopen(max(0.0, end_s - time.monotonic()))
                if self._suspect:
                    self._resynchronise(operation, end_s)
                elif self._link.drain():  # no command was sent
                    raise _Confused("it sends data without a request")
                got = once(end_s)
                self._suspect = False
                return got
            except _OutOfTime:
                pass  # the earlier failure is more informative
            except _Confused as exc:
                last = str(exc)
            except _AnotherBoard:
                self._suspect = True
                raise
            except DeviceError as exc:
                last = exc.detail
            self._suspect = True
            if time.monotonic() >= end_s:
                raise DeviceTimeout(self.name, operation, self.state, f"not done within {timeout_s:g} s: {last}")

    def _resynchronise(self, operation: str, end_s: float) -> None:
        """End the line that the board may be reading, and wait until it sends nothing more."""
        self._link.write(b"\n", max(0.0, end_s - time.monotonic()))
        quiet_s = min(self._options.quiet_s, max(0.0, end_s - time.monotonic()))
        while self._link.read(1024, quiet_s):
            if time.monotonic() >= end_s:
                raise _Confused("it sends data without a pause")
        self._same_board(operation, end_s)

    def _same_board(self, operation: str, end_s: float) -> None:
        """Raise _AnotherBoard where the serial number is no longer that of the board that was opened."""
        found = self._ask("?SerialNo", _SERIAL, end_s)[1]
        if not self._serial_number or found == self._serial_number:
            return
        # asked twice, because a digit may be lost in transmission
        if self._ask("?SerialNo", _SERIAL, end_s)[1] == found:
            raise _AnotherBoard(
                self.name, operation, self.state, f"another board answers at {self._options.uri}: serial number "
                f"{found.decode()}, was {self._serial_number.decode()}: plug that one "
                "in again, or restart this program",
            )  # fmt: skip
        raise _Confused("it gives different serial numbers")

    def _ask(self, command: str, reply: bytes, end_s: float, wait_s: float | None = None) -> re.Match[bytes]:
        """Send one command and return the match of its reply, which may take `wait_s` (None: `answer_s`).

        Raises _Confused for another reply, and if no reply comes.
        """
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise _OutOfTime
        self._link.write(command.encode() + b"\n", left_s)
        try:
            wait_s = self._options.answer_s if wait_s is None else wait_s
            line = self._link.read_until(b"\n", min(wait_s, end_s - time.monotonic()))
        except DeviceTimeout as exc:
            raise _Confused(exc.detail) from exc
        found = re.fullmatch(reply, line.strip())
        if found is None:
            raise _Confused(f"{quote(line)} answers {command.split('=')[0][:12]}")
        return found
