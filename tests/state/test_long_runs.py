"""Runs of days on the wall clock, on paper: the coordinator's clock is kept near Alice's, whatever becomes of hers."""

from __future__ import annotations

from typing import Any

import pytest
from test_coordinator import LAB, Stage

from testbed.coordinator import events as e
from testbed.coordinator.timetable import COMPARED_EVERY_S
from testbed.net import messages as m

WALL: dict[str, Any] = {**LAB, "world": {"pace": "wall"}}
DAY_S = 86_400.0


class Days(Stage):
    """Alice's crystal is 40 ppm faster than the coordinator's, and her clock may be set."""

    set_s = 0.0
    answers = True

    def __init__(self, rounds: int) -> None:
        super().__init__(
            self.reading, lab=WALL, rounds=rounds, surface={"policy": "none"}, probing={"train": 1, "interval_s": 1.0},
            accounting={"block_rounds": 100_000},
        )  # fmt: skip
        self.join("alice", "bob", "eve")

    def clock_s(self) -> float:
        return 100.0 + 1.00004 * self.now_s + self.set_s

    def reading(self, node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.ReadClock) or node != "alice":
            return None
        return [m.ClockReading(device_time_s=self.clock_s())] if self.answers else []

    def lead_s(self) -> float:
        """Return how long before its first sample, by Alice's clock, the latest round was ordered."""
        order = next(b for n, b in reversed(self.told) if n == "alice" and isinstance(b, m.Probe))
        return float(order.rounds[0].slots[0].start_s) - self.clock_s()

    def orders(self, node: str, kind: type) -> int:
        return sum(n == node and isinstance(b, kind) for n, b in self.told)


@pytest.mark.parametrize("passed_s", [0.1 * DAY_S, 1.0 * DAY_S, 7.0 * DAY_S])
def test_after_days_rounds_are_ordered_no_earlier_than_in_the_first_minute(passed_s: float) -> None:
    stage = Days(10_000)
    stage.wait(10.0)
    before, first_s = stage.state.kept, stage.lead_s()
    stage.now_s += passed_s
    stage.wait(20.0)
    assert stage.state.kept - before >= 19  # one a second
    assert -0.5 <= first_s <= 1.5
    assert -0.5 <= stage.lead_s() <= 1.5  # and not 27 s after a week
    assert not [n for n in stage.notes if n.kind == "device_clock_set"]


def test_alices_clock_is_read_every_two_minutes_and_no_round_is_lost_by_it() -> None:
    stage = Days(600)
    stage.wait(700.0)
    assert stage.over == e.RunOver("finished", "600 rounds")
    assert stage.state.kept == 600
    assert stage.orders("alice", m.ReadClock) == 1 + int(600.0 / COMPARED_EVERY_S) - 1
    assert stage.orders("bob", m.ReadClock) == 1
    assert stage.orders("alice", m.Configure) == 1


def test_where_alices_clock_was_set_all_clocks_are_read_anew() -> None:
    stage = Days(300)
    stage.wait(60.0)
    stage.set_s = -3600.0
    stage.wait(300.0)
    assert stage.over == e.RunOver("finished", "300 rounds")
    assert [n.detail["node"] for n in stage.notes if n.kind == "device_clock_set"] == ["alice"]
    assert [stage.orders(n, m.Configure) for n in ("alice", "bob", "eve")] == [2, 2, 2]
    assert -0.5 <= stage.lead_s() <= 1.5


def test_a_clock_that_cannot_be_read_costs_a_configuration_and_not_the_run() -> None:
    stage = Days(400)
    stage.wait(60.0)
    stage.answers = False
    stage.wait(65.0)  # until it was asked, and did not answer
    stage.answers = True
    stage.wait(400.0)
    assert stage.over == e.RunOver("finished", "400 rounds")
    assert [n.detail["node"] for n in stage.notes if n.kind == "asked_again"] == ["alice"]
    assert stage.orders("alice", m.Configure) == 2


def test_a_device_that_refuses_to_be_read_is_configured_anew() -> None:
    stage = Days(300)
    stage.wait(60.0)
    usual, refused = stage.script, []

    def refuses(node: str, body: Any) -> list[Any] | None:
        if node == "alice" and isinstance(body, m.ReadClock) and not refused:
            refused.append(body)
            return [m.Failed(operation="readclock", state="reading", detail="busy")]
        return usual(node, body)

    stage.script = refuses
    stage.wait(300.0)
    assert stage.over == e.RunOver("finished", "300 rounds")
    assert refused
    assert stage.orders("alice", m.Configure) == 2
