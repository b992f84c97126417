"""The command line. Exit status 2: bad input, in one line on standard error; 1: a failed run; 130: Ctrl-C."""

from __future__ import annotations

import io
import sys

from testbed.cli import about, lab, live, papers, results, runs, sweep
from testbed.cli.app import app
from testbed.cli.status import status_of


def main() -> None:
    """Entry point: turn every expected failure into one line and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the terminal cannot show becomes "?"
            stream.reconfigure(errors="replace")
    sys.exit(status_of(lambda: app(standalone_mode=False)))


__all__ = ["about", "app", "lab", "live", "main", "papers", "results", "runs", "sweep"]
