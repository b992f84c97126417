"""A full disk pauses a run with a line; it goes on when there is space, and ends where none comes in time."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from testbed import config
from testbed.coordinator import events as e
from testbed.coordinator.disk import KEY_BYTES, MORE_BYTES, Disks
from testbed.coordinator.server import Coordinator
from testbed.core.clock import TIME_OF_DAY, VirtualClock
from testbed.lab import processes
from testbed.records import files

LEAST = files.RESERVE_BYTES


class Hasty(VirtualClock):
    """Each look at it takes a quarter of a second."""

    def now_s(self) -> float:
        self.advance(super().now_s() + 0.25)
        return super().now_s()


def test_a_paused_run_needs_more_space_to_go_on_than_it_had_when_it_was_paused(tmp_path: Path) -> None:
    clock, free = VirtualClock(5.0), {"run": LEAST, "state": KEY_BYTES + MORE_BYTES}
    disks = Disks(tmp_path / "run", tmp_path / "state", clock)
    disks.free_bytes = lambda folder: free[folder.name]
    assert disks.lack() is None
    free["run"] -= 3 << 20
    assert disks.lack() == f"disk full: free 3 MB on the disk of {tmp_path / 'run'}"
    assert disks.pause()
    assert not disks.pause()
    assert disks.lack() == f"disk full: free 11 MB on the disk of {tmp_path / 'run'}"
    free["run"] = LEAST + MORE_BYTES
    assert disks.lack() is None
    clock.advance(9.0)
    assert disks.go_on() == 4.0
    assert not disks.is_full


def test_the_disk_of_the_keys_counts_as_well(tmp_path: Path) -> None:
    disks = Disks(tmp_path / "run", tmp_path / "state", VirtualClock())
    disks.free_bytes = lambda folder: 0 if folder.name == "state" else LEAST
    assert disks.lack() == f"disk full: free 1 MB on the disk of {tmp_path / 'state'}"


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    lab = config.load_lab("sim")
    lab = msgspec.structs.replace(
        lab, curve=False, coordinator=msgspec.structs.replace(lab.coordinator, disk_wait_s=50.0)
    )
    made = Coordinator(lab, config.load_experiment("mobile_room"), tmp_path, None)
    made._wall = Hasty()
    made.disks = Disks(tmp_path, tmp_path, made._wall)
    yield made
    made.close()


def watched(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, full: Callable[[], bool]) -> list[object]:
    """Return what the state machine and the record are given, of a disk that is full as long as `full` says so."""
    coordinator.disks.free_bytes = lambda folder: 0 if full() else 1 << 40
    given: list[object] = []
    monkeypatch.setattr(coordinator, "_take", given.append)
    monkeypatch.setattr(coordinator, "_note", given.append)
    return given


def test_a_full_disk_pauses_the_run_until_there_is_space(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = iter([True] * 9)
    given = watched(coordinator, monkeypatch, lambda: next(looks, False))
    with caplog.at_level(logging.WARNING, "testbed"):
        coordinator._look_at_disk()
    (note,) = given
    assert isinstance(note, e.Note)
    assert note.kind == "disk_was_full"
    assert note.detail["paused_s"] >= 5.0
    first, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("disk full: free ")
    assert first.endswith("the run is paused, goes on when there is space, and ends after 50 s")
    assert last.startswith("there is space again: the run goes on after ")
    given.clear()
    coordinator._look_at_disk()
    assert given == []


def test_where_no_space_comes_in_time_the_run_ends_in_order(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = watched(coordinator, monkeypatch, lambda: True)
    coordinator._look_at_disk()
    (low,) = given
    assert isinstance(low, e.DiskLow)
    assert low.detail.startswith("disk full: free ")
    assert 50 <= int(low.detail.rsplit("paused for ", 1)[1].removesuffix(" s")) <= 53


def test_a_person_who_asks_for_the_end_need_not_wait_for_space(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def full() -> bool:
        looks.append(None)
        if len(looks) == 6:
            coordinator.ask_stop("stop")
        return True

    given = watched(coordinator, monkeypatch, full)
    coordinator._look_at_disk()
    assert given == []
    assert not coordinator._wait_for_space()  # nor where a row does not fit any more
    assert len(looks) < 12


def test_a_time_of_day_that_is_set_is_recorded_once_with_how_far(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock(100.0)
    coordinator._wall, coordinator._day_ahead_s = clock, 4000.0
    given: list[object] = []
    monkeypatch.setattr(coordinator, "_note", given.append)
    day_s = [4100.0]
    monkeypatch.setattr(TIME_OF_DAY, "now_s", lambda: day_s[0])
    coordinator._look_at_time_of_day()
    assert given == []
    day_s[0] -= 3600.0
    for _ in range(3):
        coordinator._look_at_time_of_day()
        clock.advance(clock.now_s() + 2.0)
        day_s[0] += 2.1  # it is slewed, or drifts: that is no step
    assert given == [e.Note("clock_stepped", {"by_s": -3600.0})]


def test_recordings_that_do_not_fit_stay_whole_where_they_are_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    source = tmp_path / "state" / "sim" / "bob" / "iq" / "run-1"
    source.mkdir(parents=True)
    for n in range(3):
        (source / f"round-{n}").write_bytes(bytes(8))
    (tmp_path / "run").mkdir()
    real, told = shutil.move, []

    def move(path: Path, to: Path) -> None:
        if path.name == "round-1":  # to another disk, which becomes full
            to.write_bytes(bytes(3))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, to)

    monkeypatch.setattr(shutil, "move", move)
    there = SimpleNamespace(
        lab=config.load_lab("sim"), run_name="run-1", folder=tmp_path / "run",
        record=lambda kind, detail, shown: told.append((kind, detail["node"], detail["detail"], shown)),
    )  # fmt: skip
    processes.collect_iq(there)  # type: ignore[arg-type]
    assert told == [("iq_stays", "bob", f"{source}: its recordings stay there: No space left on device", True)]
    assert [p.name for p in (tmp_path / "run" / "iq").iterdir()] == ["round-0"]
    assert sorted(p.name for p in source.iterdir()) == ["round-1", "round-2"]
    assert not (tmp_path / "state" / "sim" / "ris").exists()  # no folder is made for that
