"""A node as a service: it waits for its device and its coordinator, takes part in a run, and waits for the next run.

Every run gets a new `NodeDaemon` with an incarnation of its own. For all other nodes it is a new process, so that no
data of one run reach another one.
"""

from __future__ import annotations

import resource
import signal
import time
from collections.abc import Callable

from testbed.core import memory
from testbed.core.errors import DeviceError, KeyRefused
from testbed.nodes.daemon import COORDINATOR_SILENT, NodeDaemon

_AGAIN_S = 1.0
"""Seconds between two attempts to open a device that is absent."""
REFUSED_S = 5.0
"""Seconds after which a node that the present run does not need greets its coordinator again."""


def leave_no_core_file() -> None:
    """Forbid core files of this process: if a library aborts it, such a file would contain the node's secrets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def serve(
    make: Callable[[], NodeDaemon],
    name: str,
    *,
    once: bool,
    within_s: float,
    say: Callable[[str], None],
    air: str | None = None,
) -> int:
    """Take part in runs until a signal arrives, or in one run if `once`; returns the exit status.

    `make` opens the device and the sockets. While something is missing, one line says what; with `once`, the node waits
    for `within_s` at most. `air`: address of the simulated air that the device is on.
    Raises DeviceError where the device cannot be opened and the node does not wait for it.
    """
    leave_no_core_file()
    refused = ""
    while True:
        daemon = _opened(make, name, once, within_s, say, air)
        daemon.stays = not once
        daemon.say = say
        code = _run(daemon)
        if once or daemon.interrupted:
            return code
        if daemon.refused and daemon.refused != refused:
            say(f"{name}: the coordinator refuses this node: {daemon.refused}; it waits for another run")
        elif code not in (0, COORDINATOR_SILENT) and not daemon.refused:
            return code
        refused = daemon.refused
        if refused:
            time.sleep(REFUSED_S)


def _run(daemon: NodeDaemon) -> int:
    """Take part in one run; a signal ends it in order."""
    before = [(n, signal.signal(n, lambda *_: daemon.interrupt())) for n in (signal.SIGINT, signal.SIGTERM)]
    try:
        memory.keep_freed()
        with memory.collected_seldom():
            return daemon.run()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _opened(
    make: Callable[[], NodeDaemon], name: str, once: bool, within_s: float, say: Callable[[str], None], air: str | None
) -> NodeDaemon:
    """Return the node with its device open; waits while the device or its simulated air is absent."""
    said = ""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return make()
        except DeviceError as exc:
            # With `once`, an absent simulated air is awaited until the deadline; a real device may need a person.
            if once and (air is None or time.monotonic() > deadline_s):
                raise
            is_absent = air is not None and not isinstance(exc, KeyRefused)
            what = f"the simulated air at {air}" if is_absent else f"its device: {exc}"
            if what != said:
                say(f"{name}: waiting for {what}")
            said = what
            time.sleep(_AGAIN_S)
