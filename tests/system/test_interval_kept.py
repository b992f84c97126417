"""The interval on the wall clock, on a clock of the test's own: no result depends on how busy the machine is.

All nodes, the coordinator and the simulated air share one process. Their clock stands still while anybody computes, and
advances only while all of them wait, as a wall clock does for processes that have a processor each whenever they want
one. Where the test advances it while a node is about to work, that node had no processor for that long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from trains_seen import Trains

from sim_backend import local
from sim_backend.server import Server
from testbed import config
from testbed.core.errors import Reject
from testbed.lab import one_process
from testbed.nodes.operations import RadioWork
from testbed.records import reader

INTERVAL_S = 2e-3
ROUNDS = 400


class Waiting(one_process.Turns):
    """Turns whose clock advances in small steps, and in no time, while everybody waits."""

    STEP_S = 0.5e-3

    def give_way(self) -> None:
        if not any(self._had_turn(node) for node in self._nodes):
            self.clock.advance(self.clock.now_s() + self.STEP_S)


class Run:
    """A run at pace "wall" of which all clocks are the test's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        self.clock: Any = None
        self.trains = Trains(monkeypatch)
        wall = lambda answer, pace, timeout_s: Server(answer, "wall", timeout_s)  # noqa: E731
        monkeypatch.setattr(local, "Server", wall)
        monkeypatch.setattr(one_process, "why_not", lambda experiment, lab: None)
        monkeypatch.setattr(one_process, "Turns", self._turns)

    def _turns(self) -> Waiting:
        turns = Waiting()
        self.clock = turns.clock
        return turns

    def before_captures(self, role: str, act: Callable[[Any, Any], None]) -> None:
        """Call `act(radio, order)` whenever a node's device begins to work on a train."""
        capture = RadioWork.capture

        def later(work: RadioWork, found: Any) -> Any:
            if work._place.role == role:
                act(work._radio, found.order)
            return capture(work, found)

        self._monkeypatch.setattr(RadioWork, "capture", later)

    def drive(self) -> Any:
        plan, lab = config.load_experiment("mobile_room"), config.load_lab("sim")
        plan = msgspec.structs.replace(
            plan, rounds=ROUNDS, probing=msgspec.structs.replace(plan.probing, interval_s=INTERVAL_S),
            accounting=msgspec.structs.replace(plan.accounting, block_rounds=10 * ROUNDS),
        )  # fmt: skip
        lab = msgspec.structs.replace(lab, world=msgspec.structs.replace(lab.world, pace="wall"))
        coordinators: list[Any] = []

        def progress(p: Any) -> None:
            if p.round >= ROUNDS:  # without distilling anything
                coordinators[0].ask_stop("abort")

        begun = lambda coordinator, crew: coordinators.append(coordinator)  # noqa: E731
        return one_process.run(plan, lab, "sim", self._folder / "run", progress, begun)


def is_kept(outcome: Any) -> bool:
    return bool(next(h["ok"] for h in outcome.summary["health"] if h["check"] == "interval_kept"))


def test_500_rounds_per_second_are_all_kept_where_nobody_lacks_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch)
    outcome = run.drive()
    assert is_kept(outcome)
    record = reader.load(outcome.folder).rounds
    assert record.rounds.tolist() == list(range(ROUNDS))
    assert record.kept.mean() >= 0.99, Counter(record.reason.tolist())
    gaps_s = run.trains.gaps_s(record)
    assert gaps_s.size > 0.9 * ROUNDS
    assert np.allclose(gaps_s, INTERVAL_S, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("role", "slot"), [("alice", 0), ("bob", 1)])
def test_exactly_the_rounds_that_lacked_a_processor_are_late(
    role: str, slot: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node gets the processor back when some rounds of two trains ought to be on the air already; the others are
    kept, at the interval that was asked for."""
    run = Run(tmp_path, monkeypatch)
    stalls, late = [], []

    def stall(radio: Any, order: Any) -> None:
        if order.round < 100 or len(stalls) == 2:
            return
        stalls.append(order.round)
        run.clock.advance(run.clock.now_s() + 0.1)
        now_s = radio.now_s()
        late.extend(plan.round for plan in order.rounds if plan.slots[slot].start_s + plan.margin_s < now_s)

    run.before_captures(role, stall)
    outcome = run.drive()
    assert is_kept(outcome)
    record = reader.load(outcome.folder).rounds
    assert record.rounds.tolist() == list(range(ROUNDS))
    assert set(record.reason[~record.kept].tolist()) == {Reject.LATE_TX.value}
    assert record.rounds[~record.kept].tolist() == late
    assert len(stalls) == 2
    assert 5 < len(late) < 100
    assert np.allclose(run.trains.gaps_s(record), INTERVAL_S, rtol=0, atol=1e-9)
