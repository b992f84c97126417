"""Whoever sends without end, or as much as he may, costs others neither their turn nor memory."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from sim_backend import messages as w
from sim_backend import server as world
from sim_backend.emulators import iiod
from sim_backend.world import Air, Refused
from testbed import config
from testbed.core.ledger import PublicMessage
from testbed.net import messages as m
from testbed.nodes import daemon as daemons
from testbed.nodes import events as e
from testbed.nodes import key_maker
from testbed.nodes.daemon import NodeDaemon
from testbed.nodes.eavesdropping import MAX_BYTES
from testbed.nodes.state import NodeState


class Endless:
    """A socket that always has another message."""

    def __init__(self) -> None:
        self.read = 0
        self.socket = self

    def poll(self, _: int) -> bool:
        return True

    def waiting(self) -> bool:
        return True

    def recv_multipart(self, *_: Any, **__: Any) -> list[bytes]:
        self.read += 1
        return [b"route", b"\xc1"]

    def receive(self) -> None:
        self.read += 1
        assert self.read < 10_000, "the others never have their turn"


def test_a_node_turns_to_everything_else_while_somebody_sends_without_end() -> None:
    made = object.__new__(NodeDaemon)
    made._exit, made._now_s = None, lambda: 0.0
    line = Endless()
    made._from_discussion(line)
    assert line.read == daemons._A_TURN
    made._link = Endless()  # type: ignore[assignment]
    made._public, made._thread = {}, SimpleNamespace(has_over=False)  # type: ignore[assignment]
    made._poller = SimpleNamespace(poll=lambda _: [(made._link.socket, 1)])  # type: ignore[assignment]
    taken: list[e.Event] = []
    made._take = taken.append  # type: ignore[assignment]
    made._halted = SimpleNamespace(is_set=lambda: False)  # type: ignore[assignment]
    made._next_word_s = float("inf")
    made._look_at_handshakes = lambda: None  # type: ignore[method-assign]
    made._look_for_coordinator = lambda now_s: None  # type: ignore[method-assign]
    for turn in (1, 2):
        made._turn()
        assert made._link.read == turn * daemons._A_TURN  # type: ignore[attr-defined]
    assert [type(x) for x in taken] == [e.Tick, e.Tick]


def test_the_world_computes_while_a_device_sends_without_end() -> None:
    line = Endless()
    assert sum(1 for _ in world._arrived(line)) == world._A_PASS == line.read


def test_the_worlds_time_is_its_coordinators() -> None:
    """Any device could let it pass, and all that others had planned was late."""
    replies: list[w.Reply] = []
    made = world.Server(lambda route, frames: replies.append(w.decode_reply(frames[0])), "virtual", 1.0)
    for sender, passes in (("eve", False), ("alice", False), ("?", False), ("coordinator", True), ("world", True)):
        made.handle(b"route", [w.encode(w.Pass(id=1, until=10**12))], 0.0, sender)
        assert (replies[-1].error == "") == passes, sender
        assert made._air.frontier == (10**12 if passes else 0)
    assert "eve may not do what is coordinator's" in replies[0].detail


def test_many_short_transmissions_count_as_much_as_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a few hundred bytes, and time whenever another one is added, however short it is."""
    monkeypatch.setattr("sim_backend.world.MAX_UNHEARD", 32 * 4096)
    air = Air()
    air.reset(config.load_experiment("static_room").scene, 2.4e9, 1)
    air.tune("bob", "bob", 2.4e9, 4e7, 0.0)
    one = np.zeros(1, np.complex64)
    for n in range(33):
        air.transmit("bob", 10**6 * (n + 1), one)
    with pytest.raises(Refused, match="wait for reception"):
        air.transmit("bob", 10**9, one)


# ---------------------------------------------------------------- the emulated Pluto


@pytest.fixture
def server() -> Iterator[iiod.IiodServer]:
    server = iiod.IiodServer(SimpleNamespace(tree=None))  # type: ignore[arg-type]
    yield server
    server.close()


def connected(server: iiod.IiodServer) -> socket.socket:
    _, host, port = server.uri.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


@pytest.mark.parametrize("ms", ["-1", "9" * 1000, "3600001", "x", "1e3", ""])
def test_a_timeout_that_no_client_means_is_refused(
    server: iiod.IiodServer, ms: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds for all clients of the device; one of a thousand digits was a traceback."""
    with connected(server) as wire:
        answers = wire.makefile("rb")
        wire.sendall(f"TIMEOUT {ms}\nTIMEOUT 500\n".encode())
        assert answers.readline() == b"%d\n" % -errno.EINVAL
        assert answers.readline() == b"0\n"
        answers.close()
    assert server._timeout_s == 0.5
    assert not caplog.records


def test_timeouts_that_were_set_are_not_kept_without_end(server: iiod.IiodServer) -> None:
    with connected(server) as wire, wire.makefile("rb") as answers:
        for _ in range(300):
            wire.sendall(b"TIMEOUT 7\n")
            assert answers.readline() == b"0\n"
    assert len(server.timeouts_ms) == 100


def test_a_connection_that_was_idle_for_long_gives_way(
    server: iiod.IiodServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [connected(server) for _ in range(iiod._MOST_SESSIONS)]
    for wire in held:
        wire.sendall(b"NOTHING\n")
        assert wire.recv(10) == b"%d\n" % -errno.EINVAL
    monkeypatch.setattr(iiod, "_IDLE_S", 0.0)
    with connected(server) as one_more:
        one_more.sendall(b"NOTHING\n")
        assert one_more.recv(10) == b"%d\n" % -errno.EINVAL
    assert held[0].recv(10) == b""  # the one that had said nothing for the longest time
    for wire in held:
        wire.close()


def test_connections_that_say_nothing_are_few(server: iiod.IiodServer) -> None:
    held = [connected(server) for _ in range(iiod._MOST_SESSIONS)]
    for wire in held:  # each is being served before the next one comes
        wire.sendall(b"NOTHING\n")
        assert wire.recv(10) == b"%d\n" % -errno.EINVAL
    with connected(server) as one_more:
        assert one_more.recv(10) == b""  # hung up
    for wire in held:
        wire.close()
    for _ in range(1000):
        with connected(server) as wire:
            wire.sendall(b"NOTHING\n")
            try:
                if wire.recv(10):
                    return
            except ConnectionResetError:
                pass  # the others are still being closed
    pytest.fail("nobody is served any more")


# ---------------------------------------------------------------- what waits at a node


def said(block: int, n_bytes: int, index: int = -1) -> e.Discussed:
    message = PublicMessage(kind="x", body={"more": bytes(n_bytes)})
    return e.Discussed(m.PublicEnvelope("r", block, "agree", index, "bob", message))


def welcomed(role: str) -> NodeState:
    node = NodeState(role, 1)
    node.handle(e.Received(m.Welcome(run="r", lost_after_s=10.0)))
    return node


def test_long_messages_that_come_too_early_have_a_limit_together() -> None:
    """64 of the longest were 2 GiB."""
    node = welcomed("alice")
    third = key_maker.MAX_EARLY_BYTES // 3
    for _ in range(8):
        assert node.handle(said(0, third)) == []
    assert len(node.key_maker._early) == 2
    assert node.handle(said(1, 100)) == []  # a short one still fits
    assert [x.block for x in node.key_maker._early] == [0, 0, 1]


def test_what_eve_keeps_has_a_limit_in_bytes_over_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_BYTES == 1 << 27
    monkeypatch.setattr("testbed.nodes.eavesdropping.MAX_BYTES", 10_000)
    node = welcomed("eve")
    for block in range(4):
        for index in range(10):
            assert node.handle(said(block, 1000, index)) == []
    kept = [x for record in node.eavesdropping._blocks.values() for x in record.messages.values()]
    assert len(kept) == 9
    assert sum(len(msgspec.msgpack.encode(x.message)) for x in kept) <= 10_000


# ---------------------------------------------------------------- what was delivered


def test_a_key_that_both_ends_have_stays_whoever_orders_its_deletion(tmp_path: Path) -> None:
    """A coordinator could welcome a node to any earlier run and have it delete the keys in use. Keys that are made
    after that are no more final than before: one end may lack them."""
    from testbed.core.types import Key

    made = object.__new__(NodeDaemon)
    made.name, made._state_dir = "alice", tmp_path
    made.state = SimpleNamespace(run="run-1", is_rehearsal=False)  # type: ignore[assignment]
    for block in (0, 1):
        assert made._store_key(Key(block, np.ones(128, np.uint8))) is None
    made._drop_key(e.DropKey(0))  # its block failed
    made._keep_keys(e.KeepKeys((0, 1)))
    made._drop_key(e.DropKey(1))
    assert made._store_key(Key(2, np.ones(128, np.uint8))) is None
    assert [p.name for p in sorted(tmp_path.rglob("block-*"))] == [
        "block-0001.confirmed", "block-0001.key", "block-0002.key",
    ]  # fmt: skip
    made._drop_key(e.DropKey(2))
    assert [p.name for p in sorted(tmp_path.rglob("*.key"))] == ["block-0001.key"]
    made.state.run = "run-2"  # type: ignore[misc]
    made._keep_keys(e.KeepKeys((1,)))  # it has no keys, and gets no folder for that
    assert [p.name for p in (tmp_path / "keys").iterdir()] == ["run-1"]


@pytest.mark.parametrize("role", ["alice", "bob", "eve", "ris"])
@pytest.mark.parametrize("kind", ["stop", "abort", "halt"])
def test_what_is_kept_for_a_restart_is_deleted_when_the_record_has_the_end(role: str, kind: Any) -> None:
    """A run whose end is not on record may be resumed, and its Alice must know what was said of earlier blocks."""
    recorded, not_recorded = m.Finish(kind=kind, recorded=True), m.Finish(kind=kind)
    assert (e.ForgetKnown() in welcomed(role).handle(e.Received(recorded))) == (role in ("alice", "bob"))
    assert e.ForgetKnown() not in welcomed(role).handle(e.Received(not_recorded))
    assert e.ForgetKnown() not in NodeState(role, 1).handle(e.Received(recorded))


def test_only_an_end_of_the_pair_keeps_keys_and_only_in_a_run() -> None:
    order = e.Received(m.KeepKeys(blocks=[3, 5]))
    for role in ("alice", "bob"):
        assert welcomed(role).handle(order) == [e.KeepKeys((3, 5))]
    for node in (welcomed("eve"), NodeState("alice", 1)):
        (refused,) = node.handle(order)
        assert isinstance(refused, e.Report)
        assert isinstance(refused.body, m.Failed)
