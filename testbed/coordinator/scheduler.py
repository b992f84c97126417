"""The time of each slot of a round, on the clock of every node's own device.

The coordinator keeps one reference timeline (seconds since synchronisation): Alice's device, read once. A node's device
clock is `base + reference time`, and the base moves with the difference of the two crystals. It comes from one reading
of each clock; its offset and rate are then tracked from the arrival times that receivers report. The error of a clock's
estimate has a bound, which grows with the time since the last received frame and shrinks with each received one.
Receivers listen earlier and later by this bound, so that any interval between rounds is possible.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from testbed.core.schedule import Slot
from testbed.net import messages as m

_MISSES = 3
"""Frames in a row that a receiver must miss before its clock is doubted."""
_WIDEST_DOUBT_S = 1e-3
"""Largest error that is assumed of a clock if missed frames are the only sign that it is wrong."""
CRYSTALS = 44e-6
"""Largest difference between the rates of two devices: ±20 ppm each, plus a tenth for ageing."""
_WANDER = 2e-8
"""Standard deviation of a rate's change over one second; it grows with the root of the time. It gives half a ppm in ten
minutes, as a crystal without an oven changes where the room's temperature moves by a degree."""
_SIGMAS = 3.0
"""Number of standard deviations in a bound."""
_NOISE = 1 / 32
"""Standard deviation of a measured arrival, as a share of the guard."""
_READ = 1 / 6
"""Standard deviation of an exact clock reading, as a share of the guard: devices start a part of the guard apart."""
_IN_GUARD = 0.75
"""Share of the guard that a clock's drift may use up before receivers listen for longer."""
_WIDE = 2.0
"""Longest extension of a window on either side, in guards, in any but the first round of a train."""
WIDEST_S = 50e-3
"""Longest time that receivers listen early and late: crystals 40 ppm apart take 48 ms in twenty minutes."""


_MOST_FOR_ONE_S = 1e-3
"""Longest extension of windows because an optional listener has received nothing since its clock was read …"""
_FOR_ONE_ROUNDS = 2
"""… and for how many rounds, at any interval, its crystal may run apart before the extension is limited."""


Part = Literal["reference", "listener", "optional", "other"]
"""Alice, whose clock is the reference; a node that must receive her frames in time; one that should, without which the
run goes on (Eve); others (a surface)."""


@dataclass(slots=True)
class _Line:
    """Offset and rate of a clock from its measured offsets: a Kalman filter whose rate is a random walk."""

    at_s: float
    """Reference time of the last measurement."""
    offset_s: float
    noise: float
    """Variance of a measured offset, s²."""
    p_offset: float
    """Variances of offset and rate, and their covariance."""
    rate: float = 0.0
    p_both: float = 0.0
    p_rate: float = (CRYSTALS / _SIGMAS) ** 2

    def offset_at(self, time_s: float) -> float:
        return self.offset_s + self.rate * (time_s - self.at_s)

    def bound_at(self, time_s: float) -> float:
        """Return the largest error of `offset_at`."""
        return _SIGMAS * math.sqrt(self._variance(max(0.0, time_s - self.at_s)))

    def _variance(self, dt_s: float) -> float:
        return self.p_offset + dt_s * (2 * self.p_both + dt_s * self.p_rate) + _WANDER**2 * dt_s**3 / 3

    def learn(self, time_s: float, offset_s: float) -> None:
        """Take a measured offset. Overlapping rounds may report out of order: an offset of an earlier time than the
        last one then counts as measured at the same time.
        """
        dt_s = max(0.0, time_s - self.at_s)
        error_s = offset_s - self.offset_at(time_s)
        p_offset = self._variance(dt_s)
        p_both = self.p_both + dt_s * self.p_rate + _WANDER**2 * dt_s**2 / 2
        p_rate = self.p_rate + _WANDER**2 * dt_s
        gain, gain_rate = p_offset / (p_offset + self.noise), p_both / (p_offset + self.noise)
        self.offset_s = self.offset_at(self.at_s + dt_s) + gain * error_s
        # No crystal's rate is further off: a clock that jumped must not be mistaken for one with a large rate.
        self.rate = min(max(self.rate + gain_rate * error_s, -CRYSTALS), CRYSTALS)
        self.at_s += dt_s
        self.p_offset, self.p_both = (1 - gain) * p_offset, (1 - gain) * p_both
        self.p_rate = p_rate - gain_rate * p_both

    def restart(self, time_s: float, offset_s: float) -> None:
        """Take a measured offset in place of all before it; the estimate of the rate stays."""
        self.at_s, self.offset_s = time_s, offset_s
        self.p_offset, self.p_both = self.noise, 0.0


@dataclass(slots=True)
class NodeClock:
    """The state of one device's clock."""

    base_s: float
    """Device time minus reference time, at the round that was planned last."""
    uncertainty_s: float
    """Largest error of `base_s` until the first frame is received, without the drift."""
    line: _Line = field(repr=False)
    listens: bool
    """Whether its node receives the reference's frames; the errors of other clocks widen no window."""
    is_optional: bool = False
    """Whether the run goes on without it: however long it has received nothing, windows get only a little wider."""
    missed: int = 0
    """Frames in a row that were not received."""
    unheard: int = 0
    """Frames in a row that did not correct it, whether or not they were received."""


class Scheduler:
    """Plans rounds; pure. `margin_s` is how much earlier and later than expected a receiver listens."""

    def __init__(
        self,
        slots: tuple[Slot, ...],
        frame_s: float,
        interval_s: float,
        turnaround_s: float,
        guard_s: float,
        lead_s: float,
        widest_s: float = WIDEST_S,
    ) -> None:
        self._slots = slots
        self._frame_s = frame_s
        self._interval_s = interval_s
        self._turnaround_s = turnaround_s
        self._guard_s = guard_s
        self._widest_s = max(guard_s, widest_s)
        """No receiver can listen for longer than this, however uncertain its clock is."""
        self.lead_s = lead_s
        """Least time between planning a round and its first sample (0 in virtual time)."""
        self.compared_s = 0.0
        """When the coordinator's clock was last compared with the reference's."""
        self.next_s = 0.0
        """Earliest start of the next round."""
        self.clocks: dict[str, NodeClock] = {}
        self.margin_s = guard_s
        """Margin of the round that was planned last."""
        self._late_s = 0.0
        """How much later than planned the windows of that round may be over, by the clock of some receiver."""
        self._reference_doubt_s = 0.0

    def synchronise(
        self, node: str, device_time_s: float, reference_s: float, uncertainty_s: float, part: Part = "listener"
    ) -> None:
        """Take a reading of a device's clock at a reference time; it may be wrong by up to `uncertainty_s`.

        A listener's error is that of its own reading plus that of the reference's, until it has received a frame.
        """
        base_s = device_time_s - reference_s
        line = _Line(reference_s, base_s, (_NOISE * self._guard_s) ** 2, p_offset=(_READ * self._guard_s) ** 2)
        if part == "reference":
            self._reference_doubt_s = uncertainty_s
            for clock in self.clocks.values():
                clock.uncertainty_s += uncertainty_s if clock.listens else 0.0
        listens = part in ("listener", "optional")
        if listens:
            uncertainty_s += self._reference_doubt_s
        self.clocks[node] = NodeClock(base_s, uncertainty_s, line, listens, part == "optional")

    def reference_s(self, node: str, device_time_s: float) -> float:
        """Return a device time on the reference timeline."""
        return device_time_s - self.clocks[node].base_s

    def plan(self, now_s: float, not_before_s: float, nodes: Collection[str] | None = None) -> tuple[float, float]:
        """Return (start, end) of the next round on the reference timeline and book it.

        The end is that of its last window by every receiver's clock, as far as it is known: until then, in virtual
        time, the others have to declare what they send. Otherwise that receiver would wait for the next round, which
        need not come. On the wall clock nobody waits for a declaration.

        nodes: those that take part in it, None for all whose clocks are known. No window is wider for the sake of
        another node, whose clock gets more uncertain from round to round.
        """
        start_s = self._start_s(now_s, not_before_s)
        self.next_s = start_s + self._interval_s
        for clock in self.clocks.values():
            if clock.listens:
                clock.base_s = clock.line.offset_at(start_s)
        listening = self._listening(nodes)
        self.margin_s = self._margin_at(start_s, listening)
        self._late_s = 0.0 if self.lead_s > 0 else self._lateness_s(start_s, listening)
        return start_s, start_s + len(self._slots) * self._slot_s + self._late_s

    def plan_steps(
        self, now_s: float, not_before_s: float, rounds: int, period_s: float, slot_s: float
    ) -> list[tuple[float, float]]:
        """Return (start, end) of each round of a train without timing, and book it. Round i begins i periods after the
        first, and ends i periods after the beginning of the train's last slot at least; it is ordered at once."""
        start_s = max(self.next_s, now_s, not_before_s)
        self.next_s = start_s + rounds * self._interval_s
        end_s = start_s + len(self._slots) * slot_s
        return [(start_s + i * period_s, end_s) for i in range(rounds)]

    def _lateness_s(self, start_s: float, listening: list[NodeClock]) -> float:
        """Return by how much windows may be over late: one receiver's by the error of its own clock, while another one
        declares too little by the error of its own."""
        late_s = sum(clock.uncertainty_s + self._drift_s(clock, start_s) for clock in listening)
        return min(late_s, 2 * self._widest_s)

    def may_follow(self, now_s: float, not_before_s: float, nodes: Collection[str] | None = None) -> bool:
        """Return whether the next round, with these nodes, may belong to the train of the one before. It may not where
        its windows would be wide: they become narrower if it is planned once the one before has corrected the clocks.
        """
        return self._margin_at(self._start_s(now_s, not_before_s), self._listening(nodes)) <= _WIDE * self._guard_s

    def _start_s(self, now_s: float, not_before_s: float) -> float:
        # `now_s` is of the coordinator's clock, which drifts away from the reference.
        lead_s = self.lead_s + (CRYSTALS * max(0.0, now_s - self.compared_s) if self.lead_s > 0 else 0.0)
        return max(self.next_s, now_s + lead_s, not_before_s)

    def _listening(self, nodes: Collection[str] | None) -> list[NodeClock]:
        with_nodes = self.clocks if nodes is None else nodes
        return [clock for name, clock in self.clocks.items() if clock.listens and name in with_nodes]

    def _margin_at(self, start_s: float, listening: list[NodeClock]) -> float:
        wider_s = max((self._doubt_s(clock, start_s) for clock in listening), default=0.0)
        return min(self._guard_s + wider_s, self._widest_s)

    def _doubt_s(self, clock: NodeClock, start_s: float) -> float:
        """Return by how much a clock's error may exceed the guard in a round at `start_s`."""
        drift_s = self._drift_s(clock, start_s)
        return clock.uncertainty_s + (min(drift_s, self._most_for_one_s) if clock.is_optional else drift_s)

    def _drift_s(self, clock: NodeClock, start_s: float) -> float:
        return max(0.0, clock.line.bound_at(start_s) - _IN_GUARD * self._guard_s)

    @property
    def _most_for_one_s(self) -> float:
        return max(_MOST_FOR_ONE_S, _FOR_ONE_ROUNDS * CRYSTALS * self._interval_s)

    def is_adrift(self, node: str) -> bool:
        """Return whether an optional node's clock was corrected so long ago that the windows may miss its frames.

        Without a new reading of its clock, it would never receive one again. Rounds under way say nothing yet: a clock
        that is well known is uncertain until they are reported, where the interval is long.
        """
        clock = self.clocks.get(node)
        if clock is None or not clock.is_optional or clock.unheard < _MISSES:
            return False
        return self._drift_s(clock, self.next_s) > self._most_for_one_s

    @property
    def shortest_s(self) -> float:
        """Least time that a round takes."""
        return len(self._slots) * (self._frame_s + 2 * self._guard_s + self._turnaround_s)

    @property
    def quiet_s(self) -> float:
        """How long before the end of the round that was planned last its last window is over, by the plan."""
        return self._turnaround_s + self._late_s

    def set_base(self, node: str, device_time_s: float, reference_s: float) -> None:
        """Take a reading of the clock of a device that does not listen (a surface); it replaces earlier readings."""
        self.clocks[node].base_s = device_time_s - reference_s

    def device_s(self, node: str, reference_s: float) -> float:
        """Return a time of the reference timeline on a device's clock."""
        return reference_s + self.clocks[node].base_s

    @property
    def _slot_s(self) -> float:
        return self._frame_s + 2 * self.margin_s + self._turnaround_s

    def round_plan(self, node: str, number: int, start_s: float, end_s: float) -> m.RoundPlan:
        """Return one node's part in the round that was planned last, with times on its own clock."""
        base_s = self.clocks[node].base_s
        slots = [
            m.SlotPlan(slot.tx, list(slot.rx), base_s + start_s + i * self._slot_s)
            for i, slot in enumerate(self._slots)
        ]
        return m.RoundPlan(round=number, slots=slots, margin_s=self.margin_s, end_s=base_s + end_s)

    def track(self, node: str, base_s: float, time_s: float) -> None:
        """Take the base that a frame at reference time `time_s` implies: the planned base plus the frame's timing
        error.

        It is given as a base, not as an error, because rounds are planned before earlier ones are evaluated: an error
        that was corrected already would be corrected again by every round still under way.
        """
        clock = self.clocks[node]
        # Before the first frame is received, the clock's uncertainty is large: the first arrival replaces the reading.
        (clock.line.restart if clock.uncertainty_s > 0 else clock.line.learn)(time_s, base_s)
        clock.uncertainty_s, clock.missed, clock.unheard = 0.0, 0, 0

    def pass_by(self, node: str) -> None:
        """Take note that a frame was found whose time of arrival says nothing, such as one that was clipped."""
        self.clocks[node].unheard += 1

    def miss(self, node: str, is_certain: bool = False) -> None:
        """Take note that a frame was not found. After several in a row, the next one is searched in a wider window.

        `is_certain`: part of the frame was received at the window's edge, so that the clock is certainly wrong.
        """
        clock = self.clocks[node]
        clock.missed, clock.unheard = clock.missed + 1, clock.unheard + 1
        if is_certain or clock.missed >= _MISSES:
            clock.uncertainty_s = min(max(2 * clock.uncertainty_s, self._guard_s), _WIDEST_DOUBT_S)
