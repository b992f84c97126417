"""A session delivers messages between two processes in order and each once, even if connections between them break.

TCP delivers data in order and once while a connection lasts; when it breaks, data under way are lost. Each end
therefore numbers its messages, keeps each one until the other end has acknowledged it (`Header.seen`), accepts only the
next number, and sends lost messages again. This file knows neither sockets nor the contents of messages.

A loss is found without a clock: an idle end sends `Here` with the number that its next message will have, and the
answer repeats that number as its `parent`. All messages with lower numbers were sent before `Here` on the same
connection. If the answer acknowledges fewer of them (`seen`), the connection that carried the others has broken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

MAX_OWED = 1000
"""Largest number of messages that wait to be acknowledged; further ones are not accepted, and counted."""


class Session:
    """One end of a session. `first`: number of the other end's next message; `most`: messages that may be owed."""

    def __init__(self, incarnation: str, first: int = 0, most: int = MAX_OWED) -> None:
        self._most = most
        self.incarnation = incarnation
        """Incarnation of the process at the other end; '' before its first message."""
        self.next_id = 0
        """Number of the next message that this end sends."""
        self.seen = first - 1
        """Highest number that was received in order."""
        self.dropped = 0
        """Number of messages that were not accepted because too many waited."""
        self.repeated_s = -math.inf
        """When all that is owed was last sent again, on a clock of whoever sends it."""
        self.owed: deque[tuple[int, Any, int | None]] = deque()
        """(number, body, number of the message that it answers) of every unacknowledged message, oldest first."""

    def say(self, body: Any, parent: int | None = None) -> int | None:
        """Number a message and keep it. Returns its number, or None where too many messages wait: it is then dropped
        and counted."""
        if len(self.owed) >= self._most:
            self.dropped += 1
            return None
        number, self.next_id = self.next_id, self.next_id + 1
        self.owed.append((number, body, parent))
        return number

    def take(self, number: int) -> Literal["next", "duplicate", "gap"]:
        """Take the number of a received message: only the next number may be acted on."""
        if number <= self.seen:
            return "duplicate"
        if number > self.seen + 1:
            return "gap"  # the missing messages will be sent again, and this one after them
        self.seen = number
        return "next"

    def acknowledged(self, seen: int) -> None:
        """Delete the messages that the other end has acknowledged."""
        while self.owed and self.owed[0][0] <= seen:
            self.owed.popleft()

    def has_lost(self, seen: int, parent: int | None) -> bool:
        """Return whether a message with a number below `parent` is lost."""
        return parent is not None and seen < parent - 1 and bool(self.owed) and self.owed[0][0] < parent

    def withdraw(self, is_withdrawn: Callable[[Any], bool], instead: Any) -> int:
        """Replace the unacknowledged messages that `is_withdrawn` selects by `instead`; returns their number."""
        found = [i for i, (_, body, _) in enumerate(self.owed) if is_withdrawn(body)]
        for i in found:
            self.owed[i] = (self.owed[i][0], instead, None)
        return len(found)
