"""What the pure state machines of coordinator and nodes share: time, deadlines, transitions, invariants, a story.

An object that owns a part of a machine's state derives from `Deadlines`: everything that it waits for has a name and a
deadline, which no other object changes. A machine moves between phases by a table (`Phases`), reports which of its
invariants do not hold (`require`), and stores what happened to its latest rounds and blocks (`Story`).
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from testbed.core.errors import TestbedError

CHECK_VARIABLE = "TESTBED_CHECK_STATE"
"""Environment variable; 1 makes the daemons check their invariants after every event."""
STORY_ENTRIES = 4096
"""Largest number of entries of a story; after that, the oldest ones are dropped."""
STORY_IN_ERROR = 40
"""How many of the latest entries of the story are shown with an error."""


class InvariantError(TestbedError):
    """A state machine is in a state that it must never be in: a mistake in the program, not in its input."""


class Machine(Protocol):
    """A pure state machine."""

    def handle(self, event: Any) -> list[Any]:
        """Take one event; return what to do, in order."""

    def check(self) -> None:
        """Raise InvariantError, naming every one, where an invariant of the machine does not hold."""

    def story(self) -> list[str]:
        """Return a line for everything in the story, oldest first."""


def handler_of(machine: Machine) -> Callable[[Any], list[Any]]:
    """Return what a daemon hands its events to: `machine.handle`, and a check after it where `CHECK_VARIABLE` asks.

    A check that fails adds the last lines of the story to the error's notes.
    """
    if os.environ.get(CHECK_VARIABLE, "") in ("", "0"):
        return machine.handle

    def handle_and_check(event: Any) -> list[Any]:
        out = machine.handle(event)
        try:
            machine.check()
        except InvariantError as exc:
            exc.add_note(f"after {event!r}")
            for line in machine.story()[-STORY_IN_ERROR:]:
                exc.add_note(line)
            raise
        return out

    return handle_and_check


def require(who: str, problems: Iterable[str]) -> None:
    """Raise InvariantError with every problem in one line; return where there is none."""
    found = list(problems)
    if found:
        raise InvariantError(f"{who}: {'; '.join(found)}")


class EventClock:
    """The time of the latest event, and for how long this process itself was suspended.

    A machine never reads a clock: events carry the time. Where two events are `own_pause_s` or more apart, this process
    was suspended and could not receive from others. All deadlines are measured in `awake_s`, which leaves that time
    out.
    """

    def __init__(self, own_pause_s: float = math.inf) -> None:
        self.now_s = 0.0
        self.begun = False
        """Whether an event has given the time yet."""
        self._own_pause_s = own_pause_s
        self._forgiven_s = 0.0

    @property
    def awake_s(self) -> float:
        """Seconds, without the time for which the process was suspended."""
        return self.now_s - self._forgiven_s

    def advance(self, now_s: float) -> None:
        """Take the time of an event; a long gap since the last one is forgiven."""
        gap_s = now_s - self.now_s
        # This also holds for the first event: deadlines that were set before it count from its time.
        if gap_s >= self._own_pause_s:
            self.forgive(gap_s)
        self.now_s, self.begun = now_s, True

    def forgive(self, gap_s: float) -> None:
        """Move every deadline of the machine by `gap_s`."""
        self._forgiven_s += gap_s


class Deadlines:
    """Base of every object that waits for reports: its deadlines, by the name of what is awaited."""

    def __init__(self, clock: EventClock) -> None:
        self._clock = clock
        self._due_s: dict[str, float] = {}

    def set_deadline(self, what: str, within_s: float) -> None:
        """Wait for `what` for `within_s` from now; an earlier deadline of that name is replaced."""
        self._due_s[what] = self._clock.awake_s + within_s

    def clear_deadline(self, what: str) -> None:
        """Stop waiting for `what`; does nothing where there is no such deadline."""
        self._due_s.pop(what, None)

    def has_deadline(self, what: str) -> bool:
        return what in self._due_s

    def is_overdue(self, what: str) -> bool:
        """Return whether the deadline for `what` has passed; false where there is none."""
        return what in self._due_s and self._clock.awake_s > self._due_s[what]

    def overdue_s(self, what: str) -> float:
        """Return by how many seconds the deadline has passed (negative: is still to come)."""
        return self._clock.awake_s - self._due_s[what]

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant of this object that does not hold."""
        for what, due_s in self._due_s.items():
            if not math.isfinite(due_s):
                yield f"the deadline for {what} is {due_s}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a story: something that happened."""

    time_s: float
    what: str
    rounds: tuple[int, ...]
    block: int | None
    node: str | None
    detail: Mapping[str, Any]

    def __str__(self) -> str:
        words = [f"{self.time_s:12.3f} s  {self.what}"]
        if len(self.rounds) == 1:
            words.append(f"round {self.rounds[0]}")
        elif self.rounds:
            words.append(f"rounds {self.rounds[0]} to {self.rounds[-1]}")
        if self.block is not None:
            words.append(f"block {self.block}")
        if self.node is not None:
            words.append(f"node {self.node}")
        words += [f"{name}: {value}" for name, value in self.detail.items()]
        return ", ".join(words)


class Story:
    """The latest `size` events inside a machine; they are turned into text only when the story is read."""

    def __init__(self, clock: EventClock, size: int = STORY_ENTRIES) -> None:
        self._clock = clock
        self._entries: deque[Entry] = deque(maxlen=size)

    def add(
        self, what: str, *, round: int | None = None, rounds: Iterable[int] = (), block: int | None = None,
        node: str | None = None, **detail: Any,
    ) -> None:  # fmt: skip
        """Remember that `what` happened to a round, to some rounds, to a block or to a node."""
        which = tuple(rounds) if round is None else (round,)
        self._entries.append(Entry(self._clock.now_s, what, which, block, node, detail))

    def tell(self, *, round: int | None = None, block: int | None = None, node: str | None = None) -> list[str]:
        """Return a line for every entry about this round, block or node, oldest first; all entries where none is named.

        A round's lines also tell in which block the round was distilled.
        """
        return [
            str(e)
            for e in self._entries
            if (round is None or round in e.rounds)
            and (block is None or block == e.block)
            and (node is None or node == e.node)
        ]


class Phases:
    """Which phase a machine is in, and which ones may follow: `table` maps a phase to its followers and their reasons.

    A change that the table does not contain is a mistake in the program and raises InvariantError. `subject`: the
    round, block or node to which the story assigns the changes.
    """

    def __init__(
        self, table: Mapping[str, Mapping[str, str]], start: str, story: Story, name: str = "phase", **subject: Any
    ) -> None:
        self._table, self._story, self._name, self._subject = table, story, name, subject
        self.now = start

    def enter(self, phase: str) -> None:
        """Go to `phase`, which may be the present one where the table says so."""
        if phase not in self._table[self.now]:
            raise InvariantError(f"the table of transitions has none from {self.now!r} to {phase!r}")
        if phase != self.now:
            why = self._table[self.now][phase]
            self._story.add(f"{self._name} {self.now} → {phase}", **self._subject, why=why)
        self.now = phase
