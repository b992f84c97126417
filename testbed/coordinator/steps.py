"""A round of radios that cannot time their samples: slot by slot, each step ordered when the one before is reported.

The transmitter repeats its frame and reports that it is on the air; then the receivers capture more than a period and
report that; then the transmitter is silenced. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from testbed.core.schedule import Slot
from testbed.net import messages as m


@dataclass(slots=True)
class _Do:
    action: str
    tx: str
    nodes: list[str]


@dataclass(slots=True)
class Steps:
    """The steps of one round, and which of them is the present one."""

    number: int
    """Number of the round."""
    todo: list[_Do]
    at: int = -1
    waiting: set[str] = field(default_factory=set)
    """Nodes that have not reported the present step."""

    @property
    def over(self) -> bool:
        return self.at + 1 >= len(self.todo) and not self.waiting

    @property
    def nodes(self) -> set[str]:
        """All nodes that have a part in it."""
        return {n for do in self.todo for n in do.nodes}

    def advance(self, present: Iterable[str]) -> list[tuple[str, m.Step]]:
        """Return the orders to send now, as (node, order); none while a report is awaited, or at the end."""
        present = set(present)
        self.waiting &= present
        while not self.waiting and self.at + 1 < len(self.todo):
            self.at += 1
            do = self.todo[self.at]
            self.waiting = present.intersection(do.nodes)
            if do.nodes:
                return [(n, self._order(n, do)) for n in do.nodes]
        return []

    def report(self, node: str, step: int) -> None:
        if step == self.at:
            self.waiting.discard(node)

    def cut(self) -> None:
        """Give the round up: all transmitters go silent, and all nodes report what they have."""
        self.todo = [*self.todo[: self.at + 1], _Do("silence", "", sorted(self.nodes))]
        self.waiting.clear()

    def _order(self, node: str, do: _Do) -> m.Step:
        last = not any(node in later.nodes for later in self.todo[self.at + 1 :])
        return m.Step(round=self.number, step=self.at, action=do.action, tx=do.tx, last=last)  # type: ignore[arg-type]


def plan(number: int, slots: Iterable[Slot], names: Mapping[str, str]) -> Steps:
    """Return the steps of a round; `names`: role → node that takes part. Slots without a transmitter are left out."""
    todo = []
    for slot in slots:
        if slot.tx in names:
            tx = [names[slot.tx]]
            todo.append(_Do("transmit", slot.tx, tx))
            todo.append(_Do("receive", slot.tx, [names[r] for r in slot.rx if r in names]))
            todo.append(_Do("silence", slot.tx, tx))
    return Steps(number, todo)
