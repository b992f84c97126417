"""No end keeps a key that the other has not; a node that comes back is on the others' clock. On paper."""

from __future__ import annotations

from typing import Any

import pytest
from test_coordinator import Stage

from testbed.coordinator import events as e
from testbed.core.outcomes import KeyReport
from testbed.net import messages as m

PLAN: dict[str, Any] = {"surface": {"policy": "none"}}


def abandoned(stage: Stage) -> list[tuple[str, int]]:
    return [(n, b.block) for n, b in stage.told if isinstance(b, m.Abandon)]


def kept(stage: Stage) -> dict[str, set[int]]:
    """Return by node the blocks whose keys it was ordered to keep."""
    out: dict[str, set[int]] = {}
    for node, body in stage.told:
        if isinstance(body, m.KeepKeys):
            out.setdefault(node, set()).update(body.blocks)
    return out


def without_bobs_key(node: str, body: Any) -> list[Any] | None:
    if node == "bob" and isinstance(body, m.Amplify) and body.block == 0:
        report = KeyReport(block=0, key_bits=0, failure="confirmation_failed")
        return [m.Amplified(report=report)]
    return None


def test_where_one_end_has_no_key_both_are_ordered_to_have_none() -> None:
    stage = Stage(without_bobs_key, **PLAN)
    stage.join()
    at_once = stage.told[: next(i for i, (_, b) in enumerate(stage.told) if isinstance(b, m.GuessKey))]
    assert sorted((n, b.block) for n, b in at_once if isinstance(b, m.Abandon)) == [("alice", 0), ("bob", 0)]
    assert set(abandoned(stage)) == {("alice", 0), ("bob", 0)}  # ordered again at the end
    assert kept(stage) == {"alice": {1}, "bob": {1}}
    assert [b.failure for b in stage.blocks] == ["confirmation_failed", None]


def test_where_neither_end_has_a_key_nobody_is_ordered_anything() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Amplify):
            return [m.Amplified(report=KeyReport(block=body.block, key_bits=0, failure="key_too_short"))]
        return None

    stage = Stage(script, **PLAN)
    stage.join()
    assert abandoned(stage) == []
    assert kept(stage) == {}


def watched(stage: Stage) -> list[Any]:
    """Return a list to which all instructions are appended that the coordinator gives from now on."""
    seen: list[Any] = []
    handle = stage.state.handle

    def handle_and_keep(event: e.Event) -> list[e.Instruction]:
        out = handle(event)
        seen.extend(out)
        return out

    stage.state.handle = handle_and_keep  # type: ignore[method-assign]
    return seen


def test_a_key_is_final_when_its_block_is_on_record_and_before_the_run_ends() -> None:
    """A run may last a week, and its keys are used meanwhile; an order to keep them comes after the record."""
    stage = Stage(**PLAN)
    seen = watched(stage)
    stage.join()
    keep = [i for i, x in enumerate(seen) if isinstance(x, e.Send) and isinstance(x.body, m.KeepKeys)]
    closed = [i for i, x in enumerate(seen) if isinstance(x, e.BlockOver)]
    assert keep[:2] == [closed[0] + 1, closed[0] + 2]
    assert [(seen[i].node, seen[i].body.blocks) for i in keep[:2]] == [("alice", [0]), ("bob", [0])]
    assert kept(stage) == {"alice": {0, 1}, "bob": {0, 1}}


@pytest.mark.parametrize("comes_back", ["before it is configured", "while the run ends"])
def test_an_end_that_missed_an_order_gets_it_before_the_end(comes_back: str) -> None:
    """The end made its keys final, although it had not been told which of them the other end lacks."""

    def script(node: str, body: Any) -> list[Any] | None:
        if comes_back == "while the run ends" and node == "alice" and isinstance(body, m.Finish):
            return []
        if node == "bob" and isinstance(body, m.Amplify) and body.block == 1:
            return []
        return [] if node == "bob" and stage.lives["bob"] == 2 and isinstance(body, m.Configure) else None

    stage = Stage(script, rounds=9, **PLAN)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed; it is restarted"))
    stage.lives["bob"] = 2
    before = len(stage.told)
    if comes_back == "before it is configured":
        stage.join("bob")
        stage.take(e.StopAsked("abort"))
    else:
        stage.take(e.StopAsked("abort"))
        assert stage.over is None
        stage.join("bob")
        stage.take(stage.says("alice", m.Stopped(kind="abort")))
    told = [b for n, b in stage.told[before:] if n == "bob"]
    (finish,) = [i for i, b in enumerate(told) if isinstance(b, m.Finish)]
    assert m.KeepKeys(blocks=[0]) in told[:finish]
    assert [b.block for b in told[:finish] if isinstance(b, m.Abandon)] == [1]
    assert stage.over == e.RunOver("stopped", "abort was asked for")
    assert not [x for x in stage.notes if x.kind == "end_not_told"]


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_run_waits_at_its_end_for_an_end_that_may_alone_have_a_key(comes_back: bool) -> None:
    """Bob was killed in the last block after he had stored his key: the run ended at once, and he kept it."""

    def script(node: str, body: Any) -> list[Any] | None:
        return [] if node == "bob" and isinstance(body, m.Amplify) and body.block == 1 else None

    stage = Stage(script, **PLAN)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed; it is restarted"))
    assert stage.state.phase == "probing"
    if comes_back:
        stage.lives["bob"] = 2
        stage.join("bob")
        assert ("bob", 1) in abandoned(stage)
    else:
        stage.wait(stage.state.lab.coordinator.rejoin_timeout_s + 1.0, beating=("alice", "eve"))
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert [x.detail["node"] for x in stage.notes if x.kind == "end_not_told"] == ([] if comes_back else ["bob"])


def test_a_run_whose_ends_have_no_key_alone_ends_without_waiting() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Distil) and b.block == 1 else None, **PLAN)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed; it is restarted"))
    assert stage.over == e.RunOver("finished", "6 rounds")


def test_a_node_that_stays_for_further_runs_is_not_welcomed_to_the_one_that_ends() -> None:
    stage = Stage(lambda n, b: [] if n == "alice" and isinstance(b, m.Finish) else None, **PLAN)
    stage.join()
    assert stage.state.phase == "finishing"
    stage.lives["bob"] = 2
    before = len(stage.told)
    stage.join("bob")
    assert stage.told[before:] == []
    stage.wait(4.0)
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert [x.detail for x in stage.notes if x.kind == "end_not_told"] == [{"node": "alice"}]


def test_an_end_that__comes_back_is_ordered_again_to_drop_what_it_has_alone() -> None:
    """Bob's process died when he had stored his key and had not said so."""
    silent = [True]

    def script(node: str, body: Any) -> list[Any] | None:
        return [] if node == "bob" and isinstance(body, m.Amplify) and silent[0] else None

    stage = Stage(script, **PLAN)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed; it is restarted"))
    assert ("alice", 0) in abandoned(stage)
    assert ("bob", 0) not in abandoned(stage)
    silent[0] = False
    stage.lives["bob"] = 2
    stage.join("bob")
    assert ("bob", 0) in abandoned(stage)
    order = [type(b).__name__ for n, b in stage.told if n == "bob"]
    last_configure = len(order) - order[::-1].index("Configure")
    assert "Abandon" in order[last_configure:]


@pytest.mark.parametrize("stage_of_block", ["amplify", "guess"])
def test_a_node_lost_when_both_have_their_keys_costs_no_key(stage_of_block: str) -> None:
    order = m.Amplify if stage_of_block == "amplify" else m.GuessKey

    def script(node: str, body: Any) -> list[Any] | None:
        return [] if isinstance(body, order) and body.block == 0 else None

    stage = Stage(script, **PLAN)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed; it is restarted"))
    (block,) = stage.blocks
    if stage_of_block == "guess":  # only Eve's guess was missing
        assert block.failure is None
        assert block.key_alice is not None
        assert block.key_bob is not None
        assert abandoned(stage) == []
    else:
        assert block.failure == "bob was lost"
        assert ("alice", 0) in abandoned(stage)


def back_again(name: str) -> list[Any]:
    """Return all instructions from the moment at which a node that was lost in round 2 has come back."""
    stage = Stage(lambda n, b: [] if n == name and isinstance(b, m.Probe) and b.round == 2 else None, **PLAN)
    stage.join()
    stage.take(e.ProcessEnded(name, "killed; it is restarted"))
    seen = watched(stage)
    stage.script = lambda n, b: None
    stage.lives[name] = 2
    stage.join(name)
    assert stage.over is not None
    assert stage.over.status == "finished"
    return seen


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_the_air_comes_to_the_planned_time_before_a_clock_is_read_anew(name: str) -> None:
    seen = back_again(name)
    kinds = [
        "air" if isinstance(x, e.AdvanceWorld) else type(x.body).__name__ if isinstance(x, e.Send) else "" for x in seen
    ]
    assert "air" in kinds[: kinds.index("ReadClock")]
    assert kinds.index("ReadClock") < kinds.index("Probe")
    (air, *_) = [x for x in seen if isinstance(x, e.AdvanceWorld)]
    assert air.until_s > 0


@pytest.mark.parametrize(("name", "left"), [("alice", set()), ("bob", {"alice", "eve"})])
def test_arrivals_of_rounds_planned_before_a_clock_was_read_anew_do_not_correct_it(name: str, left: set[str]) -> None:
    """All arrivals are relative to Alice's clock."""
    stage = Stage(lambda n, b: [] if isinstance(b, m.Probe) and b.round == 2 else None, **PLAN)
    stage.join()
    rounds = [*stage.state.rounds.uncorrected, *stage.state.rounds.under_way]
    assert rounds
    assert all(r.bases_s for r in rounds)
    stage.state.rounds.forget_clock_of(name)
    assert all(r.bases_s.keys() == left for r in rounds)
