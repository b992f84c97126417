"""Links that break, clocks that jump and nodes that do not get ready, on paper: nothing waits without limit."""

from __future__ import annotations

from typing import Any

import pytest
from test_coordinator import LAB, Stage, probed

from testbed.coordinator import events as e
from testbed.coordinator.roster import MAX_ASKED
from testbed.net import messages as m


def forgets(node: str, what: type, times: int) -> Any:
    """Return a script by which a node does not answer its last orders of a kind, so many times."""
    left = [times]

    def script(name: str, body: Any) -> list[Any] | None:
        if name == node and isinstance(body, what) and left[0]:
            left[0] -= 1
            return []
        return None

    return script


def returning(what: type, times: int) -> Stage:
    """Play a run in which Bob restarts in round 4 and then leaves orders to get ready unanswered."""
    lost = forgets("bob", what, 0)

    def script(name: str, body: Any) -> list[Any] | None:
        if name == "bob" and isinstance(body, m.Probe) and body.round == 4 and stage.lives["bob"] == 1:
            return []
        return lost(name, body)

    stage = Stage(script)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed"))
    lost = forgets("bob", what, times)
    stage.lives["bob"] = 2
    stage.join("bob")
    return stage


@pytest.mark.parametrize("what", [m.Configure, m.ReadClock])
def test_a_node_that_is_alive_and_not_ready_is_asked_again(what: type) -> None:
    stage = returning(what, 1)
    assert stage.over is None
    stage.wait(25.0)
    assert stage.over is not None
    assert stage.over.status == "finished"
    assert [n.detail["node"] for n in stage.notes if n.kind == "asked_again"] == ["bob"]


def test_a_node_that_never_gets_ready_ends_the_run_in_bounded_time_and_is_named() -> None:
    stage = returning(m.Configure, 100)
    stage.wait(MAX_ASKED * 10.0 + 10.0)
    assert stage.over is not None
    assert stage.over.status == "failed"
    assert stage.over.detail.startswith(f"bob is alive but did not get ready, asked {MAX_ASKED} times")


def test_a_node_that_answers_twice_that_it_is_configured_is_ready_once() -> None:
    def twice(name: str, body: Any) -> list[Any] | None:
        match body:
            case m.Configure():
                return [m.Configured(accepted={}), m.Configured(accepted={})]
            case m.ReadClock():
                return [m.ClockReading(device_time_s=100.0), m.ClockReading(device_time_s=100.0)]
        return None

    stage = Stage(twice)
    stage.join()
    assert stage.over == e.RunOver("finished", "6 rounds")


def test_an_order_without_a_way_is_an_event_and_the_words_name_the_link() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round >= 2 else None)
    stage.join()
    stage.take(e.LinkChanged("bob", False))
    assert any(n.kind == "link_down" and n.detail["node"] == "bob" for n in stage.notes)
    stage.wait(60.0, beating=("alice", "eve", "ris"))
    assert stage.over is not None
    assert "its connection is closed" in stage.over.detail


def test_a_silent_node_with_a_standing_connection_is_said_to_be_the_trouble_itself() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round >= 2 else None)
    stage.join()
    stage.wait(60.0, beating=("alice", "eve", "ris"))
    assert stage.over is not None
    assert "its connection stands" in stage.over.detail


def test_what_was_ordered_of_a_silent_node_is_withdrawn_so_that_it_does_not_transmit_late() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round >= 2 else None)
    stage.join()
    withdrawn = []
    for _ in range(10):
        stage.now_s += 0.5
        for name in ("alice", "eve", "ris"):
            stage.take(stage.says(name, m.Heartbeat(state="ready")))
        withdrawn += [x.node for x in stage.state.handle(e.Tick(stage.now_s)) if isinstance(x, e.WithdrawOrders)]
    assert withdrawn == ["bob"]


def _holding_back_of_bob(held: list[Any]) -> Any:
    """Return a script by which Bob does not answer his first order to distil, which goes into `held`."""

    def script(name: str, body: Any) -> list[Any] | None:
        if name == "bob" and isinstance(body, m.Distil) and not held:
            held.append(body)
            return []
        return None

    return script


def test_an_outage_in_a_block_costs_neither_the_block_nor_its_rounds() -> None:
    held: list[Any] = []
    stage = Stage(_holding_back_of_bob(held))
    stage.join()
    stage.wait(10.0, beating=("alice", "eve", "ris"))
    assert stage.over is None
    assert not stage.state.nodes["bob"].alive
    stage.take(stage.says("bob", m.Here()))
    for answer in stage.usual("bob", held[0]):
        stage.take(stage.says("bob", answer))
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert [b.failure for b in stage.blocks] == [None, None]


def test_what_a_silent_node_has_found_counts_although_it_comes_before_any_other_sign_of_life() -> None:
    """A node that computes sends its result first, and reads its other messages afterwards."""
    held: list[Any] = []
    stage = Stage(_holding_back_of_bob(held))
    stage.join()
    stage.wait(10.0, beating=("alice", "eve", "ris"))
    assert not stage.state.nodes["bob"].alive
    for answer in stage.usual("bob", held[0]):
        stage.take(stage.says("bob", answer))
    stage.take(stage.says("bob", m.Here()))
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert [b.failure for b in stage.blocks] == [None, None]
    assert [n.kind for n in stage.notes].count("resumed") == 1


def test_a_missed_node_that_computes_a_block_and_still_beats_is_not_lost() -> None:
    held: list[Any] = []
    stage = Stage(_holding_back_of_bob(held))
    stage.join()
    stage.wait(4.0, beating=("alice", "eve", "ris"))
    assert stage.state.nodes["bob"].is_missing
    for _ in range(120):
        stage.take(stage.says("bob", m.Heartbeat(state="agreeing")))
        stage.wait(0.5)
    assert stage.over is None
    for answer in stage.usual("bob", held[0]):
        stage.take(stage.says("bob", answer))
    assert stage.over == e.RunOver("finished", "6 rounds")


def test_a_hello_before_the_first_reading_of_the_clock_is_not_as_old_as_the_machine() -> None:
    """The clock's origin is arbitrary: on Linux it is when the machine was started."""
    stage = Stage(begun=False)
    stage.join("bob")
    stage.now_s = 1464.9
    stage.take(e.Tick(stage.now_s))
    assert stage.state.nodes["bob"].alive
    stage.join("alice", "eve", "ris")
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert not [n for n in stage.notes if n.kind in ("lost", "silent")]


def test_a_coordinator_that_was_suspended_for_15_s_loses_nobody() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 2 else None)
    stage.join()
    stage.wait(2.0)
    stage.now_s += 15.0
    stage.take(e.Tick(stage.now_s))
    assert all(node.alive for node in stage.state.nodes.values())
    stage.take(stage.says("bob", probed("bob", last_probe(stage))))
    assert stage.over == e.RunOver("finished", "6 rounds")
    assert stage.state.kept == 6
    assert stage.state.lab.coordinator.lost_after_s < 15.0


def last_probe(stage: Stage) -> m.Probe:
    return next(body for node, body in reversed(stage.told) if node == "bob" and isinstance(body, m.Probe))


def test_a_node_that_is_not_started_again_ends_the_run_at_once() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 4 else None)
    stage.join()
    stage.take(e.ProcessEnded("bob", "killed by SIGKILL", is_final=True))
    assert stage.over == e.RunOver("failed", "bob was lost and is not started again: killed by SIGKILL")
    assert {r.round: r.reason for r in stage.rounds}[3] == "measured"


def test_a_disk_that_fills_up_ends_the_run_in_order_while_there_is_room_to_close_it() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 4 else None)
    stage.join()
    stage.take(e.DiskLow("runs/x: disk nearly full"))
    assert stage.over == e.RunOver("failed", "runs/x: disk nearly full")
    assert {node for node, body in stage.told if isinstance(body, m.Finish)} == {"alice", "bob", "eve", "ris"}


@pytest.mark.parametrize(
    ("refused", "kind"),
    [
        (e.KeyRefused("somebody came whose key is in no /keys/NAME.public"), "key_refused"),
        (e.VersionRefused("bob: message of protocol version 3, accepted: 9: install the same"), "version_refused"),
    ],
)
def test_who_was_refused_is_reported_with_the_nodes_that_did_not_join(
    refused: e.KeyRefused | e.VersionRefused, kind: str
) -> None:
    stage = Stage()
    stage.join("alice", "eve", "ris")
    stage.take(refused)
    stage.wait(60.0)
    assert stage.over is not None
    assert stage.over.detail == f"bob did not join within 30 s; {refused.detail}"
    assert [n.kind for n in stage.notes if n.kind.endswith("_refused")] == [kind]


def slow_eve(**changes: Any) -> tuple[Stage, list[float]]:
    """Play a run in which Eve's radio is silent: she answers nothing. Returns when each round was over."""
    stage = Stage(lambda n, b: [] if n == "eve" and isinstance(b, m.Probe) else None, rounds=40, **changes)
    stage.join()
    over_s: list[float] = []
    while stage.over is None and stage.now_s < 300.0:
        stage.wait(0.5)
        over_s += [stage.now_s] * (len(stage.rounds) - len(over_s))
    return stage, over_s


@pytest.mark.parametrize("policy", ["none", "random"])
def test_an_eve_whose_radio_is_silent_slows_three_rounds_and_is_reported(policy: str) -> None:
    stage, over_s = slow_eve(surface={"policy": policy})
    assert stage.over == e.RunOver("finished", "40 rounds")
    assert stage.state.kept == 40
    assert over_s[-1] <= 8.0  # of 40 rounds; three of them waited, where each one did for 10 s
    assert [n.detail["node"] for n in stage.notes if n.kind == "left_out"] == ["eve"]


def test_an_eve_whose_radio_fails_in_every_round_is_left_out() -> None:
    def fails(name: str, body: Any) -> list[Any] | None:
        if name == "eve" and isinstance(body, m.Probe):
            return [
                m.Captured(round=body.round),
                m.Probed(rounds=[m.RoundResult(round=body.round, links=[], fault="device")]),
            ]
        return None

    stage = Stage(fails, rounds=10)
    stage.join()
    assert stage.over == e.RunOver("finished", "10 rounds")
    assert [n.detail["node"] for n in stage.notes if n.kind == "left_out"] == ["eve"]


def test_a_world_that_died_is_named_and_not_who_fails_because_of_it() -> None:
    """Nodes that are ordered to stop cannot silence their radios in an air that is gone, and say so."""

    stopped = set()

    def script(name: str, body: Any) -> list[Any] | None:
        if isinstance(body, m.Finish):
            if name in stopped:  # as a node does that has left
                return []
            stopped.add(name)
            return [m.Failed(operation="run", state="stopped", detail="silence: the world did not answer within 2 s")]
        return [] if isinstance(body, m.Probe) and body.round >= 2 else None

    stage = Stage(script)
    stage.join()
    stage.take(e.ProcessEnded("world", "process ended: killed by SIGKILL", is_final=True))
    stage.wait(10.0)
    assert stage.over == e.RunOver("failed", "world: process ended: killed by SIGKILL")


@pytest.mark.parametrize(
    ("silent", "said"),
    [
        (
            ("alice", "bob", "eve"),
            "alice, bob, eve left 3 rounds in a row unanswered; their connections stand: the sim",
        ),
        (("bob", "eve"), "bob left 3 rounds in a row unanswered; its connection stands: its machine or its process"),
    ],
)
def test_an_air_that_stands_still_is_named_and_not_the_first_of_those_that_wait_for_it(
    silent: tuple[str, ...], said: str
) -> None:
    """Their processes beat all the time."""
    stage = Stage(lambda n, b: [] if n in silent and isinstance(b, m.Probe) and b.round >= 2 else None, rounds=9)
    stage.join()
    stage.wait(60.0)
    assert stage.over is not None
    assert stage.over.detail.startswith(said)


def dropped(stage: Stage) -> list[tuple[str, str, int]]:
    return [
        (n.detail["node"], n.detail["by"], n.detail["messages"]) for n in stage.notes if n.kind == "messages_dropped"
    ]


def test_messages_that_too_many_others_kept_from_being_sent_are_noted_and_counted() -> None:
    """They were dropped without a word; the number is noted when it has doubled, and at the end."""
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round == 4 else None)
    stage.join()
    stage.take(stage.says("bob", m.Heartbeat(state="ready")))
    assert dropped(stage) == []
    for orders in (1, 2, 3):
        stage.take(e.OrdersDropped("bob", orders))
    assert dropped(stage) == [("bob", "coordinator", 1), ("bob", "coordinator", 2)]
    stage.take(e.OrdersDropped("mallory", 9))  # refused, and does not read it
    assert len(dropped(stage)) == 2
    for n in (7, 7, 8, 20):
        stage.take(stage.says("alice", m.Heartbeat(state="ready", dropped=n)))
    assert dropped(stage)[2:] == [("alice", "node", 7), ("alice", "node", 20)]
    stage.take(stage.says("alice", m.Heartbeat(state="ready", dropped=21)))
    stage.take(e.StopAsked("abort"))
    assert stage.over is not None
    assert sorted(dropped(stage)[4:]) == [("alice", "node", 21), ("bob", "coordinator", 3)]


def test_a_new_process_of_a_node_has_dropped_nothing_yet() -> None:
    stage = Stage(lambda n, b: [] if n == "bob" and isinstance(b, m.Probe) and b.round >= 4 else None)
    stage.join()
    stage.take(stage.says("bob", m.Heartbeat(state="ready", dropped=5)))
    stage.take(e.ProcessEnded("bob", "killed"))
    stage.lives["bob"] = 2
    stage.join("bob")
    stage.take(stage.says("bob", m.Heartbeat(state="ready", dropped=1)))
    assert dropped(stage) == [("bob", "node", 5), ("bob", "node", 1)]


def test_a_node_that_has_stopped_is_not_said_to_be_silent_while_another_one_is_awaited() -> None:
    def script(name: str, body: Any) -> list[Any] | None:
        if name == "bob" and (isinstance(body, m.Finish) or (isinstance(body, m.Probe) and body.round >= 2)):
            return []
        return None

    stage = Stage(script, lab={**LAB, "coordinator": {"lost_after_s": 1.0}})
    stage.join()
    stage.take(e.StopAsked("abort"))
    assert stage.state.phase == "finishing"
    stage.now_s += 0.5
    while stage.over is None:  # only Bob's process has not ended
        stage.now_s += 0.5
        stage.take(stage.says("bob", m.Heartbeat(state="ready")))
        stage.take(e.LinkChanged("alice", False))
        stage.take(e.Tick(stage.now_s))
    assert stage.over == e.RunOver("stopped", "abort was asked for")
    assert not [n for n in stage.notes if n.kind in ("silent", "lost", "link_down")]
