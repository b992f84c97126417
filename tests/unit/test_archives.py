"""Archives, recordings and folders of others: bounded reading, one-line errors, and own files for the owner only."""

from __future__ import annotations

import io
import resource
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from testbed.core import archives, registry
from testbed.core.errors import InputError
from testbed.records import documents, files, reader
from testbed.records.writer import RunWriter, recover


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3), "f": np.asfortranarray(np.arange(6).reshape(2, 3)), "c": np.ones(3, "c8"),
        "s": np.float64(3.5), "e": np.zeros((0, 4), np.uint8), "t": np.array(["x", "yy"]),
    }  # fmt: skip
    for compressed in (False, True):
        found = archives.read_npz(npz(compressed, **arrays), 1 << 20)
        assert found.keys() == arrays.keys()
        for name, values in arrays.items():
            assert np.array_equal(found[name], values)
            assert found[name].dtype == np.asarray(values).dtype
    path = tmp_path / "x.npz"
    path.write_bytes(npz(**arrays))
    assert archives.read_npz(path, 1 << 20, wanted=lambda name: name == "a").keys() == {"a"}
    found["a"][0, 0] = 7  # what is read can be written to


BOMB = zipped({"private.w.npy": header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({240 << 20},), }}\n")
               + bytes(240 << 20)})  # fmt: skip


def test_233_kb_that_become_240_mb_are_refused_before_they_are_inflated(tmp_path: Path) -> None:
    assert len(BOMB) < 1 << 20
    path = tmp_path / "model.npz"
    path.write_bytes(BOMB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="accepted up to"):
        archives.read_npz(BOMB, 1 << 30)
    with pytest.raises(InputError, match=r"model\.npz.*accepted up to"):
        registry.make_stage("enhance", "linear_mmse", {"model": str(path)})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


SHAPE = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s), }\n"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"PK\x03\x04", npz(a=np.arange(3))[:-20], zipped({"a.npy": b"no array"}),
        zipped({"a.npy": header(SHAPE % "1000000000000,")}),  # claims more than there is
        zipped({"a.npy": header(SHAPE % "-1,") + bytes(8)}), zipped({"a.npy": header(SHAPE % "1.5,") + bytes(8)}),
        zipped({"a.npy": header(SHAPE % "True,") + bytes(8)}), zipped({"a.npy": header("[" * 5000)}),
        zipped({"a.npy": header("__import__('os').system('x')\n")}), zipped({"a.npy": header("{}\n")}),
        zipped({"a.npy": header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n") + bytes(8)}),
        zipped({"a.npy": header("{'descr': [('x', '<f8')], 'fortran_order': False, 'shape': (1,), }\n") + bytes(8)}),
        zipped({"a.npy": header(SHAPE % "1,") + bytes(8)}, zipfile.ZIP_BZIP2),
        zipped({f"{n}.npy": header(SHAPE % "1,") + bytes(8) for n in range(archives.MAX_MEMBERS + 1)}),
    ],
)  # fmt: skip
def test_every_damaged_archive_is_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^no \.npz file of plain numbers: ") as caught:
        archives.read_npz(data, 1 << 26)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is ValueError


def recorded(folder: Path) -> RunWriter:
    writer = RunWriter(folder, documents.start({"title": "t"}, {}, subcarrier_hz=[0.0, 1e6]))
    h = np.ones((1, 1, 2), np.complex64)
    for r in range(3):
        writer.probe(r, "bob", "alice>bob", r * 0.1, 30.0, 0.0, -30.0, None, h)
        writer.round(r, True, None, None, r * 0.1)
    writer.bits(0, "bob", "raw", np.array([0, 1], np.uint8))
    return writer


def test_other_users_cannot_read_raw_bits(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    writer = recorded(folder)
    writer.flush()
    assert folder.stat().st_mode & 0o777 == 0o700
    for path in folder.iterdir():  # journal, its log, the lock
        assert path.stat().st_mode & 0o077 == 0, path
    writer.close(documents.stop("ok"), {"rounds": 3})
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    "link", ["alice>bob>eve", ">bob", "../x>bob", "a b>bob", "alice", "alice>", "a\0>bob", "é>bob"]
)
def test_a_link_is_called_transmitter_receiver(tmp_path: Path, link: str) -> None:
    writer = recorded(tmp_path / "run")
    with pytest.raises(ValueError, match="accepted"):
        writer.probe(9, link.split(">")[-1], link, 0.0, 0.0, 0.0, 0.0, None, None)
    writer.close(documents.stop("ok"), None)


def closed(folder: Path) -> Path:
    recorded(folder).close(documents.stop("ok"), None)
    return folder


def forged(folder: Path, change: Any) -> str:
    """Change rounds.h5, make its hash fit, and return what is said of the folder."""
    with h5py.File(folder / files.ROUNDS, "a") as f:
        change(f)
    run = folder / files.RUN
    text = run.read_text()
    old = text[text.index('"rounds.h5"') :].split('"')[3]
    run.write_text(text.replace(old, files.sha512(folder / files.ROUNDS)))
    with pytest.raises(InputError) as caught:
        reader.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def replaced(f: Any, path: str, **new: Any) -> None:
    del f[path]
    f.create_dataset(path, **new)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.move("links/alice>bob", "links/alice>bob>eve"), "accepted: 'transmitter>receiver'"),
        (lambda f: replaced(f, "links/alice>bob/csi", shape=(1 << 30, 1, 1, 2), dtype="c8"), "declares more bytes"),
        (lambda f: replaced(f, "links/alice>bob/csi", data=np.ones((3, 2), "c8")), "CSI complex64 (3, 2)"),
        (lambda f: replaced(f, "links/alice>bob/snr_db", data=np.ones(2)), "snr_db of shape (2,) for 3 rounds"),
        (lambda f: replaced(f, "links/alice>bob/round", data=np.array([2, 1, 0])), "rounds out of order"),
        (lambda f: replaced(f, "rounds/kept", data=np.ones(3)), "a column has a wrong type"),
        (lambda f: replaced(f, "bits/0/bob/raw", data=np.array([0, 7], np.uint8)), "a row of 0 and 1"),
        (lambda f: f.move("bits/0/bob", "bits/0/..x"), "bits of block 0: names"),
        (lambda f: f.move("bits/0", "bits/zero"), "invalid literal"),
        (lambda f: f.__setitem__("links/x>y", h5py.ExternalLink("/etc/passwd", "/")), "is a link to another object"),
        (lambda f: f.__delitem__("rounds"), "rounds"),
    ],
)
def test_an_inconsistent_folder_is_one_line(tmp_path: Path, change: Any, words: str) -> None:
    assert words in forged(closed(tmp_path / "run"), change)


def test_a_file_that_is_kept_elsewhere_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))

    def outside(f: Any) -> None:
        replaced(f, "links/alice>bob/snr_db", shape=(3,), dtype="f8", external=[(str(secret), 0, 24)])

    assert "kept in another file" in forged(closed(tmp_path / "run"), outside)


def test_a_recovered_run_is_checked_as_well(tmp_path: Path) -> None:
    import sqlite3

    writer = recorded(tmp_path / "run")
    writer.flush()
    writer._lock.release(remove=False)
    writer._journal._db.close()
    with sqlite3.connect(tmp_path / "run" / files.JOURNAL) as db:
        db.execute("UPDATE probes SET n_subcarrier = 2147483647")
    with pytest.raises(InputError, match="CSI of 16 bytes for shape"):
        recover(tmp_path / "run")
