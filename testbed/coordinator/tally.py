"""The outcome of the rounds: the counts, and the pool of kept rounds that no block has used yet. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

from testbed.coordinator.events import RoundOver
from testbed.core.errors import Reject
from testbed.core.machine import Story

MAX_REFUSED = 20
"""Number of trains in a row in which a device failed or a node did not answer, after which the run ends."""


class Tally:
    """Counts every round once, as kept or as rejected with its reason; a kept one may be withdrawn later."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.probed = 0
        """Rounds that are over, kept or rejected."""
        self.kept = 0
        self.rejected: Counter[str] = Counter()
        self.refused_in_a_row = 0
        """Rounds in a row without a usable device or answer."""
        self._refused_trains: set[int] = set()
        """The first rounds of the trains to which these rounds belong."""
        self._pool: dict[int, RoundOver] = {}
        """Kept rounds that no block has used, by number, and what was recorded of them, without their links."""

    def go_on(self, kept: int, rejected: Counter[str]) -> None:
        """Begin with the counts of a run that is resumed; none of its rounds waits for a block."""
        self.kept, self.rejected = kept, Counter(rejected)
        self.probed = kept + sum(rejected.values())

    @property
    def pending(self) -> int:
        """Number of kept rounds that no block has used."""
        return len(self._pool)

    @property
    def is_hopeless(self) -> bool:
        return len(self._refused_trains) >= MAX_REFUSED

    def keep(self, over: RoundOver, for_a_block: bool) -> None:
        """Count a round as kept; a guard round after a training is kept but enters no block."""
        self.probed += 1
        self.kept += 1
        self.refused_in_a_row = 0
        self._refused_trains.clear()
        self._story.add("kept" if for_a_block else "kept as a guard round", round=over.round)
        if for_a_block:
            self._pool[over.round] = replace(over, links={})

    def reject(self, number: int, reason: str, train: int) -> None:
        """Count a round as rejected; `train` is the first round of its train."""
        self.probed += 1
        self.rejected[reason] += 1
        if reason in (Reject.DEVICE.value, Reject.TIMEOUT.value):
            self.refused_in_a_row += 1
            self._refused_trains.add(train)
        self._story.add("rejected", round=number, reason=reason)

    def drop(self, number: int, reason: str) -> None:
        """Count a round that was never probed, or was still under way at the end."""
        self.probed += 1
        self.rejected[reason] += 1
        self._story.add("dropped", round=number, reason=reason)

    def withdraw(self, reason: Reject, numbers: Iterable[int] | None = None) -> list[RoundOver]:
        """Reject kept rounds of the pool: those of `numbers`, or all. Returns the records that replace the earlier
        ones."""
        suspects = None if numbers is None else set(numbers)
        out = []
        for number in [n for n in self._pool if suspects is None or n in suspects]:
            over = self._pool.pop(number)
            self.kept -= 1
            self.rejected[reason.value] += 1
            self._story.add("withdrawn", round=number, reason=reason.value)
            out.append(replace(over, kept=False, reason=reason.value))
        return out

    def take(self, most: int) -> list[int]:
        """Take the oldest rounds out of the pool, at most `most`; returns their numbers in ascending order."""
        taken = list(self._pool)[:most]
        for number in taken:
            del self._pool[number]
        return taken

    def why_nothing_was_kept(self) -> str:
        why = ", ".join(f"{n} {reason}" for reason, n in self.rejected.most_common())
        return f"no round of {self.probed} was kept: {why}"

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        if self.probed != self.kept + sum(self.rejected.values()):
            yield f"{self.probed} rounds are over, but {self.kept} kept and {sum(self.rejected.values())} rejected"
        if self.pending > self.kept:
            yield f"{self.pending} rounds wait for a block, but {self.kept} were kept"
        if any(later <= earlier for earlier, later in pairwise(self._pool)):
            yield "the rounds that wait for a block are out of order"
