"""Where a command begins: from here on a signal is an end in order, while the libraries are still being loaded too."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

INTERRUPTED = 130


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> NoReturn:
    """Entry point of `testbed`. Exit status 130 and no traceback where a signal ends it, whenever it comes."""
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
