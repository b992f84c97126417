"""Times of the rounds on the reference timeline, and the nodes' clock readings at these times. Pure.

Gives the `Scheduler` what it needs of a run: the origin of the timeline, the end of the last round, and the corrections
of the clocks that follow from the receivers' reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from testbed.coordinator.roster import Node, Roster
from testbed.coordinator.round import Round
from testbed.coordinator.scheduler import WIDEST_S, Part, Scheduler
from testbed.core.config import Experiment, Lab
from testbed.core.errors import Reject
from testbed.core.machine import EventClock
from testbed.core.schedule import Slot
from testbed.net import messages as m

LATE_UNCERTAINTY_S = 200e-6
"""Largest error of the clock of a node that joined a run late, in virtual time."""
READING_UNCERTAINTY_S = 1e-3
"""Largest error of a clock that was read over the network, in addition to half of the round trip."""
_SPREADS = 6.0
"""A receiver's window is longer on both sides by at least this many standard deviations of the arrival times."""
ORDERED_AHEAD_S = 1.0
"""Longest time before its first sample at which a round is ordered on the wall clock: a node that waits for a round
handles no other message."""
MOST_SAMPLES = 4_000_000
"""Most samples of one window, over all antennas, however uncertain the clocks are: drivers and air accept no more."""
WALL_LEAD_S = 0.03
"""On the wall clock an order must reach the nodes before its first sample is due."""


class Timetable:
    """Plans rounds for radios that may or may not time their samples.

    `frame_s` is the length of a probe, `antenna_s` how much longer a sounding is with every antenna beyond the first.
    """

    def __init__(
        self, lab: Lab, experiment: Experiment, slots: tuple[Slot, ...], frame_s: float, antenna_s: float,
        clock: EventClock,
    ) -> None:  # fmt: skip
        self._experiment, self._slots = experiment, slots
        self.frame_s, self.antenna_s = frame_s, antenna_s
        self._clock = clock
        self.virtual = lab.world is not None and lab.world.pace == "virtual"
        self.scheduler: Scheduler | None = None
        """None until everybody has joined."""
        self.last_end_s = 0.0
        """End of the last planned round on the reference timeline; in virtual time, the air's present time."""
        self._resumed_s = 0.0
        """Where the timeline goes on, of a run that is resumed."""
        self._epoch_s: float | None = None
        """Origin of the reference timeline, on the coordinator's clock."""
        self.snr_db = math.nan
        """Mean over the links of the last round that the clocks were corrected from."""

    def go_on(self, end_s: float, down_s: float) -> None:
        """Continue the timeline of a run whose last round ended at `end_s`, `down_s` ago; virtual time stood still."""
        self.last_end_s = self._resumed_s = end_s + (0.0 if self.virtual else down_s)

    def begin(self, roster: Roster) -> None:
        """Make the scheduler, with gaps and guards as wide as the devices that joined need them."""
        hellos = roster.greetings()
        turnaround_s = max((h.turnaround_s for h in hellos), default=0.0)
        if not self.virtual:  # in virtual time the air waits for the host
            turnaround_s = max([turnaround_s, *(h.host_turnaround_s for h in hellos)])
        p = self._experiment.probing
        frame_s, n_antennas = self.frame_s, max(roster.antennas().values(), default=1)
        if self._experiment.beams.policy != "none":
            frame_s += self.antenna_s * (n_antennas - 1)
        self.scheduler = Scheduler(
            self._slots, frame_s, p.interval_s, p.turnaround_s + turnaround_s,
            max([p.guard_s, *(_SPREADS * h.timing_spread_s for h in hellos)]),
            0.0 if self.virtual else WALL_LEAD_S,
            min(WIDEST_S, MOST_SAMPLES / 2 / (n_antennas * self._experiment.radio.sample_rate_hz)),
        )  # fmt: skip

    def fix_origin(self) -> float:
        """Return the origin of the reference timeline on the coordinator's clock; the first call decides it: now."""
        if self._epoch_s is None:
            self._epoch_s = self._clock.now_s - self._resumed_s
        return self._epoch_s

    def synchronise(self, node: Node, device_time_s: float) -> bool:
        """Take a reading of a node's clock; False where the reading comes before any could have been asked for."""
        if self.scheduler is None:
            return False
        part: Part = "reference" if node.role == "alice" else "other" if node.role == "ris" else "listener"
        if self.virtual:
            # Virtual time does not pass while nobody probes. Before the first round it is exactly 0; a node that
            # joins later finds it near the end of the last round.
            uncertainty_s = 0.0 if self._epoch_s is None and not self._resumed_s else LATE_UNCERTAINTY_S
            self.scheduler.synchronise(node.name, device_time_s, self.last_end_s, uncertainty_s, part)
            return True
        round_trip_s = self._clock.now_s - node.clock_asked_s
        middle_s = node.clock_asked_s + round_trip_s / 2 - self.fix_origin()
        uncertainty_s = round_trip_s / 2 + READING_UNCERTAINTY_S
        self.scheduler.synchronise(node.name, device_time_s, middle_s, uncertainty_s, part)
        return True

    def knows(self, name: str) -> bool:
        """Return whether this node's clock was read."""
        return self.scheduler is not None and name in self.scheduler.clocks

    @property
    def now_s(self) -> float:
        """Now on the reference timeline; 0 in virtual time, where the air waits."""
        return 0.0 if self.virtual else self._clock.now_s - (self._epoch_s or 0.0)

    def is_too_early(self, timed: bool) -> bool:
        """Return whether it is too early to order the next round; radios that time samples may be ordered ahead."""
        assert self.scheduler is not None
        return not self.virtual and self.scheduler.next_s > self.now_s + (ORDERED_AHEAD_S if timed else 0.0)

    def plan(self, not_before_s: float) -> tuple[float, float]:
        """Book the next round; returns (start, end) on the reference timeline."""
        assert self.scheduler is not None
        start_s, end_s = self.scheduler.plan(self.now_s, max(not_before_s, self.last_end_s))
        self.last_end_s = end_s
        return start_s, end_s

    def correct_clocks(self, r: Round) -> None:
        """Correct the clocks by the arrival times of a closed round; a missed frame may mean that a clock is far
        off."""
        snrs_db = []
        for name, result in r.results.items():
            for link in result.links:
                if link.reason is None and self._experiment.mode == "experiment":  # private nodes do not report it
                    snrs_db.append(link.snr_db)
                if name in r.bases_s and link.tx == "alice":  # Alice's clock is the reference
                    self._correct_clock(name, r, link)
        if snrs_db:
            self.snr_db = sum(snrs_db) / len(snrs_db)

    def _correct_clock(self, name: str, r: Round, link: m.LinkResult) -> None:
        assert self.scheduler is not None
        if link.reason is None:
            self.scheduler.track(name, r.bases_s[name] + link.timing_error_s, r.start_s)
        elif link.reason in (Reject.NO_PREAMBLE, Reject.TRUNCATED):
            self.scheduler.miss(name, is_certain=link.reason == Reject.TRUNCATED)

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        if not math.isfinite(self.last_end_s) or self.last_end_s < 0:
            yield f"the last round ends at {self.last_end_s} s"
        if self.scheduler is not None and not math.isfinite(self.scheduler.next_s):
            yield f"the next round begins at {self.scheduler.next_s} s"
