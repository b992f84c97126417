"""What a node does with its radio in a train of rounds: everything is queued, captured and estimated together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_world_radio import Room, device_time, room

from sim_backend.radio import SimRadio
from testbed.core.config import Accounting, ChainPlan, NodePlace, ProbingPlan, RadioPlan
from testbed.core.errors import DeviceError, InputError, LateTransmit
from testbed.core.radio import Window
from testbed.core.types import IqBlock
from testbed.net import messages as m
from testbed.nodes import operations
from testbed.nodes.operations import Capture, RadioWork

MARGIN_S = 4e-6
SLOT_S = 200e-6


class Node:
    """A radio and what a node does with it."""

    def __init__(self, world: Room, role: str, **options: Any) -> None:
        self.role = role
        self.radio: SimRadio = world.radio(role, seed=ord(role[0]), **options)
        self.work = RadioWork(self.radio, NodePlace(role=role, driver="sim"), Path(), lambda body: None)
        self.plan = m.Configure(
            radio=RadioPlan(), probing=ProbingPlan(), chain=ChainPlan(), accounting=Accounting(epsilon_log2=32),
            experiment_mode=True, record_iq=False, seed=5,
        )  # fmt: skip
        self.work.configure(self.plan, "run", 1)

    def order(self, start_s: float, rounds: range, interval_s: float, paced: bool = False) -> m.Probe:
        """Return the order for these rounds on this node's clock, round 0 at `start_s` of the world."""
        plans = []
        for number in rounds:
            at_s = start_s + number * interval_s
            slots = [
                m.SlotPlan(tx, rx, device_time(self.radio, at_s + later_s))
                for tx, rx, later_s in (("alice", ["bob", "eve"], 0.0), ("bob", ["alice", "eve"], SLOT_S))
            ]
            end_s = device_time(self.radio, at_s + 2 * SLOT_S)
            plans.append(m.RoundPlan(round=number, slots=slots, margin_s=MARGIN_S, end_s=end_s))
        return m.Probe(rounds=plans, paced=paced)

    def probe(self, order: m.Probe) -> dict[int, m.RoundResult]:
        return self.results(self.captures(order))

    def captures(self, order: m.Probe) -> Capture:
        return self.work.capture(self.work.expect(order))

    def results(self, found: Capture) -> dict[int, m.RoundResult]:
        return {r.round: r for report in self.work.estimate(found).reports for r in report.rounds}


def now_s(radio: SimRadio) -> float:
    """Return the time of the world by a radio that has declared nothing."""
    return radio._clock.world_ticks(radio.now_s()) / 1e12


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Do all of it side by side, as nodes do; returns what came of each."""
    out: list[Any] = [None] * len(calls)

    def call(i: int) -> None:
        try:
            out[i] = calls[i]()
        except Exception as exc:
            out[i] = exc

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def measured(train: int, queue: int | None = None, rounds: int = 21) -> list[dict[int, m.RoundResult]]:
    """Return what Alice, Bob and Eve report of rounds in trains of this length."""
    with room() as world:
        nodes = [Node(world, role) for role in ("alice", "bob", "eve")]
        if queue is not None:
            for node in nodes:
                limited(node, queue)
        out: list[dict[int, m.RoundResult]] = [{}, {}, {}]
        for first in range(0, rounds, train):
            numbers = range(first, min(first + train, rounds))
            orders = [node.order(0.01, numbers, 2e-3) for node in nodes]
            parts = at_once(*(lambda n=n, o=o: n.probe(o) for n, o in zip(nodes, orders, strict=True)))
            for known, part in zip(out, parts, strict=True):
                known.update(part)
    return out


def limited(node: Node, queue: int) -> None:
    """Let a radio hold few transmissions, and refuse more as a device does whose queue is full."""
    waiting: list[float] = []
    send, hear = node.radio._do_transmit_many, node.radio._do_receive_many

    def transmit(blocks: Any) -> Any:
        waiting.extend(block.time_s for block in blocks)
        assert len(waiting) <= queue, "the device's queue is full"
        return send(blocks)

    def receive(windows: Any, timeout_s: float) -> Any:
        out = hear(windows, timeout_s)
        waiting[:] = [at_s for at_s in waiting if at_s > windows[-1].at_s]
        return out

    capabilities = replace(node.radio.capabilities, queue=queue)
    node.radio._do_transmit_many = transmit  # type: ignore[method-assign]
    node.radio._do_receive_many = receive  # type: ignore[method-assign]
    kind = type(node.radio)
    node.radio.__class__ = type("Limited", (kind,), {"capabilities": property(lambda self: capabilities)})


def test_trains_of_any_length_measure_the_same_to_the_last_bit() -> None:
    one, seven, all_at_once = measured(1), measured(7), measured(21)
    assert all(len(x.links) == 1 and x.links[0].reason is None for x in one[0].values())
    assert all(len(x.links) == 2 for x in one[2].values())
    assert len({x.links[0].csi for x in one[0].values()}) == 21
    assert one == seven == all_at_once


def test_a_device_that_holds_few_transmissions_is_never_asked_to_hold_more() -> None:
    assert measured(21, queue=4) == measured(21)


def test_what_an_experiment_may_report_is_not_reported_of_a_private_run_that_the_radio_refuses() -> None:
    with room() as world:
        node = Node(world, "alice")
        private = msgspec.structs.replace(node.plan, experiment_mode=False, probing=ProbingPlan(waveform="unknown"))
        with pytest.raises(InputError, match="unknown"):
            node.work.configure(private, "other", 1)
        with pytest.raises(InputError, match="no configured radio"):
            node.probe(node.order(0.01, range(2), 2e-3))


def test_a_train_of_another_year_is_refused() -> None:
    """The device waited for it, and the node for the device, whatever was ordered then."""
    with room() as world:
        node = Node(world, "alice")
        for ahead_s in (1e5, 1e12):
            order = node.order(0.01, range(2), 2e-3)
            slot = msgspec.structs.replace(order.rounds[1].slots[0], start_s=ahead_s)
            for change in ({"end_s": ahead_s}, {"slots": [slot]}):
                late = msgspec.structs.replace(order.rounds[1], **change)
                with pytest.raises(InputError, match=r"a train that is over in .* s, accepted up to 90000 s"):
                    node.probe(msgspec.structs.replace(order, rounds=[order.rounds[0], late]))
        assert not node.work._coming


def test_receptions_of_a_round_in_steps_have_a_limit() -> None:
    with room() as world:
        node = Node(world, "alice")
        node.radio.receive = lambda n: IqBlock(np.zeros((1, 1), np.complex64), 1e6, 0.0)  # type: ignore[method-assign]
        order = m.Step(round=1, step=0, action="receive", tx="bob", last=False)
        for _ in range(operations.MOST_CAPTURES):
            node.work.step(order)
        with pytest.raises(InputError, match="64 receptions were ordered already"):
            node.work.step(order)


def test_one_late_burst_costs_its_own_round() -> None:
    with room() as world:
        nodes = [Node(world, role) for role in ("alice", "bob")]
        orders = [node.order(0.01, range(6), 2e-3) for node in nodes]
        late = orders[0].rounds[2]
        send = nodes[0].radio._do_transmit_many

        def transmit(blocks: list[IqBlock]) -> Any:
            found = list(send([b for i, b in enumerate(blocks) if i != 2]))
            return [*found[:2], DeviceError("alice", "transmit", "configured", "cable"), *found[2:]]

        nodes[0].radio._do_transmit_many = transmit  # type: ignore[method-assign, assignment]
        alice, bob = at_once(*(lambda n=n, o=o: n.probe(o) for n, o in zip(nodes, orders, strict=True)))
    assert {n: x.fault for n, x in alice.items()} == {n: "device" if n == late.round else None for n in range(6)}
    assert [n for n, x in bob.items() if x.links[0].reason is not None] == [late.round]
    assert all(x.links[0].reason is None for x in alice.values())


def test_a_burst_that_is_reported_as_late_after_it_was_queued_costs_its_own_round() -> None:
    with room() as world:
        nodes = [Node(world, role) for role in ("alice", "bob")]
        orders = [node.order(0.01, range(6), 2e-3) for node in nodes]
        late = orders[0].rounds[3]
        failures = [(late.slots[0].start_s + late.margin_s, LateTransmit("alice", "transmit", "configured", "late"))]
        failures.append((late.slots[0].start_s, LateTransmit("alice", "transmit", "configured", "of another run")))

        def told() -> Any:
            out, failures[:] = failures[:], []
            return out

        nodes[0].radio.failed_transmissions = told  # type: ignore[method-assign]
        alice, bob = at_once(*(lambda n=n, o=o: n.probe(o) for n, o in zip(nodes, orders, strict=True)))
    assert {n: x.fault for n, x in alice.items()} == {n: "late_tx" if n == 3 else None for n in range(6)}
    assert [x.fault for x in bob.values()] == [None] * 6


def test_bursts_whose_time_is_over_are_late_and_the_others_are_sent() -> None:
    with room(pace="wall") as world:
        alice = Node(world, "alice").radio
        start_s = now_s(alice)
        block = IqBlock(np.full((1, 800), 0.5, np.complex64), alice.settings.sample_rate_hz, 0.0)
        times_s = [device_time(alice, start_s + at_s) for at_s in (-0.2, -0.1, 100.0, 100.1, 100.2)]
        failed = alice.transmit_many([replace(block, time_s=at_s) for at_s in times_s])
    assert [isinstance(x, LateTransmit) for x in failed] == [True, True, False, False, False]
    assert failed[2:] == [None] * 3


def test_a_halt_in_the_middle_of_a_train_silences_what_is_queued() -> None:
    """Whatever begins after the call has returned is not heard, and who waits for samples gives up."""
    interval_s, n = 20e-3, 400
    with room(pace="wall") as world:
        alice, bob = Node(world, "alice"), world.radio("bob")
        start_s = now_s(bob) + 2.0
        found = alice.work.expect(alice.order(start_s, range(n), interval_s, paced=True))
        sending = threading.Thread(target=captured, args=(alice, found))
        sending.start()
        while found.queued < n and sending.is_alive():
            threading.Event().wait(0.02)
        assert found.queued == n
        until_s = now_s(bob) + 10 * interval_s
        while now_s(bob) < max(until_s, start_s + 10 * interval_s):
            threading.Event().wait(0.02)
        alice.radio.interrupt()
        alice.radio.silence()
        silent_s = now_s(bob)
        after = int((silent_s - start_s) / interval_s) + 1
        starts_s = [device_time(bob, start_s + k * interval_s) for k in range(after - 5, after + 20)]
        heard = bob.receive_many([Window(1000, at_s) for at_s in starts_s])
        sending.join(timeout=20.0)
        assert now_s(bob) < start_s + n * interval_s
        power = [np.mean(np.abs(x.samples) ** 2) for x in heard if isinstance(x, IqBlock)]
    assert len(power) == 25
    assert min(power[:2]) > 100 * max(power[5:])


def test_a_train_that_is_ordered_while_another_one_is_awaited_is_queued_before_that_begins() -> None:
    """Else its first rounds were late, where it follows at once: the reception of the other one ends with that."""
    with room(pace="wall") as world:
        alice = Node(world, "alice")
        start_s = now_s(alice.radio) + 30.0
        first, second = (alice.order(start_s, numbers, 1e-3, paced=True) for numbers in (range(5), range(5, 12)))
        found = alice.work.expect(first)
        sending = threading.Thread(target=captured, args=(alice, found))
        sending.start()
        while found.queued < 5 and sending.is_alive():
            threading.Event().wait(0.01)
        later = alice.work.expect(second)
        while later.queued < 7 and sending.is_alive() and found.received == 0:
            threading.Event().wait(0.01)
        assert (found.queued, found.received, later.queued) == (5, 0, 7)
        assert not found.faults
        assert not later.faults
        alice.radio.interrupt()
        sending.join(timeout=20.0)
        assert not sending.is_alive()


def captured(node: Node, found: Capture) -> None:
    """Fail where the capture does not give up."""
    with pytest.raises(DeviceError, match="halted"):
        node.work.capture(found)


def test_a_radio_follows_the_carrier_before_the_train_after_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """By then the coordinator has the report in any order of events; what was captured before says nothing new."""
    heard: list[float] = []
    wanted = [None, 7.0, None, None, None]
    monkeypatch.setattr(operations.CarrierTracker, "wanted_ppm", lambda self: wanted.pop(0))
    monkeypatch.setattr(operations.CarrierTracker, "hear", lambda self, cfo_hz: heard.append(cfo_hz))
    with room() as world:
        alice, bob = Node(world, "alice"), Node(world, "bob")
        told: list[float | None] = []
        tuned: list[float] = []
        counts: list[int] = []
        for train in range(5):
            calls = []
            for node in (bob, alice):
                coming = node.work.expect(node.order(0.01, range(3 * train, 3 * train + 3), 2e-3))
                calls.append(lambda node=node, coming=coming: node.work.capture(coming))
            found, _ = at_once(*calls)
            tuned.append(bob.radio.correction_ppm)
            told.append(bob.work.estimate(found).reports[-1].correction_ppm)
            counts.append(len(heard))
    assert told == [None, 7.0, None, None, None]
    assert tuned == [0.0, 0.0, 0.0, 7.0, 7.0]
    assert np.diff([0, *counts]).tolist() == [3, 3, 0, 3, 3]


def test_a_train_of_too_many_samples_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MAX_TRAIN_SAMPLES", 10_000)
    with room() as world:
        alice = Node(world, "alice")
        with pytest.raises(InputError, match=r"a train of 50 rounds with \d+ samples, accepted up to 10000"):
            alice.probe(alice.order(0.01, range(50), 2e-3))


def test_what_would_be_too_large_for_a_message_is_reported_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_REPORT_BYTES", 3 * 8 * 64)
    with room() as world:
        nodes = [Node(world, role) for role in ("alice", "bob")]
        orders = [node.order(0.01, range(8), 2e-3) for node in nodes]

        def reports(node: Node, order: m.Probe) -> list[list[int]]:
            found = node.work.estimate(node.work.capture(node.work.expect(order)))
            return [[r.round for r in report.rounds] for report in found.reports]

        parts = at_once(*(lambda n=n, o=o: reports(n, o) for n, o in zip(nodes, orders, strict=True)))
    assert parts[0] == parts[1] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def ticking(work: RadioWork, *readings_s: float) -> None:
    """Give a node a clock with these readings; the last one stays."""
    left = list(readings_s)
    work._now_s = lambda: left.pop(0) if len(left) > 1 else left[0]


def test_how_long_a_train_took_is_in_its_last_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_REPORT_BYTES", 3 * 8 * 64)
    with room() as world:
        nodes = [Node(world, role) for role in ("alice", "bob")]
        orders = [node.order(0.01, range(8), 2e-3) for node in nodes]
        found = at_once(
            *(lambda n=n, o=o: n.work.capture(n.work.expect(o)) for n, o in zip(nodes, orders, strict=True))
        )
        assert 0.0 < found[1].took_s < 60.0
        ticking(nodes[1].work, 10.0, 10.25)
        reports = nodes[1].work.estimate(replace(found[1], took_s=0.75)).reports
    assert [(x.air_s, x.estimate_s) for x in reports] == [(0.0, 0.0), (0.0, 0.0), (0.75, 0.25)]


def test_how_long_a_capture_took_is_measured_by_the_node_s_clock() -> None:
    with room() as world:
        nodes = [Node(world, role) for role in ("alice", "bob")]
        orders = [node.order(0.01, range(2), 2e-3) for node in nodes]
        ticking(nodes[0].work, 5.0, 7.5)
        ticking(nodes[1].work, 9.0, 8.0)
        found = at_once(
            *(lambda n=n, o=o: n.work.capture(n.work.expect(o)) for n, o in zip(nodes, orders, strict=True))
        )
    assert [x.took_s for x in found] == [2.5, 0.0]  # a clock that went back says nothing


def test_how_long_a_step_took_is_reported_with_it() -> None:
    sent: list[Any] = []
    with room() as world:
        node = Node(world, "alice")
        node.work._send = sent.append
        frame = node.work._ready().frame
        block = IqBlock(np.tile(frame.samples, 3)[None, :], frame.sample_rate_hz, 0.0)
        node.radio.receive = lambda n: block  # type: ignore[method-assign]
        order = m.Step(round=1, step=4, action="receive", tx="bob", last=True)
        ticking(node.work, 1.0, 1.5, 2.0, 2.125)
        done: Any = node.work.step(order)
    assert [x.air_s for x in sent] == [0.5]
    assert [(x.air_s, x.estimate_s) for x in done.reports] == [(0.0, 0.125)]
