"""How the cost of a live page is measured: pairs of stretches of one run, in turn, with a page and without one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
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
        monkeypatch.setattr(live, "halt", lambda pids: self.signal(pids, signal.SIGSTOP))

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
    for n in range(1, 20_000):
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
    # a pair takes 660 rounds of 10 ms, the first one without its first 30; the limit is checked after each stretch
    assert len(measured(Clock(monkeypatch, 0.0), 20, limit_s=0.1)[0].done) == live.LEAST_PAIRS
    assert len(measured(Clock(monkeypatch, 0.0), 20, limit_s=35.9)[0].done) == 5
    assert len(measured(Clock(monkeypatch, 0.0), 20, limit_s=36.1)[0].done) == 6


def test_the_confidence_of_a_median_is_that_of_the_sign_test() -> None:
    """Ranks 2 and 9 of 10 values, 4 and 13 of 16: tables of the binomial distribution."""
    assert live.median_interval([float(i) for i in range(10, 0, -1)]) == (2.0, 9.0)
    assert live.median_interval([float(i) for i in range(1, 17)]) == (4.0, 13.0)
    assert live.median_interval([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]) == (1.0, 6.0)
    assert live.median_interval([1.0] * 5) is None


def test_a_page_is_halted_while_it_has_no_journal_open(tmp_path: Path) -> None:
    code = "import sys; f = open(sys.argv[1]); print('open', flush=True); input(); f.close(); input()"
    (tmp_path / "journal.sqlite").write_text("")
    command = [sys.executable, "-c", code, str(tmp_path / "journal.sqlite")]
    reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdout.readline()
        if not Path(f"/proc/{reader.pid}/fd").exists():
            pytest.skip("no /proc on this system")
        live.halt([reader.pid], tries=1)
        assert state(reader.pid) != "T", "it goes on while it reads"
        reader.stdin.write("close\n")
        reader.stdin.flush()
        live.halt([reader.pid], tries=3000)
        assert state(reader.pid) == "T"
    finally:
        reader.kill()  # ends a halted process, too
        reader.communicate()


def test_halting_waits_until_a_process_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop signal takes effect some time after it was sent; only then it is known which files a process has open."""
    states, looked = iter([True, True, False]), []
    monkeypatch.setattr(live, "_signal", lambda pids, number: None)
    monkeypatch.setattr(live, "_goes_on", lambda pid: next(states))
    monkeypatch.setattr(live, "_has_journal_open", lambda pid: looked.append(next(states, None)))
    live.halt([1], tries=1)
    assert looked == [None]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


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
