"""What two processes say to one another, over however many connections it takes: numbered, in order, each thing once.

TCP delivers in order and once while a connection lasts, and loses what was under way when it breaks. Each end therefore
numbers what it says, keeps it until the other has said that it came (`Header.seen`), takes only the next number, and
sends again what was lost. Nothing here knows of sockets or of what is said.

How a loss is found without a clock: who has a moment sends `Here` with the number that its next message will have, and
the answer repeats that number as its `parent`. What was numbered below it was sent before it on the same connection;
so where the answer's `seen` is lower, the connection that carried it is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal

MAX_OWED = 1000
"""Messages that may wait to be acknowledged; nothing is accepted beyond them."""


class Session:
    """One end of it. `first`: number of the other end's next message; `most`: messages that may be owed."""

    def __init__(self, incarnation: str, first: int = 0, most: int = MAX_OWED) -> None:
        self._most = most
        self.incarnation = incarnation
        """Of the process at the other end; '' before it has said anything."""
        self.next_id = 0
        """Number of the next message that is said here."""
        self.seen = first - 1
        """Highest number that came in order."""
        self.owed: deque[tuple[int, Any, int | None]] = deque()
        """(number, body, number of what it answers) of everything that was said and not acknowledged, oldest first."""

    def say(self, body: Any, parent: int | None = None) -> int | None:
        """Number a message and keep it; None, and nothing is kept, where too much is owed already."""
        if len(self.owed) >= self._most:
            return None
        number, self.next_id = self.next_id, self.next_id + 1
        self.owed.append((number, body, parent))
        return number

    def take(self, number: int) -> Literal["next", "duplicate", "gap"]:
        """Take the number of a message that came: only the next one is to be acted on."""
        if number <= self.seen:
            return "duplicate"
        if number > self.seen + 1:
            return "gap"  # what is missing will be sent again, and this after it
        self.seen = number
        return "next"

    def acknowledged(self, seen: int) -> None:
        """Forget what the other end has."""
        while self.owed and self.owed[0][0] <= seen:
            self.owed.popleft()

    def has_lost(self, seen: int, parent: int | None) -> bool:
        """Return whether something of what was said before number `parent` has not come and never will."""
        return parent is not None and seen < parent - 1 and bool(self.owed) and self.owed[0][0] < parent

    def withdraw(self, is_withdrawn: Callable[[Any], bool], instead: Any) -> int:
        """Put `instead` in the place of what is owed and no longer wanted; returns how many it was."""
        found = [i for i, (_, body, _) in enumerate(self.owed) if is_withdrawn(body)]
        for i in found:
            self.owed[i] = (self.owed[i][0], instead, None)
        return len(found)
