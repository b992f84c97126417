"""An emulated OpenSourceRIS board on a pty: it handles bytes as the public firmware 1.1 does, and its pattern acts on
the simulated air.

The behaviour was taken from the firmware's documentation and source (github mheinri/OpenSourceRIS) and written anew. An
interrupt collects bytes; the main loop executes a line once a line feed completes it; during an answer nothing else is
executed.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct

from sim_backend.emulators._options import emulator_options
from sim_backend.emulators.pty_line import PtyLine
from sim_backend.emulators.surface_port import SurfacePort
from testbed.core.errors import DeviceError
from testbed.core.seeds import generator
from testbed.core.types import U8
from testbed.core.world import DriverContext, Emulator

log = logging.getLogger(__name__)
_FIFO_BYTES = 128
_SAME_KEY_S = 1.76
"""Time that the board takes to set a Bluetooth key that its module already has."""
_NEW_KEY_S = 2.96
"""The same for a new key: the board restarts the module twice and waits for its own timeouts."""
_COMMAND = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-=")
_REQUEST = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
FAULTS = ("silence", "swallow", "reboot", "never", "early", "bit_order", "late", "duplicate", "garbage", "vanish")


class OpenSourceRisOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of an emulator's table."""

    baud: Annotated[int, Meta(gt=0)] = 115200
    latency_s: Annotated[float, Meta(ge=0)] = 0.0
    """Latency of the USB adapter; 16 ms by default on many."""
    serial: Annotated[int, Meta(ge=0, le=999)] = 12
    vext_v: float = 9.14
    boot_s: Annotated[float, Meta(ge=0)] = 0.53
    """Time after a reset in which the board ignores all bytes, because it starts its Bluetooth module first."""
    bluetooth: bool = True
    """False: the module does not answer, so that `!BT-Key` ends in `#ERROR`."""
    fault_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Chance that a command meets one of `FAULTS`, drawn from the context's seed."""


class _Receiver:
    """The firmware's interrupt, which collects bytes until a command or request is complete.

    An invalid byte clears the queue, so that the rest of the line is executed if another command begins in it. Bytes
    that come while a completed line is being answered (`busy`) are queued all the same, and corrupt the following
    command.
    """

    def __init__(self) -> None:
        self.busy: bytes = b""
        """Start byte of the line that is being answered."""
        self.reset()

    def reset(self) -> None:
        self._start, self._complete = b"", False
        self._fifo = bytearray()
        self._raw = bytearray()

    def take(self, byte: int) -> None:
        """Take one byte."""
        upper = byte - 32 if 97 <= byte <= 122 else byte
        if len(self._fifo) >= _FIFO_BYTES:
            return self.reset()
        if upper in b"!?" and not self._start:
            self._start = bytes([upper])
            self._raw = bytearray([byte])  # this drops bytes that were queued while it was busy
        elif upper == 10 and self._start:
            self._complete = True
            self._fifo.append(upper)
        elif upper in (_COMMAND if self._start == b"!" else _REQUEST if self._start == b"?" else b""):
            self._fifo.append(upper)
            self._raw.append(byte)
        else:
            self.reset()

    def completed(self) -> tuple[bytes, bytes] | None:
        """Return a line to execute, in capitals and as it was sent, and clear the queue; None where there is none."""
        if self.busy or not self._complete:
            return None
        line, raw = self._start + bytes(self._fifo), bytes(self._raw)
        self._fifo.clear()
        self.busy = self._start
        return line, raw

    def answered(self) -> None:
        """End the answer: flags of its kind are cleared, later bytes stay in the queue."""
        if self._start == self.busy:
            self._start, self._complete = b"", False
        self.busy = b""


class EmulatedOpenSourceRis(Emulator):
    """The board at `uri`; `outputs` (16, 16) are the levels of its surface. It starts as a board that was powered up
    long before.
    """

    options_type = OpenSourceRisOptions

    ends = b""  # the line delivers bytes as they were written

    def __init__(
        self, name: str, context: DriverContext, clock: Callable[[], float] = time.monotonic, **options: Any
    ) -> None:
        self._options = o = emulator_options(name, options, OpenSourceRisOptions)
        self.outputs: U8 = np.zeros((16, 16), np.uint8)
        self.faults_met: dict[str, int] = {}
        self.commands: list[bytes] = []
        self.fault_probability = o.fault_probability
        self.bluetooth_key = b"524953"
        self._armed: list[str] = []
        self._rng = generator(context.seed, name, "board faults")
        self._clock = clock
        self._byte_s = 10 / o.baud
        self._receiver = _Receiver()
        self._busy_bytes = 0
        """Number of bytes that can arrive while the present answer is being sent."""
        self._busy_until_s = self._deaf_until_s = -np.inf
        self._timers: list[threading.Timer] = []
        self._surface = SurfacePort(name, context, (16, 16), 1)
        self.line = PtyLine(context.state_dir / "tty", o.baud, o.latency_s)
        self.uri = self.line.uri
        self.line.start(self)

    def close(self) -> None:
        """Remove the port and leave the air; may be called twice."""
        self.line.close()
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._surface.close()

    def arm(self, fault: str) -> None:
        """Apply one of `FAULTS` to the next command."""
        self._armed.append(fault)

    def feed(self, data: bytes) -> bytes:
        """Take consecutive bytes; return the immediate answer."""
        now_s, said = self._clock(), b""
        self._busy_bytes = 0
        for byte in data:
            said += self._main_loop(now_s)
            if now_s >= self._deaf_until_s:
                self._receiver.take(byte)
                said += self._main_loop(now_s)
            self._busy_bytes -= 1
        return said

    def _main_loop(self, now_s: float) -> bytes:
        """End the answer if it was sent completely, and execute a complete line."""
        if self._receiver.busy and self._busy_bytes <= 0 and now_s >= self._busy_until_s:
            self._receiver.answered()
        found = self._receiver.completed()
        if found is None:
            return b""
        line, raw = found
        if not _OBEYED.fullmatch(line):
            self._receiver.reset()
            self._receiver.busy = b""
            return b""
        said = self._meet(line[:-1], raw, now_s)
        self._busy_bytes = len(said) + 1
        return said

    def _meet(self, command: bytes, raw: bytes, now_s: float) -> bytes:
        """Execute a command, with the fault drawn for it."""
        self.commands.append(raw)
        del self.commands[:-1000]
        fault = self._armed.pop(0) if self._armed else ""
        if not fault and self._rng.random() < self.fault_probability:
            fault = str(self._rng.choice(FAULTS))
        if fault:
            self.faults_met[fault] = self.faults_met.get(fault, 0) + 1
        try:
            return self._obey(command, fault, now_s)
        except DeviceError as exc:  # without the air's confirmation the board must not confirm either
            log.error("emulated board without its air: %s", exc)
            return b""

    def _obey(self, command: bytes, fault: str, now_s: float) -> bytes:
        match fault:
            case "swallow":
                return b""
            case "reboot":
                return self._boot(now_s)
            case "garbage":
                self.line.garbage(self._rng.bytes(5))
            case "duplicate":
                self.line.duplicate_answer()
            case "late":
                self.line.delay_answers(float(self._rng.uniform(0.05, 0.25)))
            case "vanish":
                self.line.vanish(0.05)
                return b""
        answer = self._answer(command, fault, now_s)
        return b"" if fault == "silence" else answer

    def _answer(self, command: bytes, fault: str, now_s: float) -> bytes:
        if command.startswith(b"!0X"):
            return self._set_pattern(bytes.fromhex(command[3:].decode()), fault)
        if command == b"?PATTERN":
            self.outputs = self._surface.held(self.outputs)
            return b"#0X" + np.packbits(self.outputs).tobytes().hex().upper().encode() + b"\n"
        if command == b"?VEXT":
            return _voltage(self._options.vext_v)
        if command == b"?SERIALNO":
            return f"#SerNo: {self._options.serial:3d}\n".encode()
        if command.startswith(b"!BT-KEY="):
            return self._set_bluetooth_key(command[8:], now_s)
        return self._boot(now_s)

    def _set_pattern(self, bits: bytes, fault: str) -> bytes:
        flat = np.unpackbits(np.frombuffer(bits, np.uint8))
        if fault == "bit_order":
            flat = flat[::-1]
        levels = flat.reshape(16, 16).copy()
        if fault == "early":
            self._timers = [t for t in self._timers if t.is_alive()]
            self._timers.append(threading.Timer(0.01, self._latch, (levels,)))
            self._timers[-1].start()
        elif fault != "never":
            self._latch(levels)
        return b"#OK\n"

    def _set_bluetooth_key(self, key: bytes, now_s: float) -> bytes:
        """Set the key, which takes seconds, and answer then."""
        busy_s = _SAME_KEY_S if key == self.bluetooth_key else _NEW_KEY_S
        self._busy_until_s = now_s + busy_s
        if self._options.bluetooth:
            self.bluetooth_key = key
        self.line.send(b"#OK\n" if self._options.bluetooth else b"#ERROR\n", busy_s)
        return b""

    def _boot(self, now_s: float) -> bytes:
        """Clear the surface, ignore all bytes for a while, then send the greeting."""
        self._latch(np.zeros((16, 16), np.uint8))
        self._receiver.reset()
        self._receiver.busy = b""
        banner = (
            f"\nOpen Source RIS\nFirmware version: 1.1\nSerial no.: {self._options.serial:3d}\n"
            "Row count: 16\nColumn count: 16\n\n#READY!\n"
        ).encode()
        self._deaf_until_s = now_s + self._options.boot_s + len(banner) * self._byte_s
        self.line.send(banner, self._options.boot_s)
        return b""

    def _latch(self, levels: U8) -> None:
        """Latch these levels at the outputs, on the air too; raises DeviceError where the air does not confirm it."""
        self._surface.latch(levels)
        self.outputs = levels


_OBEYED = re.compile(rb"(!0X[0-9A-F]{64}|!BT-KEY=[0-9]{6}|!RESET|\?VEXT|\?PATTERN|\?SERIALNO)\n")


def _voltage(volts: float) -> bytes:
    """Return the answer to ?Vext: the tenths digit is rounded down, the hundredths digit separately to the nearest."""
    v = np.float32(volts)
    if not 0 <= v <= np.float32(99.99):
        return b""
    tens, ones, tenths = (int(np.floor(v * np.float32(f))) % 10 for f in (0.1, 1, 10))
    return f"#{tens}{ones}.{tenths}{int(np.floor(v * np.float32(100) + np.float32(0.5))) % 10} V\n".encode()
