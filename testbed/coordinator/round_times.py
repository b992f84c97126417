"""Where the time of the rounds goes: their orders, the air, the estimates, the messages, the record.

All is measured on monotonic clocks, the coordinator's and each node's, of which only durations are compared. The time
of a train is that from the record of the train before it to its own or, if it was ordered after the former, from its
order; this is divided by its rounds. Trains overlap: while one is on the air, the one before is estimated and recorded.
`Parts` has all times as they were measured; `assess.pace` decides which of them delayed the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from testbed.net import messages as m
from testbed.records.documents import RoundTimes

_MOST_TRAINS = 8
"""Largest number of trains that are remembered, more than can be under way."""
_ORDERS = (m.Probe, m.Step, m.Apply, m.ApplyNext, m.Schedule, m.ReadSurface)
"""Orders with which a train begins: the surface may have to be prepared first."""


@dataclass(slots=True)
class _Train:
    """A train that was ordered, and what its nodes have reported of their times."""

    first: int
    began_s: float
    last: int = -1
    """Number of its last round; −1 until its nodes are ordered to probe."""
    ordered_s: float = 0.0
    """When the last of these orders was sent."""
    owed: set[str] = field(default_factory=set)
    """Nodes that were ordered to probe and have not reported all rounds."""
    nodes: set[str] = field(default_factory=set)
    said: dict[tuple[int, str], tuple[float, float]] = field(default_factory=dict)
    """Seconds of (capture, estimates), for each step of a round and for the report."""
    captured_s: dict[int, float] = field(default_factory=dict)
    """Step that is a reception → when the last node reported it."""


class TimesOfRounds:
    """Adds up the times of all trains whose nodes have all reported; the others would show how long a timeout is.

    interval_s: by which rounds follow one another on the wall clock, 0 in virtual time; the time before a train that
    must not be ordered yet counts as the air's, up to that of its rounds. takes_turns: all nodes share this process, so
    that their times add up; otherwise those of the last node to report count, because the others work beside it.
    """

    def __init__(self, interval_s: float, takes_turns: bool, now_s: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._takes_turns, self._now_s = interval_s, takes_turns, now_s
        self._trains: dict[int, _Train] = {}
        self._event_s = self._over_s = now_s()
        self._is_going_on = False
        """Whether nothing but rounds has happened since the last train was over."""
        self._writers = 0
        self._sums = RoundTimes()

    def begin_event(self) -> None:
        """Take note that an event is handled from now on; the orders to which it leads begin with it."""
        self._event_s = self._now_s()

    def sent(self, node: str, body: Any) -> None:
        """Take note of a message that was sent to a node."""
        if not isinstance(body, _ORDERS):
            return
        train = self._trains.setdefault(body.round, _Train(body.round, self._event_s))
        if len(self._trains) > _MOST_TRAINS:
            del self._trains[next(iter(self._trains))]
        if isinstance(body, m.Probe | m.Step):
            train.last = body.rounds[-1].round if isinstance(body, m.Probe) else body.round + body.rounds - 1
            train.nodes.add(node)
            train.owed.add(node)
            if isinstance(body, m.Probe) or body.step == 0:
                train.ordered_s = self._now_s()
            if isinstance(body, m.Step) and body.action == "receive":
                train.captured_s[body.step] = self._now_s()

    def heard(self, node: str, body: Any) -> None:
        """Take note of a message from a node."""
        if isinstance(body, m.Stepped):
            stepped = self._take(node, body.round, body.step, (body.air_s, 0.0))
            if stepped is not None and body.step in stepped.captured_s:
                stepped.captured_s[body.step] = self._now_s()
        elif isinstance(body, m.Probed):
            train = self._take(node, body.rounds[0].round, -1, (body.air_s, body.estimate_s))
            if train is not None and body.rounds[-1].round == train.last:
                train.owed.discard(node)

    def _take(self, node: str, number: int, step: int, said: tuple[float, float]) -> _Train | None:
        train = next((t for t in self._trains.values() if t.first <= number <= t.last and node in t.nodes), None)
        if train is not None:
            train.said[step, node if self._takes_turns else ""] = said
        return train

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Measure how long rounds are recorded; such contexts may be nested."""
        began_s, self._writers = self._now_s(), self._writers + 1
        try:
            yield
        finally:
            self._writers -= 1
            if not self._writers:
                self._sums.journal_s += self._now_s() - began_s

    def over(self, number: int) -> None:
        """Take note that a round is over and recorded."""
        train = next((t for t in self._trains.values() if t.last == number), None)
        if train is None:
            return
        now_s = self._now_s()
        if not train.owed:
            self._add(train, now_s)
        self._trains = {first: t for first, t in self._trains.items() if first > train.first}
        self._over_s, self._is_going_on = now_s, True

    def _add(self, train: _Train, now_s: float) -> None:
        sums, rounds = self._sums, train.last - train.first + 1
        waited_s = max(0.0, train.began_s - self._over_s) if self._is_going_on else 0.0
        waited_s = min(waited_s, rounds * self._interval_s)
        since_s = max(train.began_s, self._over_s) if self._is_going_on else train.began_s
        # What a node says cannot have taken longer than the train did.
        captured_s, estimated_s = (min(sum(x), now_s - train.began_s) for x in zip(*train.said.values(), strict=True))
        sums.rounds += rounds
        sums.total_s += now_s - since_s + waited_s
        sums.order_s += train.ordered_s - train.began_s
        sums.air_s += captured_s + waited_s
        sums.estimate_s += estimated_s
        if train.captured_s:
            sums.apart_s += rounds * (max(train.captured_s.values()) - min(train.captured_s.values()))

    def interrupt(self) -> None:
        """Take note that something else happens than rounds, such as a block: the time until the next order does not
        count."""
        self._is_going_on = False

    def sums(self) -> RoundTimes | None:
        """Return the sums over all trains so far; None where there was none."""
        return self._sums if self._sums.rounds else None
