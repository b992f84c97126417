"""What state machines share: forgiven time, deadlines, a table of phases, invariants, a story."""

from __future__ import annotations

import math

import pytest

from testbed.core import machine


class Counter3:
    """A machine that must never count to three."""

    def __init__(self) -> None:
        self.clock = machine.EventClock()
        self._story = machine.Story(self.clock)
        self.n = 0

    def handle(self, event: int) -> list[int]:
        self.n += event
        self._story.add("counted", round=self.n)
        return [self.n]

    def check(self) -> None:
        machine.require("counter", (f"{self.n} is three" for _ in range(self.n == 3)))

    def story(self) -> list[str]:
        return self._story.tell()


def test_deadlines_pass_and_can_be_cleared() -> None:
    clock = machine.EventClock()
    waits = machine.Deadlines(clock)
    waits.set_deadline("bread", 2.0)
    waits.set_deadline("milk", 5.0)
    clock.advance(2.0)
    assert not waits.is_overdue("bread")
    clock.advance(2.5)
    assert waits.is_overdue("bread")
    assert waits.overdue_s("bread") == 0.5
    assert waits.overdue_s("milk") == -2.5
    waits.clear_deadline("bread")
    assert not waits.is_overdue("bread")
    assert not waits.has_deadline("bread")
    assert waits.has_deadline("milk")
    assert not waits.is_overdue("eggs")


def test_time_that_this_process_slept_through_is_forgiven_to_every_deadline() -> None:
    clock = machine.EventClock(own_pause_s=1.0)
    clock.advance(5000.0)  # the first event sets the time, and is no suspension
    early, late = machine.Deadlines(clock), machine.Deadlines(clock)
    early.set_deadline("x", 2.0)
    clock.advance(5000.9)
    late.set_deadline("x", 2.0)
    clock.advance(5100.9)
    assert clock.now_s == 5100.9
    assert early.overdue_s("x") == pytest.approx(-1.1)
    assert late.overdue_s("x") == pytest.approx(-2.0)
    for _ in range(3):
        clock.advance(clock.now_s + 0.9)
    assert early.is_overdue("x")
    assert late.is_overdue("x")


def test_a_clock_without_a_pause_of_its_own_forgives_nothing() -> None:
    clock = machine.EventClock()
    clock.advance(0.0)
    waits = machine.Deadlines(clock)
    waits.set_deadline("x", 2.0)
    clock.advance(1e6)
    assert waits.is_overdue("x")


def test_a_deadline_that_is_no_number_is_a_problem() -> None:
    waits = machine.Deadlines(machine.EventClock())
    waits.set_deadline("x", math.nan)
    assert list(waits.problems()) == ["the deadline for x is nan"]


def test_phases_follow_their_table_and_nothing_else() -> None:
    story = machine.Story(machine.EventClock())
    phases = machine.Phases({"a": {"b": "it is time"}, "b": {"b": "again"}}, "a", story, "light", block=4)
    phases.enter("b")
    phases.enter("b")
    assert phases.now == "b"
    with pytest.raises(machine.InvariantError, match="none from 'b' to 'a'"):
        phases.enter("a")
    assert story.tell(block=4) == ["       0.000 s  light a → b, block 4, why: it is time"]


def test_a_story_is_given_by_round_block_or_node_and_drops_the_oldest() -> None:
    clock = machine.EventClock()
    story = machine.Story(clock, size=3)
    story.add("ordered", round=1, node="alice")
    story.add("ordered", round=2)
    clock.advance(1.5)
    story.add("opened", rounds=[1, 2], block=0)
    assert story.tell(round=2) == ["       0.000 s  ordered, round 2", "       1.500 s  opened, rounds 1 to 2, block 0"]
    assert story.tell(block=0) == ["       1.500 s  opened, rounds 1 to 2, block 0"]
    assert story.tell(node="alice") == ["       0.000 s  ordered, round 1, node alice"]
    story.add("closed", block=0)
    assert story.tell(node="alice") == []
    assert len(story.tell()) == 3


def test_every_problem_is_named_in_one_line() -> None:
    machine.require("lamp", [])
    with pytest.raises(machine.InvariantError, match=r"^lamp: it is dark; it is cold$"):
        machine.require("lamp", ["it is dark", "it is cold"])


def test_daemons_check_where_the_environment_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(machine.CHECK_VARIABLE, "0")
    unchecked = machine.handler_of(Counter3())
    assert [unchecked(1) for _ in range(4)] == [[1], [2], [3], [4]]
    monkeypatch.setenv(machine.CHECK_VARIABLE, "1")
    checked = machine.handler_of(Counter3())
    assert [checked(1), checked(1)] == [[1], [2]]
    with pytest.raises(machine.InvariantError, match="3 is three") as failed:
        checked(1)
    assert failed.value.__notes__ == [
        "after 1",
        *(f"       0.000 s  counted, round {n}" for n in (1, 2, 3)),
    ]  # fmt: skip
