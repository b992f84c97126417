"""Checks of the invariants that must hold whatever happened to a run: of its record, its keys and its processes.

Shared by `_soak` and `_kills`, which are commands of their own (`testbed bench soak`, `testbed bench kills`): they take
from minutes to hours and have no peer to compare with.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from testbed import config
from testbed.core.config import Experiment, Faults
from testbed.core.errors import InputError
from testbed.records import files, reader
from testbed.records.documents import BLOCK_BEGUN, RUN_BEGUN, RUN_ENDING
from testbed.records.recorded import RecordedRun

GONE_WITHIN_S = 20.0
"""Time within which a process ends once its run is over or its coordinator is dead."""


class Finding(msgspec.Struct, frozen=True):
    """One invariant that did not hold."""

    invariant: str
    detail: str


class Endured(msgspec.Struct, kw_only=True):
    """The result that `testbed bench soak` and `testbed bench kills` print."""

    name: str
    figures: dict[str, Any]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        return not self.findings


@dataclass(slots=True)
class Site:
    """A separate folder with an experiment file, a state folder and runs, in which the real command line is used."""

    folder: Path
    lab: str = "sim"
    findings: list[Finding] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def find(self, invariant: str, detail: str) -> None:
        self.findings.append(Finding(invariant, detail))
        with (self.folder / "log.txt").open("a") as log:
            print(f"FINDING: {invariant}: {detail}", file=log)

    def write(self, name: str, base: str, faults: Faults | None, **changes: Any) -> Path:
        """Write an experiment file: a bundled one, changed (`block_rounds` in its accounting)."""
        plan = config.load_experiment(base)
        accounting = msgspec.structs.replace(plan.accounting, block_rounds=changes.pop("block_rounds"))
        plan = msgspec.structs.replace(plan, accounting=accounting, faults=faults, **changes)
        path = self.folder / f"{name}.toml"
        path.write_text(_toml(msgspec.to_builtins(plan)))
        return path

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `testbed ARGUMENTS` with this site's state; its output is written to `log.txt`."""
        environment = {**os.environ, "TESTBED_STATE": str(self.state)}
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "testbed", *arguments], stdout=subprocess.DEVNULL, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """Return pid → role of every process that runs with this site's state; the role is in its command line."""
        mark = f"TESTBED_STATE={self.state}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                mine = mark in (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # the process has ended, or belongs to another user
                continue
            if mine and "testbed" in words:
                found[int(entry.name)] = _role(words[words.index("testbed") + 1 :])
        return found

    def check_nobody_is_left(self, within_s: float = GONE_WITHIN_S) -> None:
        deadline_s = time.monotonic() + within_s
        while (left := self.processes()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        if left:
            self.find("no orphan", f"{', '.join(left.values())} still there {within_s:g} s after the end of its run")
            for pid in left:  # of this site by their environment: started by its own command lines
                self.kill(pid)

    @staticmethod
    def kill(pid: int) -> bool:
        """Kill a process that `processes` named; False where it has ended meanwhile."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes of this site, also after an error."""
        for pid in self.processes():
            self.kill(pid)

    def check_record(self, folder: Path, rounds: int | None, before: RecordedRun | None = None) -> RecordedRun | None:
        """Check a run's record. `rounds`: number of rounds that it must have; `before`: the rounds and blocks that had
        been recorded before a kill."""
        try:
            run = reader.load(folder)
        except InputError as exc:
            self.find("the record can be read", str(exc))
            return None
        numbers = run.rounds.rounds.tolist()
        if rounds is not None and numbers != list(range(rounds)):
            missing = sorted(set(range(rounds)) - set(numbers))
            self.find("all rounds are there", f"{folder.name}: {len(missing)} of {rounds} missing: {missing[:5]} …")
        if before is not None:
            self._check_acknowledged(folder, before, run)
        begun = [e.data["block"] for e in run.events if e.kind == BLOCK_BEGUN]
        if len(begun) != len(set(begun)):
            self.find("block numbers never repeat", f"{folder.name}: {begun}")
        used = [r for block in run.blocks for r in block.rounds]
        if len(used) != len(set(used)):
            self.find("no round is in two blocks", folder.name)
        if run.summary is not None and run.summary.get("keys_mismatched"):
            self.find("no mismatched key", f"{folder.name}: {run.summary['keys_mismatched']}")
        return run

    def _check_acknowledged(self, folder: Path, before: RecordedRun, after: RecordedRun) -> None:
        at_s = dict(zip(after.rounds.rounds.tolist(), after.rounds.t0_s.tolist(), strict=True))
        lost = [r for r, s in zip(before.rounds.rounds.tolist(), before.rounds.t0_s.tolist(), strict=True)
                if at_s.get(r) != s]  # fmt: skip
        for name, link in before.links.items():
            now = after.links.get(name)
            lost += sorted(set(link.rounds.tolist()) - set(() if now is None else now.rounds.tolist()))
        if lost:
            self.find("no acknowledged round is missing", f"{folder.name}: {sorted(set(lost))[:10]}")

    def check_keys(self, run: RecordedRun | None, ended: bool) -> int:
        """Compare the keys that both ends have stored of a run; returns how many both have.

        One end may lack a key only if the record says that the block failed, and not if the run has ended normally.
        """
        if run is None:
            return 0
        name = next((str(e.data["run"]) for e in run.events if e.kind == RUN_BEGUN), "")
        alice, bob = (self._keys(role, name) for role in ("alice", "bob"))
        for block in sorted(alice.keys() & bob.keys()):
            if alice[block] != bob[block]:
                self.find("no mismatched key", f"{name}: block {block}")
        verified = {b.block for b in run.blocks if len(b.key) == 2 and all(k.key_bits for k in b.key.values())}
        verified -= {e.data["block"] for e in run.events if e.kind == "block_failed"}
        for block in sorted(verified - (alice.keys() & bob.keys())):
            self.find("both ends have every verified key", f"{name}: block {block}")
        alone = sorted(alice.keys() ^ bob.keys())
        if alone and ended:
            self.find("no end keeps a key alone", f"{name}: blocks {alone}")
        self._check_marks(run, name, alice.keys() & bob.keys(), ended)
        return len(alice.keys() & bob.keys())

    def _check_marks(self, run: RecordedRun, name: str, both: set[int], ended: bool) -> None:
        """Find keys that are confirmed although one end has none, or not confirmed at an end that was told the end."""
        away = {str(e.data["node"]) for e in run.events if e.kind == "end_not_told"}
        for role in ("alice", "bob"):
            marked = self._keys(role, name, "confirmed").keys()
            if unsound := sorted(marked - both):
                self.find("a confirmed key is at both ends", f"{name}: {role}: blocks {unsound}")
            if ended and role not in away and (unsure := sorted(both - marked)):
                self.find("the end of a run confirms its keys", f"{name}: {role}: blocks {unsure}")

    def _keys(self, role: str, run: str, suffix: str = "key") -> dict[int, bytes]:
        paths = (self.state / self.lab / role / "rehearsals" / run).glob(f"block-*.{suffix}")
        return {int(p.stem.removeprefix("block-")): p.read_bytes() for p in paths}


def ends_failed(run: RecordedRun) -> bool:
    """Return whether a run had failed, by its record, when its coordinator was killed."""
    return [e.data.get("status") for e in run.events if e.kind == RUN_ENDING][-1:] == ["failed"]


def _role(words: list[str]) -> str:
    """Return the role of one of our command lines: run, sim, or a node's name."""
    return words[1] if words[:1] == ["node"] else words[0] if words else ""


def journal_bytes(folder: Path) -> int:
    """Return the present size of a run's journal, its log included."""
    return sum(p.stat().st_size for end in ("", "-wal") if (p := folder / (files.JOURNAL + end)).exists())


def memory_mb(pid: int) -> float | None:
    """Return the resident memory of a process, MB; None where it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors(pid: int) -> int | None:
    """Return how many files and sockets a process has open; None where it has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def _toml(table: dict[str, Any], path: str = "") -> str:
    """Return plain values as TOML: values first, then tables; None is left out."""
    plain = {k: v for k, v in table.items() if v is not None and not isinstance(v, dict)}
    tables = {k: v for k, v in table.items() if isinstance(v, dict)}
    lines = [f"{k} = {json.dumps(v)}" for k, v in plain.items()]
    return "\n".join([*lines, *_tables(tables, path)]) + "\n"


def _tables(tables: dict[str, Any], path: str) -> Iterator[str]:
    for key, value in tables.items():
        name = f"{path}.{key}" if path else key
        yield f"[{name}]\n{_toml(value, name)}"


def experiment_of(path: Path) -> Experiment:
    """Return what `Site.write` wrote, as the command reads it."""
    return config.load_experiment(str(path))
