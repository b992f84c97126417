"""Nodes that come back in virtual time, whose devices have crystals of their own: no clock agrees with the air's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from test_coordinator import LAB, Stage

from testbed.coordinator import events as e
from testbed.net import messages as m

LOST, ROUNDS = 40, 100
DEVICES_S = 100.0
"""What all device clocks show when the air begins."""


class Apart(Stage):
    """Nodes on a simulated air, whose time only goes on with what they do. A node hears Alice where its windows are
    where her frames are, and every device's present is the end of what it has promised."""

    def __init__(self, ppm: dict[str, float], interval_s: float) -> None:
        self.air_s, self.ppm, self.promised_s = 0.0, ppm, dict.fromkeys(ppm, 0.0)
        self.missed: list[tuple[int, str]] = []
        lab = {**LAB, "world": {"pace": "virtual"}}
        super().__init__(
            lab=lab, rounds=ROUNDS, surface={"policy": "none"}, accounting={"block_rounds": ROUNDS},
            probing={"interval_s": interval_s, "train": 8},
        )  # fmt: skip

    def reading_s(self, node: str, air_s: float) -> float:
        return DEVICES_S + air_s * (1 + 1e-6 * self.ppm.get(node, 0.0))

    def advance(self, until_s: float) -> None:
        self.air_s = max(self.air_s, until_s)

    def answer(self, node: str, body: Any) -> list[Any]:
        if isinstance(body, m.ReadClock):
            return [m.ClockReading(device_time_s=max(self.reading_s(node, self.air_s), self.promised_s.get(node, 0.0)))]
        if not isinstance(body, m.Probe):
            return self.usual(node, body)
        self.promised_s[node] = body.rounds[-1].end_s
        return [m.Captured(round=body.round), m.Probed(rounds=[self.heard(node, plan) for plan in body.rounds])]

    def heard(self, node: str, plan: m.RoundPlan) -> m.RoundResult:
        """Measure by how much Alice's frame comes earlier or later than a receiver expects it."""
        rate = 1 + 1e-6 * self.ppm[node]
        links = []
        for slot in plan.slots:
            last_s = (plan.end_s - DEVICES_S) / rate
            self.air_s = max(self.air_s, last_s - self.state.timetable.scheduler.quiet_s)  # type: ignore[union-attr]
            if node in slot.rx:
                due_s = self.sent_s(plan.round) if slot.tx == "alice" else (slot.start_s - DEVICES_S) / rate
                error_s = self.reading_s(node, due_s) - slot.start_s if slot.tx == "alice" else 0.0
                reason = "no_preamble" if abs(error_s) > plan.margin_s else None
                links.append(m.LinkResult(tx=slot.tx, reason=reason, snr_db=20.0, timing_error_s=error_s))
                self.missed += [(plan.round, node)] if reason else []
        return m.RoundResult(round=plan.round, links=links)

    def sent_s(self, number: int) -> float:
        """Return when, by the air, Alice's slot of a round begins."""
        plan = next(
            x for n, b in self.told if n == "alice" and isinstance(b, m.Probe) for x in b.rounds if x.round == number
        )
        return (plan.slots[0].start_s - DEVICES_S) / (1 + 1e-6 * self.ppm["alice"])


def fall(stage: Apart, back: str) -> None:
    """Have a node die in a train and come back; one of the others reports its part of that train only after that."""
    late = "alice" if back == "bob" else "bob"
    held: list[m.Probe] = []
    trains: list[int] = []

    def falls(node: str, body: Any) -> list[Any]:
        if isinstance(body, m.Probe) and body.rounds[-1].round >= LOST and stage.lives[back] == 1:
            trains.append(body.round)
            if node in (back, late) and body.round == trains[0]:
                held.extend([body] if node == late else [])
                return []
        return type(stage).answer(stage, node, body)

    stage.answer = falls  # type: ignore[method-assign]
    stage.join()
    assert held
    stage.take(e.ProcessEnded(back, "killed"))
    stage.lives[back], stage.promised_s[back] = 2, 0.0
    stage.join(back)
    for answer in stage.answer(late, held[0]):
        stage.take(stage.says(late, answer))


@pytest.mark.parametrize("back", ["alice", "bob", "eve"])
@pytest.mark.parametrize("ppm", [(20.0, -20.0, 7.0), (-20.0, 20.0, 20.0), (-20.0, -20.0, 20.0)])
@pytest.mark.parametrize("interval_s", [0.05, 20.0])
def test_a_node_that_comes_back_is_heard_from_its_first_round(
    back: str, ppm: tuple[float, float, float], interval_s: float
) -> None:
    """After 800 s, Alice's clock and the air's are 16 ms apart; the clock of who came back was taken to be read at the
    time by the air, and its node listened 16 ms too early in every later round."""
    names = ("alice", "bob", "eve")
    stage = Apart(dict(zip(names, ppm, strict=True)), interval_s)
    fall(stage, back)
    stage.wait(60.0)
    assert stage.over == e.RunOver("finished", f"{ROUNDS} rounds")
    assert stage.missed == []
    dropped = set(stage.state.rejected) - {"measured"}
    assert dropped == ({"node_lost"} if back != "eve" else set())


def unexpected(stage: Stage) -> list[str]:
    return [note.detail["what"] for note in stage.notes if note.kind == "unexpected"]


def test_an_answer_that_no_order_awaits_moves_no_clock_and_no_air() -> None:
    """Eve's word that she is configured, in the middle of a train, made the air advance and every later train late."""
    said = False

    def answer(node: str, body: Any) -> list[Any]:
        nonlocal said
        found = Apart.answer(stage, node, body)
        if node == "eve" and isinstance(body, m.Probe) and body.rounds[0].round >= LOST and not said:
            said = True
            return [m.Configured(accepted={}), m.ClockReading(device_time_s=7.0), *found]
        return found

    stage = Apart({"alice": 2.0, "bob": -2.0, "eve": 1.0}, 0.05)
    stage.answer = answer  # type: ignore[method-assign]
    stage.join()
    assert stage.over == e.RunOver("finished", f"{ROUNDS} rounds")
    assert unexpected(stage) == ["Configured", "ClockReading"]
    assert stage.state.rejected == {}
    assert stage.missed == []


class Suspended(Apart):
    """Alice's machine stands still when her clock is asked for the sake of Eve, who has come back."""

    suspended = False

    def answer(self, node: str, body: Any) -> list[Any]:
        if node == "alice" and isinstance(body, m.ReadClock) and self.lives["eve"] == 2 and not self.told_late:
            self.suspended = True
        if node == "alice" and self.suspended:
            self.told_late.append(body)
            return []
        return super().answer(node, body)

    def __init__(self) -> None:
        self.told_late: list[Any] = []
        super().__init__({"alice": 20.0, "bob": -20.0, "eve": 5.0}, 0.05)

    def wake(self) -> None:
        """Alice answers what waits for her, in its order, as a process does that was suspended."""
        self.take(self.says("alice", m.Heartbeat(state="ready")))
        self.take(self.says("alice", m.Here()))
        for body in self.told_late:  # further orders arrive behind those that wait
            self.suspended = body is not self.told_late[-1]
            for answer in super().answer("alice", body):
                self.take(self.says("alice", answer))


def test_an_alice_who_is_suspended_while_her_clock_is_read_keeps_what_she_measured() -> None:
    stage = Suspended()
    fall(stage, "eve")
    assert stage.suspended
    stage.wait(stage.state.lab.coordinator.lost_after_s + 1.0, beating=("bob", "eve"))
    assert stage.state.nodes["alice"].is_missing
    assert not [note for note in stage.notes if note.kind == "rounds_lost"]
    stage.wake()
    stage.wait(30.0)
    assert stage.over == e.RunOver("finished", f"{ROUNDS} rounds")
    assert unexpected(stage) == ["ClockReading"], "the answer to the order that was given up"
    assert stage.state.rejected == {}
    assert stage.missed == []


@pytest.mark.parametrize("reason", ["no_preamble", "clipped"])
def test_an_eve_who_is_adrift_is_asked_once_while_alice_does_not_answer(reason: str) -> None:
    """Her reading waits for Alice's; meanwhile she was asked again and again, without end and without any pause."""
    stage = Apart({"alice": 20.0, "bob": -20.0, "eve": 7.0}, 20.0)
    silent = False

    def answer(node: str, body: Any) -> list[Any]:
        nonlocal silent
        silent = silent or (node == "alice" and isinstance(body, m.ReadClock) and stage.state.phase == "probing")
        if silent and node == "alice":
            return []
        found = Apart.answer(stage, node, body)
        return found if node != "eve" or not isinstance(body, m.Probe) else [found[0], rejected(found[1], reason)]

    stage.answer = answer  # type: ignore[method-assign]
    stage.join()
    assert silent
    assert [note.kind for note in stage.notes].count("clock_adrift") == 1


@pytest.mark.parametrize("reason", ["no_preamble", "clipped", "low_snr"])
def test_an_eve_whose_frames_are_rejected_costs_nobody_the_interval(reason: str) -> None:
    """What her clock may be wrong by was added to every round, without a limit."""
    stage = Apart({"alice": 20.0, "bob": -20.0, "eve": 7.0}, 1.0)
    starts_s: list[float] = []

    def answer(node: str, body: Any) -> list[Any]:
        found = Apart.answer(stage, node, body)
        if not isinstance(body, m.Probe):
            return found
        if node == "alice":
            starts_s.extend(plan.slots[0].start_s for plan in body.rounds)
        return [found[0], rejected(found[1], reason)] if node == "eve" else found

    stage.answer = answer  # type: ignore[method-assign]
    stage.join()
    assert stage.over == e.RunOver("finished", f"{ROUNDS} rounds")
    steps_s = [later - earlier for earlier, later in pairwise(starts_s)]
    assert steps_s == pytest.approx([1.0] * (ROUNDS - 1), abs=1e-6)
    assert "clock_adrift" in [note.kind for note in stage.notes]
    assert {node for _, node in stage.missed} <= {"eve"}


def rejected(report: m.Probed, reason: str) -> m.Probed:
    """Return a report of which every link was rejected for a reason."""
    rounds = [
        msgspec.structs.replace(r, links=[msgspec.structs.replace(x, reason=reason) for x in r.links])
        for r in report.rounds
    ]
    return m.Probed(rounds=rounds)
