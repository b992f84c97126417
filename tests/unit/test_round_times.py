"""Where the time of rounds goes: what the coordinator adds up, and how it is divided."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from testbed.assess.pace import PARTS, divided, round_time
from testbed.coordinator.round_times import TimesOfRounds
from testbed.core.clock import VirtualClock
from testbed.net import messages as m
from testbed.records.documents import RoundTimes


def probe(first: int, n: int) -> m.Probe:
    return m.Probe(rounds=[m.RoundPlan(round=first + k, slots=[], margin_s=0.0, end_s=1.0) for k in range(n)])


def probed(first: int, n: int, air_s: float = 0.0, estimate_s: float = 0.0) -> m.Probed:
    rounds = [m.RoundResult(round=first + k, links=[]) for k in range(n)]
    return m.Probed(rounds=rounds, air_s=air_s, estimate_s=estimate_s)


def step(number: int, at: int) -> m.Step:
    return m.Step(round=number, step=at, action="silence", tx="alice", last=False)


class Bench:
    """The times of rounds on a clock that the test advances."""

    def __init__(self, interval_s: float = 0.0, takes_turns: bool = False) -> None:
        self.clock = VirtualClock(100.0)
        self.times = TimesOfRounds(interval_s, takes_turns, self.clock.now_s)

    def wait(self, s: float) -> None:
        self.clock.advance(self.clock.now_s() + s)

    def order(self, body: Any, *nodes: str, after_s: float = 0.0) -> None:
        self.times.begin_event()
        self.wait(after_s)
        for node in nodes:
            self.times.sent(node, body)

    def train(self, first: int, n: int, air_s: float, estimate_s: float, took_s: float, order_s: float = 0.0) -> None:
        """Order a train, let Bob report it last and Alice before him, and record it."""
        self.order(probe(first, n), "alice", "bob", after_s=order_s)
        self.wait(took_s)
        self.times.heard("alice", probed(first, n, 0.1 * air_s, 0.1 * estimate_s))
        self.times.heard("bob", probed(first, n, air_s, estimate_s))
        self.times.over(first + n - 1)

    def sums(self) -> RoundTimes:
        sums = self.times.sums()
        assert sums is not None
        return sums


def test_a_train_alone_is_divided_by_what_its_last_node_and_the_coordinator_measured() -> None:
    bench = Bench()
    bench.order(probe(0, 4), "alice", "bob", after_s=0.01)
    bench.wait(0.20)
    bench.times.heard("alice", probed(0, 4, 0.05, 0.01))
    bench.times.heard("bob", probed(0, 4, 0.12, 0.04))
    with bench.times.writing():
        for _ in range(4):
            with bench.times.writing():
                bench.wait(0.01)
    bench.times.over(3)
    found = divided(bench.sums())
    assert found.rounds == 4
    assert found.mean_s == pytest.approx(0.25 / 4)
    expected = {"order": 0.01, "air": 0.12, "estimate": 0.04, "journal": 0.04, "message": 0.04}
    for name, took_s in expected.items():
        assert getattr(found, name).time_s == pytest.approx(took_s / 4), name
        assert getattr(found, name).beside_s == 0.0


def test_trains_that_overlap_count_once() -> None:
    """Train 1 is ordered while train 0 is on the air: it adds the time from the record of one to that of the other."""
    bench = Bench()
    bench.order(probe(0, 10), "alice", after_s=0.1)
    bench.order(probe(10, 10), "alice", after_s=0.1)
    bench.wait(0.8)
    bench.times.heard("alice", probed(0, 10, 0.9, 0.3))
    bench.times.over(9)
    assert bench.sums().total_s == pytest.approx(1.0)
    bench.wait(0.6)
    bench.times.heard("alice", probed(10, 10, 0.7, 0.3))
    bench.times.over(19)
    assert bench.sums().total_s == pytest.approx(1.6)
    found = divided(bench.sums())
    assert found.air.time_s == pytest.approx(1.6 / 20)
    assert [getattr(found, name).time_s for name in ("estimate", "order", "journal")] == [0.0, 0.0, 0.0]
    assert found.estimate.beside_s == pytest.approx(0.6 / 20)
    assert found.order.beside_s == pytest.approx(0.2 / 20)


@pytest.mark.parametrize(
    "sums",
    [
        RoundTimes(rounds=3, total_s=1.0, order_s=0.2, air_s=0.3, estimate_s=0.1, journal_s=0.1),
        RoundTimes(rounds=7, total_s=1.0, order_s=0.4, air_s=0.5, estimate_s=0.3, journal_s=0.2),
        RoundTimes(rounds=1, total_s=1.0, air_s=5.0, estimate_s=1e6),
        RoundTimes(rounds=1, total_s=0.0, journal_s=1.0),
    ],
)
def test_the_parts_add_up_and_nothing_that_was_measured_is_left_out(sums: RoundTimes) -> None:
    found = divided(sums)
    assert sum(getattr(found, name).time_s for name in PARTS) == pytest.approx(found.mean_s)
    assert min(getattr(found, name).time_s for name in PARTS) >= 0.0
    for name in ("order", "air", "estimate", "journal"):
        part = getattr(found, name)
        assert part.time_s + part.beside_s == pytest.approx(getattr(sums, f"{name}_s") / sums.rounds)
        assert part.beside_s >= 0.0


def test_in_one_process_the_times_of_all_nodes_add_up() -> None:
    bench = Bench(takes_turns=True)
    bench.train(0, 2, air_s=0.2, estimate_s=0.1, took_s=1.0)
    assert bench.sums().air_s == pytest.approx(0.22)
    assert bench.sums().estimate_s == pytest.approx(0.11)


def test_of_a_round_in_steps_the_last_node_of_each_step_counts() -> None:
    bench = Bench()
    bench.order(step(5, 0), "alice", after_s=0.05)
    bench.wait(0.1)
    bench.times.heard("alice", m.Stepped(round=5, step=0, air_s=0.08))
    bench.order(step(5, 1), "bob", "eve", after_s=0.05)
    bench.wait(0.3)
    bench.times.heard("bob", m.Stepped(round=5, step=1, air_s=0.3))
    bench.times.heard("eve", m.Stepped(round=5, step=1, air_s=0.2))
    for node, took_s in (("bob", 0.03), ("alice", 0.01), ("eve", 0.02)):
        bench.times.heard(node, probed(5, 1, estimate_s=took_s))
    bench.times.over(5)
    sums = bench.sums()
    assert sums.rounds == 1
    assert (sums.air_s, sums.estimate_s) == (pytest.approx(0.28), pytest.approx(0.02))
    assert sums.order_s == pytest.approx(0.05)  # that of the first step; the others are ordered within the round


def test_the_preparation_of_the_surface_belongs_to_the_order() -> None:
    bench = Bench()
    applied = m.Apply(round=0, levels=b"\0", shape=(1, 1), phase_bits=1)
    for first in (m.ReadSurface(round=0), applied):
        bench.order(first, "ris", after_s=0.1)
        bench.wait(0.2)
    bench.train(0, 1, air_s=0.1, estimate_s=0.1, took_s=0.3, order_s=0.1)
    assert bench.sums().order_s == pytest.approx(0.7)
    assert bench.sums().total_s == pytest.approx(1.0)


def test_a_report_in_parts_counts_once_and_the_train_waits_for_the_last_part() -> None:
    bench = Bench()
    bench.order(probe(0, 4), "alice")
    bench.wait(1.0)
    bench.times.heard("alice", probed(0, 2))
    bench.times.over(1)
    assert bench.times.sums() is None
    bench.times.heard("alice", probed(2, 2, 0.3, 0.2))
    bench.times.over(3)
    assert (bench.sums().air_s, bench.sums().estimate_s, bench.sums().rounds) == (0.3, 0.2, 4)


def test_a_train_that_a_node_left_unanswered_is_left_out() -> None:
    bench = Bench()
    bench.order(probe(0, 4), "alice", "bob")
    bench.times.heard("alice", probed(0, 4, 0.1, 0.1))
    bench.wait(30.0)
    bench.times.over(3)
    assert bench.times.sums() is None
    bench.train(4, 4, air_s=0.2, estimate_s=0.1, took_s=0.5)
    assert bench.sums().total_s == pytest.approx(0.5)


def test_what_others_say_of_a_train_does_not_count() -> None:
    bench = Bench()
    bench.order(probe(0, 4), "alice")
    bench.wait(1.0)
    bench.times.heard("alice", probed(0, 4, 0.1, 0.1))
    bench.times.heard("ris", probed(0, 4, 0.9, 0.9))
    bench.times.heard("alice", probed(70, 4, 0.9, 0.9))
    bench.times.heard("alice", m.Stepped(round=70, step=1, air_s=0.9))
    bench.times.over(3)
    assert (bench.sums().air_s, bench.sums().estimate_s) == (0.1, 0.1)


def test_a_node_cannot_have_taken_longer_than_the_train() -> None:
    bench = Bench()
    bench.train(0, 1, air_s=1e6, estimate_s=1e6, took_s=2.0)
    assert bench.sums().air_s == bench.sums().estimate_s == pytest.approx(2.0)


@pytest.mark.parametrize(("interval_s", "pause_s", "waits_s"), [(0.0, 5.0, 0.0), (2.0, 5.0, 5.0), (2.0, 50.0, 8.0)])
def test_on_the_wall_clock_the_time_before_the_order_is_the_airs(
    interval_s: float, pause_s: float, waits_s: float
) -> None:
    """Four rounds every 2 s: they cannot be ordered before their time. A pause of the run is longer than that."""
    bench = Bench(interval_s)
    bench.train(0, 4, air_s=0.1, estimate_s=0.1, took_s=0.5)
    bench.wait(pause_s)
    bench.train(4, 4, air_s=0.1, estimate_s=0.1, took_s=0.5)
    assert bench.sums().total_s == pytest.approx(1.0 + waits_s)
    assert bench.sums().air_s == pytest.approx(0.2 + waits_s)


def test_the_time_of_a_block_does_not_count() -> None:
    bench = Bench(2.0)
    bench.train(0, 4, air_s=0.1, estimate_s=0.1, took_s=0.5)
    bench.times.interrupt()
    bench.wait(5.0)
    bench.train(4, 4, air_s=0.1, estimate_s=0.1, took_s=0.5)
    assert bench.sums().total_s == pytest.approx(1.0)


def test_orders_that_come_to_nothing_do_not_fill_the_memory() -> None:
    bench = Bench()
    for number in range(1000):
        bench.order(m.ApplyNext(round=number), "ris")
    assert len(bench.times._trains) <= 8
    bench.train(1000, 4, air_s=0.1, estimate_s=0.1, took_s=0.5)
    assert bench.times._trains == {}
    assert bench.sums().rounds == 4


def run_of(*told: dict[str, Any]) -> Any:
    events = [SimpleNamespace(kind="round_times", data=data) for data in told]
    return SimpleNamespace(events=[SimpleNamespace(kind="ready", data={}), *events])


def test_a_run_without_them_has_none_and_a_resumed_one_has_the_last() -> None:
    assert round_time(run_of()) is None
    assert round_time(run_of({"rounds": 0})) is None
    found = round_time(run_of({"rounds": 1, "total_s": 5.0}, {"rounds": 2, "total_s": 3.0, "air_s": 1.0}))
    assert found is not None
    assert (found.mean_s, found.air.time_s, found.message.time_s) == (1.5, 0.5, 1.0)


@pytest.mark.parametrize("told", [{"rounds": -1}, {"rounds": 1, "air_s": -1.0}, {"rounds": 1, "total_s": "long"}])
def test_a_damaged_record_of_them_is_refused(told: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Expected"):
        round_time(run_of(told))


def test_the_two_slots_of_rounds_in_steps_are_as_far_apart_as_their_captures() -> None:
    """In a train of four: both captures end when the last of their nodes reports, and steps of another kind say
    nothing."""
    bench = Bench()
    steps = [(0, "transmit", ["alice"]), (1, "receive", ["bob", "eve"]), (2, "silence", ["alice"])]
    steps += [(3, "receive", ["alice", "eve"]), (4, "silence", ["bob"])]
    for at, action, nodes in steps:
        body = m.Step(round=8, rounds=4, step=at, action=action, tx="alice", last=at > 2)  # type: ignore[arg-type]
        bench.order(body, *nodes)
        for node in nodes:
            bench.wait(0.5)
            bench.times.heard(node, m.Stepped(round=8, step=at))
    assert bench.times._trains[8].last == 11
    for node in ("alice", "bob", "eve"):
        bench.times.heard(node, probed(8, 4))
    bench.times.over(11)
    assert (bench.sums().rounds, bench.sums().apart_s) == (4, pytest.approx(4 * 1.5))
    bench.train(12, 4, air_s=0.1, estimate_s=0.1, took_s=1.0)
    assert bench.sums().apart_s == pytest.approx(4 * 1.5)
