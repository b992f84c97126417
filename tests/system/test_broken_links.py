"""Networks that break and processes that are suspended, in real runs: the run goes on and loses nothing measured."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from breaking import Line
from sites import Site, when
from test_transport import HELLO, NAMES, said

from testbed.core import identity
from testbed.net import messages as m
from testbed.net import transport
from testbed.records import reader

OUTAGE_S = 9.0
"""Longer than silence is suffered (3 s) and than ZeroMQ holds a dead connection (5 s)."""


def begin(site: Site, rounds: int) -> tuple[Any, Line]:
    """Start a run of which Bob's control link is one that can be broken."""
    coordinator = site.start_coordinator("--rounds", str(rounds))
    line = Line(int(next(x for x in site.lab.read_text().splitlines()[::-1] if x.startswith("port")).split("=")[1]))
    site.start("sim")
    for name in ("alice", "eve"):
        site.start("node", name)
    site.start("node", "bob", "--coordinator", f"tcp://127.0.0.1:{line.port}")
    return coordinator, line


def ended(site: Site, coordinator: Any) -> tuple[dict[str, Any], list[str]]:
    """Wait for a run to end well; returns its summary and what kinds of things happened."""
    status = coordinator.wait(timeout=240)
    run = reader.load(site.run_folder())
    assert status == 0, (run.stop, [(x.kind, x.data) for x in run.events[-20:]])
    assert run.summary is not None
    assert run.summary["keys_mismatched"] == 0
    assert run.summary["keys_verified"] >= 1
    return run.summary, [x.kind for x in run.events]


def test_a_reset_of_one_nodes_connections_costs_nothing(site: Site) -> None:
    coordinator, line = begin(site, 600)
    when(coordinator.stderr, lambda text: "200/600" in text)
    before = line.connections
    assert line.reset() >= 4  # both ends of orders and heartbeats
    summary, kinds = ended(site, coordinator)
    assert line.connections >= before + 2
    assert summary["rounds"] == 600
    assert summary["pairs_rejected"].get("timeout", 0) == 0
    assert "lost" not in kinds
    line.close()


def test_a_control_link_that_is_down_for_9_s_costs_the_two_trains_under_way_at_most(site: Site) -> None:
    coordinator, line = begin(site, 600)
    when(coordinator.stderr, lambda text: "200/600" in text)
    line.pull()
    threading.Timer(OUTAGE_S, line.plug).start()
    summary, kinds = ended(site, coordinator)
    assert kinds.count("silent") == kinds.count("resumed") == 1
    assert "lost" not in kinds
    assert summary["rounds"] == 600
    assert summary["pairs_rejected"].get("node_lost", 0) <= 2 * 64
    line.close()


def test_a_coordinator_that_is_suspended_loses_nobody(site: Site) -> None:
    coordinator, line = begin(site, 600)
    when(coordinator.stderr, lambda text: "200/600" in text)
    os.kill(coordinator.pid, signal.SIGSTOP)
    time.sleep(OUTAGE_S)
    os.kill(coordinator.pid, signal.SIGCONT)
    summary, kinds = ended(site, coordinator)
    assert "lost" not in kinds
    assert summary["rounds"] == 600
    line.close()


def test_every_message_arrives_once_and_in_order_whatever_breaks(tmp_path: Path) -> None:
    for name in NAMES:
        identity.make(tmp_path, name)
    wires = [transport.Wire(identity.load(tmp_path, name, NAMES)) for name in ("coordinator", "bob")]
    hub = transport.Hub(wires[0], "127.0.0.1", 0)
    line = Line(hub.port)
    link = transport.Link(wires[1], f"tcp://127.0.0.1:{line.port}", "bob", "1")
    link.send(HELLO)
    reports: list[int] = []
    orders: list[int] = []
    deadline_s = time.monotonic() + 120.0
    said = resets = 0
    while (len(reports) < 200 or len(orders) < 200) and time.monotonic() < deadline_s:
        if said < 200 and hub._sessions and len(reports) > said - 20:
            link.send(m.Captured(round=said))
            hub.send("bob", m.ReadSurface(round=said))
            said += 1
            if said % 40 == 20:
                resets += line.reset() > 0
        link.say_here()
        while hub.socket.poll(5):
            heard = hub.receive()
            reports += [heard[2].round] if heard is not None and isinstance(heard[2], m.Captured) else []
        while link.socket.poll(5):
            told = link.receive()
            orders += [told[1].round] if told is not None and isinstance(told[1], m.ReadSurface) else []
    assert resets == 5
    assert reports == list(range(200))
    assert orders == list(range(200))
    hub.socket.close(linger=0)
    link.socket.close(linger=0)
    for wire in reversed(wires):
        wire.close()
    line.close()


def test_a_discussion_loses_nothing_whatever_breaks(tmp_path: Path) -> None:
    for name in NAMES:
        identity.make(tmp_path, name)
    wires = {name: transport.Wire(identity.load(tmp_path, name, NAMES)) for name in ("alice", "bob")}
    host = transport.DiscussionHost(wires["alice"], "127.0.0.1", 0, "bob")
    line = Line(host.port)
    guest = transport.DiscussionGuest(wires["bob"], f"tcp://127.0.0.1:{line.port}", "alice")
    heard: dict[str, list[str]] = {"alice": [], "bob": []}
    deadline_s = time.monotonic() + 120.0
    n = resets = 0
    while min(map(len, heard.values())) < 200 and time.monotonic() < deadline_s:
        if n < 200 and len(heard["alice"]) > n - 20:
            guest.send(said("bob", f"m{n}"))
            host.send(said("alice", f"m{n}"))
            n += 1
            if n % 40 == 20:
                resets += line.reset() > 0
        guest.say_here()
        for who, end in (("alice", host), ("bob", guest)):
            while end.socket.poll(5):
                envelope = end.receive()  # type: ignore[attr-defined]
                heard[who] += [envelope.message.kind] if envelope is not None else []
    assert resets == 5
    assert heard["alice"] == heard["bob"] == [f"m{i}" for i in range(200)]
    # another process of Bob's is told nothing of what was said to this one
    host.send(said("alice", "for the one that is gone"))
    guest.socket.close(linger=0)
    other = transport.DiscussionGuest(wires["bob"], f"tcp://127.0.0.1:{line.port}", "alice")
    assert host.socket.poll(60_000)
    while host.socket.poll(100):
        assert host.receive() is None
    host.send(said("alice", "for the new one"))
    news: list[str] = []
    while not news:
        assert other.socket.poll(60_000)
        envelope = other.receive()
        news += [envelope.message.kind] if envelope is not None else []
    assert news == ["for the new one"]
    for closing in (host.socket, host._transcript, other.socket):
        closing.close(linger=0)
    for wire in wires.values():
        wire.close()
    line.close()
