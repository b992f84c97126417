"""What soak and kills check from outside: each invariant is found broken where it is, and held where it holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.benchmarks import _endurance, _soak
from testbed.benchmarks._endurance import Site, experiment_of
from testbed.core.config import Experiment, Faults
from testbed.records import documents, reader
from testbed.records.recorded import RecordedRun
from testbed.records.writer import RunWriter

NAME = "run-1"


def recorded(folder: Path, rounds: list[int], blocks: dict[int, list[int]], keys: dict[int, int]) -> RecordedRun:
    """Write a run: its rounds, the rounds of its blocks, and the length that both ends told of a block's key."""
    start = documents.start(msgspec.to_builtins(config.load_experiment("mobile_room")), {}, subcarrier_hz=[0.0])
    writer = RunWriter(folder, start)
    writer.event("run_begun", {"run": NAME, "command": "run", "lab": "sim", "experiment": "x"})
    for r in rounds:
        for link in ("bob>alice", "alice>bob"):
            csi = np.ones((1, 1, 1), np.complex64)
            writer.probe(r, link.split(">")[1], link, 0.05 * r, 20.0, 0.0, -30.0, None, csi)
        writer.round(r, True, None, None, 0.05 * r)
    for block, of in blocks.items():
        writer.event("block_begun", {"block": block, "rounds": of, "purpose": "key"})
        ends = {n: {"block": block, "key_bits": keys.get(block, 0)} for n in ("alice", "bob")}
        writer.block({"block": block, "rounds": of, "key": ends})
    writer.flush()
    writer._journal.close()
    writer._lock.release(remove=False)
    return reader.load(folder)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def keep(site: Site, role: str, block: int, content: bytes, confirmed: bool = True) -> None:
    path = site.state / "sim" / role / "rehearsals" / NAME / f"block-{block:04d}.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if confirmed:
        path.with_suffix(".confirmed").touch()


def broken(site: Site) -> list[str]:
    return [finding.invariant for finding in site.findings]


def test_a_run_that_is_whole_has_no_finding(site: Site) -> None:
    folder = site.folder / "run"
    recorded(folder, list(range(8)), {0: [0, 1, 2], 1: [3, 4, 5]}, {0: 128, 1: 0})
    for role in ("alice", "bob"):
        keep(site, role, 0, b"same")
    run = site.check_record(folder, 8)
    assert site.check_keys(run, ended=True) == 1
    assert broken(site) == []


@pytest.mark.parametrize(
    ("rounds", "blocks", "invariant"),
    [
        ([0, 1, 2, 3, 5, 6, 7], {}, "all rounds are there"),
        ([0, 1, 2, 3], {}, "all rounds are there"),
        (list(range(8)), {0: [0, 1], 1: [1, 2]}, "no round is in two blocks"),
    ],
)
def test_what_a_record_lacks_is_found(
    site: Site, rounds: list[int], blocks: dict[int, list[int]], invariant: str
) -> None:
    recorded(site.folder / "run", rounds, blocks, {})
    site.check_record(site.folder / "run", 8)
    assert broken(site) == [invariant]


def test_a_folder_without_a_record_is_found(site: Site) -> None:
    assert site.check_record(site.folder / "nowhere", 8) is None
    assert broken(site) == ["the record can be read"]


@pytest.mark.parametrize(
    ("alice", "bob", "said", "invariant"),
    [
        (b"one", b"two", 128, ["no mismatched key"]),
        (b"one", None, 128, ["both ends have every verified key", "no end keeps a key alone"]),
        (b"one", None, 0, ["no end keeps a key alone"]),
        (None, None, 128, ["both ends have every verified key"]),
        (b"one", b"one", 0, []),
    ],
)
def test_keys_that_do_not_go_together_are_found(
    site: Site, alice: bytes | None, bob: bytes | None, said: int, invariant: list[str]
) -> None:
    run = recorded(site.folder / "run", [0, 1], {0: [0, 1]}, {0: said})
    for role, content in (("alice", alice), ("bob", bob)):
        if content is not None:
            keep(site, role, 0, content, confirmed=None not in (alice, bob))
    site.check_keys(run, ended=True)
    assert broken(site) == invariant


@pytest.mark.parametrize(
    ("alice", "bob", "ended", "invariant"),
    [
        (True, True, True, []),
        (True, False, False, []),  # the coordinator died between the two
        (True, False, True, ["the end of a run confirms its keys"]),
        (True, None, False, ["a confirmed key is at both ends"]),
        (None, False, False, []),
    ],
)
def test_marks_that_say_too_much_or_too_little_are_found(
    site: Site, alice: bool | None, bob: bool | None, ended: bool, invariant: list[str]
) -> None:
    run = recorded(site.folder / "run", [0, 1], {0: [0, 1]}, {0: 0})
    for role, confirmed in (("alice", alice), ("bob", bob)):
        if confirmed is not None:
            keep(site, role, 0, b"one", confirmed)
    site.check_keys(run, ended)
    assert broken(site) == invariant


def test_an_acknowledged_round_that_is_gone_or_changed_is_found(site: Site) -> None:
    before = recorded(site.folder / "before", [0, 1, 2, 3], {}, {})
    recorded(site.folder / "after", [0, 1, 3], {}, {})
    site.check_record(site.folder / "after", None, before)
    assert [f.detail for f in site.findings] == ["after: [2]"]
    site.findings.clear()
    recorded(site.folder / "longer", list(range(6)), {}, {})
    site.check_record(site.folder / "longer", None, before)
    assert broken(site) == []


def test_processes_are_known_by_their_state_folder_and_what_is_left_is_found(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import time; print(flush=True); time.sleep(100)"

    def sleeper(state: Path, *words: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "TESTBED_STATE": str(state)}
        process = subprocess.Popen(
            [sys.executable, "-c", code, "testbed", *words], env=environment, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    mine = sleeper(site.state, "node", "bob", "--lab", "sim")
    other = sleeper(site.folder / "elsewhere", "node", "bob")
    try:
        assert site.processes() == {mine.pid: "bob"}
        site.check_nobody_is_left(within_s=0.0)
        assert broken(site) == ["no orphan"]
        assert mine.wait(timeout=240) == -9
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.communicate()
    assert _endurance.memory_mb(mine.pid) is None
    assert _endurance.descriptors(mine.pid) is None
    assert (_endurance.memory_mb(os.getpid()) or 0.0) > 10.0
    assert (_endurance.descriptors(os.getpid()) or 0) > 3


@pytest.mark.parametrize("name", config.bundled(Experiment))
def test_an_experiment_that_is_written_is_the_one_that_is_read(site: Site, name: str) -> None:
    changed: dict[str, Any] = {"rounds": 77, "seed": 5}
    faults = Faults(resets=3.0, nodes=["bob"], links=["control", "air"])
    path = site.write("x", name, faults, block_rounds=33, **changed)
    read, plan = experiment_of(path), config.load_experiment(name)
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=33)
    assert read == msgspec.structs.replace(plan, accounting=accounting, faults=faults, **changed)


def test_a_process_that_ends_by_itself_before_it_is_killed_is_no_kill(site: Site) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    try:
        assert site.kill(process.pid)
        assert process.wait(timeout=240) == -9
        assert not site.kill(process.pid)
    finally:
        process.kill()


def test_whether_a_run_had_failed_is_read_from_its_latest_end(site: Site) -> None:
    run = recorded(site.folder / "run", [0], {}, {})
    assert not _endurance.ends_failed(run)
    writer = RunWriter(run.folder, run.start, past=run)
    for status in ("finished", "failed"):
        writer.event("run_ending", {"status": status, "detail": "x"})
    writer._journal.close()
    writer._lock.release(remove=False)
    assert _endurance.ends_failed(reader.load(run.folder))


@pytest.mark.parametrize(("leak_mb", "found"), [(0.0, []), (1.5, []), (3.0, ["memory is flat"])])
def test_memory_that_a_block_needs_for_a_short_time_is_no_leak(site: Site, leak_mb: float, found: list[str]) -> None:
    """`leak_mb`: per 1000 rounds. A machine that is busy late in the run samples longer blocks."""
    watch = _soak._Watch(site, 1)
    samples = []
    for i in range(400):
        rounds = 20 * i
        in_block = i % 10 > (7 if i < 300 else 0)
        samples.append((rounds, 80.0 + leak_mb * rounds / 1000 + 200.0 * in_block, 33, in_block))
    watch._samples = {("alice", 7): samples, ("alice", 8): samples[:3]}
    figures = watch.growth(site)["alice"]
    assert figures["mb_per_1000_rounds"] == pytest.approx(leak_mb, abs=0.1)
    assert figures["peak_mb"][0] >= 280.0
    assert broken(site) == found


def test_a_sample_says_whether_a_block_was_under_way_and_none_is_taken_while_the_run_ends(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site.folder / "runs" / "run"
    folder.parent.mkdir()
    writer = RunWriter(folder, documents.start(msgspec.to_builtins(config.load_experiment("mobile_room")), {}))
    monkeypatch.setattr(Site, "processes", lambda self: {os.getpid(): "alice"})
    watch = _soak._Watch(site, 1)

    def look() -> bool:
        writer.flush()
        watch.look(lambda line: None)
        return watch._samples["alice", os.getpid()][-1][3]

    assert not look()
    writer.event("block_begun", {"block": 0, "rounds": [0], "purpose": "key"})
    assert look()
    writer.event("no_answer", {"node": "bob"})
    assert look()
    writer.block({"block": 0, "rounds": [0], "key": {}})
    assert not look()
    writer.event("run_ending", {"status": "finished", "detail": "1 rounds"})
    samples = len(watch._samples["alice", os.getpid()])
    look()  # keys are audited and the report is drawn, for which the coordinator needs more: no sample for its growth
    assert len(watch._samples["alice", os.getpid()]) == samples
    assert watch._end_mb["alice", os.getpid()] > 1.0
    writer._journal.close()
    writer._lock.release(remove=False)
