"""Work in forked children of this process: for what needs much memory for a short time, for what may end the process,
and for what several cores can share.

A forked child has all data of this process without copying them, imports nothing, and returns all of its memory to the
system when it ends. Of its results, only bytes come back, through a pipe. Nothing that other threads use (sockets,
devices) may be used in a child, because it has none of these threads. Numerical libraries use one thread in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import pickle
import resource
import selectors
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from testbed.core.errors import TestbedError
from testbed.core.threads import one_thread

T = TypeVar("T")
_BEGUN, _DONE, _RAISED = b"b", b"d", b"r"
_LENGTH_BYTES = 8
_NUMBER_BYTES = 2
_HEAD_BYTES = 2 + _LENGTH_BYTES
"""What a child writes before its result: that it has begun, whether it succeeded, and the length of the result."""
_LOOK_S = 0.2
"""How often is looked whether the work is still wanted."""
_MOST_CORES = 4
_PR_SET_PDEATHSIG = 1
_KEPT_BYTES = {-1: 1 << 30, -3: 32 << 20}
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of the C library: how much that was freed it keeps for its next use."""
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals whose handlers belong to this process and must not run in a child."""


class ChildLost(TestbedError):
    """A child ended without a result. The message completes the sentence "the process …"."""

    def __init__(self, how: str, by: str = "") -> None:
        super().__init__(how)
        self.by = by
        """Name of the signal that ended it; '' where it was none."""


def _never() -> bool:
    return False


def usable_cores() -> int:
    """Return the number of cores that this process may use, 4 at most."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_CORES)


def are_safe() -> bool:
    """Return whether long work may be done in forked children: on Linux, whose children end with their parent, and
    whose numerical libraries can be used after a fork."""
    return sys.platform == "linux"


@dataclass(frozen=True, slots=True)
class Children:
    """How a process has work done in forked children."""

    at_once: int
    """How many parts the work may be divided into, one for each core."""
    limit_s: float = 600.0
    """Longest time that a piece of work may take."""
    stopped: Callable[[], bool] = _never
    """Whether the results are no longer wanted; is asked while they are awaited."""

    def each(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Return what each piece of work gives; they are done at the same time, in one child each.

        Results are pickled, which is safe because they come from this process's own children. Raises ChildLost and
        OSError as `forked`.
        """
        found = forked([_pickled(work) for work in works], self.limit_s, self.stopped)
        return [pickle.loads(words) for words in found]

    def shared(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Return what each piece of work gives, for pieces of which it is not known how long they take.

        There are as many children as parts (`at_once`); each takes the next piece when it is done with one. Raises as
        `each`.
        """
        numbers, tell = os.pipe()
        try:
            # A pipe from which all children read serves as their queue: one number is read by one child only.
            with os.fdopen(tell, "wb", buffering=0) as queue:
                queue.write(b"".join(i.to_bytes(_NUMBER_BYTES) for i in range(len(works))))

            def take() -> list[tuple[int, T]]:
                done = []
                while number := os.read(numbers, _NUMBER_BYTES):
                    done.append((int.from_bytes(number), works[int.from_bytes(number)]()))
                return done

            found = dict(pair for part in self.each([take] * min(self.at_once, len(works))) for pair in part)
        finally:
            os.close(numbers)
        return [found[i] for i in range(len(works))]

    def one(self, work: Callable[[], T]) -> T:
        """Return what a piece of work gives that is done in a child."""
        return self.each([work])[0]


def _pickled(work: Callable[[], Any]) -> Callable[[], bytes]:
    return lambda: pickle.dumps(work(), pickle.HIGHEST_PROTOCOL)


def forked(
    works: Sequence[Callable[[], bytes]], limit_s: float, stopped: Callable[[], bool] = _never, silent: bool = False
) -> list[bytes]:
    """Return the bytes that each piece of work gives; each is done in a forked child, all at the same time.

    The children end when this process (on Linux: this thread) ends, however it does. `silent`: they write nothing to
    the standard error, for libraries that print before they end a process.

    Raises ChildLost where a child raised an exception or was ended, where it takes longer than `limit_s`, or where
    `stopped` returns True meanwhile; the other children are then ended. Raises OSError where this process may not
    fork, has no file number left, or a child could not begin.
    """
    children: list[_Child] = []
    deadline_s = time.monotonic() + limit_s
    try:
        children.extend(_fork(work, silent) for work in works)
        with selectors.DefaultSelector() as selector:
            for child in children:
                selector.register(child.told, selectors.EVENT_READ, child)
            while selector.get_map():
                left_s = deadline_s - time.monotonic()
                ready = selector.select(min(_LOOK_S, max(left_s, 0.0)))
                for key, _ in ready:
                    if key.data.read():
                        selector.unregister(key.data.told)
                        key.data.check()
                if selector.get_map() and stopped():
                    raise ChildLost("was stopped")
                if not ready and left_s <= 0.0:  # what is there counts: this process may have been suspended
                    raise ChildLost(f"was not done within {limit_s:g} s")
        return [child.result for child in children]
    finally:
        for child in children:
            child.end()


@dataclass(slots=True)
class _Child:
    pid: int
    told: int
    """The end of its pipe that is read here."""
    words: bytearray = field(default_factory=bytearray)
    is_reaped: bool = False

    def read(self) -> bool:
        """Read what it has written; returns whether that was the last.

        A whole result counts at once: the pipe stays open for as long as any process has it, such as one that the
        child has started and that has not ended.
        """
        part = os.read(self.told, 1 << 20)
        self.words += part
        return not part or self.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether the whole result has been read."""
        length = self.words[2:_HEAD_BYTES]
        return len(length) == _LENGTH_BYTES and len(self.words) == _HEAD_BYTES + int.from_bytes(length)

    def check(self) -> None:
        """Raise an error where it has ended without a result."""
        if self.is_whole:
            if self.words[1:2] == _RAISED:
                raise ChildLost(self.result.decode(errors="replace"))
            return
        status = self.end()
        if not self.words:
            raise OSError("a child process could not begin")
        by = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""
        raise ChildLost(f"was ended by {by}" if by else "ended without a result", by)

    @property
    def result(self) -> bytes:
        return bytes(self.words[_HEAD_BYTES:])

    def end(self) -> int:
        """End it where it has not ended, and return its status; 0 where that is not known."""
        if self.is_reaped:
            return 0
        self.is_reaped, status = True, 0
        with contextlib.suppress(ChildProcessError):  # where the ends of children are ignored
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                os.kill(self.pid, signal.SIGKILL)
                status = os.waitpid(self.pid, 0)[1]
        os.close(self.told)
        return status


def fork(live: Callable[[set[int | signal.Signals]], NoReturn]) -> int:
    """Fork this process and return the child's number. The child calls `live` with this process's signal mask; signals
    that this process handles are blocked in it until it sets that mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        with warnings.catch_warnings():
            # From Python 3.12 on, a fork of a process with threads warns of locks that these hold. The child uses only
            # locks that Python and the C library make anew in it.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            live(before)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _fork(work: Callable[[], bytes], silent: bool) -> _Child:
    told, tell = os.pipe()
    parent, library = os.getpid(), ctypes.CDLL(None) if are_safe() else None
    try:
        pid = fork(lambda mask: _work(work, tell, silent, mask, parent, library))
    except BaseException:
        os.close(told)
        raise
    finally:
        os.close(tell)
    return _Child(pid, told)


def _work(
    work: Callable[[], bytes], tell: int, silent: bool, mask: set[int | signal.Signals], parent: int, library: Any
) -> NoReturn:
    """Do the work in the child, write its result to `tell`, and end without any of this process's own clearing up."""
    try:
        _end_with(parent, library)
        for number in _HANDLED:
            # A terminal sends its signals to this process and its children, and this process ends them where it ends.
            by_terminal = number in (signal.SIGINT, signal.SIGHUP)
            if by_terminal or callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_IGN if by_terminal else signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.freeze()  # objects of the parent, such as its sockets, are never collected here
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if silent:
            faulthandler.disable()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)  # that of a notebook, for example, is not file number 2
        _write(tell, _BEGUN)
        try:
            with one_thread():  # the children share the cores, and threads that wait in a loop take them from others
                kind, words = _DONE, work()
        except ChildLost as exc:  # a child of the child
            kind, words = _RAISED, str(exc).encode()
        except BaseException as exc:  # of any kind: it ends the work, and the parent is told
            kind, words = _RAISED, f"failed: {type(exc).__name__}: {exc}".encode(errors="replace")
        _write(tell, kind + len(words).to_bytes(_LENGTH_BYTES) + words)
    finally:
        os._exit(0)


def _end_with(parent: int, library: Any) -> None:
    """Have the system end this child when its parent ends, and before all others where memory is short; and have the C
    library return no memory until then."""
    if library is None:
        return
    library.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before that
        os._exit(0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    with contextlib.suppress(AttributeError):  # another C library
        for parameter, n_bytes in _KEPT_BYTES.items():
            library.mallopt(parameter, n_bytes)


def _write(to: int, words: bytes) -> None:
    view = memoryview(words)
    while view:
        view = view[os.write(to, view) :]
