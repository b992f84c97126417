"""A round of radios that cannot time their samples: slot by slot, each step ordered when the one before is reported.

The transmitter repeats its frame and reports that it is on the air; then the receivers capture more than a period and
report that; then the transmitter is silenced, while that of the next slot begins: nobody receives meanwhile. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from testbed.core.schedule import Slot
from testbed.net import messages as m


@dataclass(frozen=True, slots=True)
class _Do:
    """One node's part in a step."""

    node: str
    action: str
    tx: str


@dataclass(slots=True)
class Steps:
    """The steps of one round, and which of them is the present one."""

    number: int
    """Number of the round."""
    todo: list[list[_Do]]
    at: int = -1
    waiting: set[str] = field(default_factory=set)
    """Nodes that have not reported the present step."""

    @property
    def over(self) -> bool:
        return self.at + 1 >= len(self.todo) and not self.waiting

    @property
    def nodes(self) -> set[str]:
        """All nodes that have a part in it."""
        return {do.node for step in self.todo for do in step}

    def advance(self, present: Iterable[str]) -> list[tuple[str, m.Step]]:
        """Return the orders to send now, as (node, order); none while a report is awaited, or at the end."""
        present = set(present)
        self.waiting &= present
        while not self.waiting and self.at + 1 < len(self.todo):
            self.at += 1
            step = self.todo[self.at]
            self.waiting = present.intersection(do.node for do in step)
            if step:
                return [(do.node, self._order(do)) for do in step]
        return []

    def report(self, node: str, step: int) -> None:
        if step == self.at:
            self.waiting.discard(node)

    def cut(self) -> None:
        """Give the round up: all transmitters go silent, and all nodes report what they have."""
        self.todo = [*self.todo[: self.at + 1], [_Do(node, "silence", "") for node in sorted(self.nodes)]]
        self.waiting.clear()

    def _order(self, do: _Do) -> m.Step:
        last = not any(do.node == later.node for step in self.todo[self.at + 1 :] for later in step)
        return m.Step(round=self.number, step=self.at, action=do.action, tx=do.tx, last=last)  # type: ignore[arg-type]


def plan(number: int, slots: Iterable[Slot], names: Mapping[str, str]) -> Steps:
    """Return the steps of a round; `names`: role → node that takes part. Slots without a transmitter are left out."""
    todo: list[list[_Do]] = []
    for slot in (slot for slot in slots if slot.tx in names):
        begin = _Do(names[slot.tx], "transmit", slot.tx)
        if todo and todo[-1][0].node != begin.node:
            todo[-1].append(begin)
        else:
            todo.append([begin])
        todo.append([_Do(names[r], "receive", slot.tx) for r in slot.rx if r in names])
        todo.append([_Do(names[slot.tx], "silence", slot.tx)])
    return Steps(number, todo)
