"""`rounds.h5`: one row per round and link. Written once, from the journal; units and axes are attributes.

Axes are also HDF5 dimension scales, so that xarray and netCDF4 open a group with its dimensions by name:
`xarray.open_dataset("rounds.h5", group="links/alice>bob", engine="h5netcdf")`; `testbed.open` puts all links together.

/links/tx>rx/   csi (round, rx, tx, subcarrier) complex64, round, time_s, snr_db, cfo_hz, rssi_dbfs, surface
/rounds/        round, kept, reason, surface, t0_s
/patterns/DIGEST  levels (row, column) uint8, attribute phase_bits
/bits/BLOCK/NODE/KIND  (bit,) uint8
/subcarrier, /row, /column, and rx_antenna and tx_antenna of each link: dimension scales that only count from 0
/subcarrier_hz  (subcarrier,)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core.errors import InputError, TestbedError
from testbed.core.gate import printable
from testbed.core.types import U8, SurfacePattern
from testbed.records import files
from testbed.records.documents import Field, Start
from testbed.records.journal import JournalReader
from testbed.records.recorded import BitsKey, LinkRecord, RoundTable

LINK_UNITS = {"round": "", "time_s": "s", "snr_db": "dB", "cfo_hz": "Hz", "rssi_dbfs": "dBFS", "surface": "", "csi": ""}
ROUND_UNITS = {"round": "", "kept": "", "reason": "", "surface": "", "t0_s": "s"}
MOST_SCALED = 1000
"""Largest number of patterns with named dimensions. HDF5 stores the list of all users of a scale in one attribute of at
most 64 KB; several thousand patterns would exceed it."""
CSI_AXES = ["round", "rx antenna", "tx antenna", "subcarrier"]


def link_fields(link: str, csi_shape: tuple[int, ...] | None) -> dict[str, Field]:
    """Describe the fields of a link's stream."""
    receiver = link.split(">")[1]
    dtypes = {"round": "int64", "surface": "str"}
    out = {
        name: Field(
            dtype=dtypes.get(name, "float64"),
            shape=[],
            units=units,
            source="coordinator"
            if name == "round"
            else "surface board"
            if name == "surface"
            else f"node {receiver}: csi",
            external=f"rounds.h5:/links/{link}/{name}",
        )
        for name, units in LINK_UNITS.items()
        if name != "csi"
    }
    if csi_shape is not None:
        out["csi"] = Field(
            dtype="complex64",
            shape=list(csi_shape),
            units="",
            source=f"node {receiver}: csi",
            external=f"rounds.h5:/links/{link}/csi",
        )
    return out


def round_fields() -> dict[str, Field]:
    """Describe the fields of the round table."""
    dtypes = {"round": "int64", "kept": "bool", "t0_s": "float64"}
    return {
        name: Field(
            dtype=dtypes.get(name, "str"),
            shape=[],
            units=units,
            source="coordinator",
            external=f"rounds.h5:/rounds/{name}",
        )
        for name, units in ROUND_UNITS.items()
    }


def write(path: Path, journal: JournalReader, start: Start) -> None:
    """Write all contents of the journal to `path`."""
    import h5py

    with h5py.File(path, "w") as f:
        scales = _Scales(f)
        f.attrs.update({"schema": 1, "uid": start.uid, "time": start.time})
        if start.subcarrier_hz is not None:
            axis = f.create_dataset("subcarrier_hz", data=np.asarray(start.subcarrier_hz, dtype=np.float64))
            axis.attrs.update({"units": "Hz", "axes": ["subcarrier"], "long_name": "offset from the carrier"})
            scales.attach(axis, ["subcarrier"])
        f.create_group("links")
        for link, (n, shape) in journal.links().items():
            _write_link(f.create_group(f"links/{link}"), link, n, journal.probes(link, shape), scales)
        group = f.create_group("rounds")
        for name, values in _round_columns(journal.rounds()).items():
            data = _dataset(group, name, values.shape, values.dtype, ROUND_UNITS[name], CSI_AXES)
            data[...] = values.astype(object) if values.dtype.kind == "U" else values
        _scale_rounds(group)
        group = f.create_group("patterns", track_order=True)
        for i, (digest, pattern) in enumerate(journal.patterns().items()):
            levels = group.create_dataset(digest, data=pattern.levels)
            levels.attrs.update(
                {"phase_bits": pattern.phase_bits, "units": "2π/2^phase_bits", "axes": ["row", "column"]}
            )
            if i < MOST_SCALED:
                scales.attach(levels, ["row", "column"])
        group = f.create_group("bits")
        for (block, node, kind), values in journal.bits().items():
            data = group.create_dataset(f"{block}/{node}/{kind}", data=values)
            data.attrs.update({"units": "", "axes": ["bit"]})
            data.make_scale(kind)  # bit strings differ in length, so each has a dimension of its own


def _write_link(group: Any, link: str, n: int, records: Iterable[LinkRecord], scales: _Scales) -> None:
    transmitter, receiver = link.split(">")
    group.attrs.update({"tx": transmitter, "rx": receiver})
    at = 0
    for record in records:
        columns = _link_columns(record)
        if at == 0:
            for name, values in columns.items():
                _dataset(group, name, (n, *values.shape[1:]), values.dtype, LINK_UNITS[name], CSI_AXES)
        for name, values in columns.items():
            group[name][at : at + len(values)] = values.astype(object) if values.dtype.kind == "U" else values
        at += len(record.rounds)
    _scale_rounds(group)
    if "csi" in group:
        scales.attach(group["csi"], ["", "", "", "subcarrier"])
        # these axes belong to the link, because nodes differ in their number of antennas
        _Scales(group).attach(group["csi"], ["", "rx_antenna", "tx_antenna"])


def _scale_rounds(group: Any) -> None:
    """Make `round` the scale of the first axis of all other data sets in a group."""
    if "round" not in group:
        return
    group["round"].make_scale("round")
    for name, data in group.items():
        if name != "round":
            data.dims[0].attach_scale(group["round"])


class _Scales:
    """The scales in one group, one for each name and length, made when they are first needed."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self._made: dict[tuple[str, int], Any] = {}

    def attach(self, data: Any, names: Sequence[str]) -> None:
        """Name the axes of a dataset; an axis with the name '' is left without a scale."""
        for axis, name in enumerate(names):
            if name:
                data.dims[axis].attach_scale(self._scale(name, data.shape[axis]))

    def _scale(self, name: str, n: int) -> Any:
        if (name, n) not in self._made:
            full = name if name not in self._group else f"{name}_{n}"  # boards of several shapes in one run
            scale = self._group.create_dataset(full, data=np.arange(n))
            scale.attrs.update({"units": "", "axes": [full], "long_name": "place, from 0"})
            scale.make_scale(full)
            self._made[name, n] = scale
        return self._made[name, n]


def check(path: Path, journal: JournalReader) -> None:
    """Read `path` back and compare it with the journal, value by value; raises TestbedError where they differ."""
    import h5py

    def same(where: str, a: Any, b: Any) -> None:
        if a.shape != b.shape or (a.tobytes() != b.tobytes() if a.dtype.kind != "U" else not np.array_equal(a, b)):
            raise TestbedError(f"{path}: {where} was not written as recorded; the journal is kept")

    with h5py.File(path, "r") as f:
        for link, (_, shape) in journal.links().items():
            at = 0
            for record in journal.probes(link, shape):
                for name, values in _link_columns(record).items():
                    same(f"/links/{link}/{name}", _read(f[f"links/{link}/{name}"], slice(at, at + len(values))), values)
                at += len(record.rounds)
        for name, values in _round_columns(journal.rounds()).items():
            same(f"/rounds/{name}", _read(f[f"rounds/{name}"]), values)
        for digest, pattern in journal.patterns().items():
            same(f"/patterns/{digest}", f[f"patterns/{digest}"][...], pattern.levels)
        for (block, node, kind), bits in journal.bits().items():
            same(f"/bits/{block}/{node}/{kind}", f[f"bits/{block}/{node}/{kind}"][...], bits)


@dataclass(frozen=True, slots=True)
class Rounds:
    """The contents that `read` finds in a file."""

    links: dict[str, LinkRecord]
    rounds: RoundTable
    patterns: dict[str, SurfacePattern]
    bits: dict[BitsKey, U8]


def read(path: Path) -> Rounds:
    """Read a file written by `write`; raises InputError naming it where it is missing, damaged or something else."""
    import h5py

    try:
        most = path.stat().st_size
        if most > files.MAX_BYTES:
            raise InputError(f"{path}: {most} bytes, accepted up to {files.MAX_BYTES}")
        with h5py.File(path, "r") as f:
            _check_sizes(f, most)
            links = {}
            for name, group in f["links"].items():
                columns = {key: _read(group[key]) for key in LINK_UNITS if key in group}
                columns["rounds"] = columns.pop("round")
                links[name] = LinkRecord(**{"csi": None, **columns})
            columns = {key: _read(f[f"rounds/{key}"]) for key in ROUND_UNITS}
            columns["rounds"] = columns.pop("round")
            patterns = {
                digest: SurfacePattern(data[...], int(data.attrs["phase_bits"]))
                for digest, data in f["patterns"].items()
            }
            bits = {
                (int(block), node, kind): data[...]
                for block, nodes in f["bits"].items()
                for node, kinds in nodes.items()
                for kind, data in kinds.items()
            }
            return Rounds(links, RoundTable(**columns), patterns, dict(sorted(bits.items())))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except Exception as exc:  # h5py raises a dozen kinds of errors for damaged files
        what = printable(str(exc) or type(exc).__name__)
        raise InputError(f"{path}: not the rounds of a run, or damaged: {what}") from exc


def _check_sizes(f: Any, most: int) -> None:
    """Raise ValueError where a data set claims more bytes than its file has; no data set is compressed."""

    import h5py

    declared = 0

    def look(name: str, item: Any) -> None:
        nonlocal declared
        if isinstance(item, h5py.Group):
            if not all(isinstance(item.get(key, getlink=True), h5py.HardLink) for key in item):
                raise ValueError(f"{printable(name, 80)} is a link to another object")
            return
        if item.external or item.is_virtual:
            raise ValueError(f"{printable(name, 80)} is kept in another file")
        declared += item.nbytes
        if declared > most:
            raise ValueError(f"{printable(name, 80)} declares more bytes than the file's {most}")

    look("/", f)
    f.visititems(look)


def _link_columns(record: LinkRecord) -> dict[str, np.ndarray[Any, Any]]:
    columns = {"round": record.rounds, **{key: getattr(record, key) for key in LINK_UNITS if key != "round"}}
    return {key: values for key, values in columns.items() if values is not None}


def _round_columns(table: RoundTable) -> dict[str, np.ndarray[Any, Any]]:
    return {"round": table.rounds, **{key: getattr(table, key) for key in ROUND_UNITS if key != "round"}}


def _dataset(group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], units: str, axes: list[str]) -> Any:
    import h5py

    data = group.create_dataset(name, shape=shape, dtype=h5py.string_dtype() if dtype.kind == "U" else dtype)
    data.attrs.update({"units": units, "axes": axes[: len(shape)]})
    return data


def _read(data: Any, part: Any = ...) -> Any:
    return data.asstr()[part].astype(np.str_) if data.dtype.kind == "O" else data[part]
