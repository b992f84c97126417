"""The end of a ZeroMQ context within a limited time.

libzmq ends a context only when every socket of it is closed, and waits for that without a limit.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

END_S = 10.0
"""Longest time that the end of a context may take; the last messages of its sockets linger for less."""

log = logging.getLogger("testbed.sockets")


def end_context(context: Any, linger_ms: int, authenticator: Any = None, within_s: float = END_S) -> bool:
    """Stop a context's authenticator, close its sockets, each after `linger_ms` at the latest, and end it.

    Returns whether it ended within `within_s`; if not, it is left to the end of the process. That is the case where
    another thread opened a socket meanwhile and does not close it.
    """
    ending = threading.Thread(target=_end, args=(context, linger_ms, authenticator), name="end of sockets", daemon=True)
    ending.start()
    ending.join(within_s)
    if ending.is_alive():
        log.warning("a ZeroMQ context did not end within %g s: a socket of it is still open", within_s)
    return not ending.is_alive()


def _end(context: Any, linger_ms: int, authenticator: Any) -> None:
    try:
        if authenticator is not None:
            authenticator.stop()
    finally:
        context.destroy(linger=linger_ms)
