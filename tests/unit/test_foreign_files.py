"""Files that others wrote, and what they could do to a reader: one line each, in little time and memory."""

from __future__ import annotations

import errno
import io
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io

from testbed import config
from testbed.agents import learner
from testbed.assess import randomness
from testbed.core import forks, identity, key_file
from testbed.core.errors import InputError
from testbed.papers.kit import nets
from testbed.records import hdf5, rounds
from testbed.replay import mat, wifi
from testbed.replay.arrays import open_arrays


def refused(read: Callable[[], Any]) -> str:
    """Return the one line with which a reader refuses."""
    with pytest.raises(InputError) as caught:
        read()
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 500
    return told


PARTS = 50_000
"""A dotted key of so many parts took the TOML parser a minute and a half."""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a" + ".a" * PARTS + " = 1", "nested more than 32 deep"),
        ('"="' + ' . "="' * PARTS + " = 1", "nested more than 32 deep"),
        (r'"\""' + r'."\""' * PARTS + " = 1", "nested more than 32 deep"),
        ("'a'" + ".'a'" * PARTS + " = 1", "nested more than 32 deep"),
        ("[" + "a." * PARTS + "a]", "nested more than 32 deep"),
        ("x = {" + "a." * PARTS + "a = 1}", "nested more than 32 deep"),
        ("a = " + "[" * 40 + "1" + "]" * 40, "nested more than 32 deep"),
        ("a = " + "[" * PARTS, "recursion"),
        ("a = " + "{x = " * PARTS, "recursion"),
        ("schema = 0x" + "f" * 10_000, "an integer of more than 64 bits"),
        ("schema = 9223372036854775808", "an integer of more than 64 bits"),
        ("schema = " + "9" * 10_000, "4300 digits"),
        ("x" * 5000 + " = 1", "a key of 5000 characters, accepted: up to 200"),
        ("[node." + "x" * 5000 + "]", "a key of 5000 characters"),
    ],
)
@pytest.mark.parametrize("load", [config.load_lab, config.load_experiment, config.load_chain])
def test_depth_and_numbers_of_a_file_that_a_user_writes_have_limits(
    tmp_path: Path, load: Callable[[str], Any], text: str, why: str
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    assert why in refused(lambda: load(str(path)))


def test_dots_that_are_no_key_stay_allowed(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    numbers = "[" + "0.5, " * 1000 + "]"
    path.write_text(f"title = 'one. two. {'three and four. ' * 100}…….'\nnumbers = {numbers}\n[a.b.c]\n'd.e'.f = 1.5")
    assert "unknown key 'numbers'" in refused(lambda: config.load_experiment(str(path)))


KEYS = {
    "not text": b"\xff" * 40, "spaces": b"a a" * 13 + b"a", "no Z85": b"~" * 40, "NUL": b"a" * 39 + b"\0",
    "too large a number": b"#" * 40, "not ASCII": "é".encode() * 20, "short": b"a" * 39, "long": b"a" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("what", KEYS)
def test_a_public_key_that_is_none_is_named(tmp_path: Path, what: str) -> None:
    """They come from other machines; what zmq made of them was a KeyError."""
    identity.make(tmp_path, "alice")
    path = tmp_path / "bob.public"
    path.write_bytes(KEYS[what])
    assert str(path) in refused(lambda: identity.load(tmp_path, "alice", ["bob"]))


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    identity.make(tmp_path, "alice")
    for name in ("bob.public", "block-0000.key", "net.json", "run.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "net.pt").write_bytes(b"")
    os.mkfifo(tmp_path / "run.pt")
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.writestr("data.pkl", b"")
    (tmp_path / "net.zip").rename(tmp_path / "net.pt")
    for read in (
        lambda: identity.load(tmp_path, "alice", ["bob"]),
        lambda: randomness.load(tmp_path, "keys"),
        lambda: learner.read(tmp_path / "net.pt"),
        lambda: learner.read(tmp_path / "run.pt"),
        lambda: _Net.load(tmp_path / "net.pt"),
    ):
        assert "no regular file" in refused(read)
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json").write_text("{}")
    assert "no regular file" in refused(lambda: learner.read(tmp_path / "run.pt"))


class _Net(nets.Net):
    NAME = "x"


def test_a_delivered_key_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "block-0000.key"
    bits = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1], np.uint8)
    path.write_text(key_file.content(bits))
    assert path.read_text() == '{"bits": 11, "hex": "b2e0"}'
    assert key_file.read(path).tolist() == bits.tolist()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"x":' * 100_000, '{"bits": -5, "hex": "ff"}', '{"bits": true, "hex": "80"}',
        '{"bits": 1.5, "hex": "80"}', '{"bits": [1], "hex": "80"}', '{"bits": 9, "hex": "ff"}',
        '{"bits": 8, "hex": "ff00"}', '{"bits": 8, "hex": "xy"}', '{"bits": 0, "hex": ""}', '{"bits": 8}', "[1]", "",
        '{"bits": ' + "9" * 5000 + ', "hex": "ff"}', '{"bits": 8, "hex": "ff", "x": 1}', "\xff",
    ],
)  # fmt: skip
def test_a_key_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "block-0000.key"
    path.write_bytes(text.encode("latin-1"))
    assert "not a key file as nodes write it" in refused(lambda: randomness.load(tmp_path, "keys"))


def test_a_file_of_bits_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "MAX_BYTES", 1 << 20)
    assert "more than 1 MiB" in refused(lambda: randomness.load(Path("/dev/zero"), "raw"))


# ---------------------------------------------------------------- data sets

MANY = 8_000_000
"""Numbers: 64 MB that compress to some 60 kB."""


def _npz(path: Path) -> None:
    np.savez_compressed(path, h=np.zeros(MANY))


def _npz_of_no_content(path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (10**9,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("h.npy", head.getvalue())


def _hdf5_of_fill_values(path: Path) -> None:
    with h5py.File(path, "w") as f:
        f.create_dataset("h", shape=(MANY,), dtype="f8", chunks=(1000,))


def _hdf5_compressed(path: Path) -> None:
    with h5py.File(path, "w") as f:
        f.create_dataset("h", data=np.zeros(MANY), chunks=(MANY,), compression="gzip")


def _mat(path: Path) -> None:
    scipy.io.savemat(path, {"h": np.zeros(MANY)}, do_compression=True)


def _mat_in_a_cell(path: Path) -> None:
    cell = np.empty((1, 1), object)
    cell[0, 0] = np.zeros(MANY)  # a variable of one element, by its own account
    scipy.io.savemat(path, {"h": cell}, do_compression=True)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x.npz", _npz), ("y.npz", _npz_of_no_content), ("x.h5", _hdf5_of_fill_values), ("y.h5", _hdf5_compressed),
        ("x.mat", _mat), ("y.mat", _mat_in_a_cell),
    ],
)  # fmt: skip
def test_a_data_set_that_inflates_is_refused_before_it_does(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    make(path)
    assert path.stat().st_size < 1 << 17

    def read() -> Any:
        with open_arrays(path) as file:
            return file.get("h")

    told = refused(read)
    assert any(why in told for why in ("times as many", "bytes for shape", "is a cell"))


def test_a_data_set_of_measured_numbers_is_read_compressed_too(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=3000)
    np.savez_compressed(tmp_path / "x.npz", h=values, name=np.array("lab"))
    scipy.io.savemat(tmp_path / "x.mat", {"h": values, "z": np.zeros(1000)}, do_compression=True)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("h", data=values, compression="gzip")
    for name in ("x.npz", "x.mat", "x.h5"):
        with open_arrays(tmp_path / name) as file:
            assert np.array_equal(file.get("h"), values), name


MATLAB: dict[str, Any] = {
    "double": np.arange(12.0).reshape(3, 4) / 7, "cube": np.arange(24, dtype="f4").reshape(2, 3, 4),
    "csi": np.array([[1 + 2j, 3.5], [0, -1j]]), "few": np.array([[1 + 2j, 3]], "c8"), "byte": np.array([[-3, 5]], "i1"),
    "long": np.array([[1 << 40, -7]]), "yes": np.array([[True, False]]), "none": np.zeros((0, 4)),
    "who": np.array(["ab", "cde", "é"]), "a_name_of_many_letters": np.array([[7]], "u2"),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
def test_variables_of_matlab_come_as_they_were_saved(tmp_path: Path, compressed: bool) -> None:
    """Read by own code: on damaged files the library read and wrote beyond its memory, and the process was gone."""
    scipy.io.savemat(tmp_path / "x.mat", MATLAB, do_compression=compressed)
    file = mat.MatFile(tmp_path / "x.mat")
    assert list(file.variables) == list(MATLAB)
    for name, values in MATLAB.items():
        found = file.read(name)
        assert found.tolist() == values.tolist(), name
        assert found.dtype.kind == ("u" if name == "yes" else values.dtype.kind)
    assert file.read("few").dtype == np.complex64
    assert file.read("byte").dtype == np.int8


DAMAGES: dict[str, tuple[int, bytes]] = {
    "length": (132, b"\xff\xff\xff\x7f"), "no flags": (136, b"\x09\0\0\0"), "class": (144, b"\x63"),
    "sparse": (144, b"\x05"), "complex": (145, b"\x08"), "text": (144, b"\x04"),
    "huge": (160, b"\xff\xff\xff\x7f" * 2), "negative": (160, b"\xff" * 4), "other": (160, b"\x03"),
    "type": (176, b"\x0e"), "content length": (180, b"\xc8"), "short element": (176, b"\x09\0\x20\0"),
}  # fmt: skip
"""What is changed in a file of one 2 × 2 matrix of doubles, called `h`: where, and to what."""


def _damaged(name: str, data: bytes) -> bytes:
    if name not in DAMAGES:
        return {"cut": data[:-20], "empty": data[:100], "version 4": bytes(20) + data[148:]}[name]
    at, new = DAMAGES[name]
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("cut", "cut short"), ("empty", "not of version 5"), ("version 4", "not of version 5"), ("length", "cut short"),
        ("no flags", "without flags"), ("class", "of class 99"), ("sparse", "is a sparse"), ("complex", "cut short"),
        ("text", "text of type 9"), ("huge", "GiB"), ("negative", "shape (-1, 2)"), ("other", "bytes of type"),
        ("type", "of type 14"), ("content length", "cut short"), ("short element", "short element of 32 bytes"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_matlab_is_refused(tmp_path: Path, name: str, why: str) -> None:
    path = tmp_path / "x.mat"
    scipy.io.savemat(path, {"h": np.arange(4.0).reshape(2, 2)})
    path.write_bytes(_damaged(name, path.read_bytes()))

    def read() -> Any:
        with open_arrays(path) as file:
            return file.get("h")

    assert why in refused(read)


def test_names_in_a_data_set_cannot_move_the_terminals_cursor(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\x1b[2J,b\x07\n1,2\n")

    def read() -> Any:
        with open_arrays(tmp_path / "x.csv") as file:
            return file.get("h")

    told = refused(read)
    assert told.isprintable()
    assert "a?[2J, b?" in told


def test_what_would_end_the_process_ends_a_fork_and_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged HDF5 files did, in the library."""
    assert hdf5.survived(lambda: 7) == 7
    with pytest.raises(KeyError, match="own"):
        hdf5.survived(lambda: {}["own"])
    for path in (tmp_path / "x.h5", tmp_path / "rounds.h5"):
        path.write_bytes(b"\x89HDF")
    for number in (signal.SIGSEGV, signal.SIGABRT):
        monkeypatch.setattr(h5py, "File", lambda *_, number=number: os.kill(os.getpid(), number))

        def read() -> Any:
            with open_arrays(tmp_path / "x.h5") as file:
                return file.names

        for reader in (read, lambda: rounds.read(tmp_path / "rounds.h5")):
            assert f"reading it ends a process ({number.name})" in refused(reader)


def test_arrays_of_another_file_are_refused(tmp_path: Path) -> None:
    """A data set could name any file of its reader's as its content, or a pipe that never ends."""
    secret, pipe = tmp_path / "secret", tmp_path / "pipe"
    secret.write_bytes(b"\1" * 100)
    os.mkfifo(pipe)
    with h5py.File(tmp_path / "source.h5", "w") as f:
        f["h"] = np.ones(100)
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f.create_dataset("file", shape=(100,), dtype="u1", external=[(str(secret), 0, 100)])
        f.create_dataset("pipe", shape=(100,), dtype="u1", external=[(str(pipe), 0, 100)])
        layout = h5py.VirtualLayout(shape=(100,), dtype="f8")
        layout[:] = h5py.VirtualSource("source.h5", "h", shape=(100,))
        f.create_virtual_dataset("view", layout)
        f["link"] = h5py.ExternalLink("source.h5", "h")
    with open_arrays(tmp_path / "x.h5") as file:
        assert set(file.names) == {"file", "pipe", "view"}
        for name in file.names:
            assert "kept in another file" in refused(lambda name=name: file.get(name))  # type: ignore[misc]


@pytest.mark.parametrize("line", [b"CSI_DATA," + b"1" * 200_000, b'CSI_DATA,"' + b"x" * 200_000])
def test_a_field_without_an_end_in_a_log_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(line)

    def read() -> Any:
        with wifi.open_capture(path, "esp32", {}) as file:
            return file.told()

    assert "field larger than field limit" in refused(read)


def test_a_good_file_is_read_where_ends_of_children_are_ignored() -> None:
    here, before = os.getpid(), signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert hdf5.survived(lambda: 7) == 7
        with pytest.raises(ValueError, match="damaged: reading it ends a process"):
            hdf5.survived(lambda: os.kill(os.getpid(), signal.SIGKILL) if os.getpid() != here else 7)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_child_that_cannot_begin_calls_no_file_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(forks.resource, "setrlimit", full)
    with pytest.raises(OSError, match="could not begin"):
        hdf5.survived(lambda: 7)
