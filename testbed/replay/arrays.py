"""Reads named arrays out of other people's files: CSV, NPZ and NPY, HDF5, MAT.

Sizes are read before the numbers, so that a file of a few kilobytes cannot demand all memory. Nothing in a file is
executed: pickled objects are refused. Every failure is an InputError of one line.
"""

from __future__ import annotations

import codecs
import csv
import fnmatch
import itertools
import math
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.archives import check_ratio, read_npz
from testbed.core.errors import InputError
from testbed.core.gate import printable
from testbed.core.words import counted, did_you_mean
from testbed.records.hdf5 import survived
from testbed.replay.mat import MatFile

MAX_BYTES = 1 << 31
"""Largest number of bytes of one array in memory, and of one CSV file: 2 GiB."""
SHOWN = 12
"""Largest number of arrays that are named in a message."""
Array = NDArray[Any]


class ArrayFile:
    """One opened file. `names` are its arrays with shape and type in words; `get` reads one of them."""

    def __init__(
        self, path: Path, names: dict[str, str], read: Callable[[str], Array], lines: Sequence[int] | None = None
    ) -> None:
        """`lines`: number of each probe's line, from 1; only of a text file, whose arrays are columns."""
        self.path, self.names = path, names
        self._read, self._lines = read, lines

    def get(self, name: str, where: str = "") -> Array:
        """Return an array; in a CSV file `*` and `?` in the name stand for several columns, side by side, in order.

        Raises InputError where it is not there; the message begins with `where`, the place in the map that names it.
        """
        found = self._found(name)
        if not found or found[0] not in self.names:
            hint = did_you_mean(name, self.names)
            raise InputError(
                f"{where}: {self.path}: no array {name!r}; accepted: {self.told()}{hint}".removeprefix(": ")
            )
        if len(found) == 1:
            return self._read(found[0])
        return np.stack([self._read(column) for column in found], axis=1)

    def _found(self, name: str) -> list[str]:
        is_pattern = self._lines is not None and name not in self.names
        return natural(fnmatch.filter(self.names, name)) if is_pattern else [name]

    def place(self, name: str, index: Sequence[int]) -> str:
        """Return where in the file a value of an array is, as a person finds it: line and column, or its indices."""
        if self._lines is None:
            return f"{self.path}: array {name!r}{[int(i) for i in index]}"
        columns = self._found(name)
        return f"{self.path}: line {self._lines[index[0]]}: column {columns[index[-1] if len(index) > 1 else 0]!r}"

    def told(self) -> str:
        """Return the names, shapes and types of the arrays as text."""
        told = [printable(f"{name} {what}".rstrip(), 80) for name, what in list(self.names.items())[:SHOWN]]
        more = len(self.names) - SHOWN
        return ", ".join(told) + (f" and {more} more" if more > 0 else "") or "none"


def natural(names: Sequence[str]) -> list[str]:
    """Sort names such that h2 stands before h10."""
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


@contextmanager
def open_arrays(path: Path) -> Iterator[ArrayFile]:
    """Open a file by its ending; raises InputError naming it where it cannot be read."""
    ending = path.suffix.lower()
    if ending not in OPENERS:
        raise InputError(f"{path}: ending {ending!r}; accepted: {', '.join(OPENERS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with OPENERS[ending](path) as file:
            yield file
    except InputError:
        raise
    except MemoryError as exc:
        raise InputError(f"{path}: too large for the memory of this machine") from exc
    except Exception as exc:  # on damaged files the libraries raise errors of any kind
        said = printable((str(exc).splitlines() or [""])[0])
        raise InputError(f"{path}: damaged, or not a {ending} file: {type(exc).__name__}: {said}") from exc


def check_bytes(path: Path, name: str, n_bytes: int) -> None:
    """Raise InputError where an array would take more than MAX_BYTES."""
    if n_bytes > MAX_BYTES:
        raise InputError(f"{path}: array {name!r}: {n_bytes / 2**30:.1f} GiB; accepted: up to {MAX_BYTES >> 30} GiB")


def _told(shape: Sequence[int], dtype: Any) -> str:
    return f"{tuple(int(n) for n in shape)} {dtype}"


# ---------------------------------------------------------------- CSV


def _is_idle(line: str) -> bool:
    """Return whether a line is empty, or a comment."""
    return line.strip()[:1] in ("", "#")


@contextmanager
def _csv(path: Path) -> Iterator[ArrayFile]:
    check_bytes(path, "", path.stat().st_size)
    with path.open("rb") as raw:  # spreadsheets also export UTF-16, with a mark at its beginning
        encoding = "utf-16" if raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with path.open(encoding=encoding, errors="replace", newline="") as f:
        first, second = (*itertools.islice((line for line in f if not _is_idle(line)), 2), "", "")[:2]
        f.seek(0)
        delimiter = max(",;\t", key=first.count)
        if delimiter not in first and len(second.split()) > 1:
            # Columns that are divided by spaces, as numpy.savetxt and MATLAB write them.
            reader = csv.reader((" ".join(line.split()) for line in f), delimiter=" ")
        else:
            reader = csv.reader(f, delimiter=delimiter)
        by_line = ((reader.line_num, row) for row in reader)
        numbered = [(n, row) for n, row in by_line if any(c.strip() for c in row) and not _is_idle(row[0] or "?")]
    if not numbered:
        raise InputError(f"{path}: empty; accepted: a line of column names, then one line per probe")
    header = [cell.strip() for cell in numbered[0][1]]
    if all(number(cell) is not None for cell in header):
        header = [str(i) for i in range(len(header))]  # without a heading, columns are named by their position
    else:
        del numbered[0]
    if not numbered:
        raise InputError(f"{path}: no line below the column names; accepted: one line per probe below them")
    for line, row in numbered:
        if len(row) != len(header):
            raise InputError(
                f"{path}: line {line}: {counted(len(row), 'cell')}; accepted: {len(header)}, as in the first"
            )
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputError(f"{path}: two columns are called {twice!r}; accepted: different names")
    place = {name: i for i, name in enumerate(header)}
    lines, rows = [line for line, _ in numbered], [row for _, row in numbered]
    yield ArrayFile(path, dict.fromkeys(header, ""), lambda name: column([r[place[name]] for r in rows]), lines)


def column(cells: list[str]) -> Array:
    """Return a column: numbers where all are (empty cells are NaN), else text."""
    values = [number(cell) for cell in cells]
    if any(v is None for v in values):
        return np.array([cell.strip() for cell in cells])
    return np.array(values, dtype=np.complex128 if any(isinstance(v, complex) for v in values) else np.float64)


def number(cell: str) -> float | complex | None:
    """Return the number in a cell, NaN for an empty one, None for text."""
    text = cell.strip().replace("i", "j") if "inf" not in cell.lower() else cell.strip()
    if not text:
        return float("nan")
    for kind in (float, complex):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


# ---------------------------------------------------------------- numpy, HDF5, MATLAB


@contextmanager
def _npz(path: Path) -> Iterator[ArrayFile]:
    with zipfile.ZipFile(path) as archive:
        members = [i for i in archive.infolist() if i.filename.endswith(".npy")]
        names = {}
        for info in members:
            with archive.open(info) as f:
                names[info.filename.removesuffix(".npy")] = _told(*_npy_head(f))

    def read(name: str) -> Array:
        return read_npz(path, MAX_BYTES, wanted=name.__eq__, kinds="fcuibUS")[name]

    yield ArrayFile(path, names, read)


def _npy_head(f: Any) -> tuple[tuple[int, ...], Any]:
    version = np.lib.format.read_magic(f)
    head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = head(f)
    return shape, dtype


@contextmanager
def _npy(path: Path) -> Iterator[ArrayFile]:
    check_bytes(path, path.stem, path.stat().st_size)
    values = np.load(path, allow_pickle=False)
    yield ArrayFile(path, {path.stem: _told(values.shape, values.dtype)}, lambda _: values)


@contextmanager
def _hdf5(path: Path) -> Iterator[ArrayFile]:
    import h5py

    def look() -> dict[str, str]:
        names: dict[str, str] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                names[name] = _told(item.shape or (), item.dtype)

        with h5py.File(path, "r") as f:
            f.visititems(note)  # which follows no link to another file
        return names

    def read(name: str) -> Array:
        with h5py.File(path, "r") as f:
            data = f[name]
            if data.external or data.is_virtual:
                raise InputError(f"{path}: array {name!r} is kept in another file; accepted: arrays in the file itself")
            check_bytes(path, name, data.size * data.dtype.itemsize)
            check_ratio(path.stat().st_size, data.size * data.dtype.itemsize)
            return _complex_fields(data.asstr()[...] if h5py.check_string_dtype(data.dtype) else data[...])

    yield ArrayFile(path, survived(look), lambda name: survived(lambda: read(name)))


def _complex_fields(values: Array) -> Array:
    """Return complex numbers that were stored as pairs (MATLAB: real, imag; others: r, i) as such."""
    for re_name, im_name in (("real", "imag"), ("r", "i")):
        if values.dtype.names == (re_name, im_name):
            return np.asarray(values[re_name] + 1j * values[im_name])
    return values


@contextmanager
def _mat(path: Path) -> Iterator[ArrayFile]:
    with path.open("rb") as f:
        hdf5 = b"MATLAB 7.3" in f.read(128)
    if hdf5:  # such files are HDF5, with the axes in reverse order
        with _hdf5(path) as inside:
            yield ArrayFile(path, inside.names, lambda name: inside.get(name).T)
        return
    file = MatFile(path)

    def read(name: str) -> Array:
        check_bytes(path, name, 16 * math.prod(file.variables[name].shape))
        values = file.read(name)
        # MATLAB has no vectors: a matrix of one row or column is read as one
        return values.ravel() if values.ndim == 2 and 1 in values.shape else values

    yield ArrayFile(path, {name: _told(v.shape, v.kind) for name, v in file.variables.items()}, read)


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".csv": _csv, ".tsv": _csv, ".txt": _csv, ".npz": _npz, ".npy": _npy,
    ".h5": _hdf5, ".hdf5": _hdf5, ".hdf": _hdf5, ".nc": _hdf5, ".mat": _mat,
}  # fmt: skip


def suggest(path: Path) -> str:
    """Return a message that names the arrays to be mapped, where no map was given; '' for other files."""
    if path.suffix.lower() not in OPENERS or not path.is_file():
        return ""
    with open_arrays(path) as file:
        return f"{path} contains {file.told()}; assign these to the nodes by --map MAP.toml (docs/datasets.md)"
