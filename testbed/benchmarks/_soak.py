"""`testbed bench soak`: checks whether one long run under a plan of faults loses data, hangs, or leaks memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from testbed.benchmarks._endurance import Endured, Site, descriptors, experiment_of, journal_bytes, memory_mb
from testbed.core.config import Faults
from testbed.records import files
from testbed.records.documents import BLOCK_BEGUN, RUN_ENDING
from testbed.records.journal import JournalTail

ROUNDS = 20_000
STALLED_S = 240.0
"""Time without a round or a block after which a run counts as hanging: four times the longest wait for a node, because
the machine may be busy."""
FLAT_MB_PER_1000 = 2.0
"""Largest growth of a process's memory that does not count as a leak."""
FAULTS = Faults(
    delay_s=0.0002, jitter_s=0.0005, loss=0.0005, duplication=0.0002, reordering=0.0002, resets=2.0, partitions=0.3,
    partition_s=4.0, pauses=0.3, pause_s=4.0, kills=0.2,
)  # fmt: skip
_LOOK_S = 2.0


def soak(
    folder: Path, rounds: int = ROUNDS, seed: int = 1, minutes: float | None = None, say: Callable[[str], None] = print
) -> Endured:
    """Run `rounds` rounds of `static_room` under `FAULTS` in `folder`; after `minutes` it is stopped in order."""
    with Site(folder) as site:
        return _soak(site, rounds, seed, minutes, say)


def _soak(site: Site, rounds: int, seed: int, minutes: float | None, say: Callable[[str], None]) -> Endured:
    plan = site.write("soak", "static_room", FAULTS, rounds=rounds, seed=seed, block_rounds=500)
    process = site.start("run", str(plan), "--out", str(site.folder / "runs"))
    watch = _Watch(site, process.pid)
    began_s = time.monotonic()
    stopped = False
    while process.poll() is None:
        time.sleep(_LOOK_S)
        watch.look(say)
        if time.monotonic() - watch.moved_s > STALLED_S:
            site.find("no hang", f"nothing happened for {STALLED_S:g} s after round {watch.rounds}")
            process.kill()
        if minutes is not None and time.monotonic() - began_s > 60 * minutes and not stopped:
            stopped = True
            process.terminate()  # the first signal lets the run finish its round and a last block
    wall_s = time.monotonic() - began_s
    if process.returncode not in (0, 130):
        site.find("the run ends well", f"exit status {process.returncode}")
    site.check_nobody_is_left()
    figures: dict[str, Any] = {"rounds": 0, "wall_s": round(wall_s, 1), "status": process.returncode}
    run = None
    if (at := watch.folder) is not None:
        run = site.check_record(at, None if stopped else experiment_of(plan).rounds)
        figures["keys"] = site.check_keys(run, ended=process.returncode in (0, 130))
    if run is not None and at is not None and run.rounds.rounds.size:
        n = int(run.rounds.rounds.size)
        kinds = [str(e.data["kind"]) for e in run.events if e.kind == "fault_made"]
        figures |= {
            "rounds": n, "kept": int(run.rounds.kept.sum()), "blocks": len(run.blocks),
            "faults": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "journal_mb_per_10000": round(watch.journal / watch.rounds * 1e-2, 1) if watch.rounds else None,
            "rounds_h5_mb_per_10000": _mb_per_10000(at / files.ROUNDS, n),
        }  # fmt: skip
    figures["processes"] = watch.growth(site)
    return Endured(name="soak", figures=figures, findings=site.findings)


def _mb_per_10000(path: Path, rounds: int) -> float | None:
    """Return the size of a file by rounds; None where the run could not be closed."""
    return round(path.stat().st_size / rounds * 1e-2, 1) if path.exists() else None


def _held_mb(samples: list[tuple[int, float, int, bool]]) -> float:
    """Return the memory that a process holds between two blocks, where it was seen there. In a block it needs some
    hundred megabytes more for a short time, which says nothing about leaks."""
    between = [mb for _, mb, _, in_block in samples if not in_block]
    return statistics.median(between or [mb for _, mb, _, _ in samples])


class _Watch:
    """Observes a run from outside: its progress, and the memory of its processes."""

    def __init__(self, site: Site, pid: int) -> None:
        self._site, self._pid = site, pid
        self._tail: JournalTail | None = None
        self.folder: Path | None = None
        self.rounds = 0
        self.journal = 0
        """Size of the journal in bytes at the last look, when `rounds` were over."""
        self.moved_s = time.monotonic()
        self._samples: dict[tuple[str, int], list[tuple[int, float, int, bool]]] = {}
        """(role, pid) → (rounds over, MB, descriptors, whether a block was under way), until the run ends."""
        self._end_mb: dict[tuple[str, int], float] = {}
        """(role, pid) → the most that it held while the run ended: keys are audited then, for as long as a quarter of
        the run on a busy machine."""
        self._in_block = self._ends = False
        self._said = 0

    def look(self, say: Callable[[str], None]) -> None:
        if self.folder is None:
            found = sorted((self._site.folder / "runs").glob("*"))
            if not found:
                return
            self.folder, self._tail = found[0], JournalTail(found[0])
        assert self._tail is not None
        grown = self._tail.read()
        if grown is not None and (grown.rounds or grown.documents):
            self.moved_s = time.monotonic()
            self.rounds = max([self.rounds, *(row[0] + 1 for row in grown.rounds)])
            self.journal = journal_bytes(self.folder) or self.journal
            for kind, body in grown.documents:
                what = msgspec.json.decode(body)["kind"] if kind == "event" else kind
                self._in_block = what == BLOCK_BEGUN or (self._in_block and what != "block")
                self._ends = self._ends or what == RUN_ENDING
        for pid, role in self._site.processes().items():
            mb, n = memory_mb(pid), descriptors(pid)
            if mb is None or n is None:
                continue
            if self._ends:
                self._end_mb[role, pid] = max(mb, self._end_mb.get((role, pid), 0.0))
            else:
                self._samples.setdefault((role, pid), []).append((self.rounds, mb, n, self._in_block))
        if self.rounds >= self._said + 1000:
            self._said = self.rounds
            say(f"{self.rounds} rounds")

    def growth(self, site: Site) -> dict[str, Any]:
        """Return, by role, memory and descriptors of the process that lived longest; growing ones are findings."""
        out: dict[str, Any] = {}
        for (role, pid), samples in self._samples.items():
            span = samples[-1][0] - samples[0][0]
            if span <= out.get(role, {}).get("rounds", -1):
                continue
            quarter = max(1, len(samples) // 4)
            # In the first quarter, libraries are loaded and bounded buffers are filled.
            early, late = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
            passed = max(1, statistics.median(s[0] for s in late) - statistics.median(s[0] for s in early))
            mb = [_held_mb(part) for part in (early, late)]
            n = [statistics.median(s[2] for s in part) for part in (early, late)]
            out[role] = {
                "rounds": span, "mb": round(mb[1], 1), "mb_per_1000_rounds": round((mb[1] - mb[0]) / passed * 1000, 3),
                "peak_mb": [round(max(s[1] for s in part), 1) for part in (early, late)],
                "end_mb": round(self._end_mb.get((role, pid), 0.0), 1), "descriptors": [int(n[0]), int(n[1])],
            }  # fmt: skip
        for role, figure in out.items():
            if figure["rounds"] < 1000:
                continue
            if figure["mb_per_1000_rounds"] > FLAT_MB_PER_1000:
                site.find("memory is flat", f"{role}: {figure['mb_per_1000_rounds']} MB per 1000 rounds")
            if figure["descriptors"][1] > figure["descriptors"][0] + 5:
                site.find("descriptors are flat", f"{role}: {figure['descriptors']}")
        return out
