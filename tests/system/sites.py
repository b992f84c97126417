"""Daemons that a test starts by hand, as on several machines."""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from testbed import config
from testbed.core.config import Lab
from testbed.lab import processes

_PORTS = range(20_000, 32_000)
"""Outside the range that the system uses for outgoing connections: a port of that one may be taken before its daemon
listens."""
_WORKERS = 8
_next = itertools.count(os.getpid() * 37)
"""Number of the next port to try among this worker's; other sessions of tests begin elsewhere."""


def free_ports(n: int) -> list[int]:
    """Return consecutive free ports, which neither this nor another worker of this session is given again soon."""
    most = len(_PORTS) // _WORKERS
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    found: list[int] = []
    for number in itertools.islice(_next, most):
        port = _PORTS[worker * most + number % most]
        found = [*found, port] if not found or port == found[-1] + 1 else [port]
        try:
            with socket.socket() as s:
                s.bind(("127.0.0.1", port))
        except OSError:
            found = []
        if len(found) == n:
            return found
    pytest.fail("no free ports")


class Site:
    """A lab of which nothing is local to `testbed run`; daemons are started one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: list[subprocess.Popen[str]] = []
        world, coordinator, discussion, _ = free_ports(4)
        text = config.find(Lab, "sim").read_text()
        text = text.replace("[world]", f"[world]\nport = {world}\nlocal = false")
        text = text.replace('role = "alice"', f'role = "alice"\nport = {discussion}')
        text = re.sub(r'driver = "sim"\n(tx_gain|options)', r'driver = "sim"\nlocal = false\n\1', text)
        text += f"\n[coordinator]\nport = {coordinator}\nrejoin_timeout_s = 60.0\n"
        self.lab = folder / "lab.toml"
        self.lab.write_text(text)
        self.world_port = world
        lab = config.load_lab(str(self.lab))
        processes.make_keys(lab, processes.daemon_names(lab))  # all sites share one state folder

    def start(self, *arguments: str, stays: bool = False) -> subprocess.Popen[str]:
        """Start a daemon; a node leaves after one run unless it `stays`."""
        if arguments[0] == "node" and not stays:
            arguments = (*arguments, "--once")
        child = subprocess.Popen(
            [sys.executable, "-m", "testbed", *arguments, "--lab", str(self.lab)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.children.append(child)
        return child

    def start_coordinator(self, *arguments: str, experiment: str = "mobile_room") -> subprocess.Popen[str]:
        out = str(self.folder / "runs")
        return self.start("coordinator", experiment, "--json", "--out", out, *arguments)

    def run_folder(self) -> Path:
        return next((self.folder / "runs").iterdir())


def when(stream: Any, happens: Callable[[str], bool]) -> None:
    """Read lines until one fulfils the condition; keep the pipe drained afterwards."""
    said: list[str] = []
    for line in stream:
        said.append(line)
        if happens(line):
            threading.Thread(target=stream.read, daemon=True).start()
            return
    pytest.fail(f"it never happened; said: {''.join(said[-5:])!r}")
