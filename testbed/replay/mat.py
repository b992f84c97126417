"""Reads arrays of numbers and text out of MATLAB's files of version 5 (also called 6 and 7), without a library.

"MAT-File Format", The MathWorks. Whatever is written in a file, only its own bytes are read, and one variable at a
time is inflated, up to what its dimensions need. Version 7.3 is HDF5 and read elsewhere; version 4 is not read.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.archives import check_ratio

Array = NDArray[Any]

_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_TEXT = {1: "latin-1", 2: "latin-1", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Type of a data element → numpy type. Numbers may be stored in fewer bytes than their class has."""
_CLASSES = {
    1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2",
    12: "i4", 13: "u4", 14: "i8", 15: "u8", 16: "function", 17: "opaque",
}  # fmt: skip
_COMPLEX = 0x08
MAX_VARIABLES = 4096
_HEAD_BYTES = 1 << 16
"""Bytes of a variable in which its class, its dimensions and its name are."""


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """Its class in numpy's words, or in MATLAB's where it is none of numbers."""
    flags: int
    offset: int
    """Of its element in the file, behind the tag."""
    n_bytes: int
    is_compressed: bool


class MatFile:
    """A file's variables; raises ValueError where it is none, or is damaged, OSError where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.variables: dict[str, Variable] = {}
        self._size = path.stat().st_size
        with path.open("rb") as f:
            order = {b"IM": "<", b"MI": ">"}.get(f.read(128)[126:])
            if order is None:
                raise ValueError("not of version 5 or 7; accepted: these and 7.3, which `save` writes by default")
            self._order = order
            while len(tag := f.read(8)) == 8:
                kind, n_bytes = struct.unpack(f"{order}II", tag)
                offset = f.tell()
                if offset + n_bytes > self._size:
                    raise ValueError("cut short")
                if kind in (_MATRIX, _COMPRESSED):
                    self._note(f.read(min(n_bytes, _HEAD_BYTES)), offset, n_bytes, kind == _COMPRESSED)
                f.seek(offset + n_bytes)

    def read(self, name: str) -> Array:
        """Return a variable: numbers of its shape (of a logical one 0 and 1), of text one string a row.

        Raises ValueError where it is something else, or damaged, OSError where it cannot be read.
        """
        found = self.variables[name]
        if found.kind in ("cell", "struct", "object", "sparse", "function", "opaque"):
            raise ValueError(f"{name!r} is a {found.kind}; accepted: full arrays of numbers or text")
        count = math.prod(found.shape)
        most = _HEAD_BYTES + 16 * count
        with self.path.open("rb") as f:
            f.seek(found.offset)
            data = f.read(found.n_bytes)
        if found.is_compressed:
            check_ratio(self._size, 8 * count)
            data = zlib.decompressobj().decompress(data, most + 16)[8:]
        elements = _Elements(data, self._order)
        for _ in range(3):  # flags, dimensions, name
            elements.take()
        if found.kind == "char":
            return _rows(*elements.take(), found.shape, self._order)
        real = self._numbers(*elements.take(), count)
        if found.flags & _COMPLEX:
            real = real + 1j * self._numbers(*elements.take(), count)
        dtype = np.dtype("c8" if found.kind == "f4" else "c16") if found.flags & _COMPLEX else np.dtype(found.kind)
        return real.astype(dtype).reshape(found.shape, order="F")

    def _note(self, head: bytes, offset: int, n_bytes: int, is_compressed: bool) -> None:
        if is_compressed:
            head = zlib.decompressobj().decompress(head, _HEAD_BYTES)[8:]
        elements = _Elements(head, self._order)
        kind, flags = elements.take()
        if kind != _UINT32 or len(flags) != 8:
            raise ValueError("a variable without flags")
        word = struct.unpack(f"{self._order}I", flags[:4])[0]
        kind, sizes = elements.take()
        if kind != _INT32 or len(sizes) % 4 or not 8 <= len(sizes) <= 4 * 32:
            raise ValueError("a variable without dimensions")
        shape = tuple(int(n) for n in np.frombuffer(sizes, f"{self._order}i4"))
        kind, name = elements.take()
        if min(shape) < 0 or kind != _INT8 or word & 0xFF not in _CLASSES:
            raise ValueError(f"a variable of class {word & 0xFF} and shape {shape}")
        if len(self.variables) >= MAX_VARIABLES:
            raise ValueError(f"more than {MAX_VARIABLES} variables")
        text = name.decode("latin-1")
        self.variables[text] = Variable(
            text, shape, _CLASSES[word & 0xFF], word >> 8 & 0xFF, offset, n_bytes, is_compressed
        )

    def _numbers(self, kind: int, data: bytes, count: int) -> Array:
        if kind not in _STORED or len(data) != count * np.dtype(_STORED[kind]).itemsize:
            raise ValueError(f"{len(data)} bytes of type {kind} for {count} numbers")
        return np.frombuffer(data, self._order + _STORED[kind])


class _Elements:
    """The data elements inside a variable, one after the other."""

    def __init__(self, data: bytes, order: str) -> None:
        self._data, self._order, self._at = data, order, 0

    def take(self) -> tuple[int, bytes]:
        """Return type and content of the next one; raises ValueError where there is none."""
        if self._at + 8 > len(self._data):
            raise ValueError("a variable is cut short")
        kind, n_bytes = struct.unpack_from(f"{self._order}II", self._data, self._at)
        if kind >> 16:  # up to four bytes stand in the tag itself
            kind, n_bytes, first = kind & 0xFFFF, kind >> 16, self._at + 4
            self._at += 8
            if n_bytes > 4:
                raise ValueError(f"a short element of {n_bytes} bytes")
        else:
            first = self._at + 8
            self._at = first + n_bytes + -n_bytes % 8
        if first + n_bytes > len(self._data):
            raise ValueError("a variable is cut short")
        return kind, self._data[first : first + n_bytes]


def _rows(kind: int, data: bytes, shape: tuple[int, ...], order: str) -> Array:
    """Return text, which is stored by columns, as one string a row, without the spaces at its end."""
    if kind in (3, 4):
        text = "".join(map(chr, np.frombuffer(data, f"{order}u2").tolist()))
    elif kind in _TEXT:
        wide = {17: "-le" if order == "<" else "-be", 18: "-le" if order == "<" else "-be"}.get(kind, "")
        text = data.decode(_TEXT[kind] + wide)
    else:
        raise ValueError(f"text of type {kind}")
    if len(shape) != 2 or len(text) != math.prod(shape):
        raise ValueError(f"{len(text)} characters for shape {shape}")
    grid = np.array(list(text), dtype=np.str_).reshape(shape, order="F")
    return np.array(["".join(row).rstrip() for row in grid.tolist()], dtype=np.str_)
