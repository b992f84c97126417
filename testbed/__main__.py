"""Start of the command: from here on a signal ends it in order, also while the libraries are still being loaded."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

INTERRUPTED = 130


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Entry point of `testbed`. Exit status 130, and no traceback, where a signal ends it at any time."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _interrupt)
        from testbed.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(0)


if __name__ == "__main__":
    main()
