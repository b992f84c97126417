"""Standard input of a daemon, as a channel from the process that started it.

The starter writes one line (the addresses of the coordinator and the air) and then keeps the pipe open for as long as
it lives. When the pipe closes, the daemon exits, so that a starter that dies leaves no daemons behind.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any


def told() -> dict[str, Any]:
    """Wait for the starter's line and return its values; exits this process where the starter has died.

    Nodes are started at the same time as the air and load their libraries while it starts.
    """
    line = b""
    while not line.endswith(b"\n"):
        # Read the descriptor byte by byte: a buffered reader would take bytes that `watch_parent` needs.
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(1)
        line += byte
    found: dict[str, Any] = json.loads(line)
    return found


GRACE_S = 5.0
"""Seconds that a daemon whose starter has died may take to end in order."""


def watch_parent(before_the_end: Callable[[], object] = lambda: None) -> None:
    """End this process when standard input closes: in order or, where that takes too long, at once.

    It takes too long if a long computation delays the signal's handler. `before_the_end` is then called, from another
    thread, to silence a transmitter before the process is ended.
    """

    def wait() -> None:
        try:
            # Read the descriptor and not sys.stdin, whose lock this thread would still hold when the interpreter exits.
            while os.read(0, 1):
                pass
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        try:
            before_the_end()
        finally:
            os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
