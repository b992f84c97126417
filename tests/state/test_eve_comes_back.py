"""An Eve that was left out comes back by herself once she can be reached again, a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_coordinator import Stage

from testbed.coordinator import events as e
from testbed.coordinator import roster
from testbed.coordinator.roster import MAX_RETURNS, MAX_STRIKES, RETURN_AFTER_S
from testbed.net import messages as m

Answers = Callable[[Any], list[Any] | None]


def kinds(stage: Stage, kind: str) -> int:
    return sum(note.kind == kind for note in stage.notes)


def without_eve(answers: Answers, rounds: int = 40) -> Stage:
    """Play a run until Eve, who answers as given, is left out, and pause it."""
    stage = Stage(lambda name, body: answers(body) if name == "eve" else None, rounds=rounds)

    def pause_at_once(event: e.Event) -> list[e.Instruction]:
        out = handle(event)
        if any(isinstance(x, e.Note) and x.kind == "left_out" for x in out):
            out = out + handle(e.PauseAsked(True))
        return out

    handle = stage.state.handle
    stage.state.handle = pause_at_once  # type: ignore[method-assign]
    stage.join()
    while not kinds(stage, "left_out") and stage.over is None:
        stage.wait(0.5)
    stage.state.handle = handle  # type: ignore[method-assign]
    assert stage.over is None
    return stage


def pass_by(stage: Stage, seconds: float) -> None:
    """Let time pass in which Eve's main loop reads its messages."""
    for _ in range(int(2 * seconds)):
        stage.take(stage.says("eve", m.Here()))
        stage.wait(0.5)


@pytest.mark.parametrize("rounds", [40, 7])
def test_she_takes_part_again_after_a_while_once_she_answers(rounds: int) -> None:
    silent = [MAX_STRIKES]

    def answers(body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and silent[0]:
            silent[0] -= 1
            return []
        return None

    stage = without_eve(answers, rounds)
    pass_by(stage, RETURN_AFTER_S - 2.0)
    assert kinds(stage, "rejoined") == 0
    stage.wait(5.0)  # only her other thread beats: she does not read orders
    assert kinds(stage, "rejoined") == 0
    pass_by(stage, 1.0)
    assert kinds(stage, "rejoined") == 1
    stage.take(e.PauseAsked(False))
    assert stage.over == e.RunOver("finished", f"{rounds} rounds")
    assert ["eve" in r.links for r in stage.rounds] == [r.round >= MAX_STRIKES for r in stage.rounds]
    assert kinds(stage, "left_out") == 1


def test_one_who_never_answers_delays_the_run_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster, "RETURN_AFTER_S", 1.0)
    stage = without_eve(lambda body: [] if isinstance(body, m.Probe) else None)
    for n in range(1, 5):
        pass_by(stage, 4.0**n)
        while stage.state.nodes["eve"].ready and not stage.state.nodes["eve"].left_out:
            order_one(stage)
    assert kinds(stage, "rejoined") == MAX_RETURNS
    assert kinds(stage, "left_out") == MAX_RETURNS + 1


def order_one(stage: Stage) -> None:
    """Let a paused run begin a train."""
    stage.take(e.PauseAsked(False))
    stage.take(e.PauseAsked(True))
    stage.wait(0.5)


def test_one_whose_device_refuses_its_settings_is_not_asked_twice_a_second() -> None:
    """She was taken in again with every heartbeat, and each time the rounds waited for her."""
    asked = [0]

    def refuses(body: Any) -> list[Any] | None:
        if not isinstance(body, m.Configure):
            return None
        asked[0] += 1
        return [m.Failed(operation="configure", state="ready", detail="no such carrier")]

    stage = Stage(
        lambda name, body: refuses(body) if name == "eve" else [] if isinstance(body, m.Probe) else None, rounds=1000
    )
    stage.join()
    stage.take(e.PauseAsked(True))
    for _ in range(40):
        stage.take(stage.says("eve", m.Heartbeat(state="ready")))
        stage.take(e.Tick(stage.now_s))
        stage.now_s += 0.5
    assert asked[0] == 1


def test_one_that_is_left_out_for_good_comes_back_as_a_new_process_only() -> None:
    stage = without_eve(lambda body: [] if isinstance(body, m.Probe) else None)
    stage.state.nodes["eve"].leave_out(for_good=True)
    stage.state.nodes["eve"].set_deadline("the end of its absence", 1.0)
    pass_by(stage, 5.0)
    assert kinds(stage, "rejoined") == 0
    stage.lives["eve"] = 2
    stage.join("eve")
    assert kinds(stage, "rejoined") == 1
    assert stage.state.nodes["eve"].returns == 0
