"""The exit status of a command, and the one line in which it says what failed."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from testbed.cli.terminal import say
from testbed.core.errors import InputError, TestbedError
from testbed.core.gate import printable

# Depending on its version, typer has its own copy of click or uses the installed one; this is its UsageError in both.
_UsageError: Any = typer.BadParameter.__base__


_LONGEST_LINE = 4000
"""Most characters of an error, which may repeat what somebody wrote into a file."""


def _line(exc: Exception) -> str:
    text = f"testbed: {exc}"
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"


def _wrong_number(exc: Any) -> str | None:
    """Return what is wrong with a number in the command line, where, and what is accepted; None for other mistakes.

    Newer versions of typer read numbers by pydantic, whose words leave out what was given.
    """
    errors, param = getattr(exc.__cause__, "errors", None), getattr(exc, "param", None)
    if errors is None or param is None:
        return None
    kind = getattr(param.get_runtime_param(), "annotation", None)
    if kind not in (int, float):
        return None
    low, high = (None if x is None else str(int(x) if x == int(x) else x) for x in (param.min, param.max))
    limits = ("" if low is None else f" from {low}") + ("" if high is None else f" to {high}")
    accepted = ("a whole number" if kind is int else "a number") + limits
    return f"{param.opts[-1]}: {printable(str(errors()[0]['input']), 80)!r} given; accepted: {accepted}"


def status_of(command: Callable[[], Any]) -> int:
    """Carry out a command and return its exit status; every expected failure becomes one line."""
    try:
        status = command()
    except InputError as exc:
        say(_line(exc))
        status = 2
    except TestbedError as exc:
        say(_line(exc))
        status = 1
    except typer.Exit as exc:
        status = exc.exit_code
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except _UsageError as exc:
        where = exc.ctx.command_path if getattr(exc, "ctx", None) else "testbed"
        said = _wrong_number(exc) or exc.format_message()
        say(said if "\n" in said else f"testbed: {said} (see `{where} --help`)")  # no command: the help
        status = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as exc:  # for example a folder that cannot be written, or a full disk
        place = f"{exc.filename}: " if exc.filename else ""
        say(f"testbed: {place}{exc.strerror or exc}")
        status = 1
    logging.shutdown()
    return status if isinstance(status, int) else 0
