"""Rounds of radios that cannot time their samples, on paper."""

from __future__ import annotations

from typing import Any

from test_coordinator import Stage, probed

from testbed.coordinator import events as e
from testbed.coordinator import steps
from testbed.core.schedule import parse
from testbed.net import messages as m


class Untimed(Stage):
    """Nodes of which those in `untimed` have radios that cannot time anything; they answer every step at once."""

    def __init__(
        self,
        script: Any = lambda node, body: None,
        untimed: tuple[str, ...] = ("alice", "bob", "eve"),
        **changes: Any,
    ) -> None:
        self.untimed = untimed
        super().__init__(script, **changes)

    def says(self, name: str, body: Any) -> e.Received:
        if isinstance(body, m.Hello) and name in self.untimed:
            body = m.Hello(
                role=body.role, identity={}, pid=1, discussion_port=1, transcript_port=2, timed=False, turnaround_s=5e-3
            )
        return super().says(name, body)

    def usual(self, node: str, body: Any) -> list[Any]:
        if not isinstance(body, m.Step):
            return super().usual(node, body)
        done: list[Any] = [m.Stepped(round=body.round, step=body.step)]
        if body.last:
            numbers = range(body.round, body.round + body.rounds)
            done.append(m.Probed(rounds=[self.result(node, number) for number in numbers]))
        return done

    def result(self, node: str, number: int) -> m.RoundResult:
        slots = [m.SlotPlan("alice", ["bob", "eve"], 0.0), m.SlotPlan("bob", ["alice", "eve"], 0.0)]
        plan = m.RoundPlan(round=number, slots=slots, margin_s=0.0, end_s=0.0)
        return probed(node, m.Probe(rounds=[plan])).rounds[0]

    def orders(self, number: int = 0) -> list[tuple[str, str, bool]]:
        told = [(n, b) for n, b in self.told if isinstance(b, m.Step) and b.round == number]
        return [(n, b.action, b.last) for n, b in told]


def test_a_round_goes_slot_by_slot() -> None:
    stage = Untimed()
    stage.join()
    assert stage.orders() == [
        ("alice", "transmit", False),
        ("bob", "receive", False),
        ("eve", "receive", False),
        ("alice", "silence", False),
        ("bob", "transmit", False),
        ("alice", "receive", True),
        ("eve", "receive", True),
        ("bob", "silence", True),
    ]
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert [r.kept for r in stage.rounds] == [True] * 6
    assert not [b for _, b in stage.told if isinstance(b, m.Probe)]


def test_with_one_untimed_radio_no_radio_uses_timing() -> None:
    for untimed in ((), ("bob",)):
        stage = Untimed(untimed=untimed)
        stage.join()
        told = {n: b.timed for n, b in stage.told if isinstance(b, m.Configure)}
        assert {n: told[n] for n in ("alice", "bob", "eve")} == dict.fromkeys(("alice", "bob", "eve"), not untimed)
        assert bool(stage.orders()) == bool(untimed)


def test_the_next_step_is_ordered_only_after_the_last_was_reported() -> None:
    stage = Untimed(lambda node, body: [] if isinstance(body, m.Step) else None)
    stage.join()
    assert stage.orders() == [("alice", "transmit", False)]
    stage.take(stage.says("bob", m.Stepped(round=0, step=0)))  # not his
    assert len(stage.orders()) == 1
    stage.take(stage.says("alice", m.Stepped(round=0, step=0)))
    assert stage.orders()[1:] == [("bob", "receive", False), ("eve", "receive", False)]
    stage.take(stage.says("bob", m.Stepped(round=0, step=1)))
    assert len(stage.orders()) == 3
    stage.take(stage.says("eve", m.Stepped(round=0, step=1)))
    # nobody receives while one transmitter is silenced and the other one begins
    assert stage.orders()[3:] == [("alice", "silence", False), ("bob", "transmit", False)]
    stage.take(stage.says("bob", m.Stepped(round=0, step=2)))
    assert len(stage.orders()) == 5
    stage.take(stage.says("alice", m.Stepped(round=0, step=2)))
    assert stage.orders()[5:] == [("alice", "receive", True), ("eve", "receive", True)]


def test_the_node_that_hangs_is_named_and_all_fall_silent() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        hangs = isinstance(body, m.Step) and body.round == 0 and node == "bob" and body.action == "receive"
        return [] if hangs else None

    stage = Untimed(script)
    stage.join()
    stage.wait(11.0)
    assert [n.detail["node"] for n in stage.notes if n.kind == "no_answer"] == ["bob"]
    assert [(r.kept, r.reason) for r in stage.rounds][:2] == [(False, "timeout"), (True, None)]
    assert [o for o in stage.orders() if o[1] == "silence"] == [
        ("alice", "silence", True),
        ("bob", "silence", True),
        ("eve", "silence", True),
    ]


def test_a_lost_node_does_not_stop_the_round() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        return [] if isinstance(body, m.Step) and node == "eve" else None

    stage = Untimed(script)
    stage.join()
    stage.take(e.ProcessEnded("eve", "killed"))
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert [r.kept for r in stage.rounds] == [True] * 6


def test_steps_without_a_transmitter_are_left_out() -> None:
    plan = steps.plan(3, parse("A>B E>AB B>A"), {"alice": "a", "bob": "b"})
    actions = []
    while orders := plan.advance({"a", "b"}):
        actions += [(n, b.action) for n, b in orders]
        for n, b in orders:
            plan.report(n, b.step)
    assert actions == [
        ("a", "transmit"),
        ("b", "receive"),
        ("a", "silence"),
        ("b", "transmit"),
        ("a", "receive"),
        ("b", "silence"),
    ]
    assert plan.over


def test_reports_before_the_last_step_neither_end_the_round_nor_stop_the_run() -> None:
    """Alice hangs in her first step; meanwhile all ends report the round, as none should before its last step."""
    stage = Untimed(lambda node, body: [] if isinstance(body, m.Step) and body.round == 0 and body.step == 0 else None)
    stage.join()
    slots = [m.SlotPlan("alice", ["bob", "eve"], 0.0), m.SlotPlan("bob", ["alice", "eve"], 0.0)]
    plan = m.Probe(rounds=[m.RoundPlan(round=0, slots=slots, margin_s=0.0, end_s=0.0)])
    for node in ("alice", "bob"):
        stage.take(stage.says(node, probed(node, plan)))
    stage.take(stage.says("eve", m.Captured(round=0)))
    assert not stage.rounds
    stage.wait(30.0)
    assert stage.over is not None
    assert [r.reason for r in stage.rounds] == ["timeout", *[None] * 5]
    assert [o for o in stage.orders() if o[1] == "silence"] == [(n, "silence", True) for n in ("alice", "bob", "eve")]
