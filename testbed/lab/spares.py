"""Processes that wait to become the daemons of a run, forked from one that has loaded what all daemons need.

A new interpreter needs 0.3 s of processor time until it has loaded a daemon's libraries, and a run starts four of them.
A forked process has them, and otherwise is like a new one: a session of its own, a pipe as standard input whose end
ends it, no other open files of its parent, numerical libraries limited to one thread. It is forked before its parent
has threads or sockets, so that it inherits no lock that a thread holds and no socket.

A run that has no spare process, or needs one more (a node that is started again), starts a new interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, Self

from testbed.core import ending, forks, threads
from testbed.lab import supervision

Work = Callable[[str, dict[str, Any]], int]
"""(command, its options) → exit status: what a daemon does."""
_INTERRUPTED = 130
_LONGEST_LOOK_S = 0.005
_ARGUMENTS_FIELD = 45
"""Place of the address of the command line in /proc/self/stat, counted after the process's name."""


class Process(Protocol):
    """A process of this machine that this one has started: what `subprocess.Popen` and `Spare` have in common."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Spare:
    """A forked process, with the methods of `subprocess.Popen`. It waits for its work until its input ends."""

    def __init__(self, pid: int, orders: int, output: int) -> None:
        """`orders`: number of the open file that ends at its standard input; `output`: that of its standard output."""
        self.pid = pid
        self.stdin: IO[bytes] | None = os.fdopen(orders, "wb")
        self.stdout: IO[bytes] | None = os.fdopen(output, "rb")
        self._status: int | None = None
        self._lock = threading.Lock()

    def begin(
        self, command: str, options: Mapping[str, Any], environment: Mapping[str, str], log: Path, stdout: int
    ) -> None:
        """Have it do its work, with these variables in addition to its parent's, and append its errors to `log`.

        `stdout`: what happens to its output, subprocess.PIPE or DEVNULL.
        """
        keeps = stdout == subprocess.PIPE
        order = {
            "command": command, "options": dict(options), "environment": dict(environment), "log": str(log),
            "is_heard": keeps,
        }  # fmt: skip
        assert self.stdin is not None
        assert self.stdout is not None
        if not keeps:
            self.stdout.close()
            self.stdout = None
        with contextlib.suppress(OSError):  # it has died already, which `poll` reports
            self.stdin.write(json.dumps(order).encode() + b"\n")
            self.stdin.flush()

    def poll(self) -> int | None:
        """Return its exit status, minus the signal's number where one ended it; None while it runs."""
        with self._lock:
            if self._status is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:  # the ends of children are ignored in this process: it has ended somehow
                    pid, status = self.pid, 0
                if pid:
                    self._status = os.waitstatus_to_exitcode(status)
            return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status when it has ended; raises subprocess.TimeoutExpired after `timeout` seconds."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        look_s = 0.0005
        while (status := self.poll()) is None:
            if deadline_s is not None and timeout is not None and time.monotonic() >= deadline_s:
                raise subprocess.TimeoutExpired("a spare process", timeout)
            time.sleep(look_s)
            look_s = min(2 * look_s, _LONGEST_LOOK_S)
        return status

    def send_signal(self, sig: int) -> None:
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Spares:
    """Forked processes that wait for their work; the block's end ends those that have got none."""

    def __init__(self) -> None:
        self._waiting: list[Spare] = []

    def fork(self, count: int, work: Work) -> None:
        """Fork so many more, where `can_fork`; fewer where the system does not let this process fork."""
        with contextlib.suppress(OSError):
            self._waiting.extend(_fork(work) for _ in range(count))

    def take(self) -> Spare | None:
        """Return one that waits; None where there is none."""
        while self._waiting:
            spare = self._waiting.pop(0)
            if spare.poll() is None:
                return spare
            _close(spare)
        return None

    def close(self) -> None:
        """End those that wait, which takes milliseconds."""
        waiting, self._waiting = self._waiting, []
        for spare in waiting:
            _close(spare)
            spare.kill()
            spare.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def can_fork() -> bool:
    """Return whether this process may fork spares: on Linux, while it has one thread and its own standard streams, and
    no debugger follows it."""
    has_one_thread = threading.active_count() == 1 and not ending.is_watched()
    return forks.are_safe() and has_one_thread and all(map(_is_own, enumerate(_streams())))


def _streams() -> tuple[Any, ...]:
    return sys.stdin, sys.stdout, sys.stderr


def _is_own(numbered: tuple[int, Any]) -> bool:
    """Return whether a standard stream is the file of its number, and not another one, as in a notebook."""
    number, stream = numbered
    try:
        return bool(stream.fileno() == number)
    except (AttributeError, OSError, ValueError):
        return False


def _fork(work: Work) -> Spare:
    for stream in _streams()[1:]:
        stream.flush()  # otherwise the child would write it a second time
    orders, order = os.pipe()
    told, tell = os.pipe()
    pid = -1
    try:
        pid = forks.fork(lambda mask: _live(work, orders, tell, mask))
    finally:
        for number in (orders, tell) if pid > 0 else (orders, tell, order, told):
            os.close(number)
    return Spare(pid, order, told)


def _live(work: Work, orders: int, tell: int, mask: set[int | signal.Signals]) -> NoReturn:
    """Wait for the work and do it, in the child, and end without any of the parent's own clearing up."""
    status = 1
    try:
        os.setsid()  # Ctrl-C reaches the parent only
        os.dup2(orders, 0)
        os.dup2(tell, 1)
        os.closerange(3, _most_files())
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.freeze()  # objects of the parent are never collected here
        status = _work(work, supervision.told())
        ending.end(status)
    except KeyboardInterrupt:
        status = _INTERRUPTED
    except SystemExit as exc:  # such as where the parent has no work, or has died
        status = exc.code if isinstance(exc.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _most_files() -> int:
    """Return a number above those of all files that this process has open."""
    try:
        return max(map(int, os.listdir("/proc/self/fd"))) + 1
    except OSError:
        return os.sysconf("SC_OPEN_MAX")


def _work(work: Work, order: dict[str, Any]) -> int:
    with open(order["log"], "ab") as log:
        os.dup2(log.fileno(), 2)
    if not order["is_heard"]:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ.update(order["environment"])
    threads.limit_to_one()
    command, options = order["command"], order["options"]
    _show_as(command, options)
    return work(command, options)


def _show_as(command: str, options: Mapping[str, Any]) -> None:
    """Have lists of processes show this one as `testbed COMMAND NAME`, in place of its parent's command line."""
    words = ["python", "-m", "testbed", command, *([options["name"]] if "name" in options else [])]
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, end = (int(x) for x in fields[_ARGUMENTS_FIELD : _ARGUMENTS_FIELD + 2])
        room = end - begin
        text = "\0".join(words).encode()
        if begin > 0 and len(text) < room:
            ctypes.memmove(begin, text.ljust(room, b"\0"), room)


def _close(spare: Spare) -> None:
    for pipe in (spare.stdin, spare.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
