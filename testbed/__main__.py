"""Starts the command `testbed`. A signal ends it in order, even while the libraries are still being loaded."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

INTERRUPTED = 130


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Run the command. If a signal ends it at any time, its exit status is 130, and there is no traceback."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _interrupt)
        _run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


def _run() -> None:
    from testbed.core import memory

    memory.collect_seldom()  # loading libraries makes a hundred thousand objects, which stay
    from testbed.cli import main as command
    from testbed.core import ending

    try:
        command()
    except SystemExit as exc:
        if isinstance(exc.code, int) and not ending.is_watched():
            ending.end(exc.code)
        raise


if __name__ == "__main__":
    main()
