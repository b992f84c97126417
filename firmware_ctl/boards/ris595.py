"""This project's own controller (`firmware_ctl/firmware`) over a serial line.

A pattern counts as applied only when the board has reported, with the sequence number of that request, the CRC-32 of
its outputs' content. The board executes a sequence number only once, so an unanswered request is simply sent again. A
board that was reset answers every request with "no session"; the driver then begins a new session and sends the request
again.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta, Struct

from firmware_ctl.boards import _frames
from firmware_ctl.boards._frames import DONE, QUEUED, Command, Refusal, Reply
from firmware_ctl.boards._serial import PortLost, SerialLink
from testbed.core import patterns
from testbed.core.errors import DeviceError, DeviceTimeout, InputError
from testbed.core.options import driver_options
from testbed.core.ris import Board, BoardCapabilities
from testbed.core.types import AppliedPattern, SurfacePattern
from testbed.core.world import DriverContext

_PATIENCE_S = 0.1
"""Time to wait for an answer in addition to its time on the wire: adapters delay bytes by up to 16 ms, and hosts may be
busy."""
_LONGEST_REPLY = 2**16
_LONGEST_SILENCE_S = 1000.0
"""Longest time that the board's watchdog can be set to."""
_LATENCY_S = 2e-3
"""Time from an order until its first pattern can be latched: its frame on the wire and its bits in the chain."""
_FARTHEST_S = 2000.0
"""Latest time from now at which a pattern may be scheduled: the board's clock wraps every 72 minutes."""
_LATE_S = 0.05
"""If the board's outputs do not hold what it acknowledged, the driver waits this long before it repeats the command."""


class Ris595Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `options` in the board's lab table."""

    uri: Annotated[str, Meta(min_length=1)] | None = None
    """Its serial port, e.g. /dev/ttyUSB0."""
    baud: Annotated[int, Meta(ge=1200, le=4_000_000)] = 500_000
    rows: Annotated[int, Meta(ge=1)] | None = None
    """If they are given, rows, columns and phase_bits must equal those that the board reports."""
    columns: Annotated[int, Meta(ge=1)] | None = None
    phase_bits: Annotated[int, Meta(ge=1, le=3)] | None = None
    open_timeout_s: Annotated[float, Meta(gt=0)] = 2.0
    """How long the board may take to answer when it is opened (some boards are reset when their port is opened)."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A request that was sent and not answered yet."""

    seq: int
    command: Command
    crc: int
    """CRC-32 of what the outputs must hold after the request."""
    digest: str
    frame: bytes


class _Rebooted(Exception):
    """The board was reset and has no session with this driver."""


class Ris595(Board):
    """A surface of latched shift registers. Options: the fields of `Ris595Options`."""

    options_type = Ris595Options

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        super().__init__(name)
        o = driver_options(options, Ris595Options, name)
        if o.uri is None:
            raise InputError(f"table [node.{name}.options]: key 'uri': not given, accepted: a serial port")
        self._baud = o.baud
        self._seq = int.from_bytes(os.urandom(2), "little")  # random, so that no earlier process used the same numbers
        self._known = 0
        """The board's clock at its last reading, in µs, not wrapped; `_known_at_s` is the host's clock at that time."""
        self._known_at_s = time.monotonic()
        self._book: list[SurfacePattern] = []
        """The patterns that this driver stored in the board's codebook."""
        self._queued: SurfacePattern | None = None
        self._board: tuple[int, int, int, int] | None = None
        """Serial number, rows, columns, phase bits of the board that was opened."""
        self._strange = False
        """Another board answered last; no command is sent until the right one answers again."""
        self._link = SerialLink(name, o.uri, o.baud)
        self._link.open()
        try:
            self._hello(time.monotonic() + o.open_timeout_s)
        except DeviceTimeout as exc:
            self._link.close()
            raise DeviceError(
                name, "open", "closed",
                f"no ris595 board answers at {o.uri} with {o.baud} baud: check port, baud and what is plugged in",
            ) from exc  # fmt: skip
        except BaseException:
            self._link.close()
            raise
        found = (*self._shape, self._phase_bits)
        wanted = (o.rows, o.columns, o.phase_bits)
        if any(w not in (None, f) for w, f in zip(wanted, found, strict=True)):
            self._link.close()
            raise InputError(
                f"table [node.{name}.options]: rows, columns, phase_bits = {wanted}; the board at {o.uri} has {found}"
            )

    # ---------------------------------------------------------------- Board

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    @property
    def phase_bits(self) -> int:
        return self._phase_bits

    @property
    def capabilities(self) -> BoardCapabilities:
        return BoardCapabilities(
            timed=True, can_queue=True, codebook_size=self._capacity, schedule_size=self._schedule_size,
            latency_s=_LATENCY_S,
        )  # fmt: skip

    def identity(self) -> dict[str, Any]:
        return {"driver": "ris595", "serial": f"{self._serial:08x}", "firmware": self._version}

    def now_s(self) -> float:
        self._require_open("now")
        reply = self._run("now", Command.TIME, b"", 2.0)
        return self._latched_s(reply)

    def set_watchdog(self, silence_s: float, timeout_s: float = 2.0) -> None:
        """Have the board set every element to level 0 when it receives nothing for `silence_s`; 0 switches this off."""
        self._require_open("watchdog")
        if not 0 <= silence_s <= _LONGEST_SILENCE_S:
            accepted = f"accepted 0 to {_LONGEST_SILENCE_S:g} s"
            raise DeviceError(self.name, "watchdog", self.state, f"a silence of {silence_s:g} s, {accepted}")
        self._run("watchdog", Command.WATCHDOG, struct.pack("<I", round(1e3 * silence_s)), timeout_s)

    def reset(self, timeout_s: float = 2.0) -> None:
        """Reset the board: every element at level 0, no codebook, no queued pattern."""
        self._require_open("reset")
        deadline_s = time.monotonic() + timeout_s
        self._run("reset", Command.RESET, b"", timeout_s)
        self._hello(deadline_s)

    def _do_apply(self, pattern: SurfacePattern, timeout_s: float) -> AppliedPattern:
        data = _packed(pattern)
        reply = self._run("apply", Command.APPLY, data, timeout_s, crc=zlib.crc32(data))
        return AppliedPattern(pattern.digest, self._latched_s(reply))

    def _do_readback(self, timeout_s: float) -> SurfacePattern:
        payload = self._run("readback", Command.READBACK, b"", timeout_s).payload
        data, crc = payload[:-4], int.from_bytes(payload[-4:], "little")
        if zlib.crc32(data) != crc or len(data) != self._pattern_bytes:
            raise DeviceError(self.name, "readback", self.state, f"{len(data)} bytes that do not fit their CRC-32")
        digits = -(-self.n_elements * self._phase_bits // 4)
        return patterns.from_hex("0x" + data.hex()[:digits], self._shape, self._phase_bits)

    def _do_queue(self, pattern: SurfacePattern, timeout_s: float) -> None:
        data = _packed(pattern)
        reply = self._run("queue", Command.QUEUE, data, timeout_s)
        if int.from_bytes(reply.payload, "little") != zlib.crc32(data):
            raise DeviceError(self.name, "queue", self.state, "the board queued something else than was sent")
        self._queued = pattern

    def _do_trigger(self, timeout_s: float) -> AppliedPattern:
        if self._queued is None:
            raise DeviceError(self.name, "trigger", self.state, "no pattern waits; accepted after queue()")
        pattern, self._queued = self._queued, None
        crc = zlib.crc32(_packed(pattern))
        reply = self._run("trigger", Command.TRIGGER, b"", timeout_s, crc=crc, anew=False)
        return AppliedPattern(pattern.digest, self._latched_s(reply))

    def _do_schedule(
        self, patterns: Sequence[SurfacePattern], times_s: Sequence[float], timeout_s: float
    ) -> list[AppliedPattern]:
        self._run("schedule", Command.TIME, b"", timeout_s)  # begins a session with a board that was reset
        ahead_s = times_s[-1] - self._known * 1e-6
        if ahead_s > _FARTHEST_S:
            detail = f"a pattern is due in {ahead_s:.0f} s, accepted up to {_FARTHEST_S:g} s"
            raise DeviceError(self.name, "schedule", self.state, detail)
        due = enumerate(zip(patterns, times_s, strict=True))
        requests = (self._entry(index, pattern, time_s) for index, (pattern, time_s) in due)
        return [
            AppliedPattern(sent.digest, self._unwrapped(struct.unpack_from("<I", answer.payload)[0], at_s) * 1e-6)
            for (sent, answer), at_s in zip(self._ahead("schedule", requests, timeout_s), times_s, strict=True)
        ]

    def _entry(self, index: int, pattern: SurfacePattern, time_s: float) -> _InFlight:
        """Return the request for a pattern of a schedule."""
        data = _packed(pattern)
        payload = struct.pack("<HI", index, round(1e6 * time_s) % 2**32) + data
        return self._request(Command.SCHEDULE, payload, zlib.crc32(data), pattern.digest)

    def _do_upload(self, codebook: Sequence[SurfacePattern], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        data = b"".join(map(_packed, codebook))
        crc = zlib.crc32(data)

        def step(command: Command, payload: bytes = b"") -> Reply:
            return self._run("upload", command, payload, deadline_s - time.monotonic(), anew=False)

        step(Command.BOOK_BEGIN, struct.pack("<HI", len(codebook), crc))
        for at in range(0, len(data), self._chunk):
            step(Command.BOOK_CHUNK, struct.pack("<I", at) + data[at : at + self._chunk])
        count, stored = struct.unpack_from("<HI", step(Command.BOOK_END).payload)
        if (count, stored) != (len(codebook), crc):
            raise DeviceError(
                self.name, "upload", self.state, f"the {count} patterns that the board stored differ from those sent"
            )
        self._book = list(codebook)

    def _do_apply_many(
        self, steps: Sequence[SurfacePattern | int], timeout_s: float
    ) -> Generator[AppliedPattern, None, None]:
        self._run("apply_many", Command.TIME, b"", timeout_s)  # begins a session with a board that was reset
        for step in steps:
            if isinstance(step, int):
                self._stored("apply_many", step)
        for sent, answer in self._ahead("apply_many", map(self._step, steps), timeout_s):
            yield AppliedPattern(sent.digest, self._latched_s(answer))

    def _ahead(
        self, operation: str, coming: Iterator[_InFlight], timeout_s: float
    ) -> Generator[tuple[_InFlight, Reply], None, None]:
        """Yield each request with its reply. Several are in flight, so that the adapter's latency does not delay every
        pattern."""
        waiting = next(coming, None)
        in_flight: deque[_InFlight] = deque()
        deadline_s = again_s = 0.0
        while waiting is not None or in_flight:
            self._require_open(operation)
            fresh = []
            n_bytes = sum(len(x.frame) for x in in_flight)
            while waiting is not None and (not in_flight or n_bytes + len(waiting.frame) <= self._input_bytes):
                in_flight.append(waiting)
                fresh.append(waiting.frame)
                n_bytes += len(waiting.frame)
                waiting = next(coming, None)
            now_s = time.monotonic()
            if fresh:
                self._link.write(b"".join(fresh), timeout_s)
                again_s = now_s + 10 * n_bytes / self._baud + _PATIENCE_S
            deadline_s = deadline_s or now_s + timeout_s
            answer = self._next_reply(min(again_s, deadline_s))
            if answer is None:
                if time.monotonic() >= deadline_s:
                    raise DeviceTimeout(self.name, operation, self.state, "the board does not answer")
                # the board repeats its reply to requests that it executed and refuses older ones: it does nothing twice
                self._link.write(b"".join(x.frame for x in in_flight), timeout_s)
                again_s = time.monotonic() + 10 * n_bytes / self._baud + _PATIENCE_S
                continue
            first = in_flight[0]
            if self._answers(operation, answer, first, in_flight):
                in_flight.popleft()
                deadline_s = 0.0
                yield first, answer

    def _step(self, step: SurfacePattern | int) -> _InFlight:
        """Return the request for a pattern or for the index of a stored one."""
        if isinstance(step, SurfacePattern):
            command, pattern, payload = Command.APPLY, step, _packed(step)
        else:
            command, pattern = Command.INDEX, self._stored("apply_many", step)
            payload = struct.pack("<H", step)
        return self._request(command, payload, zlib.crc32(_packed(pattern)), pattern.digest)

    def _request(self, command: Command, payload: bytes, crc: int, digest: str) -> _InFlight:
        self._seq = self._seq % 0xFFFF + 1
        return _InFlight(self._seq, command, crc, digest, _frames.request(self._seq, command, payload))

    def _answers(
        self, operation: str, answer: Reply, first: _InFlight, in_flight: Collection[_InFlight]
    ) -> bool:  # fmt: skip
        """Return whether this is the last reply to the first request in flight; raises where none can come."""
        wrong = None
        if answer.kind == _frames.BOOTED:
            wrong = "the board was reset"
        elif answer.kind == _frames.ERROR:
            refusal = answer.payload[1] if len(answer.payload) == 2 else 0
            if answer.seq == 0:
                wrong = "a request was damaged on its way"
            elif any(x.seq == answer.seq for x in in_flight):
                told: dict[int, str] = {
                    Refusal.NO_SESSION: "the board was reset",
                    Refusal.STALE: "an acknowledgement was lost",
                }
                wrong = told.get(refusal, f"the board refuses: {_name(refusal)}")
        elif answer.kind != _final(first.command):
            return False
        elif answer.seq == first.seq:
            if len(answer.payload) >= 8 and int.from_bytes(answer.payload[4:8], "little") == first.crc:
                return True
            wrong = "the board's outputs differ from the pattern that was sent"
        elif any(x.seq == answer.seq for x in in_flight):
            wrong = "an acknowledgement was lost"
        if wrong is not None:
            raise DeviceError(self.name, operation, self.state, wrong)
        return False  # a late or repeated reply

    def _stored(self, operation: str, index: int) -> SurfacePattern:
        if not 0 <= index < len(self._book):
            accepted = f"0 to {len(self._book) - 1}" if self._book else "after upload()"
            raise DeviceError(self.name, operation, self.state, f"index {index}, accepted: {accepted}")
        return self._book[index]

    def _do_apply_index(self, index: int, timeout_s: float) -> AppliedPattern:
        pattern = self._stored("apply_index", index)
        crc = zlib.crc32(_packed(pattern))
        reply = self._run("apply_index", Command.INDEX, struct.pack("<H", index), timeout_s, crc=crc, anew=False)
        return AppliedPattern(pattern.digest, self._latched_s(reply))

    def _do_close(self) -> None:
        self._link.close()

    # ---------------------------------------------------------------- conversation

    def _run(
        self, operation: str, command: Command, payload: bytes, timeout_s: float, crc: int | None = None,
        anew: bool = True,
    ) -> Reply:  # fmt: skip
        """Have a command executed and return its last reply.

        `crc`: CRC-32 of the outputs' content afterwards; the command is repeated while they hold something else.
        `anew`: whether the command may be repeated after a reset of the board; it may not if it depends on earlier
        ones.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                if self._strange:
                    self._greet_again(operation, deadline_s, anew=True)
                reply = self._ask(operation, command, payload, deadline_s)
                if crc is None or int.from_bytes(reply.payload[4:8], "little") == crc:
                    return reply
                late = self._wait_for(crc, min(deadline_s, time.monotonic() + _LATE_S))
                if late is not None:
                    return late
            except PortLost:
                self._link.reopen(max(0.0, deadline_s - time.monotonic()))
                self._greet_again(operation, deadline_s, anew=True)  # the board itself may not have been reset
                continue
            except _Rebooted:
                self._greet_again(operation, deadline_s, anew)
                continue
            if time.monotonic() >= deadline_s or not anew:
                raise DeviceError(
                    self.name, operation, self.state, "the board's outputs differ from the pattern that was sent"
                )

    def _wait_for(self, crc: int, until_s: float) -> Reply | None:
        """Poll until the outputs hold a pattern; the time of its acknowledgement is then that of the poll."""
        while time.monotonic() < until_s:
            with contextlib.suppress(DeviceTimeout):
                if self._ask("apply", Command.READBACK, b"", until_s).payload[-4:] == crc.to_bytes(4, "little"):
                    return self._ask("apply", Command.TIME, b"", until_s)
        return None

    def _greet_again(self, operation: str, deadline_s: float, anew: bool) -> None:
        self._hello(deadline_s, operation)
        if not anew:
            raise DeviceError(
                self.name, operation, self.state, "the board was reset: queue, codebook and upload are lost"
            )

    def _ask(self, operation: str, command: Command, payload: bytes, deadline_s: float) -> Reply:
        """Send a request until the board answers with its sequence number; raises DeviceError where it refuses."""
        self._seq = self._seq % 0xFFFF + 1
        frame = _frames.request(self._seq, command, payload)
        first = True
        while time.monotonic() < deadline_s or first:
            first = False
            self._link.write(frame, max(deadline_s - time.monotonic(), 0.01))
            wire_s = 10 * (len(frame) + self._reply_bytes(command)) / self._baud
            until_s = min(deadline_s, time.monotonic() + wire_s + _PATIENCE_S)
            while (answer := self._next_reply(until_s)) is not None:
                if answer.kind == _frames.BOOTED and command is not Command.HELLO:
                    raise _Rebooted
                if answer.kind == _frames.ERROR:
                    refusal = answer.payload[1] if len(answer.payload) == 2 else 0
                    if answer.seq == 0:  # the board could not read the frame: send it again
                        break
                    if answer.seq != self._seq:
                        continue
                    if refusal == Refusal.NO_SESSION and command is not Command.HELLO:
                        raise _Rebooted
                    raise DeviceError(self.name, operation, self.state, f"the board refuses: {_name(refusal)}")
                fits = len(answer.payload) >= _LEAST_PAYLOAD.get(command, 0)
                if answer.seq == self._seq and answer.kind == _final(command) and fits:
                    return answer
                # Any other reply is late, or the first of two.
        raise DeviceTimeout(self.name, operation, self.state, "the board does not answer")

    def _next_reply(self, until_s: float) -> Reply | None:
        """Return the next undamaged reply, None when time is up."""
        while (left_s := until_s - time.monotonic()) > 0:
            try:
                frame = self._link.read_until(b"\0", left_s, _LONGEST_REPLY)
            except DeviceTimeout:
                return None
            found = _frames.reply(frame[:-1])
            if found is not None:
                return found
        return None

    def _hello(self, deadline_s: float, operation: str = "hello") -> None:
        """Begin a session: requests sent before have no effect any more. Raises where another board answers."""
        session = os.urandom(4)
        while True:
            self._link.drain()
            self._link.write(b"\0", max(deadline_s - time.monotonic(), 0.01))  # ends a frame that was sent in part
            try:
                payload = self._ask("hello", Command.HELLO, session, deadline_s).payload
            except PortLost:
                self._link.reopen(max(0.0, deadline_s - time.monotonic()))
                continue
            if payload[:4] == session and len(payload) in (33, 35):
                break
        major, minor, patch, bits, rows, columns, capacity = struct.unpack_from("<4B3H", payload, 4)
        chunk, serial, clock_us, _, input_bytes = struct.unpack_from("<HIIBH", payload, 20)
        if not (1 <= bits <= 8 and rows and columns and chunk and input_bytes):
            raise DeviceError(
                self.name, operation, self.state, f"the board at {self._link.port} reports {rows}×{columns} "
                f"elements of {bits} bit, chunks of {chunk} bytes and a buffer of {input_bytes}: these are impossible",
            )  # fmt: skip
        was, found = self._board, (serial, rows, columns, bits)
        self._strange = was is not None and was != found
        if was is not None and was != found:
            raise DeviceError(
                self.name, operation, self.state, f"another board answers at {self._link.port}: {_told(*found)}, was "
                f"{_told(*was)}: plug that one in again, or restart this program",
            )  # fmt: skip
        self._board, self._serial, self._shape, self._phase_bits = found, serial, (rows, columns), bits
        self._capacity, self._chunk, self._input_bytes = capacity, chunk, input_bytes
        # firmware before 1.2 latches nothing by time
        self._schedule_size = struct.unpack_from("<H", payload, 33)[0] if len(payload) == 35 else 0
        self._version = f"{major}.{minor}.{patch}"
        self._pattern_bytes = (rows * columns * self._phase_bits + 7) // 8
        self._queued = None
        stored = struct.unpack_from("<HI", payload, 14)
        if stored != (len(self._book), zlib.crc32(b"".join(map(_packed, self._book)))):
            self._book = []
        self._known, self._known_at_s = clock_us, time.monotonic()

    def _reply_bytes(self, command: Command) -> int:
        size = {Command.READBACK: self._pattern_bytes} if command is not Command.HELLO else {}
        return 48 + 2 * size.get(command, 0)

    # ---------------------------------------------------------------- clock

    def _latched_s(self, reply: Reply) -> float:
        return self._time_s(struct.unpack_from("<I", reply.payload)[0])

    def _time_s(self, clock_us: int) -> float:
        """Return seconds of the board's clock, which wraps every 72 minutes: nearest to what is expected."""
        now_s = time.monotonic()
        expected_s = self._known * 1e-6 + now_s - self._known_at_s
        self._known, self._known_at_s = self._unwrapped(clock_us, expected_s), now_s
        return self._known * 1e-6

    @staticmethod
    def _unwrapped(clock_us: int, near_s: float) -> int:
        """Return the µs of the clock, not wrapped, that are nearest to a time."""
        return clock_us + round((1e6 * near_s - clock_us) / 2**32) * 2**32


def _packed(pattern: SurfacePattern) -> bytes:
    """Return the pattern in the board's format: the bits of `patterns.to_hex` in whole bytes."""
    digits = patterns.to_hex(pattern)[2:]
    return bytes.fromhex(digits + "0" * (len(digits) % 2))


def _told(serial: int, rows: int, columns: int, phase_bits: int) -> str:
    return f"serial number {serial:08x}, {rows}×{columns} elements of {phase_bits} bit"


_LEAST_PAYLOAD = {
    Command.TIME: 4, Command.BOOK_END: 6, Command.APPLY: 8, Command.TRIGGER: 8, Command.INDEX: 8, Command.QUEUE: 4,
    Command.READBACK: 4,
}  # fmt: skip
"""Number of bytes of the last reply to each command; a shorter reply is damaged, even if its checksum is right."""


def _final(command: Command) -> int:
    return (QUEUED if command is Command.QUEUE else DONE) | command


def _name(refusal: int) -> str:
    return Refusal(refusal).name.lower() if refusal in Refusal._value2member_map_ else f"error {refusal}"
