"""Where a node's device works, so that messages and estimates do not wait for a train on the air."""

from __future__ import annotations

import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class DeviceThread(threading.Thread):
    """Carries out one piece of work after the other, in the order in which they were given.

    `begin` gives a piece of work and returns at once. When it is over, the socket `done` becomes readable, and `take`
    returns its result. `do` waits for its result, and thus for all work that was given before.
    """

    def __init__(self) -> None:
        super().__init__(name="device", daemon=True)
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._over: deque[tuple[Any, Any]] = deque()
        self.done, self._wake = socket.socketpair()
        self.done.setblocking(False)
        self._wake.setblocking(False)

    def run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def begin(self, tag: Any, work: Callable[[], Any]) -> None:
        """Have some work done, and return at once."""

        def carry_out() -> None:
            self._over.append((tag, _outcome(work)))
            try:
                self._wake.send(b"\\0")
            except OSError:  # the socket is full and thus readable already, or it is closed
                pass

        self._give(carry_out)

    @property
    def has_over(self) -> bool:
        """Whether begun work is over and was not taken."""
        return bool(self._over)

    def take(self) -> list[tuple[Any, Any]]:
        """Return (tag, result or exception) of all begun work that is over, oldest first, without waiting."""
        try:
            while self.done.recv(4096):
                pass
        except BlockingIOError:
            pass
        return [self._over.popleft() for _ in range(len(self._over))]

    def do(self, work: Callable[[], T]) -> T:
        """Have some work done, wait for it, and return its result; raises whatever the work raises."""
        over: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._give(lambda: over.put(_outcome(work)))
        result = over.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def _give(self, work: Callable[[], None]) -> None:
        if self.ident is None:
            self.start()
        self._work.put(work)

    def end(self, within_s: float) -> None:
        """Stop once the given work is over, and wait for that for `within_s` at most."""
        self._work.put(None)
        if self.is_alive():
            self.join(timeout=within_s)
        for end in (self._wake, self.done):
            end.close()


class DeviceTurns:
    """The same without a thread, for a node that shares its process: begun work is done when `work` is called."""

    def __init__(self) -> None:
        self._begun: deque[tuple[Any, Callable[[], Any]]] = deque()
        self._over: list[tuple[Any, Any]] = []

    def begin(self, tag: Any, work: Callable[[], Any]) -> None:
        self._begun.append((tag, work))

    def work(self) -> bool:
        """Do the oldest work that was begun; False where there is none."""
        if not self._begun:
            return False
        tag, work = self._begun.popleft()
        self._over.append((tag, work()))
        return True

    @property
    def has_over(self) -> bool:
        return bool(self._over)

    def take(self) -> list[tuple[Any, Any]]:
        over, self._over = self._over, []
        return over

    def do(self, work: Callable[[], T]) -> T:
        while self.work():
            pass
        return work()

    def end(self, within_s: float) -> None:
        """Drop what was begun."""
        self._begun.clear()


def _outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except BaseException as exc:
        return exc
