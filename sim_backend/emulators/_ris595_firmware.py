"""The ris595 firmware, run as a process on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import threading
from importlib.resources import files
from pathlib import Path

from testbed.core.errors import InputError

_GRACE_S = 2.0
"""Time after which the child is killed if it has not ended although its line was closed."""


def build(cache: Path) -> Path:
    """Return the firmware built for this machine, in a folder of `cache` named after its sources."""
    sources = Path(str(files("firmware_ctl") / "firmware"))
    names = sorted(p for p in sources.rglob("*.[ch]") if "tests" not in p.parts)
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in names)).hexdigest()[:16]
    binary = cache / f"ris595-{digest}"
    if binary.exists():
        return binary
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise InputError("the emulated ris595 board is its firmware built here: no C compiler (apt-get install gcc)")
    cache.mkdir(parents=True, exist_ok=True)
    fresh = cache / f"{binary.name}.{os.getpid()}.{threading.get_ident()}"
    parts = [p for p in names if p.suffix == ".c" and p.name != "avr.c"]
    command = [compiler, "-std=c11", "-O2", "-o", str(fresh), *map(str, parts)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired as exc:
        raise InputError(f"the ris595 firmware does not build: {compiler} took longer than 120 s") from exc
    if done.returncode:
        raise InputError(f"the ris595 firmware does not build: {(done.stderr.splitlines() or ['no reason given'])[0]}")
    fresh.rename(binary)  # another process never finds it incomplete
    return binary


class Firmware:
    """The firmware as a child process, with its UART and its test port (`hal/host.c`) as sockets."""

    def __init__(self, binary: Path, arguments: list[str]) -> None:
        self.uart, far_uart = socket.socketpair()
        self.bench, far_bench = socket.socketpair()
        command = [str(binary), "--uart", str(far_uart.fileno()), "--bench", str(far_bench.fileno()), *arguments]
        with (
            far_uart,
            far_bench,
        ):  # only the child keeps the far ends open, so that each side notices when the other ends
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(far_uart.fileno(), far_bench.fileno())
            )

    def hang_up(self) -> None:
        """Close the line: the child ends, and readers of its sockets here wake up."""
        for end in (self.uart, self.bench):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has left already

    def close(self) -> None:
        """End the child, and wait for that."""
        self.hang_up()
        try:
            self.process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=_GRACE_S)
        for end in (self.uart, self.bench):
            end.close()


def received(end: socket.socket, at_most: int = 65536) -> bytes:
    """Return the received bytes, b"" at the end."""
    try:
        return end.recv(at_most)
    except OSError:
        return b""
