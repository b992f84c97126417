"""A surface whose controller answers lines of text over TCP, and its emulator on the simulated air.

`SIZE` is answered by `SIZE <rows> <columns> <phase bits>`, `APPLY <hex>` and `READ` by `HELD <hex>`.
"""

import socket
import socketserver
import threading
import time
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from sim_backend.emulators.surface_port import SurfacePort
from testbed.core import patterns
from testbed.core.errors import DeviceError, DeviceTimeout
from testbed.core.options import convert, driver_options
from testbed.core.ris import Board
from testbed.core.types import AppliedPattern, SurfacePattern
from testbed.core.world import Emulator


class WallOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    uri: str
    """Where the controller is, as `host:port`."""


class Wall(Board):
    """The driver of the controller."""

    options_type = WallOptions

    def __init__(self, name, context, **options):
        super().__init__(name)
        self._uri = driver_options(options, WallOptions, name).uri
        host, _, port = self._uri.rpartition(":")
        try:
            self._socket = socket.create_connection((host, int(port)), timeout=2.0)
        except (OSError, ValueError) as exc:
            raise DeviceError(name, "open", "closed", f"no wall at {self._uri}: {exc}") from exc
        self._lines = self._socket.makefile("rb")
        rows, columns, self._bits = map(int, self._ask("open", "SIZE", 2.0)[1:])
        self._shape = rows, columns

    @property
    def shape(self):
        return self._shape

    @property
    def phase_bits(self):
        return self._bits

    def now_s(self):
        return time.monotonic()

    def identity(self):
        return {"driver": "wall", "uri": self._uri}

    def _do_apply(self, pattern, timeout_s):
        held = self._ask("apply", f"APPLY {patterns.to_hex(pattern)}", timeout_s)
        return AppliedPattern(self._pattern(held).digest, self.now_s())

    def _do_readback(self, timeout_s):
        return self._pattern(self._ask("readback", "READ", timeout_s))

    def _do_close(self):
        self._socket.close()

    def _pattern(self, held):
        return patterns.from_hex(held[1], self._shape, self._bits)

    def _ask(self, operation, line, timeout_s):
        """Return the words of the answer to a line."""
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(line.encode() + b"\n")
            answer = self._lines.readline().decode().split()
        except TimeoutError as exc:
            raise DeviceTimeout(self.name, operation, self.state, f"no answer within {timeout_s:g} s") from exc
        except (OSError, ValueError) as exc:
            raise DeviceError(self.name, operation, self.state, f"the wall is gone: {exc}") from exc
        if not answer or answer[0] not in ("SIZE", "HELD"):
            raise DeviceError(self.name, operation, self.state, f"the wall answers {' '.join(answer)!r}")
        return answer


class WallTwinOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    rows: Annotated[int, Meta(ge=1, le=64)] = 4
    """Of elements."""
    columns: Annotated[int, Meta(ge=1, le=64)] = 6
    """Of elements."""
    phase_bits: Annotated[int, Meta(ge=1, le=4)] = 1
    """Of each element."""


class EmulatedWall(Emulator):
    """The emulator: the simulated air uses the pattern that it holds."""

    options_type = WallTwinOptions

    def __init__(self, name, context, **options):
        o = convert(dict(options), WallTwinOptions, "", [f"world.emulators.{name}"])
        self._shape, self._bits = (o.rows, o.columns), o.phase_bits
        self._levels = np.zeros(self._shape, np.uint8)
        self._surface = SurfacePort(name, context, self._shape, self._bits)
        self._one_at_a_time = threading.Lock()
        twin = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    with twin._one_at_a_time:
                        self.wfile.write(twin.answer(line.decode().split()).encode() + b"\n")

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.uri = "{}:{}".format(*self._server.server_address)

    def answer(self, words):
        if words == ["SIZE"]:
            return f"SIZE {self._shape[0]} {self._shape[1]} {self._bits}"
        if len(words) == 2 and words[0] == "APPLY":
            levels = patterns.from_hex(words[1], self._shape, self._bits).levels
            self._surface.latch(levels)
            self._levels = levels
        elif words != ["READ"]:
            return "WHAT?"
        self._levels = self._surface.held(self._levels)
        return f"HELD {patterns.to_hex(SurfacePattern(self._levels, self._bits))}"

    def close(self):
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
        self._surface.close()
