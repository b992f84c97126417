"""Trains of rounds on paper: what holds for a round holds inside a train, and costs exactly the rounds concerned."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from test_coordinator import LAB, Stage, probed
from test_watching_policy import answering, loop

from testbed.coordinator import events as e
from testbed.coordinator.round import Round
from testbed.core.config import Experiment
from testbed.core.errors import InputError
from testbed.net import messages as m

STILL: dict[str, Any] = {"surface": {"policy": "none"}, "accounting": {"block_rounds": 1000}}
QUICK: dict[str, Any] = {"interval_s": 2e-3}


def stage(script: Any = lambda node, body: None, train: int = 8, rounds: int = 40, **changes: Any) -> Stage:
    probing = {**QUICK, "train": train, **changes.pop("probing", {})}
    return Stage(script, rounds=rounds, probing=probing, **{**STILL, **changes})


def joined(script: Any = lambda node, body: None, **changes: Any) -> Stage:
    out = stage(script, **changes)
    out.join()
    return out


def trains(of: Stage, node: str = "bob") -> list[list[int]]:
    """Return the numbers of the rounds of every train that a node was ordered."""
    return [[plan.round for plan in b.rounds] for n, b in of.told if n == node and isinstance(b, m.Probe)]


def of(numbers: list[int]) -> list[int]:
    return list(range(numbers[0], numbers[0] + len(numbers)))


class Held:
    """Nodes of which some keep quiet about the train with a certain round, until they are asked."""

    def __init__(self, number: int, *names: str) -> None:
        self.number, self.names = number, names
        self.orders: dict[str, m.Probe] = {}

    def __call__(self, node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.Probe) or node not in self.names:
            return None
        if self.number not in [plan.round for plan in body.rounds]:
            return None
        self.orders[node] = body
        return []

    @property
    def rounds(self) -> list[int]:
        return [plan.round for plan in next(iter(self.orders.values())).rounds]


def reasons(of: Stage) -> dict[int, str | None]:
    return {r.round: r.reason for r in of.rounds if not r.kept}


def test_a_run_in_trains_orders_every_round_once_and_in_order() -> None:
    done = joined()
    assert done.over == e.RunOver("finished", "40 rounds")
    told = trains(done)
    assert [n for train in told for n in train] == list(range(40))
    assert all(train == of(train) for train in told)
    assert max(map(len, told)) == 8
    assert [r.round for r in done.rounds] == list(range(40))
    assert all(r.kept for r in done.rounds)


def test_rounds_of_a_train_follow_at_the_interval() -> None:
    done = joined()
    plans = [p for n, b in done.told if n == "bob" and isinstance(b, m.Probe) for p in b.rounds]
    starts = [p.slots[0].start_s + p.margin_s for p in plans]
    assert max(abs(b - a - 2e-3) for a, b in pairwise(starts)) < 1e-6
    assert all(a.end_s <= b.slots[0].start_s for a, b in pairwise(plans))


@pytest.mark.parametrize("interval_s", [50e-6, 200e-6, 2e-3])
def test_on_the_wall_clock_a_train_uses_the_air_as_much_as_was_asked_for(interval_s: float) -> None:
    """Two-way frames of 200 µs, and of less than the slots take: then these are the limit, which is said beforehand."""
    quick = {"interval_s": interval_s, "train": 64, "turnaround_s": 20e-6}
    done = joined(lab={**LAB, "world": {"pace": "wall"}}, rounds=400, probing=quick)
    done.wait(5.0)
    plans = [b.rounds for n, b in done.told if n == "bob" and isinstance(b, m.Probe)]
    gaps_s = [y.slots[0].start_s + y.margin_s - x.slots[0].start_s - x.margin_s for b in plans for x, y in pairwise(b)]
    assert len(gaps_s) > 100
    notes = [n for n in done.notes if n.kind == "interval_too_short"]
    least_s = done.state.timetable.scheduler.shortest_s
    assert 50e-6 < least_s < 200e-6
    assert [n.detail["detail"].split(",")[0] for n in notes] == (
        ["probing.interval_s = 5e-05 s"] if interval_s == 50e-6 else []
    )
    assert sum(max(interval_s, least_s) > 0.95 * gap_s for gap_s in gaps_s) >= 0.9 * len(gaps_s)
    assert min(gaps_s) > max(interval_s, least_s) - 1e-9


@pytest.mark.parametrize("interval_s", [2e-3, 0.05])
def test_windows_do_not_depend_on_how_many_rounds_are_ordered_together(interval_s: float) -> None:
    """In virtual time; with clocks that run apart, so that there is something to learn."""

    def plans(train: int) -> list[Any]:
        def drifting(node: str, body: Any) -> list[Any] | None:
            if not isinstance(body, m.Probe):
                return None
            results = []
            for plan in body.rounds:
                true_s = plan.slots[0].start_s * 30e-6
                links = [
                    m.LinkResult(tx=slot.tx, reason=None, timing_error_s=true_s - 0.003 + 1e-8 * (plan.round % 7))
                    for slot in plan.slots
                    if node in slot.rx
                ]
                results.append(m.RoundResult(round=plan.round, links=links))
            return [m.Captured(round=body.round), m.Probed(rounds=results)]

        done = joined(drifting, train=train, rounds=150, probing={"interval_s": interval_s})
        assert done.over is not None
        return [p for n, b in done.told if n == "bob" and isinstance(b, m.Probe) for p in b.rounds]

    one = plans(1)
    assert len({p.slots[0].start_s - p.round * interval_s for p in one}) > 100
    longest = 64
    assert one == plans(7) == plans(longest)


def test_a_train_is_as_long_as_the_interval_allows() -> None:
    def longest(interval_s: float, pace: str = "virtual") -> int:
        out = Stage(
            lab={**LAB, "world": {"pace": pace}}, rounds=3000, probing={"interval_s": interval_s}, **STILL
        )  # fmt: skip
        return out.state.timetable.train

    assert [longest(x) for x in (200e-6, 2e-3, 0.05, 0.3, 0.5, 20.0)] == [64, 64, 64, 10, 6, 1]
    assert [longest(x, "wall") for x in (200e-6, 2e-3, 0.05, 0.5)] == [64, 64, 3, 1]


@pytest.mark.parametrize(
    ("interval_s", "rounds", "behind_s", "lead_s", "longest"),
    [
        (200e-6, 64, 0.02, 0.108, 80),  # the nodes keep up: a long lead becomes shorter, and trains longer
        (200e-6, 64, 0.05, 0.108, 64),  # they do not, and the lead is long enough
        (200e-6, 64, 0.12, 0.21, 64),
        (200e-6, 64, 1.0, 0.25, 64),
        (200e-6, 31, 0.01, 0.108, 64),  # a short train says nothing of long ones
        (200e-6, 1, 0.5, 0.108, 64),
        (1e-3, 64, 0.12, 0.108, 80),
        (1e-3, 64, 0.136, 0.238, 64),
    ],
)  # fmt: skip
def test_the_next_train_waits_for_nodes_that_need_longer_than_the_air(
    interval_s: float, rounds: int, behind_s: float, lead_s: float, longest: int
) -> None:
    quiet = Held(0, "bob")
    run = joined(
        quiet, lab={**LAB, "world": {"pace": "wall"}}, train=256, rounds=3000, probing={"interval_s": interval_s}
    )
    timetable = run.state.timetable
    assert timetable.scheduler is not None
    assert timetable.scheduler.lead_s == 0.12
    end_s = timetable.now_s - behind_s
    start_s = end_s - rounds * interval_s
    for k in range(rounds):
        at_s = start_s + k * interval_s
        r = Round(k, None, at_s, at_s + interval_s, ["alice", "bob"], run.state._clock)
        r.train = 0
        timetable.heed_lateness(r, rounds, {"alice", "bob"}, k + 1 == rounds)
    assert timetable.scheduler.lead_s == pytest.approx(lead_s)
    assert timetable.train == longest


def test_trains_end_where_a_block_is_filled() -> None:
    done = joined(accounting={"block_rounds": 13})
    ends = {train[-1] for train in trains(done)}
    assert {12, 25, 38, 39} <= ends
    assert [b.rounds for b in done.blocks] == [of(list(range(s, min(s + 13, 40)))) for s in (0, 13, 26, 39)]


def test_a_pattern_that_is_held_is_looked_at_between_trains() -> None:
    done = joined(surface={"policy": "fixed"}, rounds=120)
    looks = [b.round for _, b in done.told if isinstance(b, m.ReadSurface)]
    assert looks == [50, 100, 120]
    assert {49, 99, 119} <= {train[-1] for train in trains(done)}
    assert done.state.kept == 120


@pytest.mark.parametrize("surface", [{"policy": "random"}, loop()])
def test_where_the_pattern_may_change_trains_are_of_one(surface: dict[str, Any]) -> None:
    done = joined(answering(), surface=surface, rounds=12)
    assert all(len(train) == 1 for train in trains(done))
    assert done.state.kept == 12


def test_a_sounding_is_alone() -> None:
    out = stage(beams={"policy": "svd", "sound_every": 5}, rounds=20)
    for name, node in out.state.nodes.items():
        hello = m.Hello(role=node.role, identity={}, pid=1, discussion_port=1, n_antennas=4)  # type: ignore[arg-type]
        out.take(out.says(name, hello))
    told = trains(out)
    assert [t for t in told if t[0] % 5 == 0] == [[0], [5], [10], [15]]
    assert max(map(len, told)) > 1


def test_two_trains_are_under_way_and_never_three() -> None:
    done = joined(lambda node, body: [] if isinstance(body, m.Probe) and body.round >= 100 else None, rounds=400)
    assert len(done.state.rounds.trains) == 2
    assert len(trains(done)[-1]) == 8


def test_a_train_that_nobody_answers_costs_its_rounds_and_one_strike() -> None:
    quiet = Held(20, "bob")
    done = joined(quiet)
    while done.over is None and done.now_s < 60:
        done.wait(0.5)
    assert done.over is not None
    assert done.over.status == "finished"
    assert reasons(done) == dict.fromkeys(quiet.rounds, "timeout")
    assert len(quiet.rounds) > 1
    assert sum(n.kind == "no_answer" for n in done.notes) == 1


def test_one_late_burst_costs_its_round() -> None:
    def late(node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.Probe) or node != "alice" or 21 not in [p.round for p in body.rounds]:
            return None
        usual = probed(node, body)
        results = [
            m.RoundResult(round=r.round, links=r.links, fault="late_tx", detail="3 µs") if r.round == 21 else r
            for r in usual.rounds
        ]
        return [m.Captured(round=body.round), m.Probed(rounds=results)]

    done = joined(late)
    assert reasons(done) == {21: "late_tx"}
    assert [n.detail["round"] for n in done.notes if n.kind == "fault"] == [21]
    assert done.state.kept == 39


def test_a_report_may_come_in_parts() -> None:
    def split(node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.Probe):
            return None
        return [m.Probed(rounds=[r]) for r in probed(node, body).rounds]

    done = joined(split)
    assert done.over == e.RunOver("finished", "40 rounds")
    assert done.state.kept == 40


def test_a_train_that_fails_as_a_whole_costs_its_rounds() -> None:
    def fails(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and node == "bob" and 20 in [p.round for p in body.rounds]:
            return [m.Failed(operation="probe", state="probing", detail="cable")]
        return None

    done = joined(fails)
    (train,) = [t for t in trains(done) if 20 in t]
    assert reasons(done) == dict.fromkeys(train, "device")


def test_a_surface_that_changes_during_a_train_costs_the_round_it_changed_in_and_all_after_it() -> None:
    held = Held(20, "bob")
    run = joined(held, surface={"policy": "fixed"})
    order = held.orders["bob"]
    assert len(order.rounds) > 3
    struck = order.rounds[2]
    middle_s = (struck.slots[0].start_s + struck.end_s) / 2
    run.take(run.says("ris", m.Applied(round=0, digest="other", device_time_s=middle_s)))
    for answer in run.usual("bob", order):
        run.take(run.says("bob", answer))
    # what was ordered ahead under the pattern that is gone, too
    ordered_then = held.rounds[-1]
    lost = {n for n, reason in reasons(run).items() if reason == "surface_changed"}
    assert set(held.rounds[2:]) <= lost
    assert not lost & set(held.rounds[:2])
    assert max(lost) <= ordered_then + 8
    assert run.over is not None
    assert run.over.status == "finished"


@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_stop_finishes_the_trains_under_way_and_abort_and_halt_drop_them(kind: Any) -> None:
    held = Held(20, "bob")
    run = joined(held)
    under_way = [r.number for r in run.state.rounds.under_way]
    assert len(under_way) > 2
    run.take(e.StopAsked(kind))
    if kind == "stop":
        assert run.over is None
        held.number = -1
        for answer in run.usual("bob", held.orders["bob"]):
            run.take(run.says("bob", answer))
        assert run.rounds[-1].round == under_way[-1]
        assert run.rounds[-1].kept
        assert run.blocks[0].rounds == list(range(under_way[-1] + 1))
    else:
        assert reasons(run) == dict.fromkeys(under_way, "aborted")
    assert run.over is not None
    assert run.over.status == "stopped"
    assert trains(run)[-1][-1] == under_way[-1]


def test_a_node_that_dies_costs_the_trains_under_way_and_comes_back() -> None:
    alive = [True]

    def dies(node: str, body: Any) -> list[Any] | None:
        if node == "bob" and isinstance(body, m.Probe) and body.rounds[-1].round >= 20 and alive:
            return []
        return None

    run = joined(dies)
    under_way = [r.number for r in run.state.rounds.under_way]
    assert len(run.state.rounds.trains) == 2
    run.take(e.ProcessEnded("bob", "killed"))
    alive.clear()
    run.wait(1.0)
    run.lives["bob"] = 2
    run.join("bob")
    assert run.over is not None
    assert run.over.status == "finished"
    lost = {n for n, reason in reasons(run).items() if reason == "node_lost"}
    assert lost == set(under_way)
    measured = {n for n, reason in reasons(run).items() if reason == "measured"}  # his share of these died with him
    assert measured == set(range(under_way[0]))
    assert run.blocks[-1].rounds == list(range(under_way[-1] + 1, 40))


def test_a_node_that_only_fails_is_gone_on_with_for_so_many_trains() -> None:
    def broken(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and node == "bob":
            failed = [m.RoundResult(round=p.round, links=[], fault="device", detail="gone") for p in body.rounds]
            return [m.Captured(round=body.round), m.Probed(rounds=failed)]
        return None

    done = joined(broken, rounds=1000)
    assert done.over is not None
    assert done.over.status == "failed"
    assert "rounds in a row failed: device" in done.over.detail
    told = trains(done)
    assert 20 <= len(told) <= 22
    notes = [n.detail for n in done.notes if n.kind == "fault"]
    assert len(notes) <= len(told)  # one for a train, not for every round of it


def test_an_eve_whose_radio_only_fails_is_left_out_after_some_trains() -> None:
    def broken(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and node == "eve":
            failed = [m.RoundResult(round=p.round, links=[], fault="device") for p in body.rounds]
            return [m.Captured(round=body.round), m.Probed(rounds=failed)]
        return None

    done = joined(broken, rounds=60)
    assert done.state.kept == 60
    assert len(trains(done, "eve")) <= 4
    assert any(n.kind == "left_out" for n in done.notes)


def test_a_train_longer_than_the_air_holds_is_refused_in_one_line(tmp_path: Any) -> None:
    from testbed import config

    text = config.bundled(Experiment)["mobile_room"].read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("interval_s = 0.05 ", "train = 64\ninterval_s = 0.05 ", 1))
    assert config.load_experiment(str(path)).probing.train == 64
    path.write_text(text.replace("interval_s = 0.05 ", "train = 65\ninterval_s = 0.05 ", 1))
    with pytest.raises(
        InputError, match=r"table \[probing\]: key 'train': 65 rounds of 0.05 s, accepted: up to 64"
    ) as no:
        config.load_experiment(str(path))
    assert "\n" not in str(no.value)
