"""Standard input of a daemon, as a channel from the process that started it.

The starter writes one line (the address of the air) and then keeps the pipe open for as long as it lives. When the pipe
closes, the daemon exits, so that a starter that dies leaves no daemons behind.
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
        # read the bare descriptor byte by byte: a buffer would read ahead, and `watch_parent` would miss those bytes
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(1)
        line += byte
    found: dict[str, Any] = json.loads(line)
    return found


GRACE_S = 5.0
"""How long a daemon whose starter has died may take to leave in order."""


def watch_parent(before_the_end: Callable[[], object] = lambda: None) -> None:
    """Leave the process when standard input closes: in order, and where that takes too long, all the same.

    A long computation does not look at signals. `before_the_end` is called then, from a thread of its own, to silence
    what must not go on alone.
    """

    def wait() -> None:
        try:
            # read the bare descriptor: a thread that reads sys.stdin holds its lock when the interpreter exits
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
