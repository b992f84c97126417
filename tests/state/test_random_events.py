"""Nodes that do anything at any time: the coordinator still ends in order and counts every round once.

Every event is followed by a check of the invariants (conftest). Seeds are fixed, so that a failure can be repeated.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from test_coordinator import LAB, Stage

from testbed.coordinator import events as e
from testbed.core.outcomes import TrainReport
from testbed.net import messages as m

RADIOS = ("alice", "bob", "eve")
SURFACES: tuple[dict[str, Any], ...] = (
    {"policy": "none"},
    {"policy": "fixed"},
    {"policy": "random"},
    {"policy": "random", "secret": False},
    {"policy": "sweep", "options": {"codebook": ["uniform", "stripes(1)", "hadamard(3)"], "dwell": 3}},
    {"policy": "closed_loop", "options": {"search": "random_search", "confirm": 2}},
)
MOST_STEPS = 5000


class Chaos(Stage):
    """Answers late, out of order between nodes, twice, wrongly or not at all; nodes die, come back, and fall silent."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.trouble = self.rng.choice([0.0, 0.01, 0.05, 0.2])
        self.timed = self.rng.random() < 0.7
        self.schedule_size = self.rng.choice([0, 0, 4, 100])
        self.waiting: list[e.Event] = []
        self.up: set[str] = set()
        self.sent: list[e.Send] = []
        pace = self.rng.choice(["virtual", "virtual", "wall", None])
        super().__init__(
            lab={**LAB, "world": {"pace": pace} if pace else None},
            rounds=self.rng.choice([1, 7, 40, 200]),
            probing={"train": self.rng.choice([0, 1, 5]), "interval_s": self.rng.choice([0.002, 0.05])},
            surface=self.rng.choice(SURFACES),
            accounting={"block_rounds": self.rng.choice([1, 3, 1000])},
            training=self.rng.choice([{}, {}, {"rounds": 4, "guard_rounds": 2}]),
            beams=self.rng.choice([{}, {}, {"policy": "svd", "sound_every": 3}]) if self.timed else {},
        )

    def take(self, event: e.Event) -> None:
        for x in self.state.handle(event):
            match x:
                case e.Send(node, body):
                    self.sent.append(x)
                    self.answer(node, body)
                case e.RoundOver():
                    self.rounds.append(x)
                case e.BlockOver():
                    self.blocks.append(x)
                case e.RunOver():
                    assert self.over is None
                    self.over = x

    def greet(self, name: str) -> None:
        self.up.add(name)
        radio = name in RADIOS
        surface: dict[str, Any] = {} if radio else {"surface_shape": (2, 2), "phase_bits": 1}
        if not radio and self.schedule_size:
            surface |= {"schedule_size": self.schedule_size, "latency_s": 1e-3}
        hello = m.Hello(role=name, identity={}, pid=1, timed=self.timed or not radio, **surface)  # type: ignore[arg-type]
        self.waiting.append(self.says(name, hello))

    def answer(self, node: str, body: Any) -> None:
        if node not in self.up or self.rng.random() < self.trouble / 2:
            return
        if isinstance(body, m.Distil) and body.purpose == "training":
            answers: list[Any] = [m.Trained(report=self.trained(body.block), public_messages=3)]
        elif isinstance(body, m.Step):
            answers = [m.Stepped(round=body.round, step=body.step)]
            numbers = range(body.round, body.round + body.rounds)
            answers += [self.measured(node, *numbers)] if body.last else []
        elif isinstance(body, m.Probe):
            answers = [m.Captured(round=body.round), self.measured(node, *(plan.round for plan in body.rounds))]
        else:
            answers = self.usual(node, body)
        if self.rng.random() < self.trouble / 4 and not isinstance(body, m.Configure | m.ReadClock | m.Finish):
            answers = [m.Failed(operation=type(body).__name__.lower(), state="at work", detail="broken")]
        for x in answers:
            repeats = 2 if self.rng.random() < self.trouble / 4 else 1
            self.waiting += [self.says(node, x)] * repeats

    def measured(self, node: str, *numbers: int) -> m.Probed:
        return m.Probed(rounds=[self.result(node, number) for number in numbers])

    def result(self, node: str, number: int) -> m.RoundResult:
        links = []
        for tx in RADIOS[:2]:
            if tx != node:
                reason = self.rng.choice(["low_snr", "no_preamble"]) if self.rng.random() < self.trouble else None
                links.append(m.LinkResult(tx=tx, reason=reason, timing_error_s=self.rng.gauss(0.0, 1e-7), snr_db=20.0))
        fault = "device" if self.rng.random() < self.trouble / 4 else None
        return m.RoundResult(round=number, links=links, fault=fault)

    def trained(self, block: int) -> Any:
        failure = "torn" if self.rng.random() < self.trouble else None
        return TrainReport(block=block, probes=4, model="m", public_bytes=1, messages=3, failure=failure)

    def step(self) -> None:
        """Deliver a message, let something go wrong, or let time pass."""
        chance = self.rng.random()
        if self.waiting and chance < 0.9:
            first: dict[str, int] = {}
            for i, event in enumerate(self.waiting):  # messages of one node keep their order
                first.setdefault(event.node, i)  # type: ignore[union-attr]
            self.take(self.waiting.pop(self.rng.choice(list(first.values()))))
        elif chance < 0.9 + 0.1 * self.trouble:
            self.go_wrong(self.rng.choice(list(self.state.nodes)))
        else:
            self.pass_time()

    def go_wrong(self, name: str) -> None:
        match self.rng.randrange(6):
            case 0:
                self.up.discard(name)
                self.take(e.ProcessEnded(name, "killed"))
            case 1 | 2:
                self.lives[name] += 1
                self.greet(name)
            case 3:
                self.up.discard(name)
            case 4:
                stray = [m.Applied(round=3, digest="x", device_time_s=0.0), m.KeyGuessed(block=0, digest=None)]
                self.take(self.says(name, self.rng.choice(stray)))
            case 5:
                self.now_s += self.rng.choice([2.0, 100.0])
                if self.rng.random() < 0.3:
                    self.take(e.PauseAsked(True))
                elif self.rng.random() < 0.2:
                    self.take(e.StopAsked(self.rng.choice(["stop", "abort", "halt"])))

    def pass_time(self) -> None:
        if self.rng.random() < 0.3:  # whoever pauses a run goes on with it, sooner or later
            self.take(e.PauseAsked(False))
        self.now_s += self.rng.choice([0.1, 0.5, 0.9])
        for name in self.up:
            self.take(self.says(name, m.Heartbeat(state="ready")))
        self.take(e.Tick(self.now_s))

    def play(self) -> None:
        for name in self.state.nodes:
            self.greet(name)
        for _ in range(MOST_STEPS):
            if self.over is not None:
                return
            self.step()
        pytest.fail("the run has no end:\n" + "\n".join(self.state.story()[-20:]))


@pytest.mark.parametrize("seed", range(50))
def test_whatever_happens_the_run_ends_and_every_round_is_counted_once(seed: int, checked: list[int]) -> None:
    stage = Chaos(seed)
    stage.play()
    state = stage.state
    assert checked[0] > 5
    assert stage.state.phase == "over"
    last_word = {r.round: r for r in stage.rounds}
    assert sorted(last_word) == list(range(state.probed))
    assert sum(r.kept for r in last_word.values()) == state.kept
    assert Counter(r.reason for r in last_word.values() if not r.kept) == state.rejected
    used = Counter(n for x in stage.sent if isinstance(x.body, m.Distil) and x.node == "alice" for n in x.body.rounds)
    assert max(used.values(), default=1) == 1
    assert all(last_word[n].kept for n in used)
    finish = next((i for i, x in enumerate(stage.sent) if isinstance(x.body, m.Finish)), len(stage.sent))
    work = m.Probe | m.Step | m.Apply | m.ApplyNext | m.Schedule | m.Distil | m.Amplify | m.Attack
    assert not any(isinstance(x.body, work) for x in stage.sent[finish:])


def test_the_seeds_above_come_to_every_kind_of_end() -> None:
    ends = Counter()
    for seed in range(50):
        stage = Chaos(seed)
        stage.play()
        assert stage.over is not None
        ends[stage.over.status] += 1
    assert ends.keys() == {"finished", "stopped", "failed"}
