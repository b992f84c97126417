"""A run that died goes on from its record, on paper: numbers, counts, clocks, blocks and keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_coordinator import EXPERIMENT, LAB, Stage

from testbed.coordinator import events as e
from testbed.coordinator import past as recovering
from testbed.coordinator.past import past_of
from testbed.coordinator.recorder import Recorder
from testbed.coordinator.state import CoordinatorState
from testbed.core import schedule
from testbed.core.config import Experiment, Lab
from testbed.core.errors import InputError
from testbed.net import messages as m
from testbed.records import documents, reader
from testbed.records.documents import BLOCK_BEGUN, RUN_BEGUN, RUN_ENDING
from testbed.records.recorded import RecordedRun
from testbed.records.writer import RunWriter

PLAN: dict[str, Any] = {"rounds": 12, "surface": {"policy": "none"}, "accounting": {"block_rounds": 3}}


def played(script: Any = lambda node, body: None, **changes: Any) -> Stage:
    """Play a run to its end; its instructions for the record are what `record` writes."""
    stage = Stage(script, begun=False, **{**PLAN, **changes})
    taken: list[Any] = []
    handle = stage.state.handle

    def handle_and_keep(event: Any) -> list[e.Instruction]:
        out = handle(event)
        taken.extend(out)
        return out

    stage.state.handle = handle_and_keep  # type: ignore[method-assign]
    stage.written = taken  # type: ignore[attr-defined]
    stage.take(e.Tick(0.0))
    stage.join()
    return stage


def record(folder: Path, stage: Stage, until: Any) -> RecordedRun:
    """Write what was decided before `until` holds of an instruction, and die."""
    lab, experiment = msgspec.convert(LAB, Lab), stage.state.experiment
    start = documents.start(msgspec.to_builtins(experiment), LAB, subcarrier_hz=[0.0])
    writer = RunWriter(folder, start)
    recorder = Recorder(writer, lab, "run", private=False)
    writer.event(RUN_BEGUN, {"run": "run", "command": "run", "lab": "sim", "experiment": "x"})
    for x in stage.written:  # type: ignore[attr-defined]
        if until(x):
            break
        match x:
            case e.Note():
                recorder.note(x)
            case e.RoundOver():
                recorder.round(x)
            case e.BlockOver():
                recorder.block(x)
            case e.NewPattern():
                recorder.pattern(x)
    writer.flush()
    writer._journal.close()
    writer._lock.release(remove=False)
    return reader.load(folder)


def resumed(run: RecordedRun, stage: Stage) -> Stage:
    """Play the rest."""
    plan = stage.state.experiment
    past = past_of(run, plan, 0.0, watches=stage.state.surface.watches)
    again = Stage(stage.script, begun=False, **{**PLAN, "rounds": plan.rounds})
    again.state = CoordinatorState(
        msgspec.convert(LAB, Lab), plan, past.run, schedule.parse("A>BE B>AE"), 10e-6, past=past
    )
    for effect in past.effects:
        match effect:
            case e.RoundOver():
                again.rounds.append(effect)
            case e.BlockOver():
                again.blocks.append(effect)
    again.take(e.Tick(0.0))
    again.join()
    return again


def is_block(number: int, kind: type) -> Any:
    """Return whether an instruction closes, or opens, this block."""
    if kind is e.BlockOver:
        return lambda x: isinstance(x, e.BlockOver) and x.block == number
    return lambda x: isinstance(x, e.Note) and x.kind == BLOCK_BEGUN and x.detail["block"] == number


def test_it_goes_on_with_the_next_round_and_ends_with_all(tmp_path: Path) -> None:
    stage = played()
    run = record(tmp_path / "run", stage, lambda x: isinstance(x, e.RoundOver) and x.round == 7)
    assert run.rounds.rounds.tolist() == list(range(7))
    again = resumed(run, stage)
    assert again.over == e.RunOver("finished", "12 rounds")
    # round 6 was measured and in no block: nobody has it any more
    assert (again.rounds[0].round, again.rounds[0].reason) == (6, "measured")
    assert [r.round for r in again.rounds][1:] == list(range(7, 12))
    assert again.state.probed == 12
    assert again.state.kept == 11
    assert again.state.rejected == {"measured": 1}
    assert [b.block for b in again.blocks] == [2, 3]
    assert again.state.key_bits == 4 * 7
    starts = [r.start_s for r in again.rounds]
    assert starts == sorted(starts)
    assert again.rounds[1].start_s > run.rounds.t0_s.max()  # the air is no younger than it was


def test_a_block_under_way_is_closed_without_a_key_and_both_ends_drop_what_they_have(tmp_path: Path) -> None:
    stage = played()
    run = record(tmp_path / "run", stage, is_block(1, e.BlockOver))
    again = resumed(run, stage)
    assert [(b.block, b.failure is None) for b in again.blocks] == [(1, False), (2, True), (3, True)]
    assert again.blocks[0].rounds == [3, 4, 5]
    orders = {(n, b.block) for n, b in again.told if isinstance(b, m.Abandon)}
    assert orders == {("alice", 1), ("bob", 1)}
    first = next(i for i, (_, b) in enumerate(again.told) if isinstance(b, m.Probe))
    dropped = [i for i, (_, b) in enumerate(again.told) if isinstance(b, m.Abandon)]
    assert sum(i < first for i in dropped) == 2  # one for each; at the end they are ordered again


def test_a_block_that_was_recorded_keeps_its_key(tmp_path: Path) -> None:
    stage = played()
    run = record(tmp_path / "run", stage, is_block(2, e.Note))
    again = resumed(run, stage)
    assert not [b for _, b in again.told if isinstance(b, m.Abandon)]
    for node in ("alice", "bob"):  # its process may have died before it was told that the other end has the key, too
        orders = told(again, node)
        assert orders.index(m.KeepKeys(blocks=[0, 1])) < min(i for i, b in enumerate(orders) if isinstance(b, m.Distil))
    assert [(b.block, b.rounds) for b in again.blocks] == [(2, [10, 11])]
    assert again.state.key_bits == 3 * 7


def test_a_round_of_which_only_one_end_is_on_record_is_closed_as_rejected(tmp_path: Path) -> None:
    stage = played()
    run = record(tmp_path / "run", stage, lambda x: isinstance(x, e.RoundOver) and x.round == 5)
    journal = RunWriter(run.folder, run.start, past=run)
    for link in ("bob>alice", "alice>bob", "alice>eve"):
        journal.probe(5, link.split(">")[1], link, 0.0, 1.0, 0.0, 0.0, None, np.ones((1, 1, 1), np.complex64))
    journal.probe(6, "alice", "bob>alice", 0.0, 1.0, 0.0, 0.0, None, np.ones((1, 1, 1), np.complex64))
    journal.flush()
    journal._journal.close()
    journal._lock.release(remove=False)
    past = past_of(reader.load(run.folder), stage.state.experiment, 0.0)
    assert past.next_round == 7
    ends = {x.round: x.reason for x in past.effects if isinstance(x, e.RoundOver)}
    assert ends == {3: "measured", 4: "measured", 5: "measured", 6: "aborted"}


def is_ending(x: Any) -> bool:
    return isinstance(x, e.Note) and x.kind == RUN_ENDING


def is_over(x: Any) -> bool:
    return isinstance(x, e.RunOver)


def told(stage: Stage, node: str) -> list[Any]:
    return [b for n, b in stage.told if n == node]


def test_the_end_is_on_record_before_any_node_is_told() -> None:
    stage = played()
    written = stage.written  # type: ignore[attr-defined]
    ending = next(i for i, x in enumerate(written) if is_ending(x))
    told_s = [i for i, x in enumerate(written) if isinstance(x, e.Send) and isinstance(x.body, m.Finish)]
    assert written[ending].detail == {"status": "finished", "detail": "12 rounds"}
    assert ending < min(told_s)
    assert all(written[i].body == m.Finish(kind="stop", recorded=True) for i in told_s)


def test_a_run_that_had_ended_is_only_ended_again(tmp_path: Path) -> None:
    """Alice's node had forgotten what others know of its blocks: what followed made no key."""
    stage = played()
    run = record(tmp_path / "run", stage, is_over)
    again = resumed(run, stage)
    assert again.over == stage.over == e.RunOver("finished", "12 rounds")
    assert (again.rounds, again.blocks) == ([], [])
    keep = m.KeepKeys(blocks=[0, 1, 2, 3])
    finish = m.Finish(kind="stop", recorded=True)
    for node in ("alice", "bob"):
        assert told(again, node) == [m.Welcome(run="run", lost_after_s=again.told[0][1].lost_after_s), keep, finish]
    assert told(again, "eve")[1:] == [finish]
    assert [x.kind for x in again.notes] == ["joined", "joined", "joined", RUN_ENDING]
    assert (again.state.probed, again.state.kept, again.state.key_bits) == (12, 12, 4 * 7)


def test_a_run_that_was_asked_to_stop_makes_no_further_block_after_its_end_is_on_record(tmp_path: Path) -> None:
    stage = played(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 7 else None)
    stage.take(e.StopAsked("abort"))
    assert stage.over == e.RunOver("stopped", "abort was asked for")
    unused = [r.round for r in stage.rounds if r.kept and not any(r.round in b.rounds for b in stage.blocks)]
    assert unused == [6]
    again = resumed(record(tmp_path / "run", stage, is_over), stage)
    assert again.over == stage.over
    assert again.state.probed == len(stage.rounds) == 9
    assert again.rounds == []  # round 6 stays kept, as in a run that is closed at once
    assert not any(isinstance(b, (m.Probe, m.Distil, m.Configure)) for _, b in again.told)


def test_a_run_that_died_before_its_end_was_on_record_goes_on(tmp_path: Path) -> None:
    stage = played()
    run = record(tmp_path / "run", stage, is_ending)
    past = past_of(run, stage.state.experiment, 0.0)
    assert past.ended is None
    assert past.with_key == (0, 1, 2, 3)
    again = resumed(run, stage)
    assert any(isinstance(b, m.Configure) for _, b in again.told)
    assert again.over == e.RunOver("finished", "12 rounds")


def test_a_node_that_is_away_when_an_ended_run_is_ended_again_is_named(tmp_path: Path) -> None:
    stage = played()
    run = record(tmp_path / "run", stage, is_over)
    plan = stage.state.experiment
    again = Stage(begun=False, **PLAN)
    past = past_of(run, plan, 0.0)
    again.state = CoordinatorState(
        msgspec.convert(LAB, Lab), plan, past.run, schedule.parse("A>BE B>AE"), 10e-6, past=past
    )
    again.take(e.Tick(0.0))
    again.join("alice", "eve")
    again.take(e.ProcessEnded("bob", "exit status 1", is_final=True))  # it could not be started
    assert again.over == e.RunOver("finished", "12 rounds")
    assert [x.detail for x in again.notes if x.kind == "end_not_told"] == [{"node": "bob"}]
    late = Stage(begun=False, **PLAN)
    late.state = CoordinatorState(
        msgspec.convert(LAB, Lab), plan, past.run, schedule.parse("A>BE B>AE"), 10e-6, past=past
    )
    late.take(e.Tick(0.0))
    late.join("alice", "eve")
    late.wait(late.state.lab.coordinator.join_timeout_s + 5.0)
    assert late.over == e.RunOver("finished", "12 rounds")
    assert isinstance(told(late, "alice")[-1], m.Finish)


@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_a_run_that_is_stopped_while_its_nodes_finish_has_finished(kind: Any, tmp_path: Path) -> None:
    stage = played(lambda n, b: [] if isinstance(b, m.Finish) else None)
    assert stage.over is None
    stage.take(e.StopAsked(kind))
    stage.take(e.DiskLow("disk full: free 1 MB"))  # it ends already: this changes nothing
    assert [b.kind for n, b in stage.told if n == "bob" and isinstance(b, m.Finish)] == ["stop", kind]
    stage.wait(4.0)
    endings = [x.detail["status"] for x in stage.notes if x.kind == RUN_ENDING]
    assert endings == ["finished", "finished"]
    past = past_of(record(tmp_path / "run", stage, is_over), stage.state.experiment, 0.0)
    assert past.ended == stage.over == e.RunOver("finished", "12 rounds")


def test_a_stop_while_the_last_block_is_made_comes_too_late() -> None:
    """The block is made, so that nothing of the run is missing; a stop one block earlier ends it."""
    # round 9 was ordered before block 2 was full
    for block, over in ((3, e.RunOver("finished", "12 rounds")), (2, e.RunOver("stopped", "10 rounds"))):
        stage = Stage(begun=False, **PLAN)

        def stopped(node: str, body: Any, block: int = block, state: Any = stage.state) -> None:
            if node == "alice" and isinstance(body, m.Distil) and body.block == block:
                state.handle(e.StopAsked("stop"))

        stage.script = stopped
        stage.join()
        assert stage.over == over
        assert [r for b in stage.blocks for r in b.rounds] == list(range(12 if block == 3 else 10))


def test_a_halt_reaches_the_transmitters_before_anything_is_written() -> None:
    stage = Stage(lambda n, b: [] if isinstance(b, m.Probe) and b.round > 2 else None, **PLAN)
    stage.join()
    out = stage.state.handle(e.StopAsked("halt"))
    assert [type(x) for x in out[:4]] == [e.HaltNode, e.HaltNode, e.HaltNode, e.Note]
    assert {x.node for x in out if isinstance(x, e.HaltNode)} == {"alice", "bob", "eve"}


def test_a_training_is_not_repeated_and_its_guard_rounds_are_counted_on(tmp_path: Path) -> None:
    from testbed.core.outcomes import TrainReport

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Distil) and body.purpose == "training":
            report = TrainReport(block=body.block, probes=3, model="x", public_bytes=1, messages=1, failure=None)
            return [m.Trained(report=report, public_messages=1)]
        if isinstance(body, m.Attack) and body.purpose == "training":
            return [m.Failed(operation="attack", state="ready", detail="-")]
        return None

    stage = played(script, training={"rounds": 3, "guard_rounds": 4})
    run = record(tmp_path / "run", stage, lambda x: isinstance(x, e.RoundOver) and x.round == 5)
    past = past_of(run, stage.state.experiment, 0.0)
    assert not past.to_train
    assert (past.guarded, past.guard_left) == (2, 2)
    again = resumed(run, stage)
    assert again.state.guarded == 4
    assert [b.rounds for b in again.blocks] == [[7, 8, 9], [10, 11]]


def test_a_policy_that_watches_chooses_what_it_would_have_chosen(tmp_path: Path) -> None:
    surface = {"policy": "closed_loop", "options": {"search": "greedy", "objective": "power", "probes": 1}}
    stage = Stage(**{**PLAN, "surface": surface})  # type: ignore[arg-type]
    seen: list[Any] = []
    past = recovering.Past(
        origin=recovering.Origin("run", "sim", "x"), run="run", next_round=2, kept=0,
        rejected=recovering.Counter({"device": 2}), end_s=1.0, down_s=0.0, next_block=0, key_bits=0, to_train=False,
        guarded=0, guard_left=0, dropped=(), states={}, patterns={}, effects=(), observed=[(0, {}), (1, {})],
    )  # fmt: skip
    again = CoordinatorState(
        stage.state.lab, stage.state.experiment, "run", schedule.parse("A>BE B>AE"), 10e-6, past=past
    )
    policy = again.policy
    assert policy is not None
    observe = policy.observe
    policy.observe = lambda n, links: (seen.append(n), observe(n, links))  # type: ignore[assignment,func-returns-value]
    stage.state = again
    stage.take(e.Tick(0.0))
    stage.join()
    assert seen[:3] == [0, 1, 2]


def test_a_run_that_does_not_say_how_it_was_started_cannot_be_resumed(tmp_path: Path) -> None:
    start = documents.start(msgspec.to_builtins(msgspec.convert(EXPERIMENT, Experiment)), LAB)
    writer = RunWriter(tmp_path / "run", start)
    writer.flush()
    with pytest.raises(InputError, match="was started by an earlier version"):
        past_of(reader.load(tmp_path / "run"), msgspec.convert(EXPERIMENT, Experiment), 0.0)
    writer._journal.close()
    writer._lock.release(remove=False)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (BLOCK_BEGUN, {}), (BLOCK_BEGUN, {"block": 0}), (BLOCK_BEGUN, {"block": 0, "rounds": 5}),
        (BLOCK_BEGUN, {"block": "x", "rounds": [1]}), (BLOCK_BEGUN, {"block": [], "rounds": []}), ("training", {}),
        (RUN_ENDING, {}), (RUN_ENDING, {"status": "ok", "detail": "x"}), (RUN_ENDING, {"status": [], "detail": "x"}),
    ],
)  # fmt: skip
def test_a_record_that_somebody_changed_is_no_past(tmp_path: Path, kind: str, data: dict[str, Any]) -> None:
    """Each was a traceback of `run --resume`."""
    from testbed.coordinator.server import Coordinator

    stage = played()
    writer = RunWriter(tmp_path / "again", documents.start(msgspec.to_builtins(stage.state.experiment), LAB))
    writer.event(RUN_BEGUN, {"run": "run", "command": "run", "lab": "sim", "experiment": "x"})
    writer.event(kind, data)
    writer.event(BLOCK_BEGUN, {"block": 1, "rounds": [1]})
    writer.flush()
    writer._journal.close()
    writer._lock.release(remove=False)
    dead = reader.load(tmp_path / "again")
    with pytest.raises(InputError, match="again: cannot be resumed: damaged: ") as caught:
        Coordinator(msgspec.convert(LAB, Lab), stage.state.experiment, tmp_path / "again", None, dead=dead)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "", "a\nb", "a/b"])
def test_the_name_of_a_recorded_run_is_a_name(tmp_path: Path, name: str) -> None:
    writer = RunWriter(tmp_path / "run", documents.start({"title": "x"}, LAB))
    writer.event(RUN_BEGUN, {"run": name, "command": "run", "lab": "sim", "experiment": "x"})
    writer.flush()
    with pytest.raises(InputError, match=r"the run's name .* is none"):
        recovering.origin_of(reader.load(tmp_path / "run"))
    writer.close(documents.stop("ok"), None)


@pytest.mark.parametrize(
    ("bits", "dropped"),
    [
        ({"alice": 256, "bob": 0}, True),
        ({"alice": 0}, True),
        ({"alice": 256}, True),
        ({}, True),
        ({"alice": 0, "bob": 0}, False),
        ({"alice": 256, "bob": 256}, False),
    ],
)
def test_a_block_of_which_one_end_alone_may_have_a_key_is_dropped_at_both(bits: dict[str, int], dropped: bool) -> None:
    agree = {
        n: m.AgreeReport(
            block=0, probes=1, raw_bits=1, sacrificed_bits=0, sacrificed_errors=0, reconciled_bits=1,
            corrected_bits=None, leaked_bits=0, leaked_by_kind={}, public_bytes=0, messages=0, verified=True,
            failure=None,
        )
        for n in ("alice", "bob")
    }  # fmt: skip
    key = {n: m.KeyReport(block=0, key_bits=k, failure=None if k else "confirmation_failed") for n, k in bits.items()}
    assert recovering._may_be_one_sided(documents.Block(block=0, rounds=[0], agree=agree, eve=None, key=key)) is dropped


def test_a_block_that_was_under_way_at_a_death_is_dropped_at_every_later_start(tmp_path: Path) -> None:
    """Found by killing the coordinator a second time, before the ends had joined the run that was resumed."""
    first = played()
    run = record(tmp_path / "run", first, lambda x: isinstance(x, e.BlockOver))
    past = past_of(run, first.state.experiment, 1.0)
    over = next(x for x in past.effects if isinstance(x, e.BlockOver))
    closed = documents.Block(block=over.block, rounds=list(over.rounds), agree={}, eve=None, key={})
    later = past_of(replace(run, blocks=[*run.blocks, closed]), first.state.experiment, 1.0)
    assert past.dropped == later.dropped == (over.block,)
