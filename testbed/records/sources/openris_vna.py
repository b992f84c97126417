"""Both directions of a channel through a real 32×16 one-bit surface, 3–4 GHz.

From jimrains/OpenRIS, folder `measurements/ff_singletile`.

Read from the published tree of CSV files, `tx_<deg>_<pol>/rx_<deg>/<configuration>.csv`, or from `openris_ff.npz`, the
same numbers packed: `freq_hz` (frequency,), and a cut `tx_<deg>_<pol>` (position, configuration, frequency, direction:
S34, S43) complex with `<cut>_rx_deg` (position,).

A probe is one surface configuration at one receiver position. The RIS-induced part is what the configuration changes:
each position's amplitude, per frequency, is divided by its geometric mean over the configurations (in dB: minus the
mean). Alice is the fixed horn, Bob the moved one, Eve the same receiver elsewhere on the arc while Alice transmits.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import InputError
from testbed.core.types import C64, F64, I64, CsiSeries
from testbed.records.sources import Cut, EveLinks, Recording

ACCEPTS = "openris_ff.npz, a folder with it, or the published folder ff_singletile (tx_<deg>_<pol>/rx_<deg>/<n>.csv)"

CAVEATS = (
    "both directions come from one sweep of one analyser: no time between the two probes, one common clock",
    "Eve's positions were measured one after another, not at the same instant as Bob's",
    "only 11 surface configurations, each aimed at one direction, known to Eve as to everybody",
    "which of S34 and S43 is heard by the fixed horn is not documented; we take S34 (figures move by < 0.01)",
)
BAND_HZ = (3.48e9, 3.68e9)
"""Where the surface works: the A–B correlation of its part is 0.99 here and 0.6 at 3 GHz."""
EVE_STEPS_DEG = (3, 6, 9, 15, 30)
ASSUMED_DEG = (15, 30)
MAIN = "tx_105_VV"
_CUT = re.compile(r"tx_\d+_[HV]{2}$")
_COLUMNS = "Freq(Hz),S33(DB),S33(DEG),S34(DB),S34(DEG),S43(DB),S43(DEG),S44(DB),S44(DEG)"


def matches(path: Path) -> bool:
    return _npz(path) is not None or (path.is_dir() and any(_folders(path)))


def load(path: Path) -> Recording:
    """Read every cut that is there."""
    file = _npz(path)
    freq_hz, measured = _from_npz(file) if file is not None else _from_csv(path)
    if not ((freq_hz >= BAND_HZ[0]) & (freq_hz <= BAND_HZ[1])).any():
        raise InputError(
            f"{file or path}: frequencies from {freq_hz.min() / 1e9:g} to {freq_hz.max() / 1e9:g} GHz; "
            f"accepted: some between {BAND_HZ[0] / 1e9:g} and {BAND_HZ[1] / 1e9:g} GHz"
        )
    cuts = {name: _cut(name, freq_hz, h, rx_deg) for name, (h, rx_deg) in measured.items()}
    return Recording(
        name="openris_vna",
        description="RIS-induced part of channels through one OpenRIS tile, 3.48-3.68 GHz, outdoors, 8.3 m",
        caveats=CAVEATS,
        cuts=cuts,
        main=MAIN if MAIN in cuts else next(iter(cuts)),
    )


def _cut(name: str, freq_hz: F64, h: C64, rx_deg: I64) -> Cut:
    """Build a cut from (position, configuration, frequency, direction)."""
    band = (freq_hz >= BAND_HZ[0]) & (freq_hz <= BAND_HZ[1])
    induced = h[:, :, band]
    induced = induced / np.exp(np.log(np.abs(induced)).mean(axis=1, keepdims=True))

    def series(values: C64) -> CsiSeries:
        n_positions, n_configurations = values.shape[:2]
        return CsiSeries(
            h=values.reshape(n_positions * n_configurations, 1, 1, -1).astype(np.complex64),
            rounds=np.arange(n_positions * n_configurations, dtype=np.int64),
            subcarrier_hz=freq_hz[band] - np.mean(BAND_HZ),
        )

    eves = {}
    for step_deg in EVE_STEPS_DEG:
        there = _moved(rx_deg, step_deg)
        moved = np.where((there >= 0)[:, None, None], induced[there, :, :, 1], np.complex64(np.nan))
        eves[f"{step_deg}deg"] = EveLinks(from_alice=series(moved), from_bob=None)
    return Cut(
        name=name,
        alice=series(induced[..., 0]),
        bob=series(induced[..., 1]),
        groups=np.repeat(np.arange(len(rx_deg), dtype=np.int64), h.shape[1]),
        per_group=True,
        chain=ChainPlan(),
        accounting=Accounting(block_rounds=h.shape[0] * h.shape[1]),
        key_probes=_key_probes(*h.shape[:2]),
        eves=eves,
        assumed=tuple(f"{d}deg" for d in ASSUMED_DEG),
        assumption=f"Eve is at least {min(ASSUMED_DEG)} degrees ({8.3 * np.radians(min(ASSUMED_DEG)):.1f} m) from Bob",
        interval_s=None,
    )


def _key_probes(n_positions: int, n_configurations: int) -> I64:
    """Return the probes that feed the key: configuration by configuration, each over all positions.

    Neighbouring positions under one configuration resemble each other most (r = 0.67 at 3 degrees), so they stand next
    to each other, where the entropy estimate looks for memory. The last configuration is left out: the mean over all
    of them is zero, so it holds nothing that the others do not tell.
    """
    probe = np.arange(n_positions * n_configurations, dtype=np.int64).reshape(n_positions, n_configurations)
    return probe[:, : max(1, n_configurations - 1)].T.reshape(-1)


def _moved(rx_deg: I64, step_deg: int) -> I64:
    """Return (position,) the index of the position `step_deg` further on, else that far back, else -1."""
    where = {int(angle): i for i, angle in enumerate(rx_deg)}
    return np.array([where.get(int(a) + step_deg, where.get(int(a) - step_deg, -1)) for a in rx_deg], dtype=np.int64)


# ---------------------------------------------------------------- reading


def _npz(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix == ".npz" else None
    return path / "openris_ff.npz" if (path / "openris_ff.npz").is_file() else None


def _folders(path: Path) -> list[Path]:
    return [p for p in sorted(path.iterdir()) if p.is_dir() and _CUT.match(p.name)]


def _from_npz(file: Path) -> tuple[F64, dict[str, tuple[C64, I64]]]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, AttributeError) as exc:
        raise InputError(f"{file}: cannot be read, damaged or truncated ({exc}); accepted: {ACCEPTS}") from exc
    names = [name for name in arrays if _CUT.match(name)]
    missing = [n for n in ["freq_hz", *(f"{name}_rx_deg" for name in names)] if n not in arrays]
    if not names:
        missing.append("tx_<deg>_<pol>")
    if missing:
        raise InputError(
            f"{file}: no array {', '.join(missing)}; accepted: freq_hz, tx_<deg>_<pol>, tx_<deg>_<pol>_rx_deg"
        )
    freq_hz = arrays["freq_hz"]
    _check(file, "freq_hz", freq_hz, (None,), "f")
    for name in names:
        _check(file, f"{name}_rx_deg", arrays[f"{name}_rx_deg"], (None,), "iu")
        _check(file, name, arrays[name], (len(arrays[f"{name}_rx_deg"]), None, len(freq_hz), 2), "c")
    return freq_hz, {name: (arrays[name], arrays[f"{name}_rx_deg"].astype(np.int64)) for name in names}


def _check(file: Path, name: str, array: Any, shape: tuple[int | None, ...], kinds: str) -> None:
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in kinds or 0 in array.shape:
        kind = {"f": "real", "iu": "integer", "c": "complex"}[kinds]
        raise InputError(
            f"{file}: array {name}: {array.dtype} of shape {array.shape}; accepted: {kind} of shape {wanted}"
        )
    if not np.isfinite(array).all() or (kinds == "c" and not array.all()):
        raise InputError(f"{file}: array {name}: holds zeros, infinities or NaN; accepted: finite values other than 0")


def _from_csv(path: Path) -> tuple[F64, dict[str, tuple[C64, I64]]]:
    freq_hz: F64 | None = None
    cuts = {}
    for folder in _folders(path):
        places = sorted((int(p.name[3:]), p) for p in folder.iterdir() if re.fullmatch(r"rx_\d+", p.name))
        positions: list[list[C64]] = []
        for _, place in places:
            sweeps = []
            for file in sorted(place.glob("*.csv"), key=lambda f: (len(f.stem), f.stem)):
                frequencies, values = _sweep(file)
                if freq_hz is None:
                    freq_hz = frequencies
                if not np.array_equal(frequencies, freq_hz):
                    raise InputError(
                        f"{file}: frequencies differ from the other files'; accepted: one sweep plan throughout"
                    )
                sweeps.append(values)
            if not sweeps or (positions and len(sweeps) != len(positions[0])):
                expected = len(positions[0]) if positions else "at least one"
                raise InputError(f"{place}: {len(sweeps)} CSV files; accepted: one a configuration, {expected}")
            positions.append(sweeps)
        if not positions:
            raise InputError(f"{folder}: no folder rx_<deg>; accepted: {ACCEPTS}")
        cuts[folder.name] = (np.array(positions), np.array([angle for angle, _ in places], dtype=np.int64))
    assert freq_hz is not None  # `matches` found a cut folder, and an empty one raised above
    return freq_hz, cuts


def _sweep(file: Path) -> tuple[F64, C64]:
    """Return (frequency,) and (frequency, direction) of an analyser's CSV file."""
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        start = lines.index(_COLUMNS) + 1
        table = np.array([line.split(",") for line in lines[start : lines.index("END", start)]], dtype=np.float64)
        values = 10.0 ** (table[:, [3, 5]] / 20.0) * np.exp(1j * np.radians(table[:, [4, 6]]))
    except (OSError, ValueError, IndexError) as exc:
        raise InputError(f"{file}: {exc}; accepted: an analyser's CSV with columns {_COLUMNS}, closed by END") from exc
    if not np.isfinite(values).all():
        raise InputError(f"{file}: holds values that are not finite; accepted: dB and degrees")
    return table[:, 0], values.astype(np.complex64)
