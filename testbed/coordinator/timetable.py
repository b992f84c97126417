"""The times of the rounds on the reference timeline, and the nodes' clock readings at these times. Pure.

It gives the `Scheduler` what it needs to know about a run: the origin of the timeline, the end of the last round, and
the corrections of the clocks that follow from the receivers' reports.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from testbed.coordinator import steps
from testbed.coordinator.roster import Node, Roster
from testbed.coordinator.round import Round
from testbed.coordinator.scheduler import CRYSTALS, WIDEST_S, Part, Scheduler
from testbed.core.config import Experiment, Lab
from testbed.core.errors import Reject
from testbed.core.machine import EventClock
from testbed.core.schedule import MAX_TRAIN, Slot, longest_train
from testbed.core.windows import LONGEST_CAPTURE
from testbed.net import messages as m

LATE_UNCERTAINTY_S = 200e-6
"""Largest error of the clock of a node that joined a run late, in virtual time."""
COMPARED_EVERY_S = 120.0
"""How often Alice's clock is read during a run on the wall clock: the coordinator's, by which rounds are ordered ahead,
may be 5 ms away from it by then, and 27 s after a week."""
_HOST_CRYSTAL = 200e-6
"""Largest error of a computer's clock rate; a reading of Alice's clock that is further off is that of a clock that was
set."""
READING_UNCERTAINTY_S = 1e-3
"""Largest error of a clock that was read over the network, in addition to half of the round trip."""
BOARD_DOUBT_S = 150e-6
"""The same for a board's clock in trains of up to 0.8 s: it is read once a train, when the patterns of the next one are
not ordered yet, and over both trains it may run away by 70 µs."""
LONGEST_UNDOUBTED_S = 0.8
"""Duration of a train beyond which that error is larger."""
_MOST_FOR_EVE_S = 1e-3
"""Longest guard for the sake of Eve's node."""
_SPREADS = 6.0
"""A receiver's window is longer on both sides by at least this many standard deviations of the arrival times."""
ORDERED_AHEAD_S = 1.0
"""On the wall clock, a round is ordered no earlier than this before its first sample: a node that waits for a round
handles no other message."""
WALL_LEAD_S = 0.03
"""On the wall clock, a train is ordered at least this long before its first sample, so that it reaches the nodes."""
LEAD_OF_ROUND_S = 0.4e-3
"""How much earlier for each of its rounds: a node prepares all of them before the first one is sent."""
FIRST_LEAD_S = 0.12
"""The same time at the start of a run, when every process does much for the first time and is slower."""
LONGEST_LEAD_S = 0.25
"""Upper limit of that time: a late train doubles it, and every train that is not late shortens it a little."""
_LEAD_SHRINKS, _TRAIN_GROWS = 0.9, 1.25
FIRST_TRAIN = 64
"""On the wall clock, largest number of rounds of the first trains: how fast the nodes are shows only in their reports,
and two trains are ordered before the first report."""
_SPARE = 1.75
"""How much longer than the last train the next one may take the nodes."""
_CLEAR_S = 0.2
"""More than two windows of the greatest width, and than the radios' longest turn-arounds in virtual time."""
_NOT_MADE = frozenset(
    {Reject.LATE_TX, Reject.DEVICE, Reject.TIMEOUT, Reject.SURFACE_CHANGED, Reject.SURFACE_NOT_APPLIED,
     Reject.NODE_LOST, Reject.ABORTED}
)  # fmt: skip
"""Reasons with which a round may have ended before its time, so that the air did not come to its end."""
_PARTS: Mapping[str, Part] = {"alice": "reference", "bob": "listener", "eve": "optional", "ris": "other"}
"""Role → whose clock it is, for the scheduler."""
SUITED_TRAIN = 64
"""Number of rounds of a train in virtual time where the experiment states none; all of them share the train's cost."""
SUITED_TRAIN_S = 0.128
"""Duration of a train on the wall clock where the experiment states no number of rounds: while one train is on the air,
the next one is ordered and the last one is estimated."""
_FIRST_LAG = 2
"""In virtual time, round number n among the first is planned from the reports of the rounds up to n − 2."""


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
        """None until all nodes have joined."""
        self.steps: steps.Pace | None = None
        """How rounds follow one another where the radios cannot time their samples; None where they can."""
        self.last_end_s = 0.0
        """End of the last planned round on the reference timeline; no round begins before it."""
        self._resumed_s = 0.0
        """Time at which the timeline of a resumed run continues."""
        self._epoch_s: float | None = None
        """Origin of the reference timeline, on the coordinator's clock."""
        self.is_behind = False
        """Whether the air may be behind the end of the last planned round, because that did not take place."""
        self.rests = False
        """Whether no virtual time passes, from `come_to_rest` until the next round is planned."""
        self.rests_at_s: float | None = None
        """The time at which it rests, by Alice's clock; None until that is read."""
        self._read_at_rest: dict[str, tuple[float, Part]] = {}
        """Readings of clocks meanwhile, until Alice's is read."""
        self._board_asked_s = self._board_read_s = 0.0
        self._board_doubt_s = BOARD_DOUBT_S if self.virtual else 2 * READING_UNCERTAINTY_S
        """Largest error of the board's clock by its latest reading."""
        self._latch_from_s = 0.0
        self._round_s = experiment.probing.interval_s
        """Time from one round to the next, at least."""
        self._most: float = MAX_TRAIN if self.virtual else FIRST_TRAIN
        """Largest number of rounds of a train, reduced while trains are late."""
        self._train_from_s = 0.0
        """Start of the train whose rounds are being closed."""
        self._heeded = 0
        """First round that was ordered after the last late transmission was reported."""
        self._lag = 2 * longest_train(experiment.probing.interval_s)
        self.snr_db = math.nan
        """Mean SNR over the links of the round from which the clocks were corrected last."""

    def go_on(self, end_s: float, down_s: float) -> None:
        """Continue the timeline of a run whose last round ended at `end_s`, and which was not driven for `down_s`; in
        virtual time, no time has passed meanwhile."""
        self.last_end_s = self._resumed_s = self._board_read_s = end_s + (0.0 if self.virtual else down_s)

    def begin(self, roster: Roster) -> None:
        """Make the scheduler, with gaps and guards as wide as the devices that joined need them."""
        needs = [self._needed(hello) for hello in roster.greetings()]
        turnaround_s = max((turnaround_s for turnaround_s, _ in needs), default=0.0)
        p = self._experiment.probing
        antennas = roster.antennas()
        frame_s, n_antennas = self.frame_s, max(antennas.values(), default=1)
        if self._experiment.beams.policy != "none":
            frame_s += self.antenna_s * (max(antennas.get(slot.tx, 1) for slot in self._slots) - 1)
        self.scheduler = Scheduler(
            self._slots, frame_s, p.interval_s, p.turnaround_s + turnaround_s,
            max([p.guard_s, *(guard_s for _, guard_s in needs)]),
            0.0 if self.virtual else max(FIRST_LEAD_S, self._least_lead_s),
            min(WIDEST_S, LONGEST_CAPTURE / 2 / (n_antennas * self._experiment.radio.sample_rate_hz)),
        )  # fmt: skip
        ris = roster.by_role("ris")
        latency_s = ris.hello.latency_s if ris is not None and ris.hello is not None else 0.0
        self._round_s = max(p.interval_s, self.scheduler.shortest_s + latency_s)
        if not roster.timed:
            rate_hz = self._experiment.radio.sample_rate_hz
            ends = [hello for hello in roster.greetings() if hello.role != "eve"]
            suited_s = p.turnaround_s + max((hello.turnaround_s for hello in ends), default=0.0)
            self.steps = steps.Pace(
                round(self.frame_s * rate_hz), rate_hz, p.interval_s, p.turnaround_s + turnaround_s, suited_s, p.train,
                _longest(roster.greetings()), _longest(ends),
            )  # fmt: skip

    def _needed(self, hello: m.Hello) -> tuple[float, float]:
        """Return the turn-around and the guard that a node needs by its own account.

        Eve's, which is not trusted, counts up to limits: the interval between rounds, and `_MOST_FOR_EVE_S`.
        """
        # in virtual time the air waits for the host
        turnaround_s = hello.turnaround_s if self.virtual else max(hello.turnaround_s, hello.host_turnaround_s)
        guard_s = _SPREADS * hello.timing_spread_s
        if hello.role != "eve":
            return turnaround_s, guard_s
        return min(turnaround_s, self._experiment.probing.interval_s), min(guard_s, _MOST_FOR_EVE_S)

    @property
    def misfit(self) -> str | None:
        """Return why the radios cannot receive a train of the length that the experiment states; None where they
        can."""
        return self.steps.misfit if self.steps is not None else None

    @property
    def why_too_short(self) -> str | None:
        """Return one line where the interval that is asked for is shorter than a round; None where it can be kept."""
        if self.steps is not None:
            return self.steps.why_slow(len(self._slots))
        asked_s, least_s = self._experiment.probing.interval_s, self.scheduler.shortest_s if self.scheduler else 0.0
        if asked_s >= least_s * (1 - 1e-9):
            return None
        return (
            f"probing.interval_s = {asked_s:g} s, but the slots of a round take {least_s:.3g} s, so that rounds follow "
            "one another at that interval: probing.turnaround_s and probing.guard_s shorten them"
        )

    def fix_origin(self) -> float:
        """Return the origin of the reference timeline on the coordinator's clock; the first call sets it to now."""
        if self._epoch_s is None:
            self._epoch_s = self._clock.now_s - self._resumed_s
        return self._epoch_s

    def synchronise(self, node: Node, device_time_s: float) -> bool:
        """Take a reading of a node's clock; False where no reading was requested."""
        if self.scheduler is None:
            return False
        part = _PARTS[node.role]
        if self.virtual:
            self._synchronise_at_rest(node.name, device_time_s, part)
            return True
        round_trip_s = self._clock.now_s - node.clock_asked_s
        middle_s = node.clock_asked_s + round_trip_s / 2 - self.fix_origin()
        uncertainty_s = round_trip_s / 2 + READING_UNCERTAINTY_S
        self.scheduler.synchronise(node.name, device_time_s, middle_s, uncertainty_s, part)
        if part == "reference":
            self.scheduler.compared_s = middle_s
        return True

    def _synchronise_at_rest(self, name: str, device_time_s: float, part: Part) -> None:
        """Take a reading of a clock in virtual time, which does not pass while no node probes.

        Before the first round it is the same for all. Afterwards Alice's clock says what time it is: the simulated air
        has no clock that would agree with hers.
        """
        assert self.scheduler is not None
        if not self.rests:
            first = self._epoch_s is None and not self._resumed_s
            self.scheduler.synchronise(name, device_time_s, self.last_end_s, 0.0 if first else LATE_UNCERTAINTY_S, part)
            return
        if part == "reference" and self.rests_at_s is None:
            self._rest_at(self._time_at_rest(name, device_time_s))
        if self.rests_at_s is None:
            self._read_at_rest[name] = (device_time_s, part)
        else:
            self.scheduler.synchronise(name, device_time_s, self.rests_at_s, LATE_UNCERTAINTY_S, part)

    def _time_at_rest(self, name: str, device_time_s: float) -> float:
        """Return the reference time of a reading of Alice's clock; that of the rest, where her clock began anew."""
        assert self.scheduler is not None
        if name not in self.scheduler.clocks:
            return self.last_end_s
        time_s = self.scheduler.reference_s(name, device_time_s)
        return time_s if abs(time_s - self.last_end_s) <= self._rest_s else self.last_end_s

    def _rest_at(self, time_s: float) -> None:
        assert self.scheduler is not None
        self.rests_at_s = time_s
        self.last_end_s = max(self.last_end_s, time_s)
        for name, (device_time_s, part) in self._read_at_rest.items():
            self.scheduler.synchronise(name, device_time_s, time_s, LATE_UNCERTAINTY_S, part)
        self._read_at_rest.clear()

    def come_to_rest(self) -> float:
        """Return the time up to which the air must pass so that it is behind no device's promise of silence, whatever
        crystals the devices have. Clocks are then read at one time, until the next round is planned."""
        self.rests, self.rests_at_s, self.is_behind = True, None, False
        return self.last_end_s + self._rest_s / 2

    @property
    def _rest_s(self) -> float:
        return 2 * (_CLEAR_S + CRYSTALS * self.last_end_s)

    @property
    def must_be_compared(self) -> bool:
        """Whether the coordinator's clock may have run too far away from Alice's."""
        is_known = not self.virtual and self.scheduler is not None and self._epoch_s is not None
        return is_known and self.now_s - self.scheduler.compared_s >= COMPARED_EVERY_S  # type: ignore[union-attr]

    def compare(self, node: Node, device_time_s: float) -> bool:
        """Correct the coordinator's clock by a reading of Alice's, which is the reference; nodes need not know of it.

        False where hers was set meanwhile: then nothing that is known of the others' clocks holds any more.
        """
        assert self.scheduler is not None
        if self.virtual:
            self._rest_at(self._time_at_rest(node.name, device_time_s))
            return True
        assert self._epoch_s is not None
        half_trip_s = (self._clock.now_s - node.clock_asked_s) / 2
        read_s = node.clock_asked_s + half_trip_s - self._epoch_s
        ahead_s = read_s - self.scheduler.reference_s(node.name, device_time_s)
        apart_s = _HOST_CRYSTAL * (read_s - self.scheduler.compared_s)
        if abs(ahead_s) > apart_s + half_trip_s + 2 * READING_UNCERTAINTY_S:
            return False
        self._epoch_s += ahead_s
        self.scheduler.compared_s = self.now_s
        return True

    def knows(self, name: str) -> bool:
        """Return whether this node's clock was read."""
        return self.scheduler is not None and name in self.scheduler.clocks

    def is_adrift(self, name: str) -> bool:
        """See `Scheduler.is_adrift`."""
        return self.scheduler is not None and self.scheduler.is_adrift(name)

    @property
    def now_s(self) -> float:
        """Now on the reference timeline; 0 in virtual time, where the air waits."""
        return 0.0 if self.virtual else self._clock.now_s - (self._epoch_s or 0.0)

    def is_too_early(self, timed: bool) -> bool:
        """Return whether it is too early to order the next round; radios that time samples may be ordered ahead."""
        assert self.scheduler is not None
        return not self.virtual and self.scheduler.next_s > self.now_s + (ORDERED_AHEAD_S if timed else 0.0)

    @property
    def train(self) -> int:
        """Number of rounds of a train, unless blocks, the surface or the windows demand a shorter one."""
        if self.steps is not None:
            return self.steps.train
        probing = self._experiment.probing
        suited = SUITED_TRAIN if self.virtual else math.ceil(SUITED_TRAIN_S / probing.interval_s)
        return min(probing.train or suited, longest_train(self._round_s), int(self._most))

    def learned_until(self, number: int) -> float:
        """Return the last round whose reports may count for the plan of round `number`.

        On the wall clock all reports count. In virtual time the limit depends on the round's number alone, not on the
        reports that have arrived and not on the number of rounds in a train: two runs of one seed, and trains of any
        length, have the same windows. The lag is short in the first rounds, while little is known of the clocks.
        """
        return number - min(_FIRST_LAG + number // 2, self._lag) if self.virtual else math.inf

    def may_follow(self, not_before_s: float, nodes: Collection[str]) -> bool:
        """Return whether the next round's windows, with these nodes, are narrow enough for it to join the train of the
        one before."""
        assert self.scheduler is not None
        return self.scheduler.may_follow(self.now_s, max(not_before_s, self.last_end_s), nodes)

    def pass_over(self, reason: str) -> None:
        """Take note of why a planned round was rejected: it may not have taken place."""
        self.is_behind = self.is_behind or (self.virtual and reason in _NOT_MADE)

    def keep_clear(self) -> None:
        """Plan the next round later in virtual time, because the board found that its time had come already: then the
        air is ahead of the rounds, by less than `_CLEAR_S`."""
        if self.virtual:
            self.last_end_s += _CLEAR_S

    @property
    def _present_s(self) -> float:
        """In virtual time, the present: it rests, or has come to the end of the last window of the rounds planned."""
        if self.rests_at_s is not None:
            return self.rests_at_s
        quiet_s = self.scheduler.quiet_s if self.scheduler is not None else 0.0
        return max(0.0, self.last_end_s - quiet_s)

    def ask_board(self) -> None:
        """Take note of the time at which a train's patterns are ordered: the answer contains a clock reading."""
        self._board_asked_s = self._present_s if self.virtual else self.now_s

    def read_board(self, name: str, device_time_s: float) -> None:
        """Take a reading of the board's clock. In virtual time, no time has passed since the end of the last window."""
        assert self.scheduler is not None
        half_trip_s = 0.0 if self.virtual else (self.now_s - self._board_asked_s) / 2
        self._board_read_s = self._board_asked_s + half_trip_s
        self.scheduler.set_base(name, device_time_s, self._board_read_s)
        self._board_doubt_s = half_trip_s + BOARD_DOUBT_S

    def _drift_s(self, at_s: float) -> float:
        """Return by how much more than in short trains the board's clock may have run away since it was read last.

        In virtual time, in which a pause takes none, it does not depend on how many rounds a train has, up to a number,
        so that trains of any length have the same times.
        """
        rounds = min(longest_train(self._round_s), max(SUITED_TRAIN, self._experiment.probing.train))
        unread_s = at_s - self._board_read_s
        if self.virtual:
            unread_s = min(2 * rounds * self._round_s, at_s - self._resumed_s)
        return CRYSTALS * max(0.0, unread_s - 2 * LONGEST_UNDOUBTED_S)

    def not_before_latch(self, is_first: bool, latency_s: float) -> float:
        """Return the earliest start of a round whose pattern latches, by the board's clock, before the round begins.

        Only the first round of a train needs to leave time for the board's latency. In virtual time every round does,
        so that trains of any length have the same times.
        """
        # on the wall clock the last round may be long over, after a block or a pause
        since_s = max(self.last_end_s, self.now_s)
        self._latch_from_s = since_s + (latency_s if is_first or self.virtual else 0.0)
        return self._latch_from_s + 2 * (self._board_doubt_s + self._drift_s(since_s))

    def latch_s(self, start_s: float) -> float:
        """Return when the pattern of the round that was planned last latches: halfway between the round before and this
        one."""
        return (self._latch_from_s + start_s) / 2

    def plan(self, not_before_s: float, nodes: Collection[str]) -> tuple[float, float]:
        """Book the next round, in which these nodes take part; returns (start, end) on the reference timeline."""
        assert self.scheduler is not None
        start_s, end_s = self.scheduler.plan(self.now_s, max(not_before_s, self.last_end_s), nodes)
        self.last_end_s = end_s
        self.rests, self.rests_at_s = False, None
        return start_s, end_s

    def plan_steps(self, rounds: int, not_before_s: float) -> list[tuple[float, float]]:
        """Book a train of rounds without timing; returns (start, end) of each on the reference timeline."""
        assert self.scheduler is not None
        assert self.steps is not None
        # On the wall clock the train before is over, whenever it was planned to be.
        earliest_s = max(not_before_s, self.last_end_s) if self.virtual else not_before_s
        slot_s = self.steps.slot_s(rounds)
        times_s = self.scheduler.plan_steps(self.now_s, earliest_s, rounds, self.steps.period_s, slot_s)
        self.last_end_s = times_s[-1][1]
        self.rests, self.rests_at_s = False, None
        return times_s

    def correct_clocks(self, r: Round) -> None:
        """Correct the clocks by the arrival times of a closed round. A missed frame makes a clock's error larger."""
        snrs_db = []
        for name, result in r.results.items():
            for link in result.links:
                if link.reason is None and self._experiment.mode == "experiment":  # private nodes do not report it
                    snrs_db.append(link.snr_db)
                if name in r.bases_s and link.tx == "alice":  # Alice's clock is the reference
                    self._correct_clock(name, r, link)
        if snrs_db:
            self.snr_db = sum(snrs_db) / len(snrs_db)

    def heed_lateness(self, r: Round, ordered: int, senders: set[str], is_last: bool) -> None:
        """On the wall clock, after a late round, order trains earlier and make them shorter; undo that step by step
        while none is late.

        `ordered`: number of the next round. Rounds before it were ordered before the change and are not judged.
        `senders`: the nodes that transmit. `is_last`: whether the round is the last one of its train.
        """
        if self.virtual or self.scheduler is None:
            return
        if r.number == r.train:
            self._train_from_s = r.start_s
        if r.number < self._heeded:
            return
        if any(r.results[name].fault == Reject.LATE_TX for name in senders if name in r.results):
            self.scheduler.lead_s = min(2 * self.scheduler.lead_s, LONGEST_LEAD_S)
            self._most = max(1.0, min(self._most, self.train) / 2)
            self._heeded = ordered
        elif is_last:
            self._prepare_next(r, self.scheduler)

    def _prepare_next(self, last: Round, scheduler: Scheduler) -> None:
        """After a train that was not late, order the next ones later and make them longer, if the nodes keep up.

        Their reports may come while the next train is on the air. If they come after twice the time that a train is on
        the air, the nodes need longer for it than that, and begin to prepare the next one only when they are done.
        """
        behind_s, air_s = self.now_s - last.end_s, last.end_s - self._train_from_s
        keeps_up = last.number == last.train or behind_s <= 2 * air_s
        needed_s = 0.0 if keeps_up else _SPARE * behind_s
        lead_s = max(_LEAD_SHRINKS * scheduler.lead_s, self._least_lead_s, needed_s)
        scheduler.lead_s = min(lead_s, LONGEST_LEAD_S)
        number = last.number - last.train + 1
        if keeps_up and 2 * number >= self._most:  # a short train says nothing of long ones
            self._most = min(_TRAIN_GROWS * self._most, MAX_TRAIN)

    @property
    def _least_lead_s(self) -> float:
        return WALL_LEAD_S + LEAD_OF_ROUND_S * self.train

    def _correct_clock(self, name: str, r: Round, link: m.LinkResult) -> None:
        assert self.scheduler is not None
        if link.reason is None:
            self.scheduler.track(name, r.bases_s[name] + link.timing_error_s, r.start_s)
        elif link.reason in (Reject.NO_PREAMBLE, Reject.TRUNCATED):
            self.scheduler.miss(name, is_certain=link.reason == Reject.TRUNCATED)
        else:
            self.scheduler.pass_by(name)

    def problems(self) -> Iterator[str]:
        """Yield a sentence for every invariant that does not hold."""
        if not math.isfinite(self.last_end_s) or self.last_end_s < 0:
            yield f"the last round ends at {self.last_end_s} s"
        if self.scheduler is not None and not math.isfinite(self.scheduler.next_s):
            yield f"the next round begins at {self.scheduler.next_s} s"


def _longest(greetings: Iterable[m.Hello]) -> int:
    """Return the largest number of samples of one reception that all of these nodes accept."""
    return min([LONGEST_CAPTURE, *(hello.longest_capture for hello in greetings if hello.longest_capture)])
