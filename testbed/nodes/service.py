"""A node as a service: it waits for what is not there yet, takes part in a run, and then waits for the next one.

Every run gets a fresh `NodeDaemon`: a new process of the node as far as anybody else can tell, so that nothing of one
run reaches another.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from testbed.core.errors import DeviceError
from testbed.nodes.daemon import COORDINATOR_SILENT, NodeDaemon

_AGAIN_S = 1.0
"""Between two attempts to open a device that is not there."""
REFUSED_S = 5.0
"""How long a node that the present run does not need leaves its coordinator alone."""


def serve(
    make: Callable[[], NodeDaemon],
    name: str,
    *,
    once: bool,
    within_s: float,
    say: Callable[[str], None],
    air: str | None = None,
) -> int:
    """Take part in runs until a signal, or in one where `once`; returns the exit status.

    `make` opens the device and the sockets. What is waited for is said in one line; with `once`, no longer than
    `within_s`. `air`: address of the simulated air that the device is on.
    Raises DeviceError where the device cannot be opened and that is not waited for.
    """
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
        return daemon.run()
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _opened(
    make: Callable[[], NodeDaemon], name: str, once: bool, within_s: float, say: Callable[[str], None], air: str | None
) -> NodeDaemon:
    """Return the node with its device open; waits for a device, or its air, that is not there yet."""
    said = ""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return make()
        except DeviceError as exc:
            # a device is on the air or on a wire; what is wrong with one on a wire may need a person
            if once and (air is None or time.monotonic() > deadline_s):
                raise
            what = f"the simulated air at {air}" if air is not None else f"its device: {exc}"
            if what != said:
                say(f"{name}: waiting for {what}")
            said = what
            time.sleep(_AGAIN_S)
