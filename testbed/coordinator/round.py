"""One round from its order to what came of it, and all rounds that are under way. Pure; `steps` has the rounds of
radios that cannot time their samples.

A round is ordered, then on the air until every node has its samples, then settling until every node has reported.
A train of K rounds ordered at once fits in here as one `Round` that holds K numbers and K results a node: it is
expected from the same nodes, has one deadline, and settles into K records. `surface` is whatever name the surface's
node gives to the state it has latched: nothing in here looks into it, so that it may be a number without meaning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from testbed.coordinator import steps
from testbed.coordinator.events import Effect, Note, RoundOver, RunFails
from testbed.coordinator.roster import Roster
from testbed.core.errors import Reject
from testbed.core.machine import Deadlines, EventClock, Story
from testbed.core.types import C64
from testbed.net import messages as m

MAX_UNDER_WAY = 2
"""The round on the air, and the one before it, which is still being estimated."""
OPTIONAL_S = 3.0
"""How long a round waits for nodes that it can do without once the others have answered."""
OPTIONAL_AGAIN_S = 0.5
"""The same for a node that left the round before unanswered."""
_ANSWERS = "the answers"


class Round(Deadlines):
    """One round that was ordered, and what its nodes have reported so far."""

    def __init__(
        self, number: int, surface: str | None, start_s: float, end_s: float, nodes: Iterable[str], clock: EventClock,
        sounding: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(clock)
        self.number, self.surface, self.start_s, self.end_s = number, surface, start_s, end_s
        self.sounding = sounding
        """The round sounds all antennas: its CSI stays in the nodes."""
        self.expected: set[str] = set(nodes)
        """Nodes whose report the round waits for, or has."""
        self.captured: set[str] = set()
        """Nodes that have their samples: they need the air no longer."""
        self.results: dict[str, m.Probed] = {}
        self.rejection: Reject | None = None
        """The reason why it cannot be kept, whatever is reported later; the first one counts."""
        self.bases_s: dict[str, float] = {}
        """Each clock's assumed base when the round was planned; empty where radios do not time their samples."""
        self.steps: steps.Steps | None = None
        """Its steps, where the radios cannot time their samples."""

    def wait_for_answers(self, within_s: float) -> None:
        self.set_deadline(_ANSWERS, within_s)

    def hurry(self, within_s: float) -> None:
        """Wait for the answers for `within_s` from now, or until the present deadline if that is earlier."""
        if self.overdue_s(_ANSWERS) < -within_s:
            self.set_deadline(_ANSWERS, within_s)

    @property
    def is_complete(self) -> bool:
        return self.expected <= self.results.keys()

    @property
    def is_captured(self) -> bool:
        return self.expected <= self.captured

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
        # a node that did not transmit is the cause, and that the others received nothing is the consequence
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
            yield f"round {self.number} may wait for ever"
        if not self.results.keys() <= self.captured:
            yield f"round {self.number} has results without samples"
        if not self.start_s < self.end_s:
            yield f"round {self.number} ends before it begins"


def csi_by_link(r: Round, roster: Roster) -> dict[str, C64]:
    """Return a round's CSI (rx antenna, tx antenna, subcarrier) by roles "tx>rx", in an order of its own."""
    found = {}
    for name, result in r.results.items():
        for link in result.links:
            if link.csi is not None and len(link.csi) == 8 * math.prod(link.shape) > 0:
                csi = np.frombuffer(link.csi, dtype=np.complex64).reshape(link.shape)
                found[f"{link.tx}>{roster.nodes[name].role}"] = csi
    return dict(sorted(found.items()))


class Rounds:
    """The rounds under way: one on the air, others settling, and closed ones that the clocks are not corrected from.

    `ahead`: a round is ordered while the one before is still on the air. Nodes take orders one after the other, and in
    virtual time nothing has to happen between two rounds whose pattern does not change.
    """

    def __init__(
        self, roster: Roster, operation_timeout_s: float, ahead: bool, clock: EventClock, story: Story
    ) -> None:
        self._roster, self._timeout_s = roster, operation_timeout_s
        self._clock, self._story = clock, story
        self.ahead = ahead
        self.next = 0
        """Number of the next round."""
        self.on_air: Round | None = None
        self.settling: list[Round] = []
        """Captured, or ordered ahead; reports are still missing; oldest first."""
        self.uncorrected: list[Round] = []
        """Closed rounds from whose arrival times the clocks are not corrected yet, oldest first."""

    @property
    def under_way(self) -> list[Round]:
        """The rounds that were ordered and are not closed, oldest first."""
        return [*self.settling, *([self.on_air] if self.on_air else [])]

    def next_number(self) -> int:
        number, self.next = self.next, self.next + 1
        return number

    def order(
        self, number: int, surface: str | None, times_s: tuple[float, float], nodes: list[str], sounding: bool,
        within_s: float,
    ) -> Round:  # fmt: skip
        """Put a round on the air; its answers are due `within_s` from now."""
        self.on_air = Round(number, surface, *times_s, nodes, self._clock, sounding)
        self.on_air.wait_for_answers(within_s)
        self._story.add("ordered", round=number, start_s=times_s[0], surface=surface, nodes=nodes)
        return self.on_air

    def due_for_correction(self) -> list[Round]:
        """Take the closed rounds from which the clocks are corrected before the next round is planned.

        A round is planned from what was learned up to the round before the previous one, whether or not the previous
        one's results happen to be in already: otherwise two runs of one seed could differ.
        """
        due = [r for r in self.uncorrected if r.number <= self.next - 2]
        self.uncorrected = self.uncorrected[len(due) :]
        return due

    # -- reports

    def take_captured(self, name: str, body: m.Captured) -> None:
        if self.on_air is not None and self.on_air.number == body.round:
            self.on_air.captured.add(name)

    def take_stepped(self, name: str, body: m.Stepped) -> None:
        r = self.on_air
        if r is not None and r.steps is not None and r.number == body.round:
            r.steps.report(name, body.step)

    def take_probed(self, name: str, body: m.Probed) -> list[Effect]:
        r = next((r for r in self.under_way if r.number == body.round), None)
        if r is None or name not in r.expected or name in r.results:
            repeated = r is not None and name in r.results
            return [Note("duplicate" if repeated else "late_answer", {"node": name, "round": body.round})]
        r.results[name] = body
        r.captured.add(name)
        node = self._roster.nodes[name]
        self._story.add("reported", round=r.number, node=name, fault=body.fault)
        self._hurry(r)
        if body.fault is None:
            node.strikes = 0
            return []
        # an optional node whose radio always fails only slows the run down
        out = [] if node.required else self._roster.strike(name, r.number)
        node.strikes *= not node.required
        return [*out, Note("fault", {"node": name, "round": body.round, "reason": body.fault, "detail": body.detail})]

    def _hurry(self, r: Round) -> None:
        """Shorten the wait of a round that waits only for optional nodes."""
        owed = [self._roster.nodes[name] for name in r.expected if r.owes(name)]
        if owed and not any(node.required for node in owed) and r.steps is None:
            struck = any(node.strikes for node in owed)
            r.hurry(OPTIONAL_AGAIN_S if struck else OPTIONAL_S)

    def take_failure(self, name: str) -> bool:
        """Take the failure of a node's part in the oldest round that it owes; False where it owes none."""
        r = next((r for r in self.under_way if r.owes(name)), None)
        if r is None:
            return False
        r.reject(Reject.DEVICE)
        r.expected.discard(name)
        self._story.add("failed", round=r.number, node=name)
        return True

    def take_latch(self, latched_s: float, *, expected: bool, exact: bool) -> None:
        """The surface changed at this time: rounds during it, and after it where nobody expected it, are rejected.

        `exact`: the time is on the radios' own clock. Otherwise it is only known that the change was not before the
        latest order, and the round on the air is doubted.
        """
        for r in self.under_way:
            during = r.overlaps(latched_s) if exact else r is self.on_air
            if r.surface is not None and (during or (not expected and latched_s < r.end_s)):
                r.reject(Reject.SURFACE_CHANGED)
                self._story.add("saw the surface change", round=r.number, latched_s=latched_s)

    # -- course

    @property
    def has_room(self) -> bool:
        """Whether one more round may be ordered."""
        return len(self.under_way) < MAX_UNDER_WAY

    def advance_on_air(self) -> list[tuple[str, m.Step]] | None:
        """Follow the round on the air. Returns orders for its next step, or [] where the air is free; None: wait."""
        r = self.on_air
        assert r is not None
        if r.steps is not None:
            orders = r.steps.advance(r.expected)
            if orders:
                return orders
            if r.steps.over:
                r.captured |= r.expected
        if not self.ahead and not r.is_captured:
            return None
        self.settling.append(r)
        self.on_air = None
        return []

    @property
    def oldest_is_complete(self) -> bool:
        return bool(self.settling) and self.settling[0].is_complete

    def close_oldest(self) -> Round:
        """Take the oldest round out; when rounds are ordered ahead, the next one's time begins now."""
        r = self.settling.pop(0)
        if self.ahead and self.settling:
            self.settling[0].wait_for_answers(self._timeout_s)
            self._hurry(self.settling[0])
        self.uncorrected.append(r)
        return r

    def drop_all(self) -> list[Round]:
        dropped = self.under_way
        self.settling, self.on_air = [], None
        return dropped

    # -- nodes that fail their part

    def forget_clock_of(self, name: str) -> None:
        """Its clock is read anew: arrivals in rounds that were planned before do not apply to what it reads then.

        Where it is Alice's, the reference that all arrivals are relative to, no node's do.
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

    def late(self) -> list[Round]:
        """Return the rounds whose time is over; ahead, a round's time begins when the one before is closed."""
        rounds = self.under_way[:1] if self.ahead else self.under_way
        return [r for r in rounds if r.is_late]

    def give_up_waiting(self, r: Round) -> list[Effect]:
        """Go on without the nodes that left a round unanswered."""
        late = r.expected - r.results.keys()
        if r.steps is not None and not r.steps.over:  # the others could not do their part yet
            late = set(r.steps.waiting)
            r.steps.cut()
            r.reject(Reject.TIMEOUT)
            r.wait_for_answers(self._timeout_s)
        out: list[Effect] = []
        for name in sorted(late):
            r.expected.discard(name)
            if self._roster.nodes[name].required:
                r.reject(Reject.TIMEOUT)
            out += self._roster.strike(name, r.number)
            if out and isinstance(out[-1], RunFails):
                break
        return out

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        for r in self.under_way:
            yield from r.problems()
            if not (r.expected | r.results.keys()) <= self._roster.nodes.keys():
                yield f"round {r.number} expects nodes that nobody knows"
        for rounds in (self.under_way, self.uncorrected):
            if any(later.number <= earlier.number for earlier, later in pairwise(rounds)):
                yield "rounds are out of order"
        if any(r.number >= self.next for r in [*self.under_way, *self.uncorrected]):
            yield f"a round is under way that was never ordered; the next one is {self.next}"
        if len(self.under_way) > MAX_UNDER_WAY:
            yield f"{len(self.under_way)} rounds are under way, accepted: {MAX_UNDER_WAY}"
