"""The invariants can fail, the tables equal the drawn diagrams, and the story lists the events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_coordinator import Stage
from test_node import ROUNDS, Trio

from testbed.coordinator import block, state
from testbed.coordinator import events as e
from testbed.core.machine import InvariantError
from testbed.net import messages as m
from testbed.nodes import state as node_state

ROOT = Path(__file__).parents[2]


def probing() -> Stage:
    """Return a run whose second round waits for Bob."""
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 1 else None)
    stage.join()
    assert stage.state.phase == "probing"
    return stage


def distilling() -> Stage:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Distil) else None)
    stage.join()
    assert stage.state.phase == "distilling"
    return stage


def lose_a_round(s: state.CoordinatorState) -> None:
    s.rounds.on_air = []


def forget_a_deadline(s: state.CoordinatorState) -> None:
    s.rounds.on_air[0].clear_deadline("the answers")


def count_twice(s: state.CoordinatorState) -> None:
    s.tally.kept += 1


def be_ready_and_dead(s: state.CoordinatorState) -> None:
    s.nodes["eve"].alive = False


def leave_bob_out(s: state.CoordinatorState) -> None:
    s.nodes["bob"].left_out = True


def hold_what_nobody_acknowledged(s: state.CoordinatorState) -> None:
    s.surface.held = "wishful"


def read_back_for_nothing(s: state.CoordinatorState) -> None:
    s.surface.unconfirmed.clear()
    s.surface.read_back(9)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lose_a_round, "2 rounds were begun, but 1 are over and 0 under way"),
        (forget_a_deadline, "round 1 may wait without limit"),
        (count_twice, "1 rounds are over, but 2 kept and 0 rejected"),
        (be_ready_and_dead, "eve is ready but not alive"),
        (leave_bob_out, "bob is required but left out"),
        (hold_what_nobody_acknowledged, "the surface should hold wishful"),
        (read_back_for_nothing, "the surface is read back although no round counts on it"),
    ],
)
def test_damage_is_named(damage: Callable[[state.CoordinatorState], None], problem: str) -> None:
    stage = probing()
    stage.state.check()
    damage(stage.state)
    with pytest.raises(InvariantError, match=problem):
        stage.state.check()


def test_a_block_that_waits_for_no_node_is_named() -> None:
    stage = distilling()
    assert stage.state.blocks.open is not None
    stage.state.blocks.open.waiting.clear()
    with pytest.raises(InvariantError, match="block 0 waits for no node"):
        stage.state.check()


def test_damage_at_a_node_is_named() -> None:
    trio = Trio()
    trio.lost = lambda envelope: envelope.sender == "bob"
    trio.distil()
    alice = trio.nodes["alice"]
    alice.check()
    alice.key_maker.clear_deadline("the peer's next message")
    with pytest.raises(InvariantError, match="discussion of block 0 and its deadline do not go together"):
        alice.check()


def test_a_phase_that_the_table_does_not_name_is_refused() -> None:
    stage = probing()
    with pytest.raises(InvariantError, match="none from 'probing' to 'configuring'"):
        stage.state._phases.enter("configuring")


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("The coordinator", state.TRANSITIONS),
        ("A block", block.STAGES),
        ("A node", node_state.TRANSITIONS),
    ],
)
def test_the_diagram_has_the_arrows_of_the_table_and_no_other(heading: str, table: Any) -> None:
    text = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    diagram = section.partition("```mermaid")[2].partition("```")[0]
    drawn = {line.partition(":")[0].strip() for line in diagram.splitlines() if "-->" in line and "[*]" not in line}
    assert drawn == {f"{phase} --> {after}" for phase, followers in table.items() for after in followers}


def test_every_phase_has_its_course() -> None:
    assert state.COURSE.keys() | {"over"} == state.TRANSITIONS.keys()


def test_the_story_of_a_round_goes_from_its_order_to_its_block() -> None:
    stage = Stage()
    stage.join()
    lines = [line.partition(" s  ")[2] for line in stage.state.story(round=1)]
    told = [line.partition(",")[0] for line in lines if not line.startswith(("secret pattern", "pattern"))]
    assert told == ["ordered", "reported", "reported", "reported", "kept", "opened", "closed"]
    assert sorted(line.split(", ")[2] for line in lines if line.startswith("reported")) == [
        "node alice", "node bob", "node eve",
    ]  # fmt: skip


def test_the_story_of_a_block_names_its_stages_and_its_failure() -> None:
    stage = distilling()
    stage.wait(200.0)
    lines = stage.state.story(block=0)
    assert "opened, rounds 0 to 2, block 0" in lines[0]
    assert any("stage agree → closed" in line for line in lines)
    assert "failure: timeout waiting for bob" in lines[-1]


def test_the_story_of_a_round_that_was_lost_says_who_did_not_answer() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 1 else None)
    stage.join()
    stage.wait(15.0)
    lines = stage.state.story(round=1)
    assert any("no answer, round 1, node bob, strikes: 1" in line for line in lines)
    assert any("rejected, round 1, reason: timeout" in line for line in lines)


def test_a_node_tells_the_story_of_its_block() -> None:
    trio = Trio()
    trio.distil()
    lines = trio.nodes["bob"].story(block=0)
    assert f"block begun, rounds 0 to {ROUNDS[-1]}, block 0" in lines[0]
    assert "discussion over" in lines[-1]
    assert "measured, round 7" in trio.nodes["bob"].story(round=7)[0]


def test_checks_run_after_every_event(checked: list[int]) -> None:
    stage = Stage()
    before = checked[0]
    stage.take(e.Tick(0.5))
    assert checked[0] == before + 1
