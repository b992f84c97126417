"""Trains of rounds of radios that cannot time their samples: each step is ordered when the one before is reported.

The transmitter of a slot repeats its frame and reports that it is on the air; then the receivers capture as many
periods as the train has rounds, and one more, and report that; then the transmitter is silenced, while that of the next
slot begins: nobody receives meanwhile. So all rounds have their first slot in one half of the train and their second
slot in the other; `Pace` says how many rounds that may be. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from testbed.core.schedule import Slot, longest_train
from testbed.core.windows import PERIODS, FrameTrain
from testbed.core.words import counted
from testbed.net import messages as m

LONGEST_S = 0.8
"""Longest duration of such a train: the two slots of a round are as far apart, and a Pluto gives a reception up that
takes longer than its timeout."""


@dataclass(frozen=True, slots=True)
class _Do:
    """One node's part in a step."""

    node: str
    action: str
    tx: str


@dataclass(slots=True)
class Steps:
    """The steps of one train, and which of them is the present one."""

    number: int
    """Number of the first round."""
    todo: list[list[_Do]]
    rounds: int = 1
    period: int = 0
    """Samples from one frame to the next; 0: those of the frame."""
    at: int = -1
    waiting: set[str] = field(default_factory=set)
    """Nodes that have not reported the present step."""

    @property
    def over(self) -> bool:
        return self.at + 1 >= len(self.todo) and not self.waiting

    @property
    def nodes(self) -> set[str]:
        """All nodes that have a part in them."""
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
        """Give the rounds up: all transmitters go silent, and all nodes report what they have."""
        self.todo = [*self.todo[: self.at + 1], [_Do(node, "silence", "") for node in sorted(self.nodes)]]
        self.waiting.clear()

    def _order(self, do: _Do) -> m.Step:
        last = not any(do.node == later.node for step in self.todo[self.at + 1 :] for later in step)
        return m.Step(
            round=self.number, rounds=self.rounds, period=self.period, step=self.at, last=last,
            action=do.action, tx=do.tx,  # type: ignore[arg-type]
        )  # fmt: skip


def plan(
    number: int, slots: Iterable[Slot], names: Mapping[str, str], rounds: int = 1, period: int = 0
) -> Steps:  # fmt: skip
    """Return the steps of a train; `names`: role → node that takes part. Slots without a transmitter are left out."""
    todo: list[list[_Do]] = []
    for slot in (slot for slot in slots if slot.tx in names):
        begin = _Do(names[slot.tx], "transmit", slot.tx)
        if todo and todo[-1][0].node != begin.node:
            todo[-1].append(begin)
        else:
            todo.append([begin])
        todo.append([_Do(names[r], "receive", slot.tx) for r in slot.rx if r in names])
        todo.append([_Do(names[slot.tx], "silence", slot.tx)])
    return Steps(number, todo, rounds, period)


@dataclass(frozen=True, slots=True)
class Pace:
    """How the rounds of radios that cannot time their samples follow one another.

    `turnaround_s` is the time that passes between two slots because each step waits for reports. The channel changes
    meanwhile, and in a train it has the time of a reception more for that: one period for each round. Unless the
    experiment states a length, all of these together are no longer than the turn-around that the ends' drivers state
    (`suited_s`), so that a train at most doubles the time between the two slots of a round. A host that needs longer
    gets no longer trains.
    """

    frame: int
    """Samples of a frame."""
    rate_hz: float
    interval_s: float
    turnaround_s: float
    suited_s: float
    asked: int
    """Length of a train that the experiment states; 0: none."""
    longest: int
    """Largest number of samples of one reception."""
    longest_of_ends: int
    """The same without Eve's node, whose limit may make trains shorter, but ends no run."""

    @property
    def period(self) -> int:
        """Samples from one frame to the next in a train: the interval, if that is not shorter than the frame."""
        return max(self.frame, round(self.interval_s * self.rate_hz))

    @property
    def period_s(self) -> float:
        return self.period / self.rate_hz

    @property
    def train(self) -> int:
        """Return the largest number of rounds of a train."""
        suited = max(1, int(self.suited_s / self.period_s + 1e-9))
        wanted = min(self.asked or suited, longest_train(self.period_s, LONGEST_S))
        while wanted > 1 and not self.asked and self._captured(wanted) > self.longest:
            wanted -= 1
        return wanted

    def _captured(self, rounds: int) -> int:
        """Return the number of samples of a reception."""
        one = PERIODS * self.frame
        return one if rounds == 1 else FrameTrain(self.frame, self.period, rounds).n_samples

    def slot_s(self, rounds: int) -> float:
        """Return how long a slot of a train takes."""
        return self._captured(rounds) / self.rate_hz + self.turnaround_s

    @property
    def misfit(self) -> str | None:
        """Return in one line why a train cannot be captured; None where it can."""
        if self.asked > (most := longest_train(self.period_s, LONGEST_S)):
            return (
                f"probing.train = {self.asked}: rounds {self.period_s:g} s apart, but radios that cannot time their "
                f"samples have trains of {LONGEST_S:g} s at most: accepted up to {most}"
            )
        if (n_samples := self._captured(self.train)) <= self.longest_of_ends:
            return None
        fits = (self.longest_of_ends - n_samples) // self.period + self.train
        return (
            f"probing.train = {self.asked}: a reception of {n_samples} samples, {self.train} frames "
            f"{self.period_s:g} s apart, but the radios accept {self.longest_of_ends} samples: accepted up to "
            f"{max(1, fits)}"
        )

    def why_slow(self, slots: int) -> str | None:
        """Return one line where the interval that is asked for cannot be kept; None where it can.

        `slots`: how many a round has.
        """
        train = self.train
        whole_s = slots * self.slot_s(train)
        if train * self.interval_s >= whole_s * (1 - 1e-9):
            return None
        how = (
            f"trains of {counted(train, 'round')}, {self.period_s:.3g} s apart, begin every {whole_s:.3g} s; a round's "
            f"slots are {(slots - 1) * self.slot_s(train):.3g} s apart"
            if train > 1
            else f"rounds follow one another every {whole_s:.3g} s"
        )
        return (
            f"probing.interval_s = {self.interval_s:g} s, but radios that cannot time their samples need "
            f"{self.turnaround_s:.3g} s between two slots: {how}"
        )
