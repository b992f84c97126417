"""What a node of the lab, above all Eve's, cannot do to a run: speak for another node, or stop the others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from test_coordinator import LAB, Stage, agreement, probed

from testbed.coordinator import events as e
from testbed.coordinator import timetable
from testbed.core.outcomes import EveReport, KeyReport, TrainReport
from testbed.net import messages as m

EVE = EveReport(
    block=0, sacrificed_bits=9, covered_bits=9, sacrificed_errors=4, best_link="alice", transcript_complete=True
)
TRAINED = TrainReport(block=0, probes=3, model=None, public_bytes=0, messages=0, failure="protocol")
PATTERN = m.PatternSet(round=0, digest="0123456789ab", device_time_s=100.0)
BY_OTHERS: list[tuple[Any, tuple[str, ...]]] = [
    (m.Applied(round=1, digest="0123456789ab", device_time_s=100.0), ("ris",)),
    (m.Scheduled(patterns=[PATTERN], device_time_s=100.0, shape=(2, 2)), ("ris",)),
    (m.SurfaceHeld(round=1, digest="0123456789ab"), ("ris",)),
    (m.Failed(operation="apply", state="ready", detail="x"), ("ris",)),
    (m.Failed(operation="applynext", state="ready", detail="x"), ("ris",)),
    (m.Failed(operation="schedule", state="ready", detail="x"), ("ris",)),
    (m.Failed(operation="readsurface", state="ready", detail="x"), ("ris",)),
    (m.Captured(round=1), ("alice", "bob", "eve")),
    (m.Stepped(round=1, step=0), ("alice", "bob", "eve")),
    (m.Agreed(report=agreement(0)), ("alice", "bob")),
    (m.Trained(report=TRAINED), ("alice", "bob")),
    (m.Amplified(report=KeyReport(block=0, key_bits=7)), ("alice", "bob")),
    (m.Attacked(report=EVE), ("eve",)),
    (m.KeyGuessed(block=0, digest=None), ("eve",)),
]
"""Messages, and whose they are."""


@pytest.mark.parametrize(("body", "whose"), BY_OTHERS, ids=lambda x: getattr(x, "operation", type(x).__name__))
@pytest.mark.parametrize("surface", ["random", "fixed"])
def test_no_node_speaks_for_another(body: Any, whose: tuple[str, ...], surface: str) -> None:
    """Others say it after every order that a node gets; the run is what it is without that."""

    def meddled(node: str, order: Any) -> list[Any] | None:
        if node in whose or isinstance(order, m.Finish):
            return None
        usual = stage.usual(node, order)
        return [body, *usual, body]

    quiet = Stage(surface={"policy": surface})
    quiet.join()
    stage = Stage(meddled, surface={"policy": surface})
    stage.join()
    assert stage.over == quiet.over
    assert [(r.round, r.kept, r.reason, r.surface) for r in stage.rounds] == [
        (r.round, r.kept, r.reason, r.surface) for r in quiet.rounds
    ]
    assert [b.block for b in stage.blocks] == [b.block for b in quiet.blocks]
    assert {n.detail["node"] for n in stage.notes if n.kind == "unexpected"} == set(stage.state.nodes) - set(whose)


def test_one_pattern_does_not_acknowledge_a_schedule() -> None:
    """The train waited for patterns whose acknowledgement nobody awaited any more."""

    def wrong(node: str, order: Any) -> list[Any] | None:
        if isinstance(order, m.Schedule):
            return [m.Applied(round=order.round, digest="0123456789ab", device_time_s=100.0), *stage.usual(node, order)]
        return None

    stage = Stage(wrong, begun=False)
    stage.schedule_size = 4
    stage.take(e.Tick(0.0))
    stage.join()
    stage.state.check()
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert {r.surface for r in stage.rounds} == {f"state-1-{n}" for n in range(6)}


def test_a_radio_of_eves_that_always_fails_is_left_out_and_rejects_no_round() -> None:
    def failing(node: str, order: Any) -> list[Any] | None:
        if node == "eve" and isinstance(order, m.Probe):
            return [m.Failed(operation="probe", state="probing", detail="no samples")]
        return None

    stage = Stage(failing, rounds=12, surface={"policy": "none"})
    stage.join()
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert [r.kept for r in stage.rounds] == [True] * 12
    assert [n.detail["node"] for n in stage.notes if n.kind == "left_out"] == ["eve"]


@pytest.mark.parametrize("pace", ["virtual", "wall"])
@pytest.mark.parametrize("answer", [[], [m.Failed(operation="probe", state="probing", detail="no samples")]])
def test_a_node_that_was_left_out_makes_no_window_wider_and_no_train_shorter(answer: list[Any], pace: str) -> None:
    """Nobody corrects its clock any more, so that its doubt grew from round to round: after 250 s Alice and Bob
    listened for 22 ms a frame."""

    def silent(node: str, order: Any) -> list[Any] | None:
        return answer if node == "eve" and isinstance(order, m.Probe) else None

    stage = Stage(silent, rounds=400, lab={**LAB, "world": {"pace": pace}}, surface={"policy": "none"},
                  probing={"interval_s": 0.05}, accounting={"block_rounds": 400})  # fmt: skip
    stage.join()
    stage.wait(60.0)
    assert stage.over is not None
    assert [n.detail["node"] for n in stage.notes if n.kind == "left_out"] == ["eve"]
    orders = [body for node, body in stage.told if node == "bob" and isinstance(body, m.Probe)]
    guard_s = stage.state.experiment.probing.guard_s
    after = [order for order in orders if order.round > 100]
    assert sum(len(order.rounds) for order in after) > 200
    assert max(plan.margin_s for order in after for plan in order.rounds) < 2 * guard_s
    assert min(len(order.rounds) for order in after[:-1]) > 1


def greeted(eve: dict[str, Any], pace: str | None = None, beams: dict[str, Any] | None = None) -> Stage:
    """A run in which Eve's node claims these properties, until its first order to probe."""
    stage = Stage(
        lambda node, order: [] if isinstance(order, m.Probe) else None, lab={**LAB, "world": {"pace": pace}},
        surface={"policy": "none"}, beams=beams or {},
    )  # fmt: skip
    for name, node in stage.state.nodes.items():
        if name != "ris":
            hello = m.Hello(role=node.role, identity={}, pid=1, discussion_port=1, transcript_port=2, n_antennas=2)  # type: ignore[arg-type]
            stage.take(stage.says(name, msgspec.structs.replace(hello, **eve) if name == "eve" else hello))
    return stage


@pytest.mark.parametrize("pace", ["virtual", "wall"])
@pytest.mark.parametrize(
    ("claim", "most_s"),
    [
        ({"turnaround_s": 3600.0}, 0.3),
        ({"host_turnaround_s": 3600.0}, 0.3),
        ({"timing_spread_s": 3600.0}, 0.05),
        ({"n_antennas": 256}, 0.05),
    ],
)
def test_what_eves_node_says_of_itself_stretches_no_round_without_end(
    claim: dict[str, Any], most_s: float, pace: str
) -> None:
    scheduler = greeted(claim, pace, {"policy": "svd"}).state.timetable.scheduler
    assert scheduler is not None
    start_s, end_s = scheduler.plan(0.0, 0.0)
    assert end_s - start_s < most_s


def test_a_radio_of_eves_that_cannot_time_its_samples_ends_no_run_with_beams() -> None:
    stage = greeted({"timed": False}, "virtual", {"policy": "svd"})
    assert stage.over is None
    assert stage.state.phase == "probing"
    assert [n.detail["node"] for n in stage.notes if n.kind == "left_out"] == ["eve"]


@pytest.mark.parametrize("name", ["alice", "eve"])
def test_only_who_transmits_can_be_late(name: str) -> None:
    """Late transmissions make the coordinator order rounds earlier and one at a time."""

    def late(node: str, order: Any) -> list[Any] | None:
        if node != name or not isinstance(order, m.Probe):
            return None
        report = probed(node, order)
        faulty = [msgspec.structs.replace(x, fault="late_tx") for x in report.rounds]
        return [m.Captured(round=order.round), m.Probed(rounds=faulty)]

    stage = Stage(late, lab={**LAB, "world": None}, surface={"policy": "none"}, rounds=40)
    stage.join()
    stage.wait(20.0)
    scheduler = stage.state.timetable.scheduler
    assert scheduler is not None
    assert (scheduler.lead_s > timetable.FIRST_LEAD_S) == (name == "alice")


@pytest.mark.parametrize("pace", ["virtual", "wall"])
def test_the_clock_of_an_eve_who_hears_nothing_is_read_anew_from_time_to_time(pace: str) -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        if node == "eve" and isinstance(body, m.Probe):
            return [m.Captured(round=body.round), probed(node, body, "no_preamble")]
        return None

    stage = Stage(script, rounds=300 if pace == "virtual" else 30, lab={**LAB, "world": {"pace": pace}},
                  surface={"policy": "none"}, probing={"interval_s": 0.5 if pace == "virtual" else 5.0},
                  accounting={"block_rounds": 400})  # fmt: skip
    stage.join()
    if pace == "wall":
        stage.wait(200.0)
    asked = [body for node, body in stage.told if node == "eve" and isinstance(body, m.ReadClock)]
    told = [note for note in stage.notes if note.kind == "clock_adrift"]
    assert len(asked) >= 1 + len(told)
    assert 2 <= len(told) <= 12
    assert {note.detail["node"] for note in told} == {"eve"}
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert not [note for note in stage.notes if note.kind == "left_out"]
