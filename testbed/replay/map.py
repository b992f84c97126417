"""Reads measurements in any layout: a small TOML file says which arrays of which files are Alice's, Bob's and Eve's.

`testbed replay FILE --map map.toml`; the tables below are the format. docs/datasets.md has examples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, field

from testbed.config import load_table
from testbed.core.config import Accounting, ChainPlan, Options, Positive, Table
from testbed.core.errors import InputError
from testbed.core.gate import printable
from testbed.core.types import C64, F64, I64, CsiSeries
from testbed.core.words import counted
from testbed.replay import iq, pairing, wifi
from testbed.replay.arrays import SHOWN, Array, ArrayFile, check_bytes, number, open_arrays
from testbed.replay.sources import Cut, EveLinks, Recording

Axis = Literal["probe", "rx", "tx", "subcarrier", "part"]
Quantity = Literal["csi", "amplitude", "power", "rssi_db"]
LOWEST_DB, HIGHEST_DB = -300.0, 300.0
CUT = "mapped"
MOST_BLOCK = 4000
"""Largest number of probes of a block if no chain file gives it: the attacks on longer blocks take minutes."""
_USUAL: dict[int, tuple[Axis, ...]] = {
    1: ("probe",),
    2: ("probe", "subcarrier"),
    4: ("probe", "rx", "tx", "subcarrier"),
}
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


class End(Table):
    """One receiver's measurements of one transmitter."""

    file: str | None = None
    """File name, relative to SOURCE or, if SOURCE is a file, to its folder; default: SOURCE itself."""
    format: Literal["arrays", "intel", "atheros", "nexmon", "esp32", "sigmf"] = "arrays"
    """arrays: CSV, NPZ, NPY, HDF5 or MAT by the file's ending; sigmf: IQ with the map's [waveform]; esp32: a log;
    the others: Wi-Fi captures as csiread reads them (extra `wifi`)."""
    options: Options = field(default_factory=dict)
    """Options of csiread's reader: chip and bw (nexmon), nrxnum and ntxnum (intel, atheros), tones (atheros)."""
    array: str = ""
    """Name of the array; in CSV of the column, or a pattern for several ("h_re_*"), sorted by numbers in their
    names."""
    imag: str | None = None
    """Array of the imaginary part, where `array` holds the real part."""
    phase_rad: str | None = None
    """Array of the phase, where `array` holds the modulus (or its dB: quantity = "rssi_db")."""
    phase_deg: str | None = None
    axes: list[Axis] | None = None
    """Meaning of the array's axes; default by their number: probe; probe, subcarrier; probe, rx, tx, subcarrier.
    part: real and imaginary part."""
    rx: list[int] | None = None
    """Receiving antennas used, by number; default: all."""
    tx: list[int] | None = None
    index: str | None = None
    """Array of sequence numbers, one per probe: the same number at both ends is the same exchange."""
    time: str | None = None
    """Array of time stamps, one per probe."""
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    time_offset_s: float = 0.0
    """Number that is added to this end's time stamps, for clocks that differ by a known amount."""
    where: dict[str, str | float] = field(default_factory=dict)
    """Only probes for which these arrays have these values are used; this selects one of several links in a file."""
    missing: list[float] = field(default_factory=list)
    """Values of `array` that stand for "nothing received"."""


class EveEnds(Table):
    """The measurements of one Eve, a receiver at one place."""

    from_alice: End | None = None
    from_bob: End | None = None
    assumed: bool = True
    """Whether the key must be safe against her; false: the replay only reports what she would leave of it."""


class MapFile(Table):
    """map.toml"""

    schema: Literal[1]
    alice: End
    """Alice's measurements of Bob."""
    bob: End
    title: str = ""
    quantity: Quantity = "csi"
    """Meaning of the arrays' values. csi: complex numbers; amplitude: |h|; power: |h|²; rssi_db: dB or dBm."""
    eve: dict[str, EveEnds] = field(default_factory=dict)
    pair_by: Literal["order", "index", "time"] | None = None
    """How probes are paired; default: by index if both ends have one, else by time if both have one, else by position
    in the file."""
    index_modulus: Annotated[int, Meta(ge=2)] | None = None
    """Number at which sequence numbers start again from 0 (802.11: 4096)."""
    tolerance_s: Positive = 0.01
    """Largest time between the two probes of a pair."""
    subcarrier_hz: list[float] | str | None = None
    """Offsets from the carrier, or the name of an array of them in Alice's file."""
    subcarrier_spacing_hz: Positive | None = None
    """Spacing of the subcarriers, in place of `subcarrier_hz` where they are evenly spaced."""
    leave_out: list[int] = field(default_factory=list)
    """Positions, from 0, of subcarriers that are not used (null, pilots). Subcarriers that are always zero or NaN are
    found without this key."""
    interval_s: Positive | None = None
    """Time from probe pair to probe pair; default: from the time stamps, if there are any."""
    assumption: str = ""
    """The assumption on Eve in words, for the report."""
    waveform: iq.Waveform | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """The measurements of one end, read and checked."""

    h: C64
    """(probe, rx, tx, subcarrier), NaN where nothing was received."""
    index: I64 | None
    time_s: F64 | None
    subcarrier_hz: F64 | None = None

    def take(self, rows: Any) -> Measured:
        index, time_s = (None if x is None else x[rows] for x in (self.index, self.time_s))
        return Measured(self.h[rows], index, time_s, self.subcarrier_hz)


def load(source: Path, map_path: Path) -> Recording:
    """Return the recording that a map makes of a file, or of the files in a folder; raises InputError."""
    plan = load_table(map_path, MapFile)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    reader = _Reader(source, map_path, plan)
    alice, bob = reader.end("alice", plan.alice), reader.end("bob", plan.bob)
    eves = {
        name: {
            link: reader.end(f"eve.{name}.{link}", end)
            for link, end in (("from_alice", ends.from_alice), ("from_bob", ends.from_bob))
            if end is not None
        }
        for name, ends in plan.eve.items()
    }
    for name, links in eves.items():
        if not links:
            raise InputError(f"{map_path}: table [eve.{name}]: empty; accepted: from_alice, from_bob or both")
    return _recording(plan, str(map_path), alice, bob, eves)


# ---------------------------------------------------------------- one end


class _Reader:
    def __init__(self, source: Path, map_path: Path, plan: MapFile) -> None:
        self._source, self._map, self._plan = source, map_path, plan

    def end(self, table: str, end: End) -> Measured:
        """Read one end; raises InputError that names the map's table."""
        where = f"{self._map}: table [{table}]"
        path = self._path(end, where)
        if end.format == "sigmf":
            if self._plan.waveform is None:
                raise InputError(f"{where}: format = 'sigmf' needs the waveform that was sent: a table [waveform]")
            found = iq.read(path, self._plan.waveform)
            return self._selected(Measured(found.h, found.index, found.time_s, found.subcarrier_hz), end, where)
        if end.format != "arrays":
            with wifi.open_capture(path, end.format, end.options) as file:
                return self._arrays(file, _wifi_names(end), where, file.subcarrier_hz)
        with open_arrays(path) as file:
            return self._arrays(file, end, where, None)

    def _path(self, end: End, where: str) -> Path:
        if end.file is None:
            if self._source.is_dir():
                raise InputError(f"{where}: {self._source} is a folder; accepted: one of its files in key 'file'")
            return self._source
        return (self._source if self._source.is_dir() else self._source.parent) / end.file

    def _arrays(self, file: ArrayFile, end: End, where: str, known_hz: F64 | None) -> Measured:
        if not end.array:
            raise InputError(f"{where}: missing 'array'; {file.path} has: {file.told()}")
        h = self._channel(file, end, where)
        index = None if end.index is None else self._along(_Told(file, end.index, f"{where}: index"), h, _whole)
        time_s = None
        if end.time is not None:
            stamps = self._along(_Told(file, end.time, f"{where}: time"), h, _real)
            time_s = stamps * _SECONDS[end.time_unit] + end.time_offset_s
        hz = known_hz
        if isinstance(self._plan.subcarrier_hz, str) and where.endswith("[alice]"):
            told = _Told(file, self._plan.subcarrier_hz, f"{self._map}: subcarrier_hz")
            hz = _real(told.values().ravel(), told)
        measured = Measured(h, index, time_s, hz)
        keep = np.ones(len(h), dtype=bool)
        for name, value in end.where.items():
            column = self._along(_Told(file, name, where), h)
            keep &= _equal(column, value)
            if not keep.any():
                raise InputError(f"{where}: where: {name} = {value!r} leaves no probe; accepted: {_occurring(column)}")
        return self._selected(measured.take(keep), end, where)

    def _selected(self, measured: Measured, end: End, where: str) -> Measured:
        """Keep the antennas that are wanted, and probes with a time stamp."""
        h = measured.h
        for axis, name, wanted in ((1, "rx", end.rx), (2, "tx", end.tx)):
            if wanted is None:
                continue
            if not wanted or not all(0 <= i < h.shape[axis] for i in wanted):
                raise InputError(f"{where}: {name} = {wanted}; accepted: antennas from 0 to {h.shape[axis] - 1}")
            h = np.take(h, wanted, axis=axis)
        return replace(measured, h=h)

    @staticmethod
    def _along(told: _Told, h: C64, check: Callable[[Array, _Told], Array] = lambda values, told: values) -> Array:
        """Return an array of one value per probe, as `check` makes it."""
        values = told.values()
        values = values.reshape(-1) if values.size == len(h) else values
        if values.shape != (len(h),):
            raise told.wrong(f"shape {values.shape}", f"one value per probe, ({len(h)},)")
        return check(values, told)

    def _channel(self, file: ArrayFile, end: End, where: str) -> C64:
        """Return (probe, rx, tx, subcarrier), however the array is stored."""
        told = _Told(file, end.array, where)
        main = _numbers(told.values(), told)
        axes = list(end.axes) if end.axes is not None else list(_USUAL.get(main.ndim, ()))
        if len(axes) != main.ndim or len(set(axes)) != len(axes) or "probe" not in axes:
            raise InputError(
                f"{where}: array {end.array!r} of shape {main.shape}: axes = {axes}; accepted: its {main.ndim} axes in "
                "their order, of probe, rx, tx, subcarrier, part"
            )
        if sum(x is not None for x in (end.imag, end.phase_rad, end.phase_deg)) + ("part" in axes) > 1:
            raise InputError(f"{where}: accepted: only one of imag, phase_rad, phase_deg and the axis part")
        if main.size > (1 << 31) // 8:
            check_bytes(file.path, end.array, main.size * 8)
        for value in end.missing:
            main = np.where(main == value, np.nan, main)
        if "part" in axes:
            at = axes.index("part")
            if main.shape[at] != 2 or np.iscomplexobj(main):
                raise InputError(f"{where}: axis part of shape {main.shape}, {main.dtype}; accepted: 2 real numbers")
            main = np.take(main, 0, axis=at) + 1j * np.take(main, 1, axis=at)
            axes.remove("part")
        h = _finite(self._complex(file, end, main, where), told)
        order = [axes.index(a) for a in _USUAL[4] if a in axes]
        shape = [main.shape[axes.index(a)] if a in axes else 1 for a in _USUAL[4]]
        return np.asarray(h.transpose(order).reshape(shape))

    def _complex(self, file: ArrayFile, end: End, main: Array, where: str) -> Array:
        """Return complex values, from the array's values and the map's `quantity`."""
        quantity = self._plan.quantity
        second = end.imag or end.phase_rad or end.phase_deg
        if quantity == "csi" and second is None:
            if not np.iscomplexobj(main):
                raise InputError(
                    f"{where}: array {end.array!r} is real ({main.dtype}); accepted: complex numbers, or the "
                    "second half by imag, phase_rad, phase_deg or the axis part; or quantity = 'amplitude', 'power', "
                    "'rssi_db'"
                )
            return main
        if np.iscomplexobj(main):
            raise InputError(f"{where}: array {end.array!r} is complex; accepted: real numbers, or quantity = 'csi'")
        other = None
        if second is not None:
            told = _Told(file, second, where)
            other = _numbers(told.values(), told)
            if other.shape != main.shape:
                raise InputError(f"{where}: array {second!r} of shape {other.shape}; accepted: {main.shape}")
        if end.imag is not None and other is not None:
            return np.asarray(main + 1j * other)
        amplitude = _amplitude(main, quantity, _Told(file, end.array, where))
        if other is None:
            return amplitude.astype(np.complex64)
        return np.asarray(amplitude * np.exp(1j * (np.radians(other) if end.phase_deg is not None else other)))


def _wifi_names(end: End) -> End:
    """Add the default array names of a capture's format."""
    axes: list[Axis] = ["probe", "subcarrier", "rx", "tx"]
    return msgspec.structs.replace(end, array=end.array or "csi", axes=end.axes or axes)


def _amplitude(values: Array, quantity: str, told: _Told) -> F64:
    """Return |h| from amplitudes, powers or dB; zero power is NaN."""
    is_known = np.isfinite(values)
    if quantity == "rssi_db":
        outside = is_known & ((values < LOWEST_DB) | (values > HIGHEST_DB))
        accepted = f"{LOWEST_DB:g} to {HIGHEST_DB:g} dB, other values in the key 'missing'"
        told.check(values, outside, "{:g} dB", accepted)
        return np.where(np.isneginf(values), np.nan, 10.0 ** (values / 20.0))
    told.check(values, is_known & (values < 0), "{:g}", "values from 0, or quantity = 'rssi_db'")
    amplitude = np.sqrt(values) if quantity == "power" else values
    return np.where(amplitude == 0, np.nan, amplitude)


def _occurring(column: Array) -> str:
    """Return the values that occur in a column as text, as many as fit on a line."""
    values = np.unique(column).tolist()
    told = ", ".join(map(repr, values[:SHOWN]))
    return f"values that occur: {told}" + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


@dataclass(frozen=True, slots=True)
class _Told:
    """An array, and how mistakes in it are told: the place in its file, then the place in the map that names it."""

    file: ArrayFile
    name: str
    where: str
    """Table, and where it helps key, of the map."""

    def values(self) -> Array:
        return self.file.get(self.name, self.where)

    def wrong(self, what: str, accepted: str) -> InputError:
        """Return the error for the array as a whole."""
        return InputError(f"{self.where}: {self.file.path}: array {self.name!r}: {what}; accepted: {accepted}")

    def check(self, values: Array, is_wrong: Array, form: str, accepted: str) -> None:
        """Raise InputError for the first value that is wrong; `form`: how it is shown."""
        if not is_wrong.any():
            return
        index = tuple(np.argwhere(is_wrong)[0])
        shown = form.format(values[index])
        raise InputError(f"{self.file.place(self.name, index)}: {shown}; accepted: {accepted} ({self.where})")


def _numbers(values: Array, told: _Told, empty: str = ", and empty cells where nothing was received") -> Array:
    """Return an array of complex or real numbers; `empty`: words on empty cells, where they are accepted."""
    if values.dtype.kind in "USO":
        texts = np.vectorize(str, otypes=[object])(values)
        is_text = np.vectorize(lambda cell: number(cell) is None, otypes=[bool])(texts)
        shown = np.vectorize(lambda cell: printable(cell, 40), otypes=[object])(texts)
        is_comma = any(_DECIMAL_COMMA.fullmatch(cell) for cell in shown[is_text][:1])
        told.check(shown, is_text, "{!r}", ("numbers with a decimal point" if is_comma else "numbers") + empty)
    if values.dtype.kind not in "fciu":
        raise told.wrong("text" if values.dtype.kind in "USO" else str(values.dtype), "numbers")
    if 0 in values.shape:
        raise told.wrong(f"shape {values.shape}", "at least one value")
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _real(values: Array, told: _Told) -> F64:
    values = _numbers(values, told, empty="")
    if np.iscomplexobj(values):
        raise told.wrong("complex", "finite real numbers")
    told.check(values, ~np.isfinite(values), "{:g}", "finite real numbers")
    return values


def _whole(values: Array, told: _Told) -> I64:
    values = _real(values, told)
    is_wrong = (values != np.rint(values)) | (np.abs(values) > 2**53)
    told.check(values, is_wrong, "{:.17g}", "sequence numbers, which are whole")
    return values.astype(np.int64)


def _equal(values: Array, wanted: str | float) -> Array:
    if values.dtype.kind in "fciu":
        try:
            return np.asarray(values == float(wanted))
        except ValueError:
            return np.zeros(values.shape, dtype=bool)
    return np.asarray(values.astype(str) == str(wanted))


def _finite(h: Array, told: _Told) -> C64:
    """Return h as complex64; infinities are refused. Real and imaginary part are missing together."""
    with np.errstate(over="ignore", invalid="ignore"):
        out = h.astype(np.complex64)
    told.check(h, np.isinf(out), "{:g}", "finite numbers up to 3.4e38, NaN for what is missing")
    out[np.isnan(out)] = np.nan
    return out


# ---------------------------------------------------------------- all ends together


def _recording(
    plan: MapFile, where: str, alice: Measured, bob: Measured, eves: Mapping[str, Mapping[str, Measured]]
) -> Recording:
    everybody = {"alice": alice, "bob": bob}
    everybody |= {f"eve.{name}.{link}": m for name, links in eves.items() for link, m in links.items()}
    _same_subcarriers(everybody, where)
    way = _way(plan, everybody, where)
    everybody = {name: _unwrapped(m, plan, way) for name, m in everybody.items()}
    pairs = _pairs(plan, everybody["alice"], everybody["bob"], way, where)
    if pairs.alice.size < 2:
        raise InputError(
            f"{where}: {pairs.alice.size} pairs of {len(alice.h)} probes of Alice and {len(bob.h)} of Bob, by {way} "
            f"({_counts(pairs.left_over)}{_apart(plan, everybody, way)}); accepted: from 2"
        )
    a, b = everybody["alice"].take(pairs.alice), everybody["bob"].take(pairs.bob)
    used, dead = _used(plan, a, b, where)
    subcarrier_hz = _axis(plan, a, where)[used]
    n = len(a.h)

    def series(m: Measured, rows: I64) -> CsiSeries:
        h = np.where((rows >= 0)[:, None, None, None], m.h[rows], np.complex64(np.nan))[..., used]
        return CsiSeries(h.astype(np.complex64), np.arange(n, dtype=np.int64), subcarrier_hz)

    def heard(name: str, link: str, end: Measured, own: I64) -> CsiSeries | None:
        """Return an Eve's measurements of one transmitter, paired with the end that received the same transmission."""
        eve = everybody.get(f"eve.{name}.{link}")
        return None if eve is None else series(eve, _rows(plan, eve, end, own, way))

    links = {
        name: EveLinks(heard(name, "from_alice", b, pairs.bob), heard(name, "from_bob", a, pairs.alice))
        for name in eves
    }
    assumed = tuple(name for name in links if plan.eve[name].assumed)
    cut = Cut(
        name=CUT,
        alice=series(a, np.arange(n)),
        bob=series(b, np.arange(n)),
        groups=np.zeros(n, dtype=np.int64),
        per_group=False,
        chain=ChainPlan(enhance_options={"step": 1}, quantize_options={"bits": 1, "guard": 0.3})
        if plan.quantity != "csi"
        else ChainPlan(),
        accounting=Accounting(block_rounds=min(n, MOST_BLOCK)),
        eves=links,
        assumed=assumed,
        assumption=plan.assumption
        or (f"Eve has no better position than the measured ones ({', '.join(assumed)})" if assumed else ""),
        rejected=pairs.left_over,
        time_s=None if a.time_s is None else a.time_s - a.time_s.min(),
        interval_s=plan.interval_s or _interval_s(alice.time_s, n + sum(pairs.left_over.values())),
    )
    caveats = [f"subcarriers left out, always zero or NaN at an end: {', '.join(map(str, dead))}"] if dead else []
    if way == "order":
        caveats.append("probes of Alice and Bob are paired by their positions in the file")
    if np.array_equal(a.h, b.h, equal_nan=True):
        caveats.append("every value of Bob equals Alice's: one array may be named for both ends by mistake")
    if n < subcarrier_hz.size:
        told = f"{counted(n, 'probe')} of {counted(subcarrier_hz.size, 'subcarrier')}"
        caveats.append(f"{told}: if these are exchanged, give axes = ['subcarrier', 'probe'] for every end")
    kind = "CSI" if plan.quantity == "csi" else "levels without phases"
    return Recording(
        name="map",
        description=plan.title or f"{kind}, {n} pairs by {way}, {counted(subcarrier_hz.size, 'subcarrier')}",
        caveats=tuple(caveats),
        cuts={CUT: cut},
        main=CUT,
    )


def _same_subcarriers(everybody: Mapping[str, Measured], where: str) -> None:
    widths = {name: m.h.shape[-1] for name, m in everybody.items()}
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in widths.items())
        raise InputError(f"{where}: subcarriers differ: {told}; accepted: the same at every end")


def _way(plan: MapFile, everybody: Mapping[str, Measured], where: str) -> str:
    have: dict[str, list[str]] = {
        "index": [name for name, m in everybody.items() if m.index is None],
        "time": [name for name, m in everybody.items() if m.time_s is None],
        "order": [],
    }
    way: str = plan.pair_by or next(w for w, lacking in have.items() if not lacking)
    if have[way]:
        raise InputError(f"{where}: pair_by = {way!r}, but [{have[way][0]}] has no {way}; accepted: one at every end")
    sizes = {name: len(m.h) for name, m in everybody.items()}
    if way == "order" and len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {n}" for name, n in sizes.items())
        raise InputError(
            f"{where}: ends of unequal length ({told} probes); accepted: an 'index' or a 'time' at every end, "
            "by which they are paired"
        )
    return way


def _unwrapped(m: Measured, plan: MapFile, way: str) -> Measured:
    if way != "index" or plan.index_modulus is None or m.index is None:
        return m
    return replace(m, index=pairing.unwrapped(m.index, plan.index_modulus))


def _pairs(plan: MapFile, alice: Measured, bob: Measured, way: str, where: str) -> pairing.Pairs:
    if way == "index":
        assert alice.index is not None
        assert bob.index is not None
        return pairing.by_index(alice.index, bob.index)
    if way == "time":
        assert alice.time_s is not None
        assert bob.time_s is not None
        return pairing.by_time(alice.time_s, bob.time_s, plan.tolerance_s)
    rows = np.arange(len(alice.h), dtype=np.int64)
    return pairing.Pairs(rows, rows, {})


def _apart(plan: MapFile, everybody: Mapping[str, Measured], way: str) -> str:
    """Return how far apart in time both ends' probes are; '' unless they are paired by time."""
    a, b = everybody["alice"].time_s, everybody["bob"].time_s
    if way != "time" or a is None or b is None or not a.size or not b.size:
        return ""
    b = np.sort(b)
    return (
        f"; nearest {np.median(np.abs(b[pairing.nearest(a, b)] - a)):.3g} s apart, tolerance_s = {plan.tolerance_s:g}"
    )


def _rows(plan: MapFile, eve: Measured, end: Measured, own: I64, way: str) -> I64:
    """Return Eve's row of each pair, −1 where she has none."""
    if way == "order":
        return own
    if way == "index":
        assert eve.index is not None
        assert end.index is not None
        return pairing.rows_by_index(end.index, eve.index)
    assert eve.time_s is not None
    assert end.time_s is not None
    return pairing.rows_by_time(end.time_s, eve.time_s, plan.tolerance_s)


def _used(plan: MapFile, alice: Measured, bob: Measured, where: str) -> tuple[I64, list[int]]:
    """Return the subcarriers that are used, and those found to be zero or missing at every probe of an end."""
    n = alice.h.shape[-1]
    if any(not 0 <= k < n for k in plan.leave_out):
        raise InputError(f"{where}: key 'leave_out': {plan.leave_out}; accepted: subcarriers 0 to {n - 1}")
    zero = np.zeros(n, dtype=bool)
    for m in (alice, bob):
        zero |= ~np.nan_to_num(np.abs(m.h)).any(axis=(0, 1, 2))
    dead = [int(k) for k in np.flatnonzero(zero) if k not in plan.leave_out]
    used = np.setdiff1d(np.flatnonzero(~zero), plan.leave_out)
    if not used.size:
        raise InputError(
            f"{where}: no subcarrier is left: {len(dead)} are zero or NaN throughout; accepted: one that is not"
        )
    return used, dead


def _axis(plan: MapFile, alice: Measured, where: str) -> F64:
    n = alice.h.shape[-1]
    if isinstance(plan.subcarrier_hz, list):
        hz = np.asarray(plan.subcarrier_hz, dtype=np.float64)
    elif plan.subcarrier_spacing_hz is not None:
        hz = (np.arange(n) - (n - 1) / 2) * plan.subcarrier_spacing_hz
    elif alice.subcarrier_hz is not None:
        hz = alice.subcarrier_hz
    elif n == 1:
        hz = np.zeros(1)
    else:
        raise InputError(f"{where}: {n} subcarriers; accepted: subcarrier_hz or subcarrier_spacing_hz in the map")
    if hz.shape != (n,) or not np.isfinite(hz).all() or (np.diff(hz) <= 0).any():
        raise InputError(f"{where}: subcarrier_hz: {hz.size} values; accepted: {n} that are finite and ascend")
    return hz


def _interval_s(time_s: F64 | None, rounds: int) -> float | None:
    if time_s is None or rounds < 2 or np.ptp(time_s) <= 0:
        return None
    return float(np.ptp(time_s) / (rounds - 1))


def _counts(left_over: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in left_over.items()) or "none left over"
