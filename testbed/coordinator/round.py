"""One round, from its order to its record, and all rounds that are under way. Pure; `steps` handles the rounds of
radios that cannot time their samples.

A round is ordered; then it is on the air until every node has its samples; then it is settling until every node has
reported. Rounds that are ordered together are a train: each node gets one order and sends one report for all of them,
and they share one deadline. Apart from that each round stands alone: it is kept or rejected by itself. `surface` is the
name that the surface's node gives to the state it has latched. It is only compared here, so an opaque number will do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise

import numpy as np

from testbed.coordinator import steps
from testbed.coordinator.events import Effect, Note, RoundOver, RunFails
from testbed.coordinator.roster import Node, Roster
from testbed.core.errors import Reject
from testbed.core.machine import Deadlines, EventClock, Story
from testbed.core.types import C64
from testbed.net import messages as m

MAX_UNDER_WAY = 2
"""Largest number of trains under way: one on the air, and the one before it, which is still being estimated."""
OPTIONAL_S = 3.0
"""How long a round waits for its optional nodes once all required ones have answered."""
OPTIONAL_AGAIN_S = 0.5
"""The same where one of these nodes also left the round before unanswered."""
_ANSWERS = "the answers"


class Round(Deadlines):
    """One round that was ordered, and what its nodes have reported so far."""

    def __init__(
        self, number: int, surface: str | None, start_s: float, end_s: float, nodes: Iterable[str], clock: EventClock,
        sounding: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(clock)
        self.number, self.surface, self.start_s, self.end_s = number, surface, start_s, end_s
        self.train = number
        """First round of the train that it belongs to."""
        self.sounding = sounding
        """The round sounds all antennas: its CSI stays in the nodes."""
        self.expected: set[str] = set(nodes)
        """Nodes whose report the round waits for, or has."""
        self.captured: set[str] = set()
        """Nodes that have their samples: they need the air no longer."""
        self.results: dict[str, m.RoundResult] = {}
        self.rejection: Reject | None = None
        """The first reason why the round cannot be kept; later reports do not change it."""
        self.bases_s: dict[str, float] = {}
        """The base (`scheduler`) that was assumed for each clock when the round was planned; empty where radios do not
        time their samples."""
        self.steps: steps.Steps | None = None
        """The steps of its train, where the radios cannot time their samples; all rounds of it share them."""

    def wait_for_answers(self, within_s: float) -> None:
        self.set_deadline(_ANSWERS, within_s)

    def wait_at_least(self, within_s: float) -> None:
        """Wait for the answers for `within_s` from now, or until the present deadline if that is later."""
        self.wait_for_answers(max(within_s, -self.overdue_s(_ANSWERS)))

    def hurry(self, within_s: float) -> None:
        """Wait for the answers for `within_s` from now, or until the present deadline if that is earlier."""
        if self.overdue_s(_ANSWERS) < -within_s:
            self.set_deadline(_ANSWERS, within_s)

    @property
    def is_complete(self) -> bool:
        return self.expected <= self.results.keys() and self._is_through

    @property
    def is_captured(self) -> bool:
        return self.expected <= self.captured and self._is_through

    @property
    def _is_through(self) -> bool:
        """Whether no step is left. A node may report before its last step, though none should: what it reports then
        must not take the round off the air, where alone its steps go on."""
        return self.steps is None or self.steps.over

    @property
    def is_late(self) -> bool:
        return self.is_overdue(_ANSWERS) and not self.is_complete

    def owes(self, name: str) -> bool:
        """Return whether this node's report is still awaited."""
        return name in self.expected and name not in self.results

    def reject(self, reason: Reject) -> None:
        self.rejection = self.rejection or reason

    def overlaps(self, time_s: float) -> bool:
        """Return whether a time on the reference timeline lies within this round."""
        return self.start_s < time_s < self.end_s

    def reason(self, alice: str | None, bob: str | None) -> str | None:
        """Return why the round is rejected; None where both ends have an estimate of the other."""
        reason = self.rejection.value if self.rejection else None
        pair = [(self.results.get(alice or ""), "bob"), (self.results.get(bob or ""), "alice")]
        # Where one end did not transmit, the other received nothing: the first is the cause and is the one to report.
        for result, _ in pair:
            reason = reason or (Reject.NODE_LOST.value if result is None else result.fault)
        for result, transmitter in pair:
            if reason is None and result is not None:
                link = next((x for x in result.links if x.tx == transmitter), None)
                reason = Reject.DEVICE.value if link is None else link.reason
        if self.sounding:
            reason = reason or Reject.SOUNDING.value
        return reason

    def record(self, reason: str | None) -> RoundOver:
        """Return the record of the round, kept where `reason` is None."""
        links = {name: result.links for name, result in self.results.items()}
        return RoundOver(self.number, reason is None, reason, self.surface, self.start_s, links)

    def record_settled(self, reason: str | None) -> RoundOver:
        """Return the record of a finished round; for a sounding, only its rejected links."""
        over = self.record(reason)
        if self.sounding:
            for name, found in over.links.items():
                over.links[name] = [x for x in found if x.reason is not None]
        return over

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not self.has_deadline(_ANSWERS):
            yield f"round {self.number} may wait without limit"
        if not self.results.keys() <= self.captured:
            yield f"round {self.number} has results without samples"
        if not self.start_s < self.end_s:
            yield f"round {self.number} ends before it begins"
        if self.train > self.number:
            yield f"round {self.number} belongs to a train that begins with the later round {self.train}"


def csi_by_link(r: Round, roster: Roster) -> dict[str, C64]:
    """Return a round's CSI (rx antenna, tx antenna, subcarrier) by roles "tx>rx", in an order that does not depend on
    which node reported first."""
    found = {}
    for name, result in r.results.items():
        for link in result.links:
            if link.csi is not None and len(link.csi) == 8 * math.prod(link.shape) > 0:
                csi = np.frombuffer(link.csi, dtype=np.complex64).reshape(link.shape)
                found[f"{link.tx}>{roster.nodes[name].role}"] = csi
    return dict(sorted(found.items()))


class Rounds:
    """The rounds under way: a train on the air, another one settling, and closed rounds from which the clocks are still
    to be corrected.

    `ahead`: a train is ordered while the one before is still on the air. That is possible where no pattern changes:
    nodes carry out their orders one after the other, and nothing has to happen between two trains.
    """

    def __init__(
        self, roster: Roster, operation_timeout_s: float, ahead: bool, clock: EventClock, story: Story
    ) -> None:
        self._roster, self._timeout_s = roster, operation_timeout_s
        self._clock, self._story = clock, story
        self.ahead = ahead
        self.next = 0
        """Number of the next round."""
        self.on_air: list[Round] = []
        """The train on the air."""
        self.settling: list[Round] = []
        """Rounds that are captured, or were ordered ahead, and whose reports are still missing; oldest first."""
        self.uncorrected: list[Round] = []
        """Closed rounds from whose arrival times the clocks are not corrected yet, oldest first."""

    @property
    def under_way(self) -> list[Round]:
        """The rounds that were ordered and are not closed, oldest first."""
        return [*self.settling, *self.on_air]

    @property
    def trains(self) -> list[list[Round]]:
        """The rounds under way by trains, oldest first."""
        return [list(train) for _, train in groupby(self.under_way, lambda r: r.train)]

    def next_number(self) -> int:
        number, self.next = self.next, self.next + 1
        return number

    def order(
        self, surface: str | None, times_s: tuple[float, float], nodes: list[str], sounding: bool = False
    ) -> Round:
        """Add the next round to the train that goes on the air."""
        r = Round(self.next_number(), surface, *times_s, nodes, self._clock, sounding)
        self.on_air.append(r)
        r.train = self.on_air[0].number
        self._story.add("ordered", round=r.number, start_s=times_s[0], surface=surface, nodes=nodes)
        return r

    def wait_for_train(self, within_s: float) -> None:
        """Set the deadline of the train on the air, all rounds of which are ordered: `within_s` from now."""
        for r in self.on_air:
            r.wait_for_answers(within_s)

    def due_for_correction(self, until: float) -> list[Round]:
        """Take the closed rounds up to this number from which the clocks are not corrected yet."""
        due = [r for r in self.uncorrected if r.number <= until]
        self.uncorrected = self.uncorrected[len(due) :]
        return due

    def are_closed(self, until: float) -> bool:
        """Return whether every round up to this number is closed."""
        oldest = self.under_way[:1]
        return not oldest or oldest[0].number > until or until == math.inf

    # -- reports

    def take_captured(self, name: str, body: m.Captured) -> None:
        for r in self.on_air:
            if r.train == body.round:
                r.captured.add(name)

    def take_stepped(self, name: str, body: m.Stepped) -> None:
        for r in self.on_air[:1]:
            if r.steps is not None and r.number == body.round:
                r.steps.report(name, body.step)

    def take_probed(self, name: str, body: m.Probed) -> list[Effect]:
        known = {r.number: r for r in self.under_way}
        owed = [x for x in body.rounds if x.round in known and known[x.round].owes(name)]
        for result in owed:
            r = known[result.round]
            r.results[name] = result
            r.captured.add(name)
            self._story.add("reported", round=r.number, node=name, fault=result.fault)
        out: list[Effect] = []
        for result in body.rounds[:1] if not owed else []:
            repeated = result.round in known and name in known[result.round].results
            out.append(Note("duplicate" if repeated else "late_answer", {"node": name, "round": result.round}))
        if owed:
            for train in {known[x.round].train for x in owed}:
                self._hurry([r for r in self.under_way if r.train == train])
            out += self._retuned(name, owed[0].round, body.correction_ppm) + self._judge(name, owed)
        return out

    @staticmethod
    def _retuned(name: str, number: int, correction_ppm: float | None) -> list[Effect]:
        """Note that a node follows Alice's carrier."""
        if correction_ppm is None:
            return []
        return [Note("retuned", {"node": name, "round": number, "correction_ppm": correction_ppm})]

    def _judge(self, name: str, results: list[m.RoundResult]) -> list[Effect]:
        """Note the faults of a node in a train, and count a strike against an optional one that failed in all of it."""
        node = self._roster.nodes[name]
        faults = [x for x in results if x.fault is not None]
        out: list[Effect] = []
        # An optional node whose radio always fails delays the run for nothing.
        if len(faults) < len(results) or node.required:
            node.strikes = 0
        else:
            out += self._roster.strike(name, results[0].round)
        for fault, alike in groupby(faults, lambda x: x.fault):
            first, *others = alike  # the details differ, such as by how much a transmission was late
            said = {"node": name, "round": first.round, "reason": fault, "detail": first.detail}
            more = {"rounds": [first.round, *(x.round for x in others)]} if others else {}
            out.append(Note("fault", {**said, **more}))
        return out

    def _hurry(self, train: list[Round]) -> None:
        """Shorten the wait of a train that waits only for optional nodes."""
        owed = [self._roster.nodes[name] for name in {n for r in train for n in r.expected if r.owes(n)}]
        if owed and not any(node.required for node in owed) and all(r.steps is None for r in train):
            struck = any(node.strikes for node in owed)
            for r in train:
                r.hurry(OPTIONAL_AGAIN_S if struck else OPTIONAL_S)

    def take_failure(self, node: Node) -> list[Effect] | None:
        """Take the failure of a node's part in the oldest train that it owes; None where it owes none.

        The rounds are rejected, but not for an optional node: they are missing in its measurements only.
        """
        train = next((t for t in self.trains if any(r.owes(node.name) for r in t)), None)
        if train is None:
            return None
        for r in (r for r in train if r.owes(node.name)):
            if node.required:
                r.reject(Reject.DEVICE)
            r.expected.discard(node.name)
            self._story.add("failed", round=r.number, node=node.name)
        return [] if node.required else self._roster.strike(node.name, train[0].number)

    def take_latch(self, latched_s: float, *, expected: bool, exact: bool) -> None:
        """Reject the rounds that a change of the surface at this time makes unusable.

        These are the round during which it changed and, if the change was not expected, all later ones. `exact`: the
        time is on the radios' own clock. Otherwise it is only known that the change came after the latest order, and
        the train on the air is rejected.
        """
        for r in self.under_way:
            during = r.overlaps(latched_s) if exact else r in self.on_air
            if r.surface is not None and (during or (not expected and latched_s < r.end_s)):
                r.reject(Reject.SURFACE_CHANGED)
                self._story.add("saw the surface change", round=r.number, latched_s=latched_s)

    def take_schedule(self, names: dict[int, str], latched_s: dict[int, float]) -> None:
        """The surface will hold a state of its own in each round of the train on the air: round → name, and since when.

        A round that would see it change, or has no state, is rejected.
        """
        before_s = 0.0
        for before, r in zip([None, *self.on_air], self.on_air, strict=False):
            r.surface = names.get(r.number)
            if r.surface is None:
                r.reject(Reject.SURFACE_NOT_APPLIED)
            elif not before_s <= latched_s[r.number] <= r.start_s:
                r.reject(Reject.SURFACE_CHANGED)
                if before is not None and latched_s[r.number] < before_s:
                    before.reject(Reject.SURFACE_CHANGED)
            before_s = r.end_s

    def refuse_train(self, reason: Reject) -> None:
        """Reject the train on the air, whose orders were not sent: no reports of its rounds are awaited."""
        for r in self.on_air:
            r.reject(reason)
            r.expected.clear()

    # -- course

    @property
    def has_room(self) -> bool:
        """Whether one more train may be ordered."""
        return len(self.trains) < MAX_UNDER_WAY

    def advance_on_air(self) -> list[tuple[str, m.Step]] | None:
        """Follow the train on the air. Returns the orders for its next step, [] where the air is free, or None where
        reports are awaited."""
        present = self.on_air[0].steps if self.on_air else None
        if present is not None:
            orders = present.advance(set().union(*(r.expected for r in self.on_air)))
            if orders:
                return orders
            if present.over:
                for r in self.on_air:
                    r.captured |= r.expected
        if not self.ahead and not all(r.is_captured for r in self.on_air):
            return None
        self.settling += self.on_air
        self.on_air = []
        return []

    @property
    def oldest_is_complete(self) -> bool:
        return bool(self.settling) and self.settling[0].is_complete

    def close_oldest(self) -> Round:
        """Remove the oldest round and return it; where trains are ordered ahead, the next one's deadline counts from
        now."""
        r = self.settling.pop(0)
        if self.ahead and self.settling and self.settling[0].train != r.train:
            following = self.trains[0]
            for later in following:
                later.wait_at_least(self._timeout_s)
            self._hurry(following)
        self.uncorrected.append(r)
        return r

    def has_closed(self, train: int) -> bool:
        """Return whether no round of a train is under way."""
        return not any(rounds and rounds[0].train == train for rounds in (self.settling, self.on_air))

    def drop_all(self) -> list[Round]:
        dropped = self.under_way
        self.settling, self.on_air = [], []
        return dropped

    # -- nodes that fail their part

    def forget_clock_of(self, name: str) -> None:
        """Drop a node's arrival times of earlier rounds, because its clock is read anew: they apply to the old reading.

        If it is Alice's clock, the reference of all arrival times, those of every node are dropped.
        """
        is_reference = name == self._roster.name("alice")
        for r in [*self.uncorrected, *self.under_way]:
            for other in list(r.bases_s) if is_reference else [name]:
                r.bases_s.pop(other, None)

    def lose(self, name: str, required: bool) -> None:
        """Expect no more reports of a node that was lost; without a required node the round cannot be kept."""
        for r in self.under_way:
            if name in r.expected:
                r.expected.discard(name)
                if required and name not in r.results:
                    r.reject(Reject.NODE_LOST)
                    self._story.add("lost a node", round=r.number, node=name)

    def late(self) -> list[list[Round]]:
        """Return the trains whose deadline has passed; that of a train ordered ahead counts from when the one before
        is closed."""
        trains = self.trains[:1] if self.ahead else self.trains
        return [train for train in trains if any(r.is_late for r in train)]

    def give_up_waiting(self, train: list[Round]) -> list[Effect]:
        """Go on without the nodes that left a train, or some of its rounds, unanswered."""
        late = {name for r in train for name in r.expected - r.results.keys()}
        present = train[0].steps
        if present is not None and not present.over:  # the later steps of the others were never ordered
            late = set(present.waiting)
            present.cut()
            for r in train:
                r.reject(Reject.TIMEOUT)
                r.wait_for_answers(self._timeout_s)
        out: list[Effect] = []
        for name in sorted(late):
            owed = [r for r in train if r.owes(name)]
            for r in owed:
                r.expected.discard(name)
                if self._roster.nodes[name].required:
                    r.reject(Reject.TIMEOUT)
            out += self._roster.strike(name, owed[0].number if owed else train[0].number, late)
            if out and isinstance(out[-1], RunFails):
                break
        return out

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        for r in self.under_way:
            yield from r.problems()
            if not (r.expected | r.results.keys()) <= self._roster.nodes.keys():
                yield f"round {r.number} expects unknown nodes"
        for rounds in (self.under_way, self.uncorrected):
            if any(later.number <= earlier.number for earlier, later in pairwise(rounds)):
                yield "rounds are out of order"
        if any(r.number >= self.next for r in [*self.under_way, *self.uncorrected]):
            yield f"a round is under way that was never ordered; the next one is {self.next}"
        if len(self.trains) > MAX_UNDER_WAY:
            yield f"{len(self.trains)} trains are under way, accepted: {MAX_UNDER_WAY}"
        for train in self.trains:
            if train[-1].number - train[0].number != len(train) - 1:
                yield f"the train of round {train[0].train} lacks rounds in between"
            if len(train) > 1 and any(r.sounding for r in train):
                yield f"round {train[0].number} is a sounding, but is not alone in its train"
            if any(r.steps is not train[0].steps for r in train):
                yield f"the rounds of the train of round {train[0].train} do not share their steps"
