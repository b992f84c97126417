"""How the cost of a live page is measured: pairs of stretches of one run, in turn, with a page and without one."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from testbed import benchmarks
from testbed.benchmarks import live


class Clock:
    """A run whose rounds take 10 ms on the wall clock and 8 ms of CPU, and half as much again with the page."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, extra: float) -> None:
        self.wall_s = self.run_s = self.page_s = 0.0
        self.watched, self.extra = True, extra
        monkeypatch.setattr(live.time, "perf_counter", lambda: self.wall_s)
        monkeypatch.setattr(live, "cpu_s", lambda pids: self.page_s if pids == [2] else self.run_s)
        monkeypatch.setattr(live, "_signal", self.signal)

    def signal(self, pids: list[int], number: signal.Signals) -> None:
        assert pids == [2], "only the page's processes are halted"
        self.watched = number == signal.SIGCONT

    def round(self) -> None:
        self.wall_s += 0.010 * (1 + self.extra * self.watched)
        self.run_s += 0.008
        self.page_s += 0.001 * self.watched


def measured(clock: Clock, most: int, limit_s: float = 1e9) -> tuple[live.Pairs, list[int]]:
    ended: list[int] = []
    pairs = live.Pairs(most, limit_s, run_pids=[1], page_pids=[2], end=lambda: ended.append(1))
    for n in range(1, 5000):
        if ended:
            break
        clock.round()
        pairs.progress(SimpleNamespace(round=n))  # type: ignore[arg-type]
    return pairs, ended


def test_the_ratio_of_a_pair_is_that_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, ended = measured(Clock(monkeypatch, extra=0.25), most=6)
    assert (len(pairs.done), ended) == (6, [1])
    assert pairs.ratios("wall_s") == pytest.approx([0.8] * 6)
    assert pairs.ratios("cpu_s") == pytest.approx([1.0] * 6)
    wall, cpu = pairs.rows("live, read")
    assert (wall.name, cpu.name) == ("live, read", "live, read, CPU of the run")
    assert (wall.ours_s, wall.peer_s, wall.ratio) == pytest.approx((0.0125, 0.010, 0.8))
    assert (cpu.ours_s, cpu.ratio) == pytest.approx((0.008, 1.0))
    assert "1.00 ms a round" in cpu.note
    assert "6 pairs" in wall.note


def test_on_a_slow_machine_there_are_fewer_pairs_but_three(monkeypatch: pytest.MonkeyPatch) -> None:
    # a pair takes 160 rounds of 10 ms
    assert len(measured(Clock(monkeypatch, 0.0), 20, limit_s=0.1)[0].done) == live.LEAST_PAIRS
    assert len(measured(Clock(monkeypatch, 0.0), 20, limit_s=7.0)[0].done) == 5


def test_processor_time_of_processes() -> None:
    before_s = live.cpu_s([os.getpid()])
    if before_s != before_s:
        pytest.skip("no /proc on this system")
    own_s = os.times()
    sum(i * i for i in range(300_000))
    grown_s = live.cpu_s([os.getpid()]) - before_s
    assert grown_s == pytest.approx(sum(os.times()[:2]) - sum(own_s[:2]), abs=0.03)
    assert grown_s > 0
    assert live.cpu_s([2**22 + 1]) != live.cpu_s([2**22 + 1]), "NaN for a process that is not there"


def test_a_benchmark_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[Any]:
        benchmarks.tell(0.5, "half")
        benchmarks.interleaved(lambda: None, lambda: None, 2)
        return []

    monkeypatch.setattr(benchmarks.registry, "find", lambda kind, name: SimpleNamespace(run=run))
    monkeypatch.setattr(benchmarks, "names", lambda: ["a", "b"])
    told: list[tuple[float, str]] = []
    benchmarks.run(progress=lambda share, what: told.append((share, what)))
    assert told == [
        (0.25, "a: half"), (0.25, "a: pair 1 of 2"), (0.25, "a: pair 2 of 2"), (0.5, "a"),
        (0.75, "b: half"), (0.75, "b: pair 1 of 2"), (0.75, "b: pair 2 of 2"), (1.0, "b"),
    ]  # fmt: skip
    benchmarks.tell(0.5, "outside of a benchmark nobody hears it")
    assert len(told) == 8
