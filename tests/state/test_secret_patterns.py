"""Secret patterns at the coordinator: it orders "the next one" and works on names that tell nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_coordinator import Stage

from testbed.core.types import SurfacePattern
from testbed.net import messages as m

SECRET: dict[str, Any] = {"surface": {"policy": "random"}, "rounds": 6, "accounting": {"block_rounds": 3}}


def told(stage: Stage, kind: type[Any], node: str | None = None) -> list[Any]:
    return [body for name, body in stage.told if isinstance(body, kind) and node in (None, name)]


def repeating(names: str) -> Any:
    """A board that holds these states, one a round."""

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.ApplyNext):
            return [m.Applied(round=body.round, digest=f"state-1-{names[body.round]}", device_time_s=100.0)]
        return None

    return script


def test_no_level_is_ever_ordered_and_every_round_is_a_state() -> None:
    stage = Stage(**SECRET)
    stage.join()
    assert told(stage, m.Apply) == []
    assert [body.round for body in told(stage, m.ApplyNext)] == list(range(6))
    assert [r.surface for r in stage.rounds] == [f"state-1-{r}" for r in range(6)]
    assert stage.state.surface.pattern is None


def test_equal_states_have_equal_numbers_in_every_block() -> None:
    stage = Stage(repeating("abacba"), **SECRET)
    stage.join()
    records = [body.surface for body in told(stage, m.Amplify, "alice")]
    assert [r.states for r in records] == [(0, 1, 0), (2, 1, 0)]
    assert all(r.levels is None and r.responses is None for r in records)
    assert records == [body.surface for body in told(stage, m.Amplify, "bob")]
    assert {(r.elements, r.phase_bits) for r in records} == {(4, 1)}  # how many bits a state was drawn with


def test_states_of_rounds_without_a_key_are_reported_with_the_next_block() -> None:
    """Training publishes CSI: a state that comes back afterwards is known."""
    stage = Stage(repeating("abacba"), **SECRET)
    surface = stage.state.surface
    for r, name in enumerate("abacba"):
        surface._in_round[r] = name
    told_of = surface.record([3, 4])
    assert told_of is not None
    assert told_of.states == (0, 1)
    assert dict(zip(told_of.other_rounds, told_of.other_states, strict=True)) == {0: 2, 1: 1, 2: 2}
    assert surface.record([5]).other_rounds == ()


def test_public_patterns_are_told_with_their_levels() -> None:
    codebook = ["uniform", "stripes(1)"]
    stage = Stage(**{**SECRET, "surface": {"policy": "sweep", "options": {"codebook": codebook}}})
    stage.join()
    assert told(stage, m.ApplyNext) == []
    records = [body.surface for body in told(stage, m.Amplify, "alice")]
    assert [r.states for r in records] == [(0, 1, 0), (1, 0, 1)]
    ordered = {body.round: body.levels for body in told(stage, m.Apply)}
    for record, rounds in zip(records, ((0, 1, 2), (3, 4, 5)), strict=True):
        levels = np.frombuffer(record.levels, np.uint8).reshape(3, 4)
        assert [row.tobytes() for row in levels] == [ordered[r] for r in rounds]
        assert record.phase_bits == 1


def test_without_a_surface_none_is_reported() -> None:
    stage = Stage(**{**SECRET, "surface": {"policy": "none"}})
    stage.join("alice", "bob", "eve")
    assert [body.surface for body in told(stage, m.Amplify)] == [None] * 4


@pytest.mark.parametrize("experiment", [True, False])
def test_a_pattern_is_recorded_only_where_its_node_tells_it(experiment: bool) -> None:
    """In experiment mode the acknowledgement holds the levels, for science; in private mode there are none."""
    levels = np.array([[0, 1], [1, 0]], np.uint8)
    stage = Stage(**SECRET, **({} if experiment else {"mode": "private"}))
    told_levels = levels.tobytes() if experiment else None

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.ApplyNext):
            return [
                m.Applied(
                    round=body.round, digest="state-1-0", device_time_s=100.0, levels=told_levels, shape=(2, 2),
                )
            ]  # fmt: skip
        return None

    stage.script = script
    patterns: list[Any] = []
    handle = stage.state.handle

    def spy(event: Any) -> Any:
        out = handle(event)
        patterns.extend(x for x in out if type(x).__name__ == "NewPattern")
        return out

    stage.state.handle = spy  # type: ignore[method-assign]
    stage.join()
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert [body.surface.levels for body in told(stage, m.Amplify)] == [None] * 4
    if not experiment:
        assert patterns == []
        return
    assert {p.name for p in patterns} == {"state-1-0"}
    assert all(np.array_equal(p.pattern.levels, levels) for p in patterns)
    assert SurfacePattern(levels, 1).digest not in {r.surface for r in stage.rounds}


def test_a_board_that_started_anew_under_a_secret_pattern_costs_its_rounds() -> None:
    """A state that was not drawn counts as unknown: the rounds under it are withdrawn, the next state is ordered."""
    stage = Stage(**{**SECRET, "rounds": 12, "surface": {"policy": "random", "options": {"every": 3}}})
    forgotten: list[int] = []

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.ReadSurface) and not forgotten:
            forgotten.append(body.round)
            return [m.SurfaceHeld(round=body.round, digest="unknown")]
        return None

    stage.script = script
    stage.join()
    stage.wait(5.0)
    assert stage.over is not None
    assert forgotten
    assert stage.state.rejected["surface_changed"] > 0
    distilled = {r for body in told(stage, m.Distil) for r in body.rounds}
    last = {r.round: r.kept for r in stage.rounds}
    assert distilled <= {r for r, kept in last.items() if kept}
