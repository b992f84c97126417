"""Boards that latch by time get the patterns of a train ahead; each round counts on its own, and on no other."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from test_coordinator import LAB, Stage, probed
from test_trains import STILL, Held, reasons, trains

from testbed.coordinator import events as e
from testbed.net import messages as m

PUBLIC: dict[str, Any] = {"policy": "random", "secret": False}
SECRET: dict[str, Any] = {"policy": "random"}


def stage(script: Any = lambda node, body: None, rounds: int = 40, size: int = 64, **changes: Any) -> Stage:
    probing = {"interval_s": 5e-3, "train": 8, **changes.pop("probing", {})}
    out = Stage(script, rounds=rounds, probing=probing, **{**STILL, "surface": PUBLIC, **changes})
    out.schedule_size = size
    return out


def joined(script: Any = lambda node, body: None, **changes: Any) -> Stage:
    out = stage(script, **changes)
    out.join()
    return out


def schedules(of: Stage) -> list[m.Schedule]:
    return [body for _, body in of.told if isinstance(body, m.Schedule)]


def plans(of: Stage) -> list[m.RoundPlan]:
    return [plan for node, body in of.told if node == "alice" and isinstance(body, m.Probe) for plan in body.rounds]


@pytest.mark.parametrize("surface", [PUBLIC, SECRET])
def test_rounds_with_a_new_pattern_each_run_in_trains(surface: dict[str, Any]) -> None:
    done = joined(surface=surface)
    assert done.over == e.RunOver("finished", "40 rounds")
    assert done.state.kept == 40
    assert max(map(len, trains(done))) == 8
    assert [[x.round for x in body.patterns] for body in schedules(done)] == trains(done)
    names = [r.surface for r in done.rounds]
    assert None not in names
    assert len(set(names)) > 10
    assert all((x.levels is None) == (surface is SECRET) for body in schedules(done) for x in body.patterns)
    assert not [b for _, b in done.told if isinstance(b, m.Apply | m.ApplyNext)]


def test_patterns_are_acknowledged_before_the_train_is_ordered_and_latch_between_its_rounds() -> None:
    done = joined()
    kinds = [type(b) for n, b in done.told if n in ("ris", "alice") and isinstance(b, m.Schedule | m.Probe)]
    assert kinds == [m.Schedule, m.Probe] * len(trains(done))
    due_s = [x.at_s for body in schedules(done) for x in body.patterns]
    rounds = plans(done)
    bases = {round(at_s - plan.slots[0].start_s, 1) for at_s, plan in zip(due_s, rounds, strict=True)}
    assert bases == {0.0}  # all clocks were read as 100 s
    for at_s, plan in zip(due_s, rounds, strict=True):
        assert at_s < plan.slots[0].start_s - 100e-6
    for plan, at_s in zip(rounds[:8], due_s[1:8], strict=False):
        assert at_s > plan.end_s + 100e-6


def test_the_rounds_of_a_train_are_confirmed_before_they_are_used() -> None:
    done = joined(accounting={"block_rounds": 10})
    looks = [b.round for _, b in done.told if isinstance(b, m.ReadSurface)]
    distilled = [n for _, b in done.told if isinstance(b, m.Distil) for n in b.rounds]
    assert set(distilled) == set(range(40))
    assert all(any(look > n for look in looks) for n in distilled)
    order = [type(b) for _, b in done.told if isinstance(b, m.ReadSurface | m.Distil)]
    assert order[0] is m.ReadSurface
    assert all(b is not m.Distil or a in (m.ReadSurface, m.Distil) for a, b in pairwise(order))


def test_a_board_that_was_reset_during_a_train_costs_that_train() -> None:
    run = stage()
    forgot: list[int] = []

    def script(node: str, body: Any) -> list[Any] | None:
        if node == "bob" and isinstance(body, m.Probe) and body.round >= 16 and not forgot:
            forgot.extend(plan.round for plan in body.rounds)
            run.held = "zeros"
        return None

    run.script = script
    run.join()
    assert run.over is not None
    assert run.over.status == "finished"
    assert reasons(run) == dict.fromkeys(forgot, "surface_changed")
    assert len(forgot) > 1


@pytest.mark.parametrize("answer", ["refusal", "silence"])
def test_patterns_that_are_not_acknowledged_cost_their_train_and_the_third_time_the_run(answer: str) -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.Schedule):
            return None
        return [] if answer == "silence" else [m.Failed(operation="schedule", state="applying", detail="loose cable")]

    run = joined(script)
    run.wait(60.0)
    assert run.over is not None
    assert run.over.status == "failed"
    assert "3 times in a row" in run.over.detail
    assert {r.reason for r in run.rounds} <= {"surface_not_applied", "aborted"}
    assert not trains(run)


def test_patterns_refused_once_cost_the_rounds_of_their_train() -> None:
    refused: list[int] = []

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Schedule) and body.round > 8 and not refused:
            refused.extend(x.round for x in body.patterns)
            return [m.Failed(operation="schedule", state="applying", detail="loose cable")]
        return None

    run = joined(script)
    assert run.over is not None
    assert run.over.status == "finished"
    assert reasons(run) == dict.fromkeys(refused, "surface_not_applied")


def test_a_pattern_that_latches_late_costs_its_round_and_the_one_before() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.Schedule) or 20 not in [x.round for x in body.patterns]:
            return None
        found = run.scheduled(body)
        late = [
            msgspec.structs.replace(x, device_time_s=x.device_time_s + (0.02 if x.round == 20 else 0.0))
            for x in found.patterns
        ]
        return [msgspec.structs.replace(found, patterns=late)]

    run = stage(script)
    run.join()
    assert reasons(run) == {20: "surface_changed"}


def test_a_board_that_leaves_a_round_out_or_latches_another_pattern_costs_that_round() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.Schedule) or 20 not in [x.round for x in body.patterns]:
            return None
        found = run.scheduled(body)
        kept = [
            msgspec.structs.replace(x, digest="other") if x.round == 21 else x for x in found.patterns if x.round != 20
        ]
        return [msgspec.structs.replace(found, patterns=kept)]

    run = stage(script)
    run.join()
    assert reasons(run) == {20: "surface_not_applied", 21: "surface_not_applied"}


def test_a_board_that_dies_while_it_is_asked_costs_the_train_and_comes_back() -> None:
    quiet: list[m.Schedule] = []

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Schedule) and body.round > 8 and not quiet:
            quiet.append(body)
            return []
        return None

    run = joined(script)
    run.take(e.ProcessEnded("ris", "killed"))
    run.wait(1.0)
    run.lives["ris"] = 2
    run.join("ris")
    assert run.over is not None
    assert run.over.status == "finished"
    lost = [x.round for x in quiet[0].patterns]
    assert {n: r for n, r in reasons(run).items() if n in lost} == dict.fromkeys(lost, "node_lost")


@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_stopped_while_patterns_are_asked_for(kind: Any) -> None:
    quiet: list[m.Schedule] = []

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Schedule) and body.round > 8 and not quiet:
            quiet.append(body)
            return []
        return None

    run = joined(script)
    run.take(e.StopAsked(kind))
    wanted = [x.round for x in quiet[0].patterns]
    if kind == "stop":  # the train is finished
        run.take(run.says("ris", run.scheduled(quiet[0])))
        assert [r.round for r in run.rounds if r.kept][-len(wanted) :] == wanted
    else:
        assert reasons(run) == dict.fromkeys(wanted, "aborted")
    assert run.over is not None
    assert run.over.status == "stopped"


def test_after_a_pause_patterns_are_due_when_they_can_still_latch() -> None:
    """On the wall clock the last round is long over, and with it the time in which its successor's pattern latched."""
    run = joined(lab={**LAB, "world": {"pace": "wall"}}, probing={"interval_s": 0.05})
    run.take(e.PauseAsked(True))
    run.wait(20.0)
    before = len(schedules(run))
    assert before > 0
    run.take(e.PauseAsked(False))
    now_s = 100.0 + run.state.timetable.now_s  # on the board's clock
    starts_s = {plan.round: plan.slots[0].start_s for plan in plans(run)}
    first = schedules(run)[before].patterns
    assert first[0].at_s > now_s + 0.01
    assert all(x.at_s < starts_s[x.round] for x in first)


@pytest.mark.parametrize("ppm", [-43.0, 43.0])
def test_after_a_pause_a_drifting_board_latches_before_the_rounds(ppm: float) -> None:
    """Its clock was read before the pause."""
    wall = {**LAB, "world": {"pace": "wall"}}
    run = stage(lab=wall, probing={"interval_s": 5e-3, "turnaround_s": 2.4e-3}, rounds=900)

    def script(node: str, body: Any) -> list[Any] | None:
        own_s = 100.0 + run.state.timetable.now_s * (1 + ppm * 1e-6)
        return (
            [msgspec.structs.replace(run.scheduled(body), device_time_s=own_s)]
            if isinstance(body, m.Schedule)
            else None
        )

    run.script = script
    run.join()
    for _ in range(3):
        run.take(e.PauseAsked(True))
        run.wait(30.0)
        run.take(e.PauseAsked(False))
        run.wait(1.0)
    assert len(plans(run)) > 400
    due_s = {x.round: (x.at_s - 100.0) / (1 + ppm * 1e-6) + 100.0 for body in schedules(run) for x in body.patterns}
    assert min(plan.slots[0].start_s - due_s[plan.round] for plan in plans(run)) > 0.0


def test_a_board_takes_as_many_patterns_as_it_holds() -> None:
    done = joined(size=3)
    assert max(map(len, trains(done))) == 3
    assert done.state.kept == 40


def test_a_late_answer_of_the_board_sends_no_train() -> None:
    run = joined(lambda node, body: [] if isinstance(body, m.Schedule) else None)
    run.take(
        run.says(
            "ris", m.Scheduled(patterns=[m.PatternSet(round=99, digest="x", device_time_s=0.0)], device_time_s=0.0)
        )
    )
    assert not trains(run)
    assert any(n.kind == "unexpected_pattern" for n in run.notes)


def test_a_train_that_was_struck_is_still_that_of_its_patterns() -> None:
    """Bob leaves a train unanswered: its rounds are rejected, the patterns of the next ones are ordered anew."""
    quiet = Held(20, "bob")
    run = joined(quiet)
    while run.over is None and run.now_s < 60:
        run.wait(0.5)
    assert run.over is not None
    assert reasons(run) == dict.fromkeys(quiet.rounds, "timeout")
    assert [n for body in schedules(run) for n in (x.round for x in body.patterns)] == list(range(40))
    assert probed("bob", quiet.orders["bob"]).rounds


class OnAir(Stage):
    """Nodes on a simulated air, whose time only goes on with a train that is probed, or when it is told to. All device
    clocks show it plus 100 s, and the board takes no pattern whose time has come."""

    air_s = 0.0
    refused = 0
    lost: tuple[int, ...] = ()
    """The rounds whose trains do not take place."""

    def advance(self, until_s: float) -> None:
        self.air_s = max(self.air_s, until_s)

    def answer(self, node: str, body: Any) -> list[Any]:
        if isinstance(body, m.ReadClock):
            return [m.ClockReading(device_time_s=100.0 + self.air_s)]
        if isinstance(body, m.Schedule):
            if body.patterns[0].at_s < 100.0 + self.air_s + 1e-3:
                self.refused += 1
                return [m.Failed(operation="schedule", state="applying", detail="due before it could latch")]
            return [msgspec.structs.replace(self.scheduled(body), device_time_s=100.0 + self.air_s)]
        if isinstance(body, m.Probe) and any(plan.round in self.lost for plan in body.rounds):
            fault = [m.RoundResult(round=plan.round, links=[], fault="device") for plan in body.rounds]
            return [m.Captured(round=body.round), m.Probed(rounds=fault)]
        if isinstance(body, m.Probe):
            assert self.state.timetable.scheduler is not None
            self.air_s = max(self.air_s, body.rounds[-1].end_s - 100.0 - self.state.timetable.scheduler.quiet_s)
        return self.usual(node, body)


def on_air(lost: tuple[int, ...] = (), ahead_s: float = 0.0) -> OnAir:
    """Return a run of 120 rounds of which a train does not take place, or whose air runs ahead after its 40th round."""
    probing = {"interval_s": 5e-3, "train": 8}
    out = OnAir(rounds=120, probing=probing, **{**STILL, "surface": PUBLIC})
    out.schedule_size, out.lost = 64, lost

    def answer(node: str, body: Any) -> list[Any]:
        if ahead_s and node == "bob" and isinstance(body, m.Probe) and 40 in [plan.round for plan in body.rounds]:
            found = OnAir.answer(out, node, body)
            out.air_s += ahead_s
            return found
        return OnAir.answer(out, node, body)

    out.answer = answer  # type: ignore[method-assign]
    out.join()
    return out


def latches_in_place(run: OnAir) -> bool:
    """Return whether every pattern was due before its round, and not before the end of the one before."""
    due_s = {x.round: x.at_s for body in schedules(run) for x in body.patterns}
    return all(0.0 < plan.slots[0].start_s - due_s[plan.round] < 5e-3 for plan in plans(run))


def test_a_train_that_did_not_take_place_costs_no_other() -> None:
    """The board's clock was taken to be read at the end of the train that was lost: every pattern was then due earlier
    by its length, and the board refused every second train."""
    run = on_air(lost=(40,))
    assert run.over == e.RunOver("finished", "120 rounds")
    assert run.refused == 0
    assert reasons(run) == dict.fromkeys(next(t for t in trains(run) if 40 in t), "device")
    assert latches_in_place(run)


@pytest.mark.parametrize("ahead_s", [5e-3, 26e-3, 150e-3])
def test_where_the_air_is_ahead_of_the_rounds_one_train_is_refused(ahead_s: float) -> None:
    run = on_air(ahead_s=ahead_s)
    assert run.over == e.RunOver("finished", "120 rounds")
    assert run.refused <= 1
    assert set(reasons(run).values()) <= {"surface_not_applied"}
    assert len(reasons(run)) <= 8


class Drifting(OnAir):
    """The board's clock runs away from all others."""

    ppm = 0.0

    def answer(self, node: str, body: Any) -> list[Any]:
        own_s = 100.0 + self.air_s * (1 + self.ppm * 1e-6)
        if node == "ris" and isinstance(body, m.ReadClock):
            return [m.ClockReading(device_time_s=own_s)]
        if isinstance(body, m.Schedule):
            return [msgspec.structs.replace(self.scheduled(body), device_time_s=own_s)]
        return super().answer(node, body)


@pytest.mark.parametrize("ppm", [-43.0, 43.0])
@pytest.mark.parametrize("turnaround_s", [24.3e-3, 60e-3])
def test_in_the_longest_trains_a_drifting_board_latches_between_the_rounds(ppm: float, turnaround_s: float) -> None:
    """Rounds follow one another as closely as they can; with the longer turn-around, more slowly than was asked for."""
    run = Drifting(
        rounds=200, probing={"interval_s": 0.05, "turnaround_s": turnaround_s}, **{**STILL, "surface": PUBLIC}
    )
    run.schedule_size, run.ppm = 256, ppm
    run.join()
    assert run.over is not None
    assert run.over.status == "finished"
    assert max(map(len, trains(run))) > 20
    due_s = {x.round: (x.at_s - 100.0) / (1 + ppm * 1e-6) + 100.0 for body in schedules(run) for x in body.patterns}
    spare_s = [plan.slots[0].start_s - due_s[plan.round] for plan in plans(run)]
    assert min(spare_s) > 0.0
    ends_s = [plan.end_s for plan in plans(run)]
    after_s = [due_s[plan.round] - end_s for plan, end_s in zip(plans(run)[1:], ends_s, strict=False)]
    assert min(after_s) > 0.0
