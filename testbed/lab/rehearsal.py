"""Injects the faults of `fault_plan` into a run: into the lines between its processes, and into the processes."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from testbed.core.clock import TIME_OF_DAY
from testbed.core.config import Faults
from testbed.lab.fault_plan import Fault, Traffic
from testbed.lab.proxy import Line, Lines
from testbed.lab.spares import Process
from testbed.records import files

log = logging.getLogger(__name__)


class Rehearsal:
    """Injects each fault of `plan` when the run reaches its round. A context manager: on exit, no fault is active.

    `sealed`: links are authenticated. `process_of` returns a node's present process; `record` is called with every
    fault when it is injected.
    """

    def __init__(
        self, faults: Faults, plan: Sequence[Fault], seed: int, sealed: bool, process_of: Callable[[str], Process],
        record: Callable[[str, dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self._faults, self._due, self._seed, self._sealed = faults, list(plan), seed, sealed
        self._process_of, self._record = process_of, record
        self._lines = Lines()
        self._of: dict[str, list[Line]] = {}
        """Node → the lines of its connections."""
        self._to: dict[tuple[str, str], str] = {}
        self._timers: list[threading.Timer] = []
        self._paused: list[Process] = []
        self._disks_full = 0
        """How many times are under way in which the disk is full."""
        self._stepped_s = 0.0

    def through(self, link: str, node: str, endpoint: str) -> str:
        """Return the address to which a node connects in place of `endpoint`, so that it gets this link's faults."""
        if link not in self._faults.links or endpoint.endswith(":0"):
            return endpoint
        if (node, endpoint) not in self._to:
            count = iter(range(1 << 30))
            line = self._lines.to(
                endpoint, lambda: Traffic(self._faults, self._seed, link, node, next(count)), messages=link != "air",
                sealed=self._sealed,
            )  # fmt: skip
            self._of.setdefault(node, []).append(line)
            self._to[node, endpoint] = f"tcp://127.0.0.1:{line.port}"
        return self._to[node, endpoint]

    def until(self, round: int) -> None:
        """Inject the faults that are due when this many rounds are over."""
        while self._due and self._due[0].round < round:
            fault = self._due.pop(0)
            log.info("fault: %s", fault)
            self._record("fault_made", asdict(fault))
            _MAKE[fault.kind](self, fault)

    def _reset(self, fault: Fault) -> None:
        for line in self._of.get(fault.node, []):
            line.reset()

    def _cut(self, fault: Fault) -> None:
        for line in self._of.get(fault.node, []):
            line.cut()
            self._later(fault.length_s, line.mend)

    def _pause(self, fault: Fault) -> None:
        process = self._process_of(fault.node)
        process.send_signal(signal.SIGSTOP)  # has no effect if the process has ended
        self._paused.append(process)
        self._later(fault.length_s, lambda: process.send_signal(signal.SIGCONT))

    def _kill(self, fault: Fault) -> None:
        self._process_of(fault.node).send_signal(signal.SIGKILL)

    def _step_clock(self, fault: Fault) -> None:
        self._stepped_s += fault.length_s
        TIME_OF_DAY.step(fault.length_s)

    def _fill_disk(self, fault: Fault) -> None:
        def clear() -> None:
            self._disks_full -= 1

        self._disks_full += 1
        self._later(fault.length_s, clear)

    def free_bytes(self, folder: Path) -> int:
        """Return how much may be written in a folder, as the run is told."""
        return 0 if self._disks_full else files.free_bytes(folder)

    def _later(self, after_s: float, what: Callable[[], Any]) -> None:
        timer = threading.Timer(after_s, what)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        for process in self._paused:
            process.send_signal(signal.SIGCONT)
        self._disks_full = 0
        TIME_OF_DAY.step(-self._stepped_s)
        self._lines.__exit__()


_MAKE: dict[str, Callable[[Rehearsal, Fault], None]] = {
    "reset": Rehearsal._reset,
    "partition": Rehearsal._cut,
    "pause": Rehearsal._pause,
    "kill": Rehearsal._kill,
    "clock_step": Rehearsal._step_clock,
    "disk_full": Rehearsal._fill_disk,
}
"""Kind of fault → the method that injects it."""
