"""A pattern that is held is looked at again: what a board forgot in silence is never counted on."""

from __future__ import annotations

from typing import Any

import pytest
from test_coordinator import Stage
from test_watching_policy import answering, loop

from testbed.coordinator.surface_keeper import SURFACE_CHECK_ROUNDS
from testbed.net import messages as m

FIXED: dict[str, Any] = {"surface": {"policy": "fixed"}, "rounds": 12, "accounting": {"block_rounds": 6}}


class Forgetful:
    """A board that starts anew, without a word, before a round."""

    def __init__(self, before: int) -> None:
        self.before, self.stage = before, None
        self.rounds: list[int] = []

    def __call__(self, node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and body.round == self.before and self.stage is not None:
            self.stage.held = "zeros"
        return None


def run(script: Any = lambda node, body: None, **changes: Any) -> Stage:
    stage = Stage(script, **{**FIXED, **changes})
    if isinstance(script, Forgetful):
        script.stage = stage
    stage.join()
    stage.wait(30.0)
    assert stage.over is not None
    return stage


def orders(stage: Stage, kind: type[Any]) -> list[Any]:
    return [body for _, body in stage.told if isinstance(body, kind)]


def distilled(stage: Stage) -> set[int]:
    return {n for body in orders(stage, m.Distil) for n in body.rounds}


def test_rounds_are_used_after_their_pattern_was_read_back() -> None:
    stage = run()
    kinds = [type(body) for _, body in stage.told if isinstance(body, m.Apply | m.ReadSurface | m.Distil)]
    apply, look, distil = m.Apply, m.ReadSurface, m.Distil
    assert kinds == [apply, look, distil, distil, look, distil, distil]
    assert stage.state.kept == 12


def test_a_board_that_lost_its_pattern_costs_the_rounds_since_the_last_readback_and_gets_it_again() -> None:
    stage = run(Forgetful(8))  # the seventh round was ordered ahead, while the first six were still coming in
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert distilled(stage) == set(range(7))
    assert stage.state.rejected == {"surface_changed": 5}
    assert stage.state.kept == 7
    # in the records, too: the last word on each round counts
    last = {r.round: (r.kept, r.reason) for r in stage.rounds}
    assert [n for n, (kept, _) in last.items() if kept] == list(range(7))
    assert {reason for n, (_, reason) in last.items() if n >= 7} == {"surface_changed"}
    note = next(n for n in stage.notes if n.kind == "surface_lost")
    assert "was reset" in note.detail["detail"]


def test_it_gets_the_pattern_again_and_later_rounds_count() -> None:
    stage = run(Forgetful(2), rounds=12)
    assert len(orders(stage, m.Apply)) == 2
    assert distilled(stage) == set(range(7, 12))


def test_long_holding_is_looked_at_in_between() -> None:
    n = 2 * SURFACE_CHECK_ROUNDS + 10
    stage = run(rounds=n, accounting={"block_rounds": 10_000})
    assert [body.round for body in orders(stage, m.ReadSurface)] == [SURFACE_CHECK_ROUNDS, n - 10, n]
    assert stage.state.kept == n


@pytest.mark.parametrize("answer", ["refusal", "silence"])
def test_what_cannot_be_read_back_is_not_counted_on(answer: str) -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        if not isinstance(body, m.ReadSurface):
            return None
        return [] if answer == "silence" else [m.Failed(operation="readsurface", state="reading", detail="broken")]

    stage = run(script)
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert "no round of 12 was kept: 12 surface_changed" in stage.over.detail
    assert not distilled(stage)


def test_a_dwelling_sweep_is_looked_at_before_each_change_and_a_restless_one_never() -> None:
    codebook = ["uniform", "stripes(1)", "hadamard(3)"]
    dwell = run(surface={"policy": "sweep", "options": {"codebook": codebook, "dwell": 3}})
    kinds = "".join(type(b).__name__[0] for _, b in dwell.told if isinstance(b, m.Apply | m.ReadSurface))
    assert kinds == "ARARARAR"
    restless = run(surface={"policy": "sweep", "options": {"codebook": codebook}})
    assert not orders(restless, m.ReadSurface)
    assert len(orders(restless, m.Apply)) == 12


def test_a_late_answer_to_a_look_counts_for_nothing() -> None:
    stage = Stage(lambda node, body: [] if isinstance(body, m.ReadSurface) else None, **FIXED)
    stage.join()
    stage.take(stage.says("ris", m.SurfaceHeld(round=99, digest=stage.held)))
    assert stage.state.surface.unconfirmed == list(range(7))
    assert not distilled(stage)
    stage.take(stage.says("ris", m.SurfaceHeld(round=7, digest=stage.held)))
    assert 0 in distilled(stage)


def test_a_lost_surface_confirms_nothing() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        return [] if isinstance(body, m.ReadSurface) else None

    stage = Stage(script, **{**FIXED, "rounds": 6})
    stage.join()
    stage.wait(60.0, beating=("alice", "bob", "eve"))
    assert stage.over is not None
    assert not distilled(stage)


def test_a_search_whose_board_forgot_says_so_and_ends() -> None:
    forgetful = Forgetful(0)

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.ReadSurface):
            return [m.SurfaceHeld(round=body.round, digest="zeros")]
        return answering()(node, body)

    stage = Stage(script, surface=loop(search_only=True), rounds=200)
    forgetful.stage = stage
    stage.join()
    stage.wait(10.0)
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert "under an unknown pattern" in stage.over.detail
