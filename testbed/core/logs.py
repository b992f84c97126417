"""Logs go to standard error, one line an event, so that standard output stays free for results.

TESTBED_LOG=json makes every line a JSON object with what it is about: run, round, node.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

from testbed.core.errors import InputError

FORMS = ("console", "json")
_about: dict[str, Any] = {}
"""What this process is at: run, round, node."""


def about(**values: Any) -> None:
    """State what the lines of this process are about from now on, such as run, round, node."""
    _about.update(values)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname, "logger": record.name, **_about, "message": record.getMessage(),
        }  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(verbose: bool) -> None:
    """Send log lines to standard error; raises InputError where TESTBED_LOG names no form."""
    form = os.environ.get("TESTBED_LOG") or "console"
    if form not in FORMS:
        raise InputError(f"variable TESTBED_LOG: {form!r}; accepted: {', '.join(FORMS)}")
    handler = logging.StreamHandler(sys.stderr)
    console = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_Json() if form == "json" else console)
    root = logging.getLogger("testbed")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if verbose else logging.WARNING)


def message_of(line: str) -> str:
    """Return what a log line says, whichever form it has; of one on the console, the line itself."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line
