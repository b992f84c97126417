"""The twin of an OpenSourceRIS board on a pty: as unforgiving as its firmware, its pattern on the simulated air."""

from __future__ import annotations

import logging
import re
import threading
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
_LONGEST = 128
_BANNER = b"OpenSourceRIS\n#READY!\n"
FAULTS = ("silence", "swallow", "reboot", "never", "early", "bit_order", "late", "duplicate", "garbage", "vanish")


class OpenSourceRisOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of an emulator's table."""

    baud: Annotated[int, Meta(gt=0)] = 115200
    latency_s: Annotated[float, Meta(ge=0)] = 0.0
    """Of the USB adapter; 16 ms by default on many."""
    serial: Annotated[int, Meta(ge=0)] = 12
    vext_v: float = 9.14
    fault_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Chance that a command meets one of `FAULTS`, drawn from the context's seed."""


class EmulatedOpenSourceRis(Emulator):
    """The board at `uri`; `outputs` (16, 16) is what its surface does."""

    options_type = OpenSourceRisOptions

    ends = b""  # commands that come together are not told apart

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        self._options = o = emulator_options(name, options, OpenSourceRisOptions)
        self.outputs: U8 = np.zeros((16, 16), np.uint8)
        self.faults_met: dict[str, int] = {}
        self.commands: list[bytes] = []
        self.fault_probability = o.fault_probability
        self._armed: list[str] = []
        self._rng = generator(context.seed, name, "board faults")
        self._buffer = b""
        self._timers: list[threading.Timer] = []
        self._surface = SurfacePort(name, context, (16, 16), 1)
        self.line = PtyLine(context.state_dir / "tty", o.baud, o.latency_s)
        self.uri = self.line.uri
        self.line.start(self)

    def close(self) -> None:
        """Take the port away and leave the air; may be called twice."""
        self.line.close()
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._surface.close()

    def arm(self, fault: str) -> None:
        """Have the next command meet one of `FAULTS`."""
        self._armed.append(fault)

    def feed(self, data: bytes) -> bytes:
        """Take bytes; what came together with the end of a command is lost with it."""
        self._buffer += data
        if b"\n" not in self._buffer:
            return b""
        line, self._buffer = self._buffer.partition(b"\n")[0], b""
        start = re.search(rb"[!?]", line)
        if start is None or len(line) > _LONGEST:
            return b""
        command = line[start.start() :]
        self.commands.append(command)
        del self.commands[:-1000]
        fault = self._armed.pop(0) if self._armed else ""
        if not fault and self._rng.random() < self.fault_probability:
            fault = str(self._rng.choice(FAULTS))
        if fault:
            self.faults_met[fault] = self.faults_met.get(fault, 0) + 1
        try:
            return self._obey(command, fault)
        except DeviceError as exc:  # the air did not confirm: neither does the board
            log.error("emulated board without its air: %s", exc)
            return b""

    def _obey(self, command: bytes, fault: str) -> bytes:
        match fault:
            case "swallow":
                return b""
            case "reboot":
                return self._boot()
            case "garbage":
                self.line.garbage(self._rng.bytes(5))
            case "duplicate":
                self.line.duplicate_answer()
            case "late":
                self.line.delay_answers(float(self._rng.uniform(0.05, 0.25)))
            case "vanish":
                self.line.vanish(0.05)
                return b""
        answer = self._answer(command, fault)
        return b"" if fault == "silence" else answer

    def _answer(self, command: bytes, fault: str) -> bytes:
        if found := re.fullmatch(rb"!0x([0-9a-fA-F]{64})", command):
            bits = np.unpackbits(np.frombuffer(bytes.fromhex(found[1].decode()), np.uint8))
            if fault == "bit_order":
                bits = bits[::-1]
            levels = bits.reshape(16, 16).copy()
            if fault == "early":
                self._timers = [t for t in self._timers if t.is_alive()]
                self._timers.append(threading.Timer(0.01, self._latch, (levels,)))
                self._timers[-1].start()
            elif fault != "never":
                self._latch(levels)
            return b"#OK\n"
        if command == b"?Pattern":
            self.outputs = self._surface.held(self.outputs)
            return b"#0X" + np.packbits(self.outputs).tobytes().hex().upper().encode() + b"\n"
        if command == b"?Vext":
            # whole volts and hundredths are printed apart: 9.999 V reads 09.90
            whole, hundredths = int(self._options.vext_v), int(self._options.vext_v % 1 * 1000) // 10
            if self._options.vext_v % 1 >= 0.995:
                hundredths = 90
            return f"#{whole:02d}.{hundredths:02d} V\n".encode()
        if command == b"?SerialNo":
            return f"#SerNo: {self._options.serial:3d}\n".encode()
        if re.fullmatch(rb"!BT-Key=[0-9]{6}", command):
            return b"#OK\n"
        return self._boot() if command == b"!Reset" else b""

    def _boot(self) -> bytes:
        self._latch(np.zeros((16, 16), np.uint8))
        return _BANNER

    def _latch(self, levels: U8) -> None:
        """Have the outputs hold these levels, on the air too; raises DeviceError where the air does not confirm it."""
        self._surface.latch(levels)
        self.outputs = levels
