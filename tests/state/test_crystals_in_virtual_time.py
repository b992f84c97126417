"""Nodes that come back in virtual time, whose devices have crystals of their own: no clock agrees with the air's."""

from __future__ import annotations

from typing import Any

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
    lost = False

    def falls(node: str, body: Any) -> list[Any]:
        nonlocal lost
        if not lost and node == back and isinstance(body, m.Probe) and body.rounds[-1].round >= LOST:
            lost = True
            return []
        return Apart.answer(stage, node, body)

    stage.answer = falls  # type: ignore[method-assign]
    stage.join()
    assert lost
    stage.take(e.ProcessEnded(back, "killed"))
    stage.lives[back], stage.promised_s[back] = 2, 0.0
    stage.join(back)
    stage.wait(60.0)
    assert stage.over == e.RunOver("finished", f"{ROUNDS} rounds")
    assert stage.missed == []
    dropped = set(stage.state.rejected) - {"measured"}
    assert dropped == ({"node_lost"} if back != "eve" else set())
