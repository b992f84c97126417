"""This project's own surface controller on a serial port: its firmware, built for this machine, behind a pty.

The firmware itself is tested in this way. It runs in a child process, which has its UART and its test port in two
sockets. The test port reports the levels that the outputs latched, and receives the time of the simulated air at that
sample, which is the board's clock.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, Struct

from sim_backend.emulators._options import emulator_options
from sim_backend.emulators._ris595_firmware import Firmware, build, received
from sim_backend.emulators.pty_line import PtyLine
from sim_backend.emulators.surface_port import SurfacePort
from sim_backend.ticks import TICKS_PER_S
from testbed.core.errors import DeviceError, InputError
from testbed.core.seeds import generator
from testbed.core.types import U8
from testbed.core.world import DriverContext, Emulator

log = logging.getLogger(__name__)
_GRACE_S = 2.0
"""Time for the threads to end once their sockets are closed."""
_LATENCY_S = 1e-3
"""Latency in the air's time, which does not pass while frames are exchanged: about the time to shift a pattern out."""
_BANK_BYTES = 1 << 20
"""Memory for a codebook in the firmware on this machine (`hal/host.c`)."""
FAULTS = ("silence", "swallow", "reboot", "late", "duplicate", "garbage", "vanish")
"""Faults of a command's frame and of its answer; those of the board itself are the option `fault`."""


class Ris595EmulatorOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of `[world.emulators.NODE]` for a node whose driver is ris595."""

    rows: Annotated[int, Meta(ge=1, le=256)] = 16
    columns: Annotated[int, Meta(ge=1, le=256)] = 16
    phase_bits: Annotated[int, Meta(ge=1, le=3)] = 1
    codebook: Annotated[int, Meta(ge=1, le=4096)] = 256
    """Number of patterns that it stores."""
    schedule: Annotated[int, Meta(ge=0, le=4096)] = 256
    """Number of patterns that it can latch by time, one after the other; at most as many as fit into 1 MiB."""
    baud: Annotated[int, Meta(gt=0)] = 500_000
    latency_s: Annotated[float, Meta(ge=0)] = 0.0
    """Latency of the USB adapter; 16 ms by default on many."""
    serial: Annotated[int, Meta(ge=0, lt=2**32)] = 0x595
    fault: Literal["none", "bit-order", "ack-early", "stuck-upload"] = "none"
    """Fault of the board: outputs in the wrong order, acknowledged 20 ms too early, or first upload ignored."""
    fault_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Probability that a command has one of `FAULTS`, drawn from the context's seed."""


class EmulatedRis595(Emulator):
    """The board at `uri`; `outputs` (row, column) are the levels of its surface. `options`: Ris595EmulatorOptions."""

    options_type = Ris595EmulatorOptions

    ends = b"\0"

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        self._options = o = emulator_options(name, options, Ris595EmulatorOptions)
        self.outputs: U8 = np.zeros((o.rows, o.columns), np.uint8)
        self.latched: deque[bytes] = deque(maxlen=100_000)
        """Levels of every pattern that the outputs latched, oldest first."""
        self.faults_met: dict[str, int] = {}
        self.fault_probability = o.fault_probability
        self._armed: list[str] = []
        self._rng = generator(context.seed, name, "board faults")
        self._n_bytes = (o.rows * o.columns * o.phase_bits + 7) // 8
        fits = _BANK_BYTES // self._n_bytes
        if o.codebook > fits:
            raise InputError(
                f"table [world.emulators.{name}]: codebook = {o.codebook}, accepted 1 to {fits} with "
                f"{o.rows}×{o.columns} elements of {o.phase_bits} bit"
            )
        self._surface = SurfacePort(name, context, (o.rows, o.columns), o.phase_bits, _LATENCY_S)
        arguments = {"rows": o.rows, "columns": o.columns, "phase-bits": o.phase_bits, "serial": o.serial,
                     "codebook": o.codebook, "schedule": o.schedule, "fault": o.fault}  # fmt: skip
        self._arguments = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
        self._binary = build(context.state_dir.parent / "firmware")
        self.line = PtyLine(context.state_dir / f"{name}.tty", o.baud, o.latency_s)
        self.uri = self.line.uri
        self._off = False
        self._power_up()
        self.line.start(self)

    def close(self) -> None:
        """Unplug it; may be called twice."""
        self.line.close()
        self._power_down()
        self._surface.close()

    def arm(self, fault: str) -> None:
        """Apply one of `FAULTS` to the next command."""
        self._armed.append(fault)

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the host; the answer comes when the firmware gives it."""
        if data.rstrip(b"\0"):  # a command, not only the zero that ends one
            data = self._meet(data)
        if self._off:  # the air failed or the process died: the board is powered up again
            self._power_down()
            self._power_up()
        try:
            self._firmware.uart.sendall(data)
        except OSError:
            pass  # the board is off
        return b""

    def _meet(self, data: bytes) -> bytes:
        """Draw a fault for a command, and return the part of the command that arrives."""
        self.line.silence(False)
        fault = self._armed.pop(0) if self._armed else ""
        if not fault and self._rng.random() < self.fault_probability:
            fault = str(self._rng.choice(FAULTS))
        if fault:
            self.faults_met[fault] = self.faults_met.get(fault, 0) + 1
        match fault:
            case "silence":
                self.line.silence()
            case "swallow":
                at = int(self._rng.integers(len(data)))
                return data[:at] + data[at + 1 :]
            case "reboot":
                self._power_down()
                self._power_up()
                return b""
            case "garbage":
                self.line.garbage(self._rng.bytes(5))
            case "duplicate":
                self.line.duplicate_answer()
            case "late":
                self.line.delay_answers(float(self._rng.uniform(0.05, 0.8)))
            case "vanish":
                self.line.vanish(0.05)
                return b""
        return data

    # ---------------------------------------------------------------- the child and its threads

    def _power_up(self) -> None:
        self._off = False
        self._firmware = Firmware(self._binary, self._arguments)
        threading.Thread(target=self._uart_to_line, args=(self._firmware,), daemon=True).start()
        self._bench_thread = threading.Thread(target=self._serve_bench, args=(self._firmware,), daemon=True)
        self._bench_thread.start()

    def _power_down(self) -> None:
        """Power the board down. The line's thread calls this, too, so it must not wait for a thread that needs the
        line."""
        self._firmware.close()
        self._bench_thread.join(timeout=_GRACE_S)

    def _uart_to_line(self, firmware: Firmware) -> None:
        while (data := received(firmware.uart)) and firmware is self._firmware:
            self.line.send(data)

    def _serve_bench(self, firmware: Firmware) -> None:
        bench = firmware.bench
        while what := received(bench, 1):
            try:
                if what == b"O":
                    self.outputs = self._surface.held(self.outputs)
                    answer = self._chain(self.outputs)
                elif what == b"S":
                    answer = bytes([self._latch_at(bench)])
                else:
                    ticks = self._latch(bench) if what == b"L" else self._surface.now()
                    # rounded up: every sample after this time sees the new pattern
                    answer = (-(-ticks * 1_000_000 // TICKS_PER_S) % 2**32).to_bytes(4, "little")
            except DeviceError as exc:  # without the air's confirmation the board must not confirm either
                log.error("emulated board without its air: %s", exc)
                break
            try:
                bench.sendall(answer)
            except OSError:
                break
        self._off = firmware is self._firmware  # … or its process ended
        firmware.hang_up()

    def _latch(self, bench: Any) -> int:
        """Set the surface of the air to the latched outputs; return its tick."""
        levels = self._levels(_exactly(bench, self._n_bytes))
        ticks = self._surface.latch(levels)
        self._took(levels)
        return ticks

    def _latch_at(self, bench: Any) -> bool:
        """Have the air's surface take the outputs that come at a time of the board's clock; False: it has passed."""
        at_us = int.from_bytes(_exactly(bench, 4), "little")
        levels = self._levels(_exactly(bench, self._n_bytes))
        now_us = self._surface.now() * 1_000_000 // TICKS_PER_S
        ahead_us = (at_us - now_us + 2**31) % 2**32 - 2**31
        try:
            self._surface.latch_at(levels, (now_us + ahead_us) * TICKS_PER_S // 1_000_000)
        except DeviceError as exc:
            log.info("emulated board: %s", exc)
            return False
        self._took(levels)
        return True

    def _took(self, levels: U8) -> None:
        self.outputs = levels
        self.latched.append(levels.tobytes())

    def _levels(self, chain: bytes) -> U8:
        """Return the (row, column) levels of the chain's bits."""
        o = self._options
        # the last bit of the chain is output 0: the first bit of the pattern
        bits = np.unpackbits(np.frombuffer(chain, np.uint8))[::-1][: o.rows * o.columns * o.phase_bits]
        weights = 1 << np.arange(o.phase_bits - 1, -1, -1)
        return np.asarray(bits.reshape(o.rows, o.columns, o.phase_bits) @ weights, np.uint8)

    def _chain(self, levels: U8) -> bytes:
        """Return the chain that gives the outputs these (row, column) levels; the inverse of `_latch`'s reading."""
        bits = (levels.reshape(-1, 1) >> np.arange(self._options.phase_bits - 1, -1, -1)) & 1
        padded = np.zeros(8 * self._n_bytes, np.uint8)
        padded[: bits.size] = bits.ravel()
        return np.packbits(padded[::-1]).tobytes()


def _exactly(bench: Any, n: int) -> bytes:
    """Return the next n bytes from the child."""
    out = b""
    while len(out) < n:
        more = received(bench, n - len(out))
        if not more:
            raise DeviceError("ris595", "latch", "open", "the board went off")
        out += more
    return out
