"""Logs go to standard error, one line an event, so that standard output stays free for results.

With TESTBED_LOG=json every line is a JSON object that also states run, round and node.
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
"""The run, round and node to which the lines of this process refer."""


def about(**values: Any) -> None:
    """Set the run, round or node to which the lines of this process refer from now on."""
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
    """Send log lines to standard error; raises InputError where TESTBED_LOG is not the name of a format."""
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
    """Return the message in a log line of JSON form; any other line is returned unchanged."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line
