"""IQ recordings as SigMF 1.2 pairs (https://sigmf.org): `.sigmf-data` (cf32_le) and `.sigmf-meta` (JSON).

No library is used, because the part of the specification that is needed here is one small JSON object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct, field

from testbed.core.errors import InputError
from testbed.core.gate import check_plain, printable
from testbed.core.types import IqBlock
from testbed.core.whole import read_whole, require_regular
from testbed.records import documents, files


@dataclass(frozen=True, slots=True)
class Annotation:
    """A labelled part of a recording."""

    sample_start: int
    sample_count: int
    label: str
    comment: str | None = None


MAX_META_BYTES = 1 << 24
MAX_DATA_BYTES = 1 << 32
_Positive = Annotated[float, Meta(gt=0, le=1e15)]
_Count = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Head(Struct):
    datatype: Annotated[str, Meta(max_length=40)] = field(name="core:datatype")
    sample_rate: _Positive = field(name="core:sample_rate")
    sha512: Annotated[str, Meta(max_length=128)] = field(name="core:sha512")
    num_channels: Annotated[int, Meta(ge=1, le=1024)] = field(name="core:num_channels", default=1)


class _Capture(Struct):
    frequency: _Positive = field(name="core:frequency")
    device_time_s: float = field(name="ris_skg:device_time_s")
    overflow: bool = field(name="ris_skg:overflow")


class _Mark(Struct):
    sample_start: _Count = field(name="core:sample_start")
    sample_count: _Count = field(name="core:sample_count")
    label: str = field(name="core:label")
    comment: str | None = field(name="core:comment", default=None)


class _Meta(Struct):
    """The fields of a .sigmf-meta file that are read; there may be others."""

    head: _Head = field(name="global")
    captures: Annotated[list[_Capture], Meta(min_length=1)]
    annotations: list[_Mark]


_decoder = msgspec.json.Decoder(_Meta)


def write(
    path_stem: Path,
    block: IqBlock,
    carrier_hz: float,
    annotations: Sequence[Annotation] = (),
    *,
    hardware: str | None = None,
    description: str | None = None,
) -> tuple[Path, Path]:
    """Write a block as `path_stem` + '.sigmf-data' and '.sigmf-meta'; returns (data, meta) paths.

    Samples (antenna, sample) are interleaved by antenna (`core:num_channels`), full scale = 1. SigMF's datetime is UTC,
    which a device clock is not, so the time of the first sample is in the optional extension `ris_skg`.
    Raises ValueError for an annotation outside the block; the folder is made where it is missing.
    """
    n_antennas, n_samples = block.samples.shape
    for a in annotations:
        if a.sample_start < 0 or a.sample_count < 0 or a.sample_start + a.sample_count > n_samples:
            raise ValueError(f"annotation {a.label!r}: samples {a.sample_start}+{a.sample_count} outside 0…{n_samples}")
    path_stem.parent.mkdir(parents=True, exist_ok=True)
    data = path_stem.with_name(path_stem.name + ".sigmf-data")
    meta = path_stem.with_name(path_stem.name + ".sigmf-meta")
    with files.whole(data) as part:
        np.ascontiguousarray(block.samples.T, dtype="<c8").tofile(part)
    head: dict[str, Any] = {
        "core:datatype": "cf32_le",
        "core:version": "1.2.0",
        "core:num_channels": n_antennas,
        "core:sample_rate": float(block.sample_rate_hz),
        "core:sha512": files.sha512(data),
        "core:recorder": "ris-skg-testbed",
        "core:extensions": [{"name": "ris_skg", "version": "1.0.0", "optional": True}],
    }
    if hardware is not None:
        head["core:hw"] = hardware
    if description is not None:
        head["core:description"] = description
    capture = {
        "core:sample_start": 0,
        "core:frequency": float(carrier_hz),
        "ris_skg:device_time_s": float(block.time_s),
        "ris_skg:overflow": bool(block.overflow),
    }
    marks = [
        {"core:sample_start": a.sample_start, "core:sample_count": a.sample_count, "core:label": a.label}
        | ({} if a.comment is None else {"core:comment": a.comment})
        for a in sorted(annotations, key=lambda a: a.sample_start)
    ]
    content = documents.encode({"global": head, "captures": [capture], "annotations": marks})
    with files.whole(meta) as part:
        part.write_bytes(msgspec.json.format(content, indent=2) + b"\n")
    return data, meta


def read(path_stem: Path) -> tuple[IqBlock, float, list[Annotation]]:
    """Return (block, carrier in Hz, annotations) of a pair written by `write`; raises InputError naming a bad file."""
    data = path_stem.with_name(path_stem.name + ".sigmf-data")
    meta = path_stem.with_name(path_stem.name + ".sigmf-meta")
    try:
        if meta.stat().st_size > MAX_META_BYTES or data.stat().st_size > MAX_DATA_BYTES:
            raise InputError(f"{data}: more bytes than accepted: {MAX_DATA_BYTES}, described in {MAX_META_BYTES}")
        require_regular(data)
        found = _decoder.decode(read_whole(meta, MAX_META_BYTES))
        check_plain(found, 32)
        head, capture = found.head, found.captures[0]
        if head.datatype != "cf32_le":
            raise InputError(f"{meta}: core:datatype {printable(head.datatype, 40)!r}; accepted: 'cf32_le'")
        if files.sha512(data) != head.sha512:
            raise InputError(f"{data}: its sha512 is not the one in {meta.name}: damaged or changed")
        samples = np.fromfile(data, dtype="<c8").reshape(-1, head.num_channels).T
        block = IqBlock(
            samples=np.ascontiguousarray(samples, dtype=np.complex64),
            sample_rate_hz=head.sample_rate,
            time_s=capture.device_time_s,
            overflow=capture.overflow,
        )
        marks = [Annotation(a.sample_start, a.sample_count, a.label, a.comment) for a in found.annotations]
    except OSError as exc:
        raise InputError(f"{exc.filename}: cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise InputError(f"{meta}: not a SigMF recording of this testbed: {printable(str(exc))}") from exc
    return block, capture.frequency, marks
