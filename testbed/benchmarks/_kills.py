"""`testbed bench kills`: sends SIGKILL at random instants to the processes of the real command line, and checks the
runs.

A run whose coordinator is killed is resumed; one whose nodes are killed goes on by itself; one whose air is killed
ends. Each run is checked when it is over; what had been recorded before a kill must still be in its record. Half of the
kills wait for a block to begin.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from testbed.benchmarks._endurance import GONE_WITHIN_S, Endured, Site, ends_failed, experiment_of
from testbed.core.errors import InputError
from testbed.records import reader
from testbed.records.documents import BLOCK_BEGUN, RUN_BEGUN, Event
from testbed.records.journal import JournalReader
from testbed.records.recorded import RecordedRun

KILLS = 300
ENDS_WITHIN_S = 240.0
"""A run that has not ended this long after the last kill hangs: the time covers its rounds, its blocks, and its longest
wait for a node."""
_VICTIMS = {"run": 0.5, "alice": 0.15, "bob": 0.15, "eve": 0.1, "sim": 0.1}
"""Process → its share of the kills; `run` is the coordinator."""
_MOST_RESTARTS = 3
"""Largest number of deaths of a node that a run survives."""
_MOST_S = 6.0
"""Longest time from a start, or the kill before, to a kill."""
_BLOCK_S = 4.0
"""Longest time from the beginning of a block to a kill."""
_BLOCK_WITHIN_S = 60.0


def kills(
    folder: Path, wanted: int = KILLS, seed: int = 1, minutes: float | None = None, say: Callable[[str], None] = print
) -> Endured:
    """Kill `wanted` times, or until `minutes` are over."""
    rng = np.random.default_rng(seed)
    tally = _Tally()
    ends_s = time.monotonic() + 60 * minutes if minutes is not None else np.inf
    runs = keys = 0
    with Site(folder) as site:
        while tally.total < wanted and time.monotonic() < ends_s:
            runs += 1
            keys += _one_run(site, runs, rng, tally, wanted, ends_s)
            found = f"{len(site.findings)} findings"
            say(f"{tally.total} kills, {tally.in_block} of them within a block, {runs} runs, {found}")
    figures = {
        "kills": tally.total, "within_a_block": tally.in_block, "by_victim": dict(tally.by_victim), "runs": runs,
        "resumed": tally.resumed, "keys_at_both_ends": keys, "longest_end_s": round(tally.longest_end_s, 1),
        "ended": dict(tally.ended),
    }  # fmt: skip
    return Endured(name="kills", figures=figures, findings=site.findings)


class _Tally:
    def __init__(self) -> None:
        self.by_victim: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.in_block = self.resumed = 0
        self.longest_end_s = 0.0

    @property
    def total(self) -> int:
        return self.by_victim.total()


def _one_run(site: Site, number: int, rng: Any, tally: _Tally, wanted: int, ends_s: float) -> int:
    """Start a run, kill until it is over, check it; returns how many keys both ends have of it."""
    plan = site.write(f"kills-{number}", "mobile_room", None, rounds=500, seed=number, block_rounds=250)
    out = site.folder / f"runs-{number}"
    process = site.start("run", str(plan), "--out", str(out))
    deaths: Counter[str] = Counter()
    before: RecordedRun | None = None
    had_failed = False
    while True:
        if rng.random() < 0.5 and _wait_for_block(process, out):
            over = _wait(process, rng.uniform(0.0, _BLOCK_S))
        else:
            over = _wait(process, rng.uniform(0.0, _MOST_S))
        if over or tally.total >= wanted or time.monotonic() >= ends_s:
            break
        victim = str(rng.choice(list(_VICTIMS), p=list(_VICTIMS.values())))
        pid = next((p for p, role in site.processes().items() if role == victim), None)
        if pid is None or deaths[victim] >= (_MOST_RESTARTS if victim not in ("run", "sim") else 1 << 30):
            continue
        folder = next(iter(out.glob("*")), None)
        is_within = folder is not None and _is_within_a_block(folder)
        if not site.kill(pid):
            continue
        tally.in_block += is_within
        deaths[victim] += 1
        tally.by_victim[victim] += 1
        if victim != "run":
            continue
        if not _wait(process, GONE_WITHIN_S):
            site.find("a killed process is gone", f"run {number}: its coordinator {GONE_WITHIN_S:g} s after SIGKILL")
            return 0
        site.check_nobody_is_left()
        before = _acknowledged(folder)
        if before is None:  # the run had not begun
            return 0
        # A run that had failed without its air when its coordinator was killed is resumed to be closed as failed.
        had_failed = ends_failed(before) and (had_failed or bool(deaths["sim"]))
        process = site.start("run", "--resume", str(folder))
        tally.resumed += 1
        deaths.clear()
    began_s = time.monotonic()
    if not _wait(process, ENDS_WITHIN_S):
        site.find("no hang", f"run {number} did not end within {ENDS_WITHIN_S:g} s; killed: {dict(deaths)}")
        process.kill()
        _wait(process, GONE_WITHIN_S)
    tally.longest_end_s = max(tally.longest_end_s, time.monotonic() - began_s)
    tally.ended[str(process.returncode)] += 1
    site.check_nobody_is_left()
    folder = next(iter(out.glob("*")), None)
    if folder is None:
        return 0
    well = process.returncode == 0
    if not well and not deaths["sim"] and not had_failed and process.returncode not in (-signal.SIGKILL,):
        site.find("the run ends well", f"run {number}: exit status {process.returncode}; killed: {dict(deaths)}")
    run = site.check_record(folder, experiment_of(plan).rounds if well else None, before)
    return site.check_keys(run, ended=well)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a process, for `seconds` at most; returns whether it has ended."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _wait_for_block(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Wait until a block is being distilled; False where the run ends before, or none begins in time."""
    deadline_s = time.monotonic() + _BLOCK_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline_s:
        if any(_is_within_a_block(folder) for folder in out.glob("*")):
            return True
        time.sleep(0.05)
    return False


def _is_within_a_block(folder: Path) -> bool:
    """Return whether a block is being distilled now, by the journal."""
    try:
        with JournalReader(folder) as journal:
            begun = [e for e in journal.documents("event", Event) if e.kind == BLOCK_BEGUN]
            closed = journal.documents("block", dict)
    except InputError:
        return False
    return bool(begun) and begun[-1].data["block"] not in {b["block"] for b in closed}


def _acknowledged(folder: Path | None) -> RecordedRun | None:
    """Return what a killed coordinator had committed; None where it had not begun its record."""
    if folder is None:
        return None
    try:
        run = reader.load(folder)
    except InputError:
        return None
    return run if any(e.kind == RUN_BEGUN for e in run.events) and run.stop is None else None
