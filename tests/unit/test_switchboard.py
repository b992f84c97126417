"""Messages in one process: in order, checked like those from outside, and nobody shares an object with another."""

from __future__ import annotations

import pytest
import zmq

from testbed.core.ledger import PublicMessage
from testbed.net import messages as m
from testbed.net.switchboard import Switchboard


class Nobody:
    """Turns in which nobody has anything to do."""

    def __init__(self) -> None:
        self.given = 0

    def now_s(self) -> float:
        return 0.0

    def give_way(self) -> None:
        self.given += 1


@pytest.fixture
def board() -> Switchboard:
    return Switchboard(Nobody())


def test_messages_arrive_in_order_and_are_no_ones_but_the_receivers(board: Switchboard) -> None:
    hub, bob = board.hub("", 0), board.link("", "bob", "b-1")
    identity = {"driver": "sim"}
    bob.send(m.Hello(role="bob", identity=identity, pid=1))
    identity["driver"] = "changed later"
    bob.send(m.Heartbeat(state="ready"))
    name, header, hello = hub.receive() or pytest.fail("refused")
    assert (name, header.sender, header.incarnation) == ("bob", "bob", "b-1")
    assert hello.identity == {"driver": "sim"}
    assert isinstance((hub.receive() or pytest.fail("refused"))[2], m.Heartbeat)
    with pytest.raises(zmq.Again):
        hub.receive()
    hub.send("bob", m.ReadClock())
    hub.send("bob", m.Finish(kind="stop"))
    hub.send("eve", m.ReadClock())  # nobody of this name is here
    assert [type((bob.receive() or pytest.fail("refused"))[1]) for _ in range(2)] == [m.ReadClock, m.Finish]
    assert not bob.waiting()


def test_looking_for_messages_gives_the_others_a_turn_where_there_are_none(board: Switchboard) -> None:
    hub, bob = board.hub("", 0), board.link("", "bob", "b-1")
    assert not hub.socket.poll(20)
    assert board.turns.given == 1  # type: ignore[attr-defined]
    bob.say_here()
    assert hub.socket.poll(20)
    assert board.turns.given == 1  # type: ignore[attr-defined]


def test_what_the_gate_refuses_is_refused_and_counted(board: Switchboard) -> None:
    hub, bob = board.hub("", 0), board.link("", "bob", "b-1")
    bob.send(m.ClockReading(device_time_s=float("nan")))
    bob.send(m.ReadClock())  # an order, to the coordinator
    assert [hub.receive(), hub.receive()] == [None, None]
    hub.send("bob", m.Stopped(kind="stop"))  # a report, to a node
    assert bob.receive() is None
    assert hub.refused == {"schema": 1, "direction": 2}


def test_orders_are_withdrawn_until_they_are_taken_and_who_is_blamed_is_not_heard(board: Switchboard) -> None:
    hub, bob = board.hub("", 0), board.link("", "bob", "b-1")
    for body in (m.ReadSurface(round=1), m.ReadClock(), m.ReadSurface(round=2)):
        hub.send("bob", body)
    hub.withdraw("bob", (m.ReadSurface,))
    assert isinstance((bob.receive() or pytest.fail("refused"))[1], m.ReadClock)
    assert not bob.waiting()
    hub.blame("bob")
    bob.say_here()
    hub.withdraw("bob", (m.ReadClock,))
    assert not hub.socket.waiting


def test_the_discussion_is_between_alice_and_bob_and_eve_reads_what_is_published(board: Switchboard) -> None:
    alice, bob, eve = board.discussion_host("", 0, "bob"), board.discussion_guest("", "alice"), None
    words = {
        who: m.PublicEnvelope("run-1", 0, "agree", 0, who, PublicMessage(kind="tag", body={"tag": b"1"}))  # type: ignore[arg-type]
        for who in ("alice", "bob")
    }
    alice.publish(words["alice"])  # before Eve listens
    eve = board.eavesdropper("", "alice")
    alice.send(words["alice"])
    alice.publish(words["alice"])
    bob.send(words["bob"])
    assert bob.receive() == words["alice"]
    assert alice.receive() == words["bob"]
    assert eve.receive() == words["alice"]
    assert not any(x.socket.waiting for x in (alice, bob, eve))
    bob.send(words["alice"])  # in Alice's name
    assert alice.receive() is None
