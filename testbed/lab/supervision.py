"""What a daemon hears on its standard input from the process that started it: where the air is, then nothing more.

The other end is held open as long as that process lives, so that it cannot leave orphans.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any


def told() -> dict[str, Any]:
    """Wait for the line that the starter writes once all is there; a starter that died ends this process.

    Nodes are started while the air still is, and load their libraries in the meantime.
    """
    line = b""
    while not line.endswith(b"\n"):
        # the bare descriptor, a byte at a time: what is read ahead into a buffer would be lost to `watch_parent`
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit(1)
        line += byte
    found: dict[str, Any] = json.loads(line)
    return found


def watch_parent() -> None:
    """Leave the process when standard input closes."""

    def wait() -> None:
        try:
            # the bare descriptor: a thread inside sys.stdin's buffer would hold its lock when the interpreter exits
            while os.read(0, 1):
                pass
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
