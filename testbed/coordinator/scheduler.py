"""When each slot of a round happens, on the clock of every node's own device.

The coordinator keeps one reference timeline (seconds since synchronisation). A node's device clock is
`base + reference time`; the base comes from one reading of each clock and is then tracked from the arrival times that
receivers report, so that clocks may differ by milliseconds and drift by parts per million.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.core.schedule import Slot
from testbed.net import messages as m

_TRACKING_GAIN = 0.5
"""Share of a measured timing error that is corrected: half filters noise and still follows 10 ppm easily."""
_MISSES = 3
"""Frames in a row that a receiver must miss before its clock is doubted."""
_WIDEST_S = 1e-3


@dataclass(slots=True)
class NodeClock:
    """What is known of one device's clock."""

    base_s: float
    """Device time at reference time 0."""
    uncertainty_s: float
    """How far off `base_s` may be until the first frame was received."""
    missed: int = 0
    """Frames in a row that were not received."""


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
    ) -> None:
        self._slots = slots
        self._frame_s = frame_s
        self._interval_s = interval_s
        self._turnaround_s = turnaround_s
        self._guard_s = guard_s
        self._lead_s = lead_s
        """Least time between planning a round and its first sample (0 in virtual time)."""
        self.next_s = 0.0
        """Start of the next round at the earliest."""
        self.clocks: dict[str, NodeClock] = {}

    def synchronise(self, node: str, device_time_s: float, reference_s: float, uncertainty_s: float) -> None:
        self.clocks[node] = NodeClock(device_time_s - reference_s, uncertainty_s)

    def reference_s(self, node: str, device_time_s: float) -> float:
        """Return a device time on the reference timeline."""
        return device_time_s - self.clocks[node].base_s

    @property
    def margin_s(self) -> float:
        return self._guard_s + max((c.uncertainty_s for c in self.clocks.values()), default=0.0)

    def plan(self, now_s: float, not_before_s: float) -> tuple[float, float]:
        """Return (start, end) of the next round on the reference timeline and book it."""
        start_s = max(self.next_s, now_s + self._lead_s, not_before_s)
        self.next_s = start_s + self._interval_s
        return start_s, start_s + len(self._slots) * self._slot_s

    @property
    def _slot_s(self) -> float:
        return self._frame_s + 2 * self.margin_s + self._turnaround_s

    def probe(
        self, node: str, number: int, start_s: float, end_s: float, report_captured: bool, sounding: bool = False
    ) -> m.Probe:
        """Return the round's order for one node, on its own clock."""
        base_s = self.clocks[node].base_s
        slots = [
            m.SlotPlan(slot.tx, list(slot.rx), base_s + start_s + i * self._slot_s)
            for i, slot in enumerate(self._slots)
        ]
        return m.Probe(
            round=number, slots=slots, margin_s=self.margin_s, end_s=base_s + end_s, report_captured=report_captured,
            sounding=sounding,
        )  # fmt: skip

    def track(self, node: str, base_s: float) -> None:
        """Learn that a frame's arrival speaks for this base: the one it was planned with plus its timing error.

        Said as a base, not as an error: rounds are planned ahead of what is learned, and an error that was corrected
        already would be corrected again by every round still under way.
        """
        clock = self.clocks[node]
        # While the clock is still uncertain the first arrival settles it whole.
        gain = 1.0 if clock.uncertainty_s > 0 else _TRACKING_GAIN
        clock.base_s += gain * (base_s - clock.base_s)
        clock.uncertainty_s, clock.missed = 0.0, 0

    def miss(self, node: str) -> None:
        """Learn that a frame was not found: after a few in a row, look for the next one in a wider window."""
        clock = self.clocks[node]
        clock.missed += 1
        if clock.missed >= _MISSES:
            clock.uncertainty_s = min(max(2 * clock.uncertainty_s, self._guard_s), _WIDEST_S)
