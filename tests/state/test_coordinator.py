"""The coordinator's state machine against scripted nodes: no sockets, no clock, no sleeps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed.coordinator import events as e
from testbed.coordinator.roster import MAX_STRIKES
from testbed.coordinator.state import CoordinatorState
from testbed.coordinator.timetable import LATE_UNCERTAINTY_S
from testbed.core import schedule
from testbed.core.config import Experiment, Lab
from testbed.core.outcomes import AgreeReport, EveReport, KeyReport, TrainReport
from testbed.core.types import SurfacePattern
from testbed.net import messages as m

LAB: dict[str, Any] = {
    "schema": 1,
    "name": "paper",
    "world": {},
    "node": {
        "alice": {"role": "alice", "driver": "sim"},
        "bob": {"role": "bob", "driver": "sim"},
        "eve": {"role": "eve", "driver": "sim"},
        "ris": {"role": "ris", "driver": "sim"},
    },
}
EXPERIMENT: dict[str, Any] = {
    "schema": 1,
    "title": "on paper",
    "rounds": 6,
    "scene": {
        "alice": {"position_m": [0.0, 0.0, 0.0]},
        "bob": {"position_m": [1.0, 0.0, 0.0]},
        "eve": {"position_m": [2.0, 0.0, 0.0]},
        "surface": {"position_m": [0.0, 1.0, 0.0], "normal": [0.0, -1.0, 0.0]},
    },
    "surface": {"policy": "random"},
    "accounting": {"block_rounds": 3},
    "probing": {"train": 1},
}

Script = Callable[[str, Any], list[Any] | None]
"""(node, order) → its answer; None for the usual one."""


class Stage:
    """Plays the nodes: answers every order at once, unless a script replaces the answer."""

    def __init__(
        self, script: Script = lambda node, body: None, lab: dict[str, Any] = LAB, begun: bool = True, **changes: Any
    ) -> None:
        experiment = msgspec.convert({**EXPERIMENT, **changes}, Experiment)
        self.state = CoordinatorState(msgspec.convert(lab, Lab), experiment, "run", schedule.parse("A>BE B>AE"), 10e-6)
        self.script = script
        self.now_s = 0.0
        self.told: list[tuple[str, Any]] = []
        self.rounds: list[e.RoundOver] = []
        self.blocks: list[e.BlockOver] = []
        self.notes: list[e.Note] = []
        self.over: e.RunOver | None = None
        self.held = ""
        """Digest of the surface's pattern, or the opaque name of a secret one."""
        self.lives = dict.fromkeys(self.state.nodes, 1)
        if begun:
            self.take(e.Tick(0.0))

    schedule_size = 0
    """Of the board."""

    def join(self, *names: str) -> None:
        for name in names or self.state.nodes:
            shape = {"surface_shape": (2, 2), "phase_bits": 1} if name == "ris" else {}
            if name == "ris" and self.schedule_size:
                shape |= {"schedule_size": self.schedule_size, "latency_s": 1e-3}
            hello = m.Hello(
                role=self.state.nodes[name].role, identity={}, pid=1, discussion_port=1, transcript_port=2, **shape
            )  # type: ignore[arg-type]
            self.take(self.says(name, hello))

    def says(self, name: str, body: Any) -> e.Received:
        return e.Received(name, f"{name}{self.lives[name]}", body)

    def take(self, event: e.Event) -> None:
        queue: list[e.Event] = [event]
        while queue:
            for x in self.state.handle(queue.pop(0)):
                match x:
                    case e.Send(node, body):
                        self.told.append((node, body))
                        queue += [self.says(node, answer) for answer in self.answer(node, body)]
                    case e.AdvanceWorld(until_s):
                        self.advance(until_s)
                    case e.RoundOver():
                        self.rounds.append(x)
                    case e.BlockOver():
                        self.blocks.append(x)
                    case e.Note():
                        self.notes.append(x)
                    case e.RunOver():
                        assert self.over is None
                        self.over = x

    def answer(self, node: str, body: Any) -> list[Any]:
        answers = self.script(node, body)
        return self.usual(node, body) if answers is None else answers

    def advance(self, until_s: float) -> None:
        """Here, nobody's clock follows the simulated air."""

    def wait(self, seconds: float, *, beating: tuple[str, ...] | None = None) -> None:
        """Let time pass; the named nodes (default: all alive) keep their heartbeats up."""
        end_s = self.now_s + seconds
        while self.now_s < end_s and self.over is None:
            self.now_s += 0.5
            for name, node in self.state.nodes.items():
                if node.alive and (beating is None or name in beating):
                    self.take(self.says(name, m.Heartbeat(state="ready")))
            self.take(e.Tick(self.now_s))

    def usual(self, node: str, body: Any) -> list[Any]:
        match body:
            case m.Configure():
                return [m.Configured(accepted={})]
            case m.ReadClock():
                return [m.ClockReading(device_time_s=100.0)]
            case m.Apply():
                levels = np.frombuffer(body.levels, dtype=np.uint8).reshape(body.shape)
                digest = self.held = SurfacePattern(levels, body.phase_bits).digest
                return [m.Applied(round=body.round, digest=digest, device_time_s=100.0)]
            case m.ApplyNext():  # a secret pattern: only the board's node knows it
                self.held = f"state-1-{body.round}"
                return [m.Applied(round=body.round, digest=self.held, device_time_s=100.0)]
            case m.Schedule():
                return [self.scheduled(body)]
            case m.ReadSurface():
                return [m.SurfaceHeld(round=body.round, digest=self.held)]
            case m.Probe():
                return [m.Captured(round=body.round), probed(node, body)]
            case m.Distil():
                return [m.Agreed(report=agreement(body.block), raw_bits=b"\1\0", public_messages=3)]
            case m.Attack():
                report = EveReport(
                    block=body.block,
                    sacrificed_bits=9,
                    covered_bits=9,
                    sacrificed_errors=4,
                    best_link="alice",
                    transcript_complete=True,
                )
                return [m.Attacked(report=report, guess=b"\0\0")]
            case m.Amplify():
                report_ = KeyReport(
                    block=body.block,
                    key_bits=7,
                    eve_measured=body.eve is not None,
                    failure=None,
                )
                return [m.Amplified(report=report_, digest="same")]
            case m.GuessKey():
                return [m.KeyGuessed(block=body.block, digest="other")]
            case m.Finish():
                return [m.Stopped(kind=body.kind)]
        return []

    def scheduled(self, body: m.Schedule) -> m.Scheduled:
        """Return the acknowledgement of a board that will latch every pattern at its time."""
        found = []
        for plan in body.patterns:
            name = f"state-1-{plan.round}"
            if plan.levels is not None:
                levels = np.frombuffer(plan.levels, dtype=np.uint8).reshape(body.shape)
                name = SurfacePattern(levels, body.phase_bits).digest
            found.append(m.PatternSet(round=plan.round, digest=name, device_time_s=plan.at_s))
        self.held = found[-1].digest
        return m.Scheduled(patterns=found, device_time_s=100.0 + self.state.timetable._board_asked_s)


def probed(node: str, body: m.Probe, reason: str | None = None) -> m.Probed:
    """Return a node's report of all rounds of a train."""
    results = []
    for plan in body.rounds:
        links = [m.LinkResult(tx=slot.tx, reason=reason, snr_db=20.0) for slot in plan.slots if node in slot.rx]
        results.append(m.RoundResult(round=plan.round, links=links))
    return m.Probed(rounds=results)


def agreement(block: int, verified: bool = True, failure: str | None = None) -> AgreeReport:
    return AgreeReport(
        block=block, probes=3, raw_bits=20, sacrificed_bits=2, sacrificed_errors=0, reconciled_bits=18,
        corrected_bits=1, leaked_bits=5, leaked_by_kind={}, public_bytes=10, messages=3,
        verified=verified, failure=failure,
    )  # fmt: skip


def test_a_run_goes_from_joining_to_keys() -> None:
    stage = Stage()
    stage.join()
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert [r.round for r in stage.rounds] == list(range(6))
    assert all(r.kept for r in stage.rounds)
    assert [b.rounds for b in stage.blocks] == [[0, 1, 2], [3, 4, 5]]
    assert stage.state.key_bits == 14
    assert stage.blocks[0].raw.keys() == {"alice", "bob", "eve"}
    assert stage.blocks[0].digests == {"alice": "same", "bob": "same", "eve": "other"}


def test_every_round_has_its_own_acknowledged_pattern() -> None:
    stage = Stage()
    stage.join()
    digests = [r.surface for r in stage.rounds]
    assert None not in digests
    assert len(set(digests)) == 6
    orders = [type(body).__name__ for node, body in stage.told if node in ("ris", "alice")]
    first = orders.index("Probe")
    assert "ApplyNext" in orders[:first]


def test_slots_are_told_on_each_nodes_own_clock() -> None:
    readings = {"alice": 5.0, "bob": 1000.0, "eve": -3.0, "ris": 0.0}
    stage = Stage(
        lambda n, b: [m.ClockReading(device_time_s=readings[n])] if isinstance(b, m.ReadClock) else None,
        surface={"policy": "none"},
    )
    stage.join("alice", "bob", "eve")
    starts = {
        n: b.rounds[0].slots[0].start_s - readings[n] for n, b in stage.told if isinstance(b, m.Probe) and b.round == 0
    }
    assert starts.keys() == {"alice", "bob", "eve"}
    assert max(starts.values()) - min(starts.values()) < 1e-9


@pytest.mark.parametrize("late", ["alice", "bob"])
def test_a_round_without_answer_is_rejected_and_the_run_goes_on(late: str) -> None:
    stage = Stage(lambda n, b: [] if n == late and isinstance(b, m.Probe) and b.round == 1 else None)
    stage.join()
    stage.wait(15.0)
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert stage.state.rejected == {"timeout": 1}
    assert [r.round for r in stage.rounds if not r.kept] == [1]


def test_an_eve_who_does_not_answer_is_left_out_and_rounds_are_kept() -> None:
    stage = Stage(lambda n, b: [] if n == "eve" and isinstance(b, m.Probe) else None)
    stage.join()
    stage.wait(60.0)
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert stage.state.kept == 6
    assert stage.blocks[-1].eve is None
    assert any(n.kind == "left_out" for n in stage.notes)


def test_a_bob_who_never_answers_ends_the_run_with_his_name() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) else None)
    stage.join()
    stage.wait(60.0)
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert "bob" in stage.over.detail


def test_answering_twice_counts_once() -> None:
    def twice(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and node == "bob":
            return [m.Captured(round=body.round), probed(node, body), probed(node, body)]
        return None

    stage = Stage(twice)
    stage.join()
    assert stage.state.kept == 6
    assert sum(n.kind in ("duplicate", "late_answer") for n in stage.notes) == 6


def test_a_rejected_estimate_rejects_the_pair_with_its_reason() -> None:
    def clipped(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and node == "alice" and body.round == 2:
            return [m.Captured(round=2), probed(node, body, "clipped")]
        return None

    stage = Stage(clipped)
    stage.join()
    assert stage.state.rejected == {"clipped": 1}


def test_a_run_of_which_nothing_is_kept_has_failed_and_says_why() -> None:
    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and node == "bob":
            reason = "low_snr" if body.round else "no_preamble"
            return [m.Captured(round=body.round), probed(node, body, reason)]
        return None

    stage = Stage(script)
    stage.join()
    assert stage.over == e.RunOver("failed", "no round of 6 was kept: 5 low_snr, 1 no_preamble")


def test_a_dead_bob_ends_the_run_unless_he_comes_back() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 4 else None)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed by SIGKILL"))
    assert stage.over is None
    stage.wait(stage.state.lab.coordinator.rejoin_timeout_s + 1.0)
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert "bob was lost" in stage.over.detail
    assert stage.rounds[-1].reason == "node_lost"


def test_a_bob_who_comes_back_goes_on_with_a_new_block() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 4 else None)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed"))
    stage.wait(1.0)
    stage.lives["bob"] = 2
    stage.join("bob")
    assert stage.over is not None
    assert stage.over.status == "finished"
    # the round on the air, and the good one whose CSI died with him
    assert stage.state.rejected == {"node_lost": 1, "measured": 1}
    assert stage.blocks[-1].rounds == [5]


def test_messages_of_an_earlier_life_are_ignored() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 4 else None)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed"))
    stage.lives["bob"] = 2
    before = len(stage.rounds)
    stage.take(
        e.Received(
            "bob", "bob1", m.Probed(rounds=[m.RoundResult(round=4, links=[m.LinkResult(tx="alice", reason=None)])])
        )
    )
    assert len(stage.rounds) == before


def test_silence_is_loss() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 2 else None)
    stage.join()
    stage.wait(60.0, beating=("alice", "eve", "ris"))
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert any(n.kind == "silent" and n.detail["node"] == "bob" for n in stage.notes)


def test_nobody_joins() -> None:
    stage = Stage()
    stage.join("alice")
    stage.wait(60.0)
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert "bob" in stage.over.detail


def test_the_run_starts_without_an_eve_who_does_not_join() -> None:
    stage = Stage()
    stage.join("alice", "bob", "ris")
    stage.wait(60.0)
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert all(b.eve is None for b in stage.blocks)
    assert all(isinstance(b, m.Amplify) is False or b.eve is None for _, b in stage.told)


def test_a_failed_agreement_gives_no_key_but_eve_is_still_measured() -> None:
    def disagree(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Distil) and node == "bob":
            return [m.Agreed(report=agreement(body.block, verified=False, failure="verification_failed"))]
        return None

    stage = Stage(disagree)
    stage.join()
    assert stage.state.key_bits == 0
    assert {b.failure for b in stage.blocks} == {"verification_failed"}
    assert all(b.eve is not None for b in stage.blocks)
    assert not any(isinstance(b, m.Amplify) for _, b in stage.told)


def test_a_conversation_that_hangs_is_abandoned_on_both_sides() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Distil) else None)
    stage.join()
    stage.wait(2.2 * stage.state.lab.coordinator.distil_timeout_s)
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert stage.state.key_bits == 0
    abandoned = {n for n, b in stage.told if isinstance(b, m.Abandon)}
    assert abandoned == {"alice", "bob"}


@pytest.mark.parametrize("surface", [{"policy": "random"}, {"policy": "fixed"}])
def test_a_surface_that_never_acknowledges_ends_the_run(surface: dict[str, Any]) -> None:
    stage = Stage(lambda n, b: [] if isinstance(b, m.Apply | m.ApplyNext) else None, surface=surface)
    stage.join()
    stage.wait(120.0)
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert "surface" in stage.over.detail
    assert {r.reason for r in stage.rounds} == {"surface_not_applied"}


def test_a_surface_that_refuses_its_secret_patterns_ends_the_run_with_the_reason() -> None:
    def refuse(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.ApplyNext):
            return [m.Failed(operation="applynext", state="applying", detail="loose cable")]
        return None

    stage = Stage(refuse)
    stage.join()
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert "3 times in a row: loose cable" in stage.over.detail
    assert [r.reason for r in stage.rounds] == ["surface_not_applied"] * 2


def test_an_answer_to_an_order_that_was_given_up_counts_for_no_other() -> None:
    """Two orders ran out of time; the first one's late answer names the pattern that the third one wants, too."""
    orders: list[m.Apply] = []

    def mute(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Apply):
            orders.append(body)
            return []
        return None

    stage = Stage(mute, surface={"policy": "fixed"})
    stage.join()
    stage.wait(stage.state.lab.coordinator.operation_timeout_s + 0.1)
    assert len(orders) == 2
    digest = stage.state.surface.pattern.digest  # type: ignore[union-attr]
    stage.take(stage.says("ris", m.Applied(round=orders[0].round, digest=digest, device_time_s=0.0)))
    assert stage.state.surface.held is None
    stage.held = digest
    stage.take(stage.says("ris", m.Applied(round=orders[1].round, digest=digest, device_time_s=0.0)))
    assert stage.state.surface.held == digest


def test_a_pattern_that_latched_within_a_round_rejects_it() -> None:
    held: list[m.Probe] = []

    def hold(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and body.round == 1 and node == "bob":
            held.append(body)
            return []
        return None

    stage = Stage(hold, surface={"policy": "fixed"})
    stage.join()
    middle_s = (held[0].rounds[0].slots[0].start_s + held[0].rounds[0].end_s) / 2
    stage.take(stage.says("ris", m.Applied(round=0, digest="late", device_time_s=middle_s)))
    for answer in stage.usual("bob", held[0]):
        stage.take(stage.says("bob", answer))
    # the round that saw it change, and the one that was ordered ahead under the pattern that is gone
    assert stage.state.rejected == {"surface_changed": 2}
    assert stage.over is not None


@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_stop_abort_and_halt_differ(kind: Any) -> None:
    held: list[m.Probe] = []

    def hold(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and body.round == 1 and node == "bob":
            held.append(body)
            return []
        return None

    stage = Stage(hold)
    stage.join()
    stage.take(e.StopAsked(kind))
    if kind == "stop":  # the round on the air is finished and what was gathered is distilled
        assert stage.over is None
        for answer in stage.usual("bob", held[0]):
            stage.take(stage.says("bob", answer))
        assert [b.rounds for b in stage.blocks] == [[0, 1]]
    else:
        assert stage.rounds[-1].reason == "aborted"
        assert stage.blocks == []
    assert stage.over is not None
    assert stage.over.status == "stopped"
    assert {b.kind for _, b in stage.told if isinstance(b, m.Finish)} == {kind}


@pytest.mark.parametrize("kind", ["abort", "halt"])
def test_a_process_that_ends_once_its_node_has_stopped_is_no_loss(kind: Any) -> None:
    """Alice's process is gone while Bob's last word is still awaited; her measured rounds stay what they were."""

    def hold(node: str, body: Any) -> list[Any] | None:
        return (
            []
            if node == "bob" and (isinstance(body, m.Finish) or (isinstance(body, m.Probe) and body.round == 2))
            else None
        )

    stage = Stage(hold, accounting={"block_rounds": 6})
    stage.join()
    stage.take(e.StopAsked(kind))
    stage.take(e.ProcessEnded("alice", "it ended: run over", is_final=True))
    stage.take(e.ProcessEnded("ris", "it ended: run over", is_final=True))
    assert stage.over is None
    stage.take(stage.says("bob", m.Stopped(kind=kind)))
    assert stage.over is not None
    assert stage.over.status == "stopped"
    assert stage.state.rejected.keys() == {"aborted"}
    assert stage.state.kept == 2
    assert not [note for note in stage.notes if note.kind in ("lost", "rounds_lost")]


def test_a_paused_run_begins_no_round_and_goes_on() -> None:
    held: list[m.Probe] = []

    def hold(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and body.round == 1 and node == "bob" and not held:
            held.append(body)
            return []
        return None

    stage = Stage(hold)
    stage.join()
    stage.take(e.PauseAsked(True))
    stage.take(e.PauseAsked(True))  # asked twice is asked once
    for answer in stage.usual("bob", held[0]):  # the round on the air is finished
        stage.take(stage.says("bob", answer))
    begun = stage.state.rounds.next
    assert not stage.state.rounds.under_way
    stage.wait(1800.0)
    assert (stage.over, stage.state.rounds.next) == (None, begun)
    assert begun < stage.state.experiment.rounds
    stage.take(e.PauseAsked(False))
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert stage.state.kept == stage.state.experiment.rounds
    assert [n.kind for n in stage.notes if n.kind.endswith("paused")] == ["paused", "unpaused"]


def test_a_paused_run_can_be_stopped() -> None:
    stage = Stage(lambda node, body: [] if isinstance(body, m.Probe) and body.round == 1 and node == "bob" else None)
    stage.join()
    stage.take(e.PauseAsked(True))
    stage.wait(60.0)
    assert stage.over is None
    stage.take(e.StopAsked("stop"))
    assert stage.over is not None
    assert stage.over.status == "stopped"


def test_a_stranger_is_refused_with_the_reason() -> None:
    stage = Stage()
    stage.take(e.Received("mallory", "x", m.Hello(role="bob", identity={}, pid=1)))
    assert stage.told == [("mallory", m.Refused(reason="not in this lab file"))]


def test_a_wrong_role_is_refused() -> None:
    stage = Stage()
    stage.take(e.Received("bob", "x", m.Hello(role="alice", identity={}, pid=1)))
    assert isinstance(stage.told[0][1], m.Refused)


def test_planning_does_not_depend_on_when_results_arrive() -> None:
    """The order in which nodes answer must not move a slot by a femtosecond: same seed, same samples."""

    def plans(order: tuple[str, ...]) -> list[float]:
        waiting: dict[tuple[str, int], m.Probe] = {}

        def late(node: str, body: Any) -> list[Any] | None:
            if isinstance(body, m.Probe):
                waiting[node, body.round] = body
                return []
            return None

        stage = Stage(late, surface={"policy": "none"}, rounds=5)
        stage.join("alice", "bob", "eve")
        for number in range(5):
            for name in order:
                stage.take(stage.says(name, m.Captured(round=number)))
            for name in order:
                body = waiting[name, number]
                links = [
                    m.LinkResult(tx=slot.tx, reason=None, timing_error_s=1e-7 * (number + 1))
                    for slot in body.rounds[0].slots
                    if name in slot.rx
                ]
                stage.take(stage.says(name, m.Probed(rounds=[m.RoundResult(round=number, links=links)])))
        return [b.rounds[0].slots[0].start_s for n, b in stage.told if isinstance(b, m.Probe) and n == "bob"]

    first = plans(("alice", "bob", "eve"))
    assert len(first) == 5
    assert first == plans(("eve", "bob", "alice"))


def test_a_node_that_comes_back_is_listened_for_in_a_wider_window() -> None:
    """What its former life measured must not settle the clock of the new one."""
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 4 else None)
    stage.join()
    usual = next(b.rounds[0].margin_s for _, b in stage.told if isinstance(b, m.Probe))
    stage.take(e.ProcessEnded("bob", "killed"))
    stage.lives["bob"] = 2
    stage.join("bob")
    after = next(b.rounds[0].margin_s for _, b in stage.told if isinstance(b, m.Probe) and b.round == 5)
    assert after >= usual + LATE_UNCERTAINTY_S


def test_a_receiver_that_keeps_missing_frames_gets_a_wider_window() -> None:
    def deaf(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and node == "bob" and body.round < 8:
            return [m.Captured(round=body.round), probed(node, body, "no_preamble")]
        return None

    stage = Stage(deaf, rounds=30)
    stage.join()
    margins = [b.rounds[0].margin_s for n, b in stage.told if isinstance(b, m.Probe) and n == "bob"]
    # until then it widens by what two crystals may have run apart since the clock was read, and no more
    assert margins[3] <= margins[0] + 3 * 44e-6 * stage.state.experiment.probing.interval_s
    assert margins[7] > margins[3] + 2e-6  # the third miss is known
    assert margins[12] > margins[9] > margins[7]
    assert margins[-1] == margins[0]  # heard again


# ---------------------------------------------------------------- rounds ordered ahead (virtual time, no new patterns)

STILL: dict[str, Any] = {"surface": {"policy": "none"}}


def orders(stage: Stage) -> list[int]:
    return [body.round for node, body in stage.told if node == "bob" and isinstance(body, m.Probe)]


def test_one_round_is_ordered_ahead_and_never_two() -> None:
    stage = Stage(lambda node, body: [] if isinstance(body, m.Probe) else None, **STILL)
    stage.join()
    assert orders(stage) == [0, 1]
    first = next(body for _, body in stage.told if isinstance(body, m.Probe))
    assert not first.report_captured
    for name in ("alice", "bob"):
        stage.take(stage.says(name, probed(name, first)))
    assert orders(stage) == [0, 1]  # Eve still owes hers
    stage.take(stage.says("eve", probed("eve", first)))
    assert orders(stage) == [0, 1, 2]
    assert [r.round for r in stage.rounds] == [0]


def test_ahead_a_silence_costs_one_round_at_a_time() -> None:
    """Bob leaves one order unanswered; the one that waited behind it is not held against him."""
    stage = Stage(
        lambda node, body: [] if isinstance(body, m.Probe) and (node, body.round) == ("bob", 1) else None, **STILL
    )
    stage.join()
    while stage.over is None and stage.now_s < 60:
        stage.wait(0.5)
    assert [(r.round, r.reason) for r in stage.rounds if not r.kept] == [(1, "timeout")]
    assert stage.over is not None
    assert stage.over.status == "finished"


def test_ahead_a_bob_who_never_answers_still_gets_every_strike() -> None:
    stage = Stage(lambda node, body: [] if isinstance(body, m.Probe) and node == "bob" else None, **STILL)
    stage.join()
    while stage.over is None and stage.now_s < 60:
        stage.wait(0.5)
    patience_s = stage.state.lab.coordinator.operation_timeout_s
    assert stage.now_s > MAX_STRIKES * patience_s
    assert stage.over is not None
    assert "bob left 3 rounds" in stage.over.detail


def test_ahead_a_failed_probe_rejects_its_own_round_only() -> None:
    def fails(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and (node, body.round) == ("alice", 2):
            return [m.Failed(operation="probe", state="probing", detail="cable")]
        return None

    stage = Stage(fails, **STILL)
    stage.join()
    assert [(r.round, r.reason) for r in stage.rounds if not r.kept] == [(2, "device")]
    assert stage.over is not None
    assert stage.over.status == "finished"


def test_ahead_a_node_is_configured_between_rounds_and_takes_part_in_the_next() -> None:
    """Configured in the middle of one, it holds up the air, and its clock is taken for one that is rounds old."""
    held: list[m.Probe] = []

    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and body.round < 2:
            held.append(body) if node == "bob" else None
            return []
        return [] if (node, body) == ("eve", m.ReadClock()) and stage.lives["eve"] == 2 else None

    stage = Stage(script, **STILL)
    stage.join()
    stage.take(e.ProcessEnded("eve", "killed"))
    stage.lives["eve"] = 2
    stage.told.clear()
    stage.join("eve")
    assert not [body for _, body in stage.told if isinstance(body, m.Configure)]
    for body in held:
        for name in ("alice", "bob"):
            stage.take(stage.says(name, probed(name, body)))
    order = [(name, type(body)) for name, body in stage.told][-3:]
    assert order == [("eve", m.Configure), ("alice", m.ReadClock), ("eve", m.ReadClock)]
    assert orders(stage) == []  # none before her clock was read
    stage.take(stage.says("eve", m.ClockReading(device_time_s=100.0)))
    assert "eve" in stage.rounds[2].links
    assert stage.over is not None
    assert stage.over.status == "finished"


def test_kept_plus_rejected_is_what_was_recorded_even_after_a_loss() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 2 else None)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed"))
    stage.wait(10.0)
    last_word = {r.round: r.kept for r in stage.rounds}
    assert sum(last_word.values()) == stage.state.kept == 0
    assert len(last_word) == stage.state.kept + sum(stage.state.rejected.values())


def test_a_dead_air_ends_the_run_at_once() -> None:
    stage = Stage(lambda n, b: [] if isinstance(b, m.Probe) and b.round == 2 else None)
    stage.join()
    stage.take(e.ProcessEnded("world", "killed by SIGKILL"))
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert "world: killed by SIGKILL" in stage.over.detail


def test_a_node_that_is_started_again_before_it_has_greeted_is_waited_for() -> None:
    stage = Stage()
    stage.join("alice", "eve", "ris")
    stage.take(e.ProcessEnded("bob", "process ended: killed by SIGKILL; it is restarted"))
    assert stage.over is None
    stage.join("bob")
    assert stage.over == e.RunOver("finished", "6 rounds")


def test_a_node_that_dies_before_it_greets_ends_the_run_with_its_last_words() -> None:
    stage = Stage()
    stage.join("alice")
    stage.take(e.ProcessEnded("bob", "process ended: exit status 2: options: unknown key", is_final=True))
    assert stage.over is not None
    assert "bob did not start" in stage.over.detail
    assert "unknown key" in stage.over.detail


def test_a_run_whose_rounds_all_fail_ends() -> None:
    def broken(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Probe) and node == "bob":
            return [
                m.Captured(round=body.round),
                m.Probed(rounds=[m.RoundResult(round=body.round, links=[], fault="device", detail="gone")]),
            ]
        return None

    stage = Stage(broken, rounds=1000)
    stage.join()
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert stage.state.probed < 30


def test_after_a_suspension_of_the_coordinator_no_node_is_lost() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 2 else None)
    stage.join()
    stage.now_s += 100.0
    stage.take(e.Tick(stage.now_s))
    assert all(node.alive for node in stage.state.nodes.values())
    assert stage.over is None


def test_a_paused_node_that_wakes_is_taken_in_again() -> None:
    held: list[m.Probe] = []

    def hold(node: str, body: Any) -> list[Any] | None:
        if node == "bob" and isinstance(body, m.Probe) and body.round == 2:
            held.append(body)
            return []
        return None

    stage = Stage(hold)
    stage.join()
    stage.wait(4.0, beating=("alice", "eve", "ris"))
    assert not stage.state.nodes["bob"].alive
    stage.take(stage.says("bob", m.Heartbeat(state="probing")))
    assert not stage.state.nodes["bob"].alive  # that his process lives does not mean that orders reach him
    stage.take(stage.says("bob", m.Here()))
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert stage.state.rejected == {"node_lost": 1}  # the round on the air; what he had measured he still has
    assert [b.rounds for b in stage.blocks] == [[0, 1, 3], [4, 5]]
    assert sum(isinstance(body, m.Welcome) and node == "bob" for node, body in stage.told) == 1


@pytest.mark.parametrize(
    "body",
    [m.Configured(accepted={}), m.ClockReading(device_time_s=1.0), m.Applied(round=0, digest="x", device_time_s=0.0),
     m.Captured(round=7), m.Probed(rounds=[m.RoundResult(round=7, links=[])]), m.KeyGuessed(block=3, digest=None),
     m.Stopped(kind="stop")],
)  # fmt: skip
def test_unexpected_answers_are_noted_and_not_fatal(body: Any) -> None:
    stage = Stage()
    stage.join("alice", "ris")
    for name in ("alice", "ris"):
        stage.take(stage.says(name, body))
    assert stage.state.phase == "joining"


def test_the_clock_of_an_untimed_board_says_nothing_of_the_air() -> None:
    def host_time(node: str, body: Any) -> list[Any] | None:
        answers = stage.usual(node, body)
        return [msgspec.structs.replace(a, device_time_s=9e5) if isinstance(a, m.Applied) else a for a in answers]

    stage = Stage(host_time)
    for name, node in stage.state.nodes.items():
        shape = {"surface_shape": (2, 2), "phase_bits": 1, "timed": False} if name == "ris" else {}
        hello = m.Hello(role=node.role, identity={}, pid=1, discussion_port=1, transcript_port=2, **shape)  # type: ignore[arg-type]
        stage.take(stage.says(name, hello))
    assert stage.rounds
    assert all(r.reason is None for r in stage.rounds)
    assert max(r.start_s for r in stage.rounds) < 1e3


@pytest.mark.parametrize("pace", ["virtual", "wall", None])
def test_the_schedule_is_as_wide_as_the_doctor_measured(pace: str | None) -> None:
    """Slots: the host's turn-around only where time passes while the host works; the guard six spreads everywhere."""
    stage = Stage(lab={**LAB, "world": {"pace": pace} if pace else None})
    for name, node in stage.state.nodes.items():
        measured = {"host_turnaround_s": 4e-3, "timing_spread_s": 2e-6} if name == "bob" else {}
        shape = {"surface_shape": (2, 2), "phase_bits": 1} if name == "ris" else {}
        stage.take(
            stage.says(
                name,
                m.Hello(
                    role=node.role, identity={}, pid=1, discussion_port=1, transcript_port=2, turnaround_s=1e-3,
                    **measured, **shape,
                ),
            )
        )  # type: ignore[arg-type]  # fmt: skip
    scheduler = stage.state.timetable.scheduler
    assert scheduler is not None
    own_s = stage.state.experiment.probing.turnaround_s
    assert scheduler._turnaround_s == pytest.approx(own_s + (1e-3 if pace == "virtual" else 4e-3))
    assert scheduler._guard_s == pytest.approx(max(stage.state.experiment.probing.guard_s, 12e-6))


def test_a_clock_is_learned_once_although_rounds_are_planned_ahead() -> None:
    """An error seen by several rounds under way must not be corrected several times."""
    true_base_s = 100.0 + 3e-6

    def late(node: str, body: Any) -> list[Any] | None:
        if not (isinstance(body, m.Probe) and node == "bob"):
            return None
        # what arrives depends on how wrong the plan's base was
        planned_base_s = body.rounds[0].slots[0].start_s - starts[body.round]
        links = [m.LinkResult(tx="alice", reason=None, timing_error_s=true_base_s - planned_base_s, snr_db=20.0)]
        return [m.Captured(round=body.round), m.Probed(rounds=[m.RoundResult(round=body.round, links=links)])]

    starts: dict[int, float] = {}
    stage = Stage(lambda n, b: None, surface={"policy": "none"}, rounds=24)
    plan = stage.state.handle

    def spy(event: e.Event) -> list[e.Instruction]:
        out = plan(event)
        for x in out:
            if isinstance(x, e.Send) and x.node == "alice" and isinstance(x.body, m.Probe):
                starts[x.body.round] = x.body.rounds[0].slots[0].start_s - 100.0
        return out

    stage.state.handle = spy  # type: ignore[method-assign]
    stage.script = late
    stage.join("alice", "bob", "eve")
    bases = [
        b.rounds[0].slots[0].start_s - starts[b.round] for n, b in stage.told if isinstance(b, m.Probe) and n == "bob"
    ]
    errors = [abs(base - true_base_s) for base in bases]
    assert errors[0] > 2e-6
    assert errors[-1] < 0.1e-6
    # once it is corrected, what is left is how the error is shared between offset and rate
    assert all(later <= max(earlier, 0.5e-6) for earlier, later in pairwise(errors)), errors


def training_report(block: int, failure: str | None = None) -> m.Trained:
    report = TrainReport(
        block=block, probes=3, model=None if failure else "m", public_bytes=9, messages=3, failure=failure
    )
    return m.Trained(report=report, public_messages=3)


def training_script(failures: tuple[int, ...] = (), untrained: tuple[int, ...] = ()) -> Script:
    def script(node: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Distil) and body.purpose == "training":
            return [training_report(body.block, "protocol (torn)" if body.block in failures else None)]
        if isinstance(body, m.Distil) and body.block in untrained:
            return [m.Agreed(report=agreement(body.block, False, "not_trained"))]
        return None

    return script


TRAINING: dict[str, Any] = {"rounds": 16, "training": {"rounds": 4, "guard_rounds": 2}, "surface": {"policy": "none"}}


def test_training_rounds_come_first_and_enter_no_key() -> None:
    stage = Stage(training_script(), **TRAINING)
    stage.join("alice", "bob", "eve")
    assert [(b.training, b.rounds) for b in stage.blocks] == [
        (True, [0, 1, 2, 3]), (False, [6, 7, 8]), (False, [9, 10, 11]), (False, [12, 13, 14]), (False, [15]),
    ]  # fmt: skip
    assert stage.state.guarded == 2
    assert stage.blocks[0].trained.keys() == {"alice", "bob"}
    attacks = [b.purpose for n, b in stage.told if isinstance(b, m.Attack)]
    assert attacks == ["training", "key", "key", "key", "key"]
    assert stage.state.key_bits == 4 * 7


def test_a_failed_training_is_tried_again_with_other_rounds() -> None:
    stage = Stage(training_script(failures=(0,)), **TRAINING)
    stage.join("alice", "bob", "eve")
    assert [(b.training, b.failure, b.rounds) for b in stage.blocks[:3]] == [
        (True, "protocol (torn)", [0, 1, 2, 3]), (True, None, [4, 5, 6, 7]), (False, None, [10, 11, 12]),
    ]  # fmt: skip


def test_a_node_that_lost_its_model_is_taught_again() -> None:
    stage = Stage(training_script(untrained=(1,)), **TRAINING)
    stage.join("alice", "bob", "eve")
    assert [(b.training, b.failure) for b in stage.blocks[:4]] == [
        (True, None), (False, "not_trained"), (True, None), (False, None),
    ]  # fmt: skip


def test_a_run_too_short_for_its_training_makes_no_block() -> None:
    stage = Stage(training_script(), **{**TRAINING, "rounds": 3})
    stage.join("alice", "bob", "eve")
    assert stage.blocks == []
    assert stage.over == e.RunOver("finished", "3 rounds")
    assert ("rounds_unused", {"rounds": 3}) in [(n.kind, n.detail) for n in stage.notes]


def test_a_nodes_own_words_are_one_line_wherever_they_end_up() -> None:
    def fails(node: str, body: Any) -> list[Any] | None:
        bad = m.Failed(operation="run", state="x\ny", detail="first\nsecond \x1b[2J" + "z" * 5000)
        return [bad] if node == "bob" and isinstance(body, m.Configure) else None

    stage = Stage(fails)
    stage.join()
    stage.wait(4.0)
    assert stage.over is not None
    assert stage.over.detail.startswith("bob: run: first?second ?[2Jzzz")
    assert stage.over.detail.isprintable()
    assert len(stage.over.detail) < 1100
