"""What the surface holds, what it was ordered to hold, and which rounds depend on it. Pure.

    unknown ──order──► ordered ──acknowledged──► held ──read back, as acknowledged──► held
       ▲                  │                       │ read back otherwise, lost, changed unasked
       └──────────────────┴───────────────────────┘

A pattern that is held over many rounds is read back from time to time, and always before the rounds under it are used:
boards restart without reporting it. Until then those rounds are unconfirmed and may have to be withdrawn.
States of the surface are only compared by name here. Where the surface's node draws secret patterns, it acknowledges
opaque numbers: such a number takes the place of the digest, and an order asks for the next pattern instead of stating
levels. All rounds of a train are `count`ed under one state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from testbed.coordinator.events import Effect, NewPattern, Note, RunFails, Send
from testbed.coordinator.roster import Node, Roster
from testbed.core import registry, seeds
from testbed.core.config import Experiment
from testbed.core.errors import InputError
from testbed.core.machine import Deadlines, EventClock, Story
from testbed.core.schedule import MAX_TRAIN
from testbed.core.stages import SurfacePolicy
from testbed.core.types import C64, SurfacePattern
from testbed.net import messages as m
from testbed.surface.line_of_sight import LineOfSight

MAX_FAILURES = 3
"""Orders in a row that the surface may refuse or leave unanswered before the run ends."""
SURFACE_SETTLE_S = 10e-6
"""Time between a pattern's latch and the first probe under it."""
_SCHEDULE_BYTES = 1 << 22
"""Largest number of levels in all patterns of one train, which are sent in one message."""
SURFACE_CHECK_ROUNDS = 50
"""A pattern that is held is read back after this many rounds, and before the rounds are used."""

_ACKNOWLEDGEMENT = "the surface's acknowledgement"
_READING = "the surface's pattern, read back"


class SurfaceKeeper(Deadlines):
    """Asks the policy for patterns, orders them, and knows up to which round the surface certainly held them."""

    def __init__(
        self, experiment: Experiment, roster: Roster, operation_timeout_s: float, clock: EventClock, story: Story
    ) -> None:
        super().__init__(clock)
        self._experiment, self._roster, self._timeout_s, self._story = experiment, roster, operation_timeout_s, story
        plan = experiment.surface
        self.policy: SurfacePolicy | None = None
        """None where the experiment has no surface: then nothing is ever ordered or waited for."""
        if plan.policy != "none":
            self.policy = registry.make_stage("policy", plan.policy, plan.options)
        self.pattern: SurfacePattern | None = None
        """The pattern that the policy wants in the round for which it was asked last."""
        self.held: str | None = None
        """Digest of the pattern that the surface holds; None while that is unknown, or is not what the policy wants."""
        self.unconfirmed: list[int] = []
        """Rounds ordered since the surface acknowledged its pattern, or since it was read back; ascending."""
        self._acknowledged: str | None = None
        self._latched_s = 0.0
        """Time of its acknowledgement, on the reference timeline."""
        self._order_round: int | None = None
        """Round of the order that is to be acknowledged."""
        self._reading_round: int | None = None
        """Round of the order to read the pattern back that awaits its answer."""
        self._failures = 0
        """Orders in a row that were refused or left unanswered."""
        self._asked_round = -1
        """Round for which the policy was asked last."""
        self.is_secret = plan.policy != "none" and plan.is_secret
        """Whether the surface's node draws the patterns; here they are opaque numbers."""
        self._group: int | None = None
        """Number of the group of rounds that are measured under the present secret pattern."""
        self._in_round: dict[int, str] = {}
        """Round → name of the state that it was ordered under, until its block is distilled."""
        self._scheduled: dict[int, SurfacePattern] = {}
        """Round → public pattern, of the latest schedule."""
        self._numbers: dict[str, int] = {}
        """Name of a state → its opaque number."""
        self._patterns: dict[str, SurfacePattern] = {}
        """Public patterns by name, as long as rounds under them wait to be distilled."""
        self._observed: list[tuple[int, dict[str, C64]]] = []
        """In a resumed run: the rounds that its policy had observed, until the policy is asked for the next pattern."""

    def go_on(
        self, states: dict[int, str], patterns: dict[str, SurfacePattern], observed: list[tuple[int, dict[str, C64]]]
    ) -> None:
        """Continue a run that is resumed. `states`: name of the surface's state by round; `patterns`: public patterns
        by name; `observed`: the measurements of every round, where the policy learns from them.
        """
        self._in_round = dict(states)
        self._patterns = {name: patterns[name] for name in set(states.values()) if name in patterns}
        self._observed = observed

    # -- what the policy wants

    @property
    def is_changing(self) -> bool:
        """Whether the pattern may differ from round to round."""
        return self.policy is not None and self.policy.changes

    @property
    def watches(self) -> bool:
        """Whether the policy must get the result of every earlier round before it chooses the next pattern."""
        return self.policy is not None and self.policy.watches

    @property
    def is_search(self) -> bool:
        """Whether the run serves only the policy's search: it ends when the search does, and makes no key."""
        return self.policy is not None and self.policy.search_only

    @property
    def search_is_done(self) -> bool:
        return self.policy is not None and self.policy.search_only and self.policy.done

    def observe(self, number: int, links: dict[str, C64]) -> None:
        """Pass the measurements of a round to a policy that learns from them; `links` is empty for a rejected round."""
        if self.policy is not None and self.policy.watches:
            self.policy.observe(number, links)

    def observe_unprobed(self, number: int) -> None:
        """Report to the policy that a round could not begin."""
        if self.policy is not None:
            self.policy.observe(number, {})

    def choose(self, number: int) -> str | None:
        """Ask the policy, once a round, for the surface's pattern. Returns None, or why the policy gives none."""
        policy, ris = self.policy, self._roster.by_role("ris")
        assert policy is not None
        assert ris is not None
        if self._asked_round == number:
            return None
        try:
            self._begin_policy(policy, ris)
            if self.is_secret:
                self._asked_round = number
                if policy.group(number) != self._group:
                    self._group, self.held = policy.group(number), None
                return None
            wanted = policy.pattern_for(number)
        except InputError as exc:
            return f"surface policy {self._experiment.surface.policy!r}: {exc}"
        self._asked_round = number
        if self.pattern is None or wanted.digest != self.pattern.digest:
            self.pattern, self.held = wanted, None
        return None

    def _live_through_the_past(self, policy: SurfacePolicy) -> None:
        """Repeat the earlier choices and observations of a policy that learns, so that it continues where it was."""
        for number, links in self._observed:
            policy.pattern_for(number)
            policy.observe(number, links)
        self._observed = []

    def _begin_policy(self, policy: SurfacePolicy, ris: Node) -> None:
        """Pass scene and board to the policy, once; raises InputError where it cannot serve them."""
        if ris.hello is None or ris.hello.surface_shape is None:
            raise InputError(f"{ris.name}: this node's greeting does not describe its surface")
        if self._asked_round < 0:
            policy.survey(self._experiment.scene, self._experiment.radio.carrier_hz)
            policy.begin(ris.hello.surface_shape, ris.hello.phase_bits, seeds.derive(self._experiment.seed, "surface"))
            self._live_through_the_past(policy)

    # -- patterns that latch by time

    @property
    def is_scheduled(self) -> bool:
        """Whether the patterns of a train are sent ahead, and the board latches each at its time."""
        ris = self._roster.by_role("ris") if self.is_changing and not self.watches else None
        if ris is None or ris.hello is None or not self._roster.timed:
            return False
        return ris.hello.timed and ris.hello.schedule_size > 0

    def schedule(self, due_s: Mapping[int, float]) -> list[Effect]:
        """Order the patterns of a train: round → when its pattern latches, on the board's clock; rounds ascend."""
        ris = self._roster.by_role("ris")
        assert ris is not None
        assert self.policy is not None
        shape = (ris.hello.surface_shape if ris.hello else None) or (0, 0)
        bits = ris.hello.phase_bits if ris.hello else 1
        try:
            self._begin_policy(self.policy, ris)
            self._scheduled = {} if self.is_secret else {n: self.policy.pattern_for(n) for n in due_s}
        except InputError as exc:
            return [RunFails(f"surface policy {self._experiment.surface.policy!r}: {exc}")]
        self._order_round = min(due_s)
        self._asked_round = max(due_s)
        self.set_deadline(_ACKNOWLEDGEMENT, self._timeout_s)
        self._story.add("patterns ordered", rounds=due_s)
        plans = [
            m.PatternPlan(
                round=n, at_s=at_s, levels=self._scheduled[n].levels.tobytes() if n in self._scheduled else None
            )
            for n, at_s in due_s.items()
        ]  # fmt: skip
        new = {x.digest: x for x in self._scheduled.values()}
        return [
            *(NewPattern(pattern, digest) for digest, pattern in new.items()),
            Send(ris.name, m.Schedule(patterns=plans, shape=shape, phase_bits=bits)),
        ]

    def take_schedule(self, body: m.Scheduled) -> list[Effect]:
        """Take the acknowledgement of a train's patterns."""
        self._stop_waiting_for_acknowledgement()
        self._failures = 0
        self._story.add("patterns acknowledged", rounds=[x.round for x in body.patterns])
        out: list[Effect] = []
        recorded = self.is_secret and self._experiment.mode == "experiment"  # not in private mode, even if it is sent
        for x in body.patterns:
            self.unconfirmed.append(x.round)
            self._in_round[x.round] = x.digest
            if x.round in self._scheduled:
                self._patterns[x.digest] = self._scheduled[x.round]
            if recorded and x.levels is not None:
                levels = np.frombuffer(x.levels, np.uint8).reshape(body.shape)
                out.append(NewPattern(SurfacePattern(levels, body.phase_bits), x.digest))
        self.held = self._acknowledged = body.patterns[-1].digest
        return out

    def is_right(self, number: int, digest: str) -> bool:
        """Return whether a board will latch the ordered pattern in a round; a secret pattern cannot be checked here."""
        return number not in self._scheduled or self._scheduled[number].digest == digest

    # -- orders and acknowledgements

    @property
    def not_before_s(self) -> float:
        """Earliest start of a round under the present pattern, on the reference timeline."""
        return self._latched_s + SURFACE_SETTLE_S if self.held else 0.0

    @property
    def awaits_acknowledgement(self) -> bool:
        return self._order_round is not None

    @property
    def acknowledgement_is_late(self) -> bool:
        return self.is_overdue(_ACKNOWLEDGEMENT)

    def count(self, number: int) -> None:
        """Count a round that is ordered under the present pattern."""
        if self.policy is not None:
            self.unconfirmed.append(number)
        if self.held is not None:
            self._in_round[number] = self.held
            if self.pattern is not None:
                self._patterns[self.held] = self.pattern

    def record(self, rounds: Sequence[int]) -> m.SurfaceRecord | None:
        """Return the public part of the surface's states in a block's rounds, and drop these and all before them."""
        names = [self._in_round.get(r) for r in rounds]
        if self.policy is None or None in names:
            return None
        known = [name for name in names if name is not None]
        own = set(rounds)
        # Rounds of a training or of a failed block count, too: what was published of them helps Eve if a state recurs.
        others = {r: name for r, name in sorted(self._in_round.items()) if r <= rounds[-1] and r not in own}
        states, other_states = self._numbered(known), self._numbered(others.values())
        levels = None
        if not self.is_secret:
            levels = b"".join(self._patterns[name].levels.tobytes() for name in known)
        bits = self._patterns[known[0]].phase_bits if levels is not None else 1
        elements = 0
        ris = self._roster.by_role("ris")
        if self.is_secret and ris is not None and ris.hello is not None and ris.hello.surface_shape is not None:
            elements, bits = ris.hello.surface_shape[0] * ris.hello.surface_shape[1], ris.hello.phase_bits
        responses = None if levels is None else self._responses(known)
        self._in_round = {r: name for r, name in self._in_round.items() if r > rounds[-1]}
        used = {*self._in_round.values(), self.held}
        self._patterns = {name: p for name, p in self._patterns.items() if name in used}
        return m.SurfaceRecord(
            states=states, levels=levels, phase_bits=bits, responses=responses, elements=elements,
            other_rounds=tuple(others), other_states=other_states,
        )  # fmt: skip

    def _numbered(self, names: Iterable[str]) -> tuple[int, ...]:
        return tuple(self._numbers.setdefault(name, len(self._numbers)) for name in names)

    def _responses(self, names: Sequence[str]) -> bytes | None:
        """Return the surface's responses by the scene's geometry; None where the scene does not give it."""
        e = self._experiment
        try:
            link = LineOfSight.of(e.scene, e.radio.carrier_hz, self._patterns[names[0]].levels.shape)
            by_name = {name: link.response(self._patterns[name], direct=0.0) for name in set(names)}
        except InputError:
            return None
        largest = max(abs(h) for h in by_name.values()) or 1.0
        return np.array([by_name[name] / largest for name in names], "<c8").tobytes()

    def order(self, number: int) -> list[Effect]:
        """Order the pattern that the policy wants in this round."""
        ris = self._roster.by_role("ris")
        assert ris is not None
        assert ris.hello is not None
        assert ris.hello.surface_shape is not None
        self.unconfirmed.clear()
        self._order_round = number
        self.set_deadline(_ACKNOWLEDGEMENT, self._timeout_s)
        if self.is_secret:
            self._story.add("secret pattern ordered", round=number)
            return [Send(ris.name, m.ApplyNext(round=number))]
        assert self.pattern is not None
        self._story.add("pattern ordered", round=number, pattern=self.pattern.digest)
        body = m.Apply(
            round=number, levels=self.pattern.levels.tobytes(), shape=ris.hello.surface_shape,
            phase_bits=ris.hello.phase_bits,
        )  # fmt: skip
        return [NewPattern(self.pattern, self.pattern.digest), Send(ris.name, body)]

    def is_answer(self, body: m.Applied | m.Scheduled) -> bool:
        """Return whether an acknowledgement is the awaited one.

        An answer to an order that was given up means that the outputs hold another pattern than was assumed.
        """
        return self._order_round is not None and body.round == self._order_round

    def acknowledge(self, body: m.Applied, latched_s: float) -> list[Effect]:
        """Take an acknowledgement; `latched_s` is its time on the reference timeline."""
        if not self.is_answer(body):
            self.held = None
            return self.unexpected(body)
        self._stop_waiting_for_acknowledgement()
        self._failures = 0
        self.held, self._latched_s, self._acknowledged = body.digest, latched_s, body.digest
        self._story.add("pattern acknowledged", round=body.round, pattern=body.digest)
        # In private mode the levels are not recorded, even if a node sends them.
        recorded = self.is_secret and self._experiment.mode == "experiment"
        if body.levels is None or not recorded or len(body.levels) != body.shape[0] * body.shape[1]:
            return []
        levels = np.frombuffer(body.levels, np.uint8).reshape(body.shape)
        return [NewPattern(SurfacePattern(levels, body.phase_bits), body.digest)]

    def fail(self) -> bool:
        """Count an order that was refused or left unanswered; returns whether there were too many in a row."""
        self._stop_waiting_for_acknowledgement()
        self._failures += 1
        return self._failures >= MAX_FAILURES

    def _stop_waiting_for_acknowledgement(self) -> None:
        self._order_round = None
        self.clear_deadline(_ACKNOWLEDGEMENT)

    @staticmethod
    def unexpected(body: m.Applied | m.Scheduled | m.SurfaceHeld) -> list[Effect]:
        digest = body.patterns[-1].digest if isinstance(body, m.Scheduled) else body.digest
        return [Note("unexpected_pattern", {"digest": digest, "round": body.round})]

    # -- reading back

    @property
    def is_read_back(self) -> bool:
        """Whether the pattern is being read back now; no round is ordered meanwhile."""
        return self._reading_round is not None

    @property
    def reading_is_late(self) -> bool:
        return self.is_overdue(_READING)

    @property
    def must_be_read_back(self) -> bool:
        """Whether the pattern must be read back now, because many rounds depend on it or because it is to change.

        A pattern that is used in one round only was acknowledged just before that round and is not read back.
        """
        return len(self.unconfirmed) >= (SURFACE_CHECK_ROUNDS if self.held is not None else 2)

    @property
    def room_for_train(self) -> int:
        """How many rounds may be ordered at once under the present state of the surface."""
        if self.policy is None:
            return MAX_TRAIN
        ris = self._roster.by_role("ris")
        if self.is_scheduled and ris is not None and ris.hello is not None:
            elements = math.prod(ris.hello.surface_shape or (1, 1))
            return max(1, min(MAX_TRAIN, ris.hello.schedule_size, _SCHEDULE_BYTES // max(1, elements)))
        if self.policy.changes or self.policy.watches:
            return 1
        return max(1, SURFACE_CHECK_ROUNDS - len(self.unconfirmed))

    @property
    def must_be_read_back_before_use(self) -> bool:
        """Whether rounds that are about to be used depend on the pattern."""
        return len(self.unconfirmed) > 1

    def read_back(self, number: int) -> list[Effect] | None:
        """Order the pattern to be read back before round `number`; None where the surface's node is lost."""
        ris = self._roster.by_role("ris")
        if ris is None or not ris.alive:
            return None
        self._reading_round = number
        self.set_deadline(_READING, self._timeout_s)
        self._story.add("pattern read back", rounds=self.unconfirmed)
        return [Send(ris.name, m.ReadSurface(round=number))]

    def is_reading(self, body: m.SurfaceHeld) -> bool:
        """Return whether this reading is the awaited one."""
        return self._reading_round is not None and body.round == self._reading_round

    def confirm(self, body: m.SurfaceHeld) -> bool:
        """Take a reading; False where the surface holds another pattern than it acknowledged."""
        if body.digest != self._acknowledged:
            return False
        self._stop_reading()
        self._story.add("pattern confirmed", rounds=self.unconfirmed, pattern=body.digest)
        self.unconfirmed.clear()
        return True

    def withdraw(self) -> list[int]:
        """Return the rounds since the surface was last known to hold its pattern, ascending: they are not confirmed.

        The pattern is ordered again before the next round.
        """
        suspects, self.unconfirmed = self.unconfirmed, []
        self._stop_reading()
        self.held = None
        return suspects

    def lose(self) -> None:
        """The surface's node is lost: none of its orders is answered any more."""
        self._stop_waiting_for_acknowledgement()
        self._stop_reading()
        self.held = None

    def _stop_reading(self) -> None:
        self._reading_round = None
        self.clear_deadline(_READING)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.is_read_back and self.awaits_acknowledgement:
            yield "the surface is read back while it is to change"
        if self.is_read_back != self.has_deadline(_READING):
            yield "the surface's reading and its deadline do not go together"
        if self.awaits_acknowledgement != self.has_deadline(_ACKNOWLEDGEMENT):
            yield "the surface's order and its deadline do not go together"
        if self.is_read_back and not self.unconfirmed:
            yield "the surface is read back although no round counts on it"
        if self.held is not None and self.held != self._acknowledged:
            yield f"the surface should hold {self.held}, but acknowledged {self._acknowledged}"
        if any(later <= earlier for earlier, later in pairwise(self.unconfirmed)):
            yield "the rounds that count on the pattern are out of order"
        if self.policy is None and (self.pattern is not None or self.unconfirmed):
            yield "there is no surface, but rounds count on its pattern"
