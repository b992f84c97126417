"""Our own surface controller on a serial port: its firmware, built for this machine, behind a pty.

What is tested is the firmware itself. The child process finds its UART and its bench in two sockets; the bench says
what the outputs latched, and gets back the time of the simulated air at that sample, which is the board's clock.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from sim_backend.emulators._ris595_firmware import Firmware, build, received
from sim_backend.emulators.pty_line import LineFaults, PtyLine
from sim_backend.emulators.surface_port import SurfacePort
from sim_backend.ticks import TICKS_PER_S
from testbed.core.errors import InputError
from testbed.core.types import U8
from testbed.core.world import DriverContext

_GRACE_S = 2.0
"""For the threads, once their sockets are closed."""


class Ris595EmulatorOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys of `[world.emulators.NODE]` for a node whose driver is ris595."""

    rows: Annotated[int, Meta(ge=1, le=256)] = 16
    columns: Annotated[int, Meta(ge=1, le=256)] = 16
    phase_bits: Annotated[int, Meta(ge=1, le=3)] = 1
    codebook: Annotated[int, Meta(ge=1, le=4096)] = 256
    """Patterns that it stores."""
    baud: Annotated[int, Meta(ge=1200)] = 500_000
    serial: Annotated[int, Meta(ge=0, lt=2**32)] = 0x595
    fault: Literal["none", "bit-order", "ack-early", "stuck-upload"] = "none"
    """Of the board: outputs wired in the wrong order, acknowledged 20 ms before applied, deaf in its first upload."""
    line: LineFaults = LineFaults()
    """Of the line."""


class EmulatedRis595:
    """A board on a pty; `uri` is its path. `options`: the fields of Ris595EmulatorOptions."""

    def __init__(self, name: str, context: DriverContext, **options: Any) -> None:
        try:
            o = msgspec.convert(options, Ris595EmulatorOptions)
        except msgspec.ValidationError as exc:
            accepted = ", ".join(f.name for f in msgspec.structs.fields(Ris595EmulatorOptions))
            raise InputError(f"emulator {name!r}: {exc}; accepted keys: {accepted}") from exc
        self.name, self._options = name, o
        self._n_bytes = (o.rows * o.columns * o.phase_bits + 7) // 8
        self._outputs = np.zeros((o.rows, o.columns), np.uint8)
        self._surface = SurfacePort(name, context, (o.rows, o.columns), o.phase_bits)
        arguments = ["--rows", o.rows, "--columns", o.columns, "--phase-bits", o.phase_bits, "--serial", o.serial,
                     "--codebook", o.codebook, "--fault", o.fault]  # fmt: skip
        self._firmware = Firmware(build(context.state_dir.parent / "firmware"), [str(a) for a in arguments])
        self.line = PtyLine(name, self, o.baud, context.state_dir, o.line, context.seed)
        self.uri = self.line.uri
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._uart_to_line, self._bench)]
        for thread in self._threads:
            thread.start()

    @property
    def outputs(self) -> U8:
        """Return (row, column) levels that the outputs hold now."""
        return self._outputs.copy()

    def feed(self, data: bytes) -> None:
        """Take bytes from the host, after their time on the wire."""
        try:
            self._firmware.uart.sendall(data)
        except OSError:
            pass  # the board is being closed

    def close(self) -> None:
        """Unplug it."""
        self.line.close()
        self._firmware.close()
        for thread in self._threads:
            thread.join(timeout=_GRACE_S)
        self._surface.close()

    # ---------------------------------------------------------------- threads

    def _uart_to_line(self) -> None:
        while data := received(self._firmware.uart):
            self.line.answer(data)

    def _bench(self) -> None:
        bench = self._firmware.bench
        while what := received(bench, 1):
            if what == b"L":
                chain = b""
                while len(chain) < self._n_bytes:
                    more = received(bench, self._n_bytes - len(chain))
                    if not more:
                        return
                    chain += more
                ticks = self._latch(chain)
            else:
                ticks = self._surface.now()
            try:
                bench.sendall((ticks * 1_000_000 // TICKS_PER_S % 2**32).to_bytes(4, "little"))
            except OSError:
                return

    def _latch(self, chain: bytes) -> int:
        """Give what the outputs took over to the surface of the air; return its tick."""
        o = self._options
        # the last bit of the chain is output 0: the first bit of the pattern
        bits = np.unpackbits(np.frombuffer(chain, np.uint8))[::-1][: o.rows * o.columns * o.phase_bits]
        weights = 1 << np.arange(o.phase_bits - 1, -1, -1)
        self._outputs = (bits.reshape(o.rows, o.columns, o.phase_bits) @ weights).astype(np.uint8)
        return self._surface.latch(self._outputs)
