"""Records: all written values are read back, from a live journal, a closed folder and every way of dying in between."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import testbed
from testbed.core.errors import DiskFull, InputError
from testbed.core.types import SurfacePattern
from testbed.records import documents, files, hdf5, journal, reader, rounds, writer
from testbed.records.writer import RunWriter

SUBCARRIERS = 8
AGREE = {
    "block": 0,
    "probes": 5,
    "raw_bits": 40,
    "sacrificed_bits": 4,
    "sacrificed_errors": 1,
    "reconciled_bits": 36,
    "corrected_bits": None,
    "leaked_bits": 10,
    "leaked_by_kind": {"parities": 10},
    "public_bytes": 99,
    "messages": 3,
    "verified": True,
    "failure": None,
}


def a_start(mode: str = "experiment") -> documents.Start:
    lab = {"node": {n: {"role": n} for n in ("alice", "bob", "eve")}}
    axis = np.arange(SUBCARRIERS) * 1e5
    return documents.start({"title": "t", "mode": mode}, lab, seeds={"experiment": 3}, subcarrier_hz=axis)


def csi(round: int, n_tx: int = 1) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(round)
    h = rng.normal(size=(2, n_tx, SUBCARRIERS)) + 1j * rng.normal(size=(2, n_tx, SUBCARRIERS))
    return h.astype(np.complex64)


def fill(w: RunWriter, n_rounds: int = 5) -> None:
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3) % 4
    digest = SurfacePattern(levels, 2).digest
    w.event("node_joined", {"node": "bob"})
    w.pattern(digest, levels, 2)
    for r in range(n_rounds):
        w.probe(r, "bob", "alice>bob", r * 0.1, 20.0 + r, -50.0, -30.0, digest, csi(r))
        # a probe without an estimate, a value that could not be measured
        w.probe(r, "eve", "alice>eve", r * 0.1, float("nan"), 0.0, -40.0, None, None if r == 1 else csi(r + 100))
        w.round(r, r != 2, "low_snr" if r == 2 else None, digest, r * 0.1)
    w.bits(0, "alice", "raw", np.array([0, 1, 1, 0]))
    w.block({"block": 0, "agree": {"alice": AGREE}})
    w.block({"block": 0, "agree": {"bob": AGREE | {"corrected_bits": 2}}})


def failing_run(folder: Path, n_rounds: int, summarise: writer.Summariser) -> None:
    with RunWriter(folder, a_start(), summarise) as w:
        fill(w, n_rounds)
        raise RuntimeError("bob is gone")


def content(run: reader.RecordedRun) -> dict[str, Any]:
    """Everything recorded, in a form that compares exactly (NaN included)."""

    def plain(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return (x.dtype.kind, x.shape, x.tolist() if x.dtype.kind == "U" else x.tobytes())
        return None if x is None else str(x)

    def fields(x: Any) -> dict[str, Any]:
        return {k: plain(getattr(x, k)) for k in x.__slots__}

    return {
        "links": {k: fields(v) for k, v in sorted(run.links.items())},
        "rounds": fields(run.rounds),
        "patterns": {k: fields(v) for k, v in run.patterns.items()},
        "bits": {k: plain(v) for k, v in run.bits.items()},
        "documents": [documents.encode(d) for d in (run.start, run.events, run.blocks, run.descriptors)],
    }


def test_the_closed_folder_holds_what_the_live_journal_held(tmp_path: Path) -> None:
    w = RunWriter(tmp_path, a_start())
    fill(w)
    w.flush()
    live = reader.load(tmp_path)
    assert live.state == "live"
    assert live.stop is None
    w.close(documents.stop("ok"), {"rounds": 5, "kdr_eve": float("nan"), "key_bits": np.int64(7)})
    closed = reader.load(tmp_path)
    assert closed.state == "closed"
    assert content(closed) == content(live)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rounds.h5", "run.json", "summary.json"]
    assert closed.summary == {"rounds": 5, "kdr_eve": None, "key_bits": 7}
    assert closed.stop is not None
    assert closed.stop.exit_status == "ok"

    bob, eve = closed.links["alice>bob"], closed.links["alice>eve"]
    assert bob.csi is not None
    assert eve.csi is not None
    np.testing.assert_array_equal(bob.csi[3], csi(3))
    assert np.isnan(eve.csi[1]).all()
    assert np.isnan(eve.snr_db).all()
    assert list(closed.rounds.kept) == [True, True, False, True, True]
    assert list(closed.rounds.reason) == ["", "", "low_snr", "", ""]
    assert closed.bits[(0, "alice", "raw")].tolist() == [0, 1, 1, 0]
    assert set(closed.blocks[0].agree) == {"alice", "bob"}
    series = closed.series("alice>bob")
    assert series is not None
    assert series.h.shape == (5, 2, 1, SUBCARRIERS)
    np.testing.assert_array_equal(series.subcarrier_hz, np.arange(SUBCARRIERS) * 1e5)
    assert closed.node("eve") == "eve"


def test_every_dataset_says_its_units_and_axes_and_every_descriptor_finds_its_dataset(tmp_path: Path) -> None:
    w = RunWriter(tmp_path, a_start())
    fill(w)
    w.close(documents.stop("ok"), {})
    with h5py.File(tmp_path / "rounds.h5") as f:
        seen = []
        f.visititems(lambda name, item: seen.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in seen:
            assert len(f[name].attrs["axes"]) == f[name].ndim, name
            assert "units" in f[name].attrs, name
        assert list(f["links/alice>bob/csi"].attrs["axes"]) == rounds.CSI_AXES
        for descriptor in reader.load(tmp_path).descriptors:
            for field in descriptor.fields.values():
                assert field.external is not None
                data = f[field.external.removeprefix("rounds.h5:")]
                kind = "O" if field.dtype == "str" else np.dtype(field.dtype).kind
                assert data.dtype.kind == kind
                assert list(data.shape[1:]) == field.shape


def test_run_json_names_the_sha512_of_every_other_file(tmp_path: Path) -> None:
    (tmp_path / "iq").mkdir()
    (tmp_path / "iq" / "r0.sigmf-data").write_bytes(b"1234")
    w = RunWriter(tmp_path, a_start())
    w.close(documents.stop("ok"), {"rounds": 0})
    told = json.loads((tmp_path / "run.json").read_text())["files"]
    assert set(told) == {"iq/r0.sigmf-data", "rounds.h5", "summary.json"}
    assert all(files.sha512(tmp_path / name) == value for name, value in told.items())


def test_a_raising_body_closes_the_records_with_its_reason(tmp_path: Path) -> None:
    seen = []

    def summarise(run: reader.RecordedRun) -> dict[str, Any]:
        seen.append(run.rounds.rounds.size)
        return {"rounds": int(run.rounds.rounds.size)}

    with pytest.raises(RuntimeError, match="bob is gone"):
        failing_run(tmp_path, 3, summarise)
    run = reader.load(tmp_path)
    assert (run.state, seen, run.summary) == ("closed", [3], {"rounds": 3})
    assert run.stop is not None
    assert (run.stop.exit_status, run.stop.reason) == ("failed", "RuntimeError: bob is gone")


def test_an_interrupted_body_is_aborted_and_an_unclosed_one_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunWriter(tmp_path / "a", a_start()):
        raise KeyboardInterrupt
    with RunWriter(tmp_path / "b", a_start()):
        pass
    stops = [reader.load(tmp_path / n).stop for n in "ab"]
    assert [s.exit_status for s in stops if s is not None] == ["aborted", "failed"]


def test_trouble_while_closing_does_not_hide_the_bodys_error(tmp_path: Path) -> None:
    def summarise(run: reader.RecordedRun) -> dict[str, Any]:
        raise ZeroDivisionError("nothing to divide")

    with pytest.raises(RuntimeError, match="bob") as info:
        failing_run(tmp_path, 5, summarise)
    assert "nothing to divide" in info.value.__notes__[0]
    assert reader.load(tmp_path).state == "killed"
    assert writer.recover(tmp_path).rounds.rounds.size == 5


class Death(BaseException):
    """Stands for a kill: nothing may catch it and carry on."""


@pytest.mark.parametrize("at", range(12))
def test_a_death_at_any_step_of_closing_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    w = RunWriter(tmp_path, a_start())
    fill(w)
    w.flush()
    before = content(reader.load(tmp_path))
    steps = 0

    def dying(real: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps > at:
                raise Death
            return real(*args, **kwargs)

        return step

    with monkeypatch.context() as m:
        for module, name in ((hdf5, "written"), (rounds, "check"), (os, "replace"), (journal, "remove"), (os, "fsync")):
            m.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(Death):
            w.close(documents.stop("ok"), {"rounds": 5})
    assert content(reader.load(tmp_path)) == before
    run = writer.recover(tmp_path)
    assert content(run) == before
    assert run.state == "closed"
    assert run.stop is not None
    # it had said how it ended before it died
    assert (run.stop.exit_status, run.summary) == ("ok", {"rounds": 5})
    assert not (tmp_path / files.JOURNAL).exists()


def test_a_disk_that_fills_up_while_the_rounds_are_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """HDF5 then ends its process, or prints its own stack and hundreds of lines of exceptions that are ignored."""
    w = RunWriter(tmp_path, a_start())
    fill(w)
    real = rounds.write

    def write(*args: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))  # of the child that writes
        real(*args)

    with monkeypatch.context() as m:
        m.setattr(rounds, "write", write)
        m.setattr(files, "free_bytes", lambda folder: 0)
        with pytest.raises(DiskFull) as full:
            w.close(documents.stop("ok"), None)
    assert str(full.value) == f"{tmp_path}: disk full: free 32 MB, then `testbed report {tmp_path}`"
    assert capfd.readouterr().err == ""
    assert not (tmp_path / files.ROUNDS).exists()
    assert writer.recover(tmp_path).rounds.rounds.size == 5


def test_a_disk_that_is_full_when_a_journal_is_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / files.JOURNAL).write_bytes(b"no database")
    with pytest.raises(InputError, match="not a readable journal"):
        journal.JournalReader(tmp_path)
    monkeypatch.setattr(files, "free_bytes", lambda folder: 0)
    with pytest.raises(DiskFull, match="disk full: free"):
        journal.JournalReader(tmp_path)


def test_a_run_that_cannot_be_begun_on_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What SQLite says of a full disk depends on the file that it was about to make."""
    monkeypatch.setattr(files, "free_bytes", lambda folder: 0)
    monkeypatch.setattr(journal, "_SCHEMA", "CREATE TABLE bits (")
    with pytest.raises(DiskFull, match="free 32 MB, then begin again: nothing was recorded"):
        RunWriter(tmp_path, a_start())
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_another_process_has_continued_is_not_continued_from_what_was_read(tmp_path: Path) -> None:
    w = RunWriter(tmp_path, a_start())
    fill(w)
    w.flush()
    w._lock.release(remove=False)  # as its process's death does
    dead = reader.load(tmp_path)
    w.event("late", {})
    with pytest.raises(InputError, match="another process has continued this run meanwhile"):
        RunWriter(tmp_path, dead.start, past=dead)
    other = RunWriter(tmp_path, dead.start, past=reader.load(tmp_path))
    other.close(documents.stop("ok"), None)
    with pytest.raises(InputError, match="another process has continued this run meanwhile"):
        RunWriter(tmp_path, dead.start, past=dead)
    assert not (tmp_path / files.JOURNAL).exists()
    assert reader.load(tmp_path).state == "closed"


def test_recover_refuses_a_live_run_and_leaves_a_closed_one_alone(tmp_path: Path) -> None:
    w = RunWriter(tmp_path, a_start())
    with pytest.raises(InputError, match="another process is writing"):
        writer.recover(tmp_path)
    w.close(documents.stop("ok"), {"rounds": 0})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert writer.recover(tmp_path).state == "closed"
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    w = RunWriter(tmp_path, a_start())
    with pytest.raises(InputError, match="already contains a run"):
        RunWriter(tmp_path, a_start())
    w.close(documents.stop("ok"), None)
    with pytest.raises(InputError, match=r"already contains a run \(run.json\)"):
        RunWriter(tmp_path, a_start())


def test_private_mode_takes_metrics_only(tmp_path: Path) -> None:
    with RunWriter(tmp_path, a_start("private")) as w:
        w.probe(0, "bob", "alice>bob", 0.0, 20.0, 0.0, -30.0)
        with pytest.raises(ValueError, match="private mode"):
            w.probe(0, "bob", "alice>bob", 0.0, 20.0, 0.0, -30.0, None, csi(0))
        with pytest.raises(ValueError, match="private mode"):
            w.bits(0, "alice", "raw", np.zeros(4, np.uint8))
        w.close(documents.stop("ok"), {})
    run = reader.load(tmp_path)
    assert run.links["alice>bob"].csi is None
    assert run.series("alice>bob") is None


@pytest.mark.parametrize(
    ("node", "link", "h"),
    [
        ("bob", "alice>bob", csi(0).astype(np.complex128)),
        ("bob", "alice>bob", csi(0)[0]),
        ("bob", "alice>bob", csi(0)[..., :-1]),
        ("bob", "alice>bob", csi(0, n_tx=2)),
        ("eve", "carol>bob", csi(0)),
        ("bob", "bob", csi(0)),
    ],
)
def test_a_probe_of_another_shape_or_link_is_refused(tmp_path: Path, node: str, link: str, h: Any) -> None:
    with RunWriter(tmp_path, a_start()) as w:
        w.probe(0, "bob", "alice>bob", 0.0, 20.0, 0.0, -30.0, None, csi(0))
        with pytest.raises(ValueError):
            w.probe(1, node, link, 0.0, 20.0, 0.0, -30.0, None, h)
        w.close(documents.stop("ok"), {})
    assert list(reader.load(tmp_path).links["alice>bob"].rounds) == [0]


def test_keys_and_things_that_are_not_bits_are_refused(tmp_path: Path) -> None:
    with RunWriter(tmp_path, a_start()) as w:
        with pytest.raises(ValueError, match="accepted: raw, reconciled"):
            w.bits(0, "alice", "key", np.zeros(4, np.uint8))
        with pytest.raises(ValueError, match="0 and 1"):
            w.bits(0, "alice", "raw", np.array([0, 2]))
        with pytest.raises(ValueError, match="reason"):
            w.round(0, True, "low_snr", None, 0.0)
        w.close(documents.stop("ok"), {})


@pytest.mark.parametrize("name", ["run.json", "rounds.h5", "summary.json"])
@pytest.mark.parametrize("harm", ["remove", "cut", "flip", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, harm: str) -> None:
    with RunWriter(tmp_path, a_start()) as w:
        fill(w)
        w.close(documents.stop("ok"), {"rounds": 5})
    path = tmp_path / name
    data = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        path.write_bytes({"cut": data[:-20], "flip": flipped, "empty": b""}[harm])
    with pytest.raises(InputError, match=name):
        reader.load(tmp_path)


def test_a_damaged_journal_and_a_folder_without_a_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json: no such file"):
        reader.load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: a file; accepted: the folder of a run$"):
        reader.load(tmp_path / "file")
    with pytest.raises(InputError, match=r"no such folder; accepted: the folder of a run$"):
        reader.load(tmp_path / "nowhere")
    (tmp_path / files.JOURNAL).write_bytes(b"not a database, whatever its name" * 40)
    with pytest.raises(InputError, match=r"journal\.sqlite: not a readable journal"):
        reader.load(tmp_path)


def test_a_foreign_hdf5_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "rounds.h5", "w") as f:
        f.create_dataset("links", data=np.zeros(3))
    with pytest.raises(InputError, match=r"rounds\.h5: not the rounds of a run"):
        rounds.read(tmp_path / "rounds.h5")


def test_rows_written_out_of_order_are_read_in_order(tmp_path: Path) -> None:
    with RunWriter(tmp_path, a_start()) as w:
        for r in (3, 0, 2):
            w.probe(r, "bob", "alice>bob", float(r), 0.0, 0.0, 0.0, None, csi(r))
            w.round(r, True, None, None, float(r))
        w.round(2, False, "duplicate", None, 2.0)
        w.close(documents.stop("ok"), {})
    run = reader.load(tmp_path)
    assert run.links["alice>bob"].time_s.tolist() == [0.0, 2.0, 3.0]
    assert run.links["alice>bob"].csi is not None
    np.testing.assert_array_equal(run.links["alice>bob"].csi[1], csi(2))
    assert run.rounds.kept.tolist() == [True, False, True]


def test_rows_are_committed_in_batches_and_documents_at_once(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    j = journal.Journal(tmp_path / "r", batch_rows=10, batch_s=1e9)
    j.document("start", a_start())

    def seen() -> int:
        return reader.load(tmp_path / "r").rounds.rounds.size

    for r in range(15):
        j.round((r, True, "", "", 0.0))
    assert seen() == 10
    j.document("event", documents.Event(seq=0, time=documents.now(), kind="node_lost", data={}))
    assert seen() == 15
    j.close()
    # an overdue batch is written with the next row
    (tmp_path / "s").mkdir()
    hasty = journal.Journal(tmp_path / "s", batch_rows=10**6, batch_s=0.0)
    hasty.document("start", a_start())
    hasty.round((0, True, "", "", 0.0))
    assert reader.load(tmp_path / "s").rounds.rounds.size == 1
    hasty.close()


def test_rows_that_do_not_fit_on_the_disk_are_written_once_when_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that must last, and what comes after: nothing is lost, doubled, or written before it may be."""
    folder = tmp_path / "r"
    folder.mkdir()
    j = journal.Journal(folder)
    j.document("start", a_start())
    commit, full_for, asked = j._commit, [3], []

    def commits() -> None:
        if full_for[0]:
            raise sqlite3.OperationalError("database or disk is full")
        commit()

    def makes_space() -> bool:
        asked.append(reader.load(folder).rounds.rounds.size)
        full_for[0] -= 1
        return True

    monkeypatch.setattr(j, "_commit", commits)
    j.round((0, True, "", "", 0.0))
    with pytest.raises(DiskFull, match=r"disk full: free [0-9]+ MB, then `testbed report"):
        j.document("event", documents.Event(seq=0, time=documents.now(), kind="block_begun", data={}), lasting=True)
    j.when_full = makes_space
    j.round((1, True, "", "", 0.05))
    j.document("event", documents.Event(seq=1, time=documents.now(), kind="block_begun", data={}), lasting=True)
    assert asked == [0, 0, 0]
    run = reader.load(folder)
    assert run.rounds.rounds.tolist() == [0, 1]
    assert [e.seq for e in run.events] == [0, 1]
    j.close()


def test_a_train_is_committed_whole(tmp_path: Path) -> None:
    """Not a row of it is in the file before its end, with any batches; then all of them, after one commit."""
    folder = tmp_path / "r"
    folder.mkdir()
    j = journal.Journal(folder, batch_rows=3, batch_s=0.0)
    j.document("start", a_start())

    def seen() -> tuple[int, int]:
        run = reader.load(folder)
        return run.rounds.rounds.size, sum(link.rounds.size for link in run.links.values())

    with j.together():
        for r in range(20):
            j.probe((r, "bob", "alice>bob", 0.0, 20.0, 0.0, -20.0, "", None, None, None, None))
            j.round((r, True, "", "", 0.0))
            j.document("event", documents.Event(seq=r, time=documents.now(), kind="note", data={}))
        assert seen() == (0, 0)
    assert seen() == (20, 20)
    with contextlib.suppress(RuntimeError), j.together():
        j.round((20, True, "", "", 0.0))
        raise RuntimeError
    assert seen() == (20, 20)
    j.close()  # rows written before the fault are not lost
    assert seen() == (21, 20)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.lists(st.integers(0, 30), min_size=1, max_size=30, unique=True),
    chunk=st.integers(1, 7),
    holes=st.sets(st.integers(0, 30)),
)
def test_compaction_keeps_every_value_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], chunk: int, holes: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    w = RunWriter(folder, a_start())
    for r in order:
        h = None if r in holes else csi(r)
        w.probe(r, "bob", "alice>bob", r / 7, r / 3, -r / 3, 1e-30 * r, str(r) * (r % 3), h)
    w.flush()
    with journal.JournalReader(folder) as source:
        ((name, (n, shape)),) = source.links().items()
        parts = list(source.probes(name, shape, chunk))
    assert n == len(order)
    assert np.concatenate([p.rounds for p in parts]).tolist() == sorted(order)
    live = reader.load(folder)
    w.close(documents.stop("ok"), None)
    run = reader.load(folder)
    assert content(run) == content(live)
    for i, r in enumerate(sorted(order)):
        link = run.links["alice>bob"]
        assert (link.time_s[i], link.cfo_hz[i], link.surface[i]) == (r / 7, -r / 3, str(r) * (r % 3))
        if link.csi is not None and r not in holes:
            np.testing.assert_array_equal(link.csi[i], csi(r))


def test_a_package_built_without_its_repository_has_the_commit_that_its_version_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = SimpleNamespace(version="0.2.1.dev7+g817e6c59e.d20261130", commit_id=None)
    monkeypatch.setitem(sys.modules, "testbed._version", given)
    assert testbed.__file__ is not None
    assert runpy.run_path(testbed.__file__)["__commit__"] == "g817e6c59e"
    given.version = "0+unknown"
    assert runpy.run_path(testbed.__file__)["__commit__"] is None


def test_the_commit_is_found_in_a_checkout_and_else_given_by_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "module.py"
    file.write_text("")
    monkeypatch.setattr(documents, "__commit__", None)
    assert documents._git(file) == (None, None)
    monkeypatch.setattr(documents, "__commit__", "g0123abc")
    assert documents._git(file) == ("0123abc", None)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    # inside a checkout, but not part of it: as a package installed under another project
    assert documents._git(file) == ("0123abc", None)
    subprocess.run([*git, "add", "module.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)
    commit, modified = documents._git(file)
    assert commit is not None
    assert len(commit) == 40
    assert modified is False
    file.write_text("changed")
    assert documents._git(file) == (commit, True)


def test_a_run_of_several_thousand_patterns_can_be_closed(tmp_path: Path) -> None:
    """HDF5 cannot note that so many data sets have the same dimensions; their values are what counts."""
    w = RunWriter(tmp_path / "run", a_start())
    fill(w)
    wanted = {}
    for i in range(6000):
        levels = np.array([[i >> k & 1 for k in range(13)]], np.uint8)
        pattern = SurfacePattern(levels, 1)
        wanted[pattern.digest] = levels
        w.pattern(pattern.digest, levels, 1)
    w.close(documents.stop("ok"), {})
    run = reader.load(tmp_path / "run")
    assert run.state == "closed"
    assert {d: run.patterns[d].levels.tolist() for d in wanted} == {d: v.tolist() for d, v in wanted.items()}
