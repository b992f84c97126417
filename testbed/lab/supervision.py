"""How a process that was started by another one ends with it."""

from __future__ import annotations

import os
import signal
import threading


def watch_parent() -> None:
    """Leave the process when standard input closes: `testbed run` holds the other end, so it cannot leave orphans."""

    def wait() -> None:
        try:
            # the bare descriptor: a thread inside sys.stdin's buffer would hold its lock when the interpreter exits
            while os.read(0, 1):
                pass
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
