"""Files are whole or absent, even if the disk fails or another process writes them."""

from __future__ import annotations

import ast
import errno
import gzip
import os
from pathlib import Path
from typing import Any

import pytest

import testbed
from testbed.config import load_lab, state_root
from testbed.core import identity
from testbed.core import whole as module
from testbed.core.errors import InputError, TestbedError
from testbed.core.whole import whole, write_whole
from testbed.records import files


def full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_there_with_its_content_and_mode_and_nothing_else_is(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.key", "secret")
    write_whole(tmp_path / "b.json", b"{}", private=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.key", "b.json"]
    assert (tmp_path / "a.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "b.json").stat().st_mode & 0o400


@pytest.mark.parametrize("fails", ["fsync", "replace", "open"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    path = tmp_path / "model.npz"
    write_whole(path, b"old")
    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_a_full_disk_leaves_no_empty_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "block-0000.key", "{}", fresh=True)
    with pytest.raises(OSError, match="No space"):
        identity.make(tmp_path / "transport", "bob")
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.key*"))
    assert not list((tmp_path / "transport").iterdir())


def test_a_fresh_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "block-0000.key"
    write_whole(path, "first", fresh=True)
    with pytest.raises(FileExistsError):
        write_whole(path, "second", fresh=True)
    assert path.read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "rounds.h5.part").write_bytes(b"half")
    with whole(tmp_path / "rounds.h5") as part:
        part.write_bytes(b"all")
    assert [p.name for p in tmp_path.iterdir()] == ["rounds.h5"]


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.ENOSPC, "x"),
        OSError(errno.EDQUOT, "x"),
        OSError("Can't write (errno = 28, No space left on device)"),
    ],
)
def test_a_full_disk_is_one_line_with_what_to_do(tmp_path: Path, trouble: OSError) -> None:
    with pytest.raises(TestbedError) as found, files.on_disk(tmp_path):
        raise trouble
    text = str(found.value)
    assert "disk full: free " in text
    assert text.endswith(f"MB, then `testbed report {tmp_path}`")
    assert "\n" not in text


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.on_disk(tmp_path):
        raise PermissionError(errno.EACCES, "x")


@pytest.mark.parametrize("variable", ["TESTBED_STATE", "XDG_STATE_HOME"])
def test_a_variable_set_to_nothing_does_not_put_keys_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("TESTBED_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "")
    assert state_root() == Path.home() / ".local/state/ris-skg-testbed"


def test_a_byte_order_mark_is_no_part_of_a_lab_file(tmp_path: Path) -> None:
    from testbed import config
    from testbed.core.config import Lab

    path = tmp_path / "lab.toml"
    path.write_bytes(b"\xef\xbb\xbf" + config.find(Lab, "sim").read_bytes())
    assert load_lab(str(path)) == load_lab("sim")


def test_a_folder_that_is_closed_to_us_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from testbed.cli.results import _key_files
    from testbed.lab import processes

    def closed(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    lab = load_lab("sim")
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    assert processes.make_lab_folder(lab) == tmp_path / "state" / "sim"
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda *_: False)  # root may do anything, so tests cannot close a folder
        with pytest.raises(InputError, match=r"state/sim: the lab's state cannot be kept there: Permission denied"):
            processes.make_lab_folder(lab)
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        monkeypatch.setenv("TESTBED_STATE", str(tmp_path / name))
        with pytest.raises(InputError, match=r"variable TESTBED_STATE: .*/file is a file; accepted: a folder, or"):
            processes.make_lab_folder(lab)
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(Path, "is_file", closed)
    with pytest.raises(InputError, match=r"closed/mine\.toml: cannot be read: Permission denied; accepted"):
        load_lab("closed/mine.toml")
    monkeypatch.setattr(Path, "glob", closed)
    with pytest.raises(InputError, match=r"keys: cannot be read: Permission denied; accepted"):
        _key_files(tmp_path / "keys")


def test_what_never_ends_is_not_read(tmp_path: Path) -> None:
    """A coordinator that named a pipe or a device as a model kept a node waiting for ever, or filled its memory."""
    from testbed import config
    from testbed.core import patterns, registry
    from testbed.core.archives import check_zip, read_npz
    from testbed.records import reader, sigmf
    from testbed.replay.sources import rfm12b_rssi

    pipe, link, folder = tmp_path / "pipe.json", tmp_path / "link", tmp_path / "run"
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    folder.mkdir()
    (folder / "run.json").symlink_to(pipe)
    os.mkfifo(tmp_path / "x.sigmf-data")
    (tmp_path / "x.sigmf-meta").write_text("{}")
    for path in (pipe, link):
        for read in (
            lambda p: module.read_whole(p, 1 << 20), lambda p: read_npz(p, 1 << 20), lambda p: check_zip(p, 1 << 20),
            patterns.load, lambda p: config.load_lab(str(p)), lambda p: config.load_experiment(str(p)),
            lambda p: registry.make_stage("enhance", "linear_mmse", {"model": str(p)}), rfm12b_rssi._rows,
        ):  # fmt: skip
            with pytest.raises((OSError, InputError), match=r"no regular file|no such (lab|experiment)") as caught:
                read(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"run\.json: cannot be read: it is no regular file"):
        reader.load(folder)
    with pytest.raises(InputError, match="no regular file"):
        sigmf.read(tmp_path / "x")
    with pytest.raises(IsADirectoryError):
        module.read_whole(tmp_path, 1 << 20)


def test_no_more_is_read_than_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert module.read_whole(path, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, accepted up to 4"):
        module.read_whole(path, 4)
    bomb = tmp_path / "a.gz"
    bomb.write_bytes(gzip.compress(bytes(1 << 20)))
    from testbed.replay.sources import rfm12b_rssi

    monkeypatch.setattr(rfm12b_rssi, "MAX_BYTES", 1 << 19)
    with pytest.raises(InputError, match="more than 524288 bytes"):
        rfm12b_rssi._rows(bomb)


_OTHERWISE = {
    "core/forks.py": "tells the system which process to end first where memory is short",
    "cli/papers.py": "looks whether a file can be written, and writes nothing",
    "lab/spares.py": "appends a daemon's log",
    "lab/sweep.py": "appends a row to the journal of a sweep, and syncs it",
    "papers/kit/figures.py": "draws what results.json holds",
    "testing/source.py": "makes bad inputs for a test",
}
"""File below `testbed` → why it may write without `whole`."""
_WRITERS = {"write_text", "write_bytes", "savez", "savez_compressed", "savefig", "tofile"}


def written_otherwise(path: Path) -> list[int]:
    """Return the lines that write a file which is not one that `whole` gave (`part`, or a stream opened on it)."""
    found = []
    for call in ast.walk(ast.parse(path.read_text())):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        words = {n.id for n in ast.walk(call) if isinstance(n, ast.Name)}
        modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        opens = name == "open" and any(set(mode) <= set("rwabxt+") and set(mode) & set("wax") for mode in modes)
        saves = name == "save" and "torch" in words
        in_memory = {"out", "file", "text", "pdf"} & words and name in ("savez", "savefig")
        whole_bytes = saves and "out" in words  # torch's own writing says nothing of a full disk
        if ((opens or name in _WRITERS) and "part" not in words and not in_memory) or (saves and not whole_bytes):
            found.append(call.lineno)
    return found


def test_every_file_of_value_is_written_whole() -> None:
    root = Path(testbed.__file__).parent
    paths = [p for p in root.rglob("*.py") if p.relative_to(root).parts[0] != "benchmarks"]
    found = {p.relative_to(root).as_posix(): lines for p in paths if (lines := written_otherwise(p))}
    assert found.keys() == _OTHERWISE.keys(), found


def test_a_write_that_fails_names_the_file(tmp_path: Path) -> None:
    def on_a_full_disk(path: Path) -> None:
        with whole(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError) as full:
        on_a_full_disk(tmp_path / "key")
    assert full.value.filename == str(tmp_path / "key")
    assert list(tmp_path.iterdir()) == []
