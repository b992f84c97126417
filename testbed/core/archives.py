"""Reads .npz files that others wrote: within limits, without running code, with one kind of error.

A zip archive says how large its members become, and each member what shape and type its array has; both are checked
against one another and against the caller's limit before anything is inflated or allocated.
"""

from __future__ import annotations

import ast
import io
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.whole import require_regular

MAX_MEMBERS = 4096
MAX_RATIO = 200
"""Largest accepted compression ratio; measured or trained numbers compress far less."""
_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1 << 16
_MIN_BYTES = 1 << 20
"""Size up to which archives may have a larger ratio, because small ones may contain constants only."""


def read_npz(
    source: bytes | Path, most_bytes: int, wanted: Callable[[str], bool] = lambda _: True, kinds: str = "fcuibU"
) -> dict[str, NDArray[Any]]:
    """Return name → array of an .npz file in memory or on disk; raises ValueError, one line, for anything else.

    most_bytes: limit for all its arrays together, inflated. wanted: which names are read. kinds: dtypes that are
    accepted; objects, which would be pickles, never are. An unreadable file raises OSError.
    """
    if isinstance(source, Path):
        require_regular(source)
    stream: IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        try:
            with zipfile.ZipFile(stream) as archive:
                members = [i for i in archive.infolist() if wanted(i.filename.removesuffix(".npy"))]
                _check(archive.infolist(), members, size, most_bytes)
                return {i.filename.removesuffix(".npy"): _array(archive, i, kinds) for i in members}
        except OSError:
            raise
        except Exception as exc:  # zipfile, zlib, numpy and ast raise a dozen kinds of errors
            detail = (str(exc) or type(exc).__name__).splitlines()[0][:200]
            raise ValueError(f"no .npz file of plain numbers: {detail}") from exc


def check_zip(path: Path, most_bytes: int) -> None:
    """Raise ValueError unless a file is a zip archive whose members take no more than `most_bytes` together; OSError
    where it cannot be read."""
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check(members, members, path.stat().st_size, most_bytes)
    except OSError:
        raise
    except Exception as exc:
        raise ValueError(f"no archive: {(str(exc) or type(exc).__name__).splitlines()[0][:200]}") from exc


def _check(every: list[zipfile.ZipInfo], members: list[zipfile.ZipInfo], size: int, most_bytes: int) -> None:
    if len(every) > MAX_MEMBERS:
        raise ValueError(f"{len(every)} members, accepted up to {MAX_MEMBERS}")
    names = [i.filename for i in every]
    if len(set(names)) < len(names):
        raise ValueError("two members have the same name")
    total = sum(i.file_size for i in members)
    if total > most_bytes:
        raise ValueError(f"its arrays take {total} bytes, accepted up to {most_bytes}")
    if total > max(_MIN_BYTES, MAX_RATIO * size):
        raise ValueError(f"{size} bytes that become {total}, accepted up to {MAX_RATIO} times as many")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, kinds: str) -> NDArray[Any]:
    if info.flag_bits & 1:
        raise ValueError(f"{info.filename!r} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename!r}: compression {info.compress_type}, accepted: none, deflate")
    with archive.open(info) as member:
        data = member.read(info.file_size)
    if len(data) != info.file_size:
        raise ValueError(f"{info.filename!r} is cut short")
    return _parse(info.filename, data, kinds)


def _parse(name: str, data: bytes, kinds: str) -> NDArray[Any]:
    if data[:6] != _MAGIC or len(data) < 10 or data[6] not in (1, 2, 3):
        raise ValueError(f"{name!r} is no array")
    width = 2 if data[6] == 1 else 4
    start = 8 + width
    length = int.from_bytes(data[8:start], "little")
    if length > min(_MAX_HEADER, len(data) - start):
        raise ValueError(f"{name!r}: a header of {length} bytes")
    header = ast.literal_eval(data[start : start + length].decode("utf-8" if data[6] == 3 else "latin-1").strip())
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"{name!r} has no array header")
    shape, descr = header["shape"], header["descr"]
    if not isinstance(descr, str) or not isinstance(shape, tuple) or len(shape) > 8:
        raise ValueError(f"{name!r}: type {str(descr)[:40]!r}, accepted: plain numbers")
    dtype = np.dtype(descr)
    if dtype.kind not in kinds:
        raise ValueError(f"{name!r}: type {dtype.str!r}, accepted: plain numbers")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"{name!r}: shape {str(shape)[:60]}")
    n_bytes = len(data) - start - length
    if dtype.itemsize * math.prod(shape) != n_bytes:
        raise ValueError(f"{name!r}: {n_bytes} bytes for shape {str(shape)[:60]} of {dtype.str!r}")
    values = np.frombuffer(data, dtype, offset=start + length).copy()
    if header["fortran_order"] is True:
        return values.reshape(shape[::-1]).T
    return values.reshape(shape)
