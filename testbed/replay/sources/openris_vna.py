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
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from testbed.core.archives import read_npz
from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import InputError
from testbed.core.types import C64, F64, I64, CsiSeries
from testbed.core.whole import read_whole
from testbed.replay.sources import Cut, EveLinks, Recording

ACCEPTS = "openris_ff.npz, a folder with it, or the published folder ff_singletile (tx_<deg>_<pol>/rx_<deg>/<n>.csv)"

MAX_BYTES = 1 << 32
CAVEATS = (
    "one sweep of one analyser measured both directions: there is no time between the two probes, and one common clock",
    "Eve's positions were measured one after another, not at the same instant as Bob's",
    "only 11 surface configurations, each aimed at one direction, which is public",
    "which of S34 and S43 the fixed horn receives is not documented; we assume S34 (figures move by < 0.01)",
)
BAND_HZ = (3.48e9, 3.68e9)
"""Band in which the surface works: the RIS-induced parts at Alice and Bob have a correlation of 0.99 here and 0.6 at
3 GHz."""
N_CONFIGURATIONS = 11
AIM_DEG = 15 * np.arange(1, N_CONFIGURATIONS + 1, dtype=np.int64)
"""Direction at which each configuration is aimed."""
BEAM_DEG = 15
"""Half width of the main lobe, a margin included: Bob is in the beam if he is nearer to its direction than this."""
KEY_STEP_DEG = 6
"""Distance of the positions that are used. Positions 3 degrees apart have a correlation of 0.67, 9 degrees apart 0.29:
bits of nearer positions can be predicted from one another."""
EVE_STEPS_DEG = (3, 6, 9, 15, 30)
ASSUMED = ("15deg", "30deg", "codebook")
ASSUMPTION = (
    "Eve is 15 degrees (2.2 m) or more from Bob, knows the codebook and where Bob stands, and no Eve ever measures at "
    "Bob's places: the scene is static, so such a measurement would reveal the key"
)
KEY_NOTE = (
    f"positions {KEY_STEP_DEG} degrees apart, Bob more than {BEAM_DEG} degrees off the beam, 10 of 11 configurations: "
    "the rest can be predicted from these or from the codebook (r = 0.5)"
)
POOLED = "VV"
"""Cuts with both antennas vertical; they are pooled, because one position of the transmitter has too few probes."""
_CUT = re.compile(r"tx_\d+_[HV]{2}$")
_COLUMNS = "Freq(Hz),S33(DB),S33(DEG),S34(DB),S34(DEG),S43(DB),S43(DEG),S44(DB),S44(DEG)"


def matches(path: Path) -> bool:
    if path.is_file():
        return _is_ours(path)
    return _npz(path) is not None or (path.is_dir() and any(_folders(path)))


def _is_ours(file: Path) -> bool:
    """Whether an .npz file contains one of these arrays; other files have the same ending."""
    if file.suffix != ".npz":
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return any(_CUT.match(name.removesuffix("_rx_deg")) for name in names)


def load(path: Path) -> Recording:
    """Read every cut that is there, and pool those with both antennas vertical where there are several."""
    file = _npz(path)
    freq_hz, measured = _from_npz(file) if file is not None else _from_csv(path)
    if not ((freq_hz >= BAND_HZ[0]) & (freq_hz <= BAND_HZ[1])).any():
        raise InputError(
            f"{file or path}: frequencies from {freq_hz.min() / 1e9:g} to {freq_hz.max() / 1e9:g} GHz; "
            f"accepted: some between {BAND_HZ[0] / 1e9:g} and {BAND_HZ[1] / 1e9:g} GHz"
        )
    band = (freq_hz >= BAND_HZ[0]) & (freq_hz <= BAND_HZ[1])
    induced = {name: (_induced(h[:, :, band]), rx_deg) for name, (h, rx_deg) in measured.items()}
    cuts = {name: _cut(name, freq_hz[band] - np.mean(BAND_HZ), induced) for name in induced}
    vertical = [cut for name, cut in cuts.items() if name.endswith("_VV")]
    if len(vertical) > 1:
        cuts[POOLED] = _pool(vertical)
    return Recording(
        name="openris_vna",
        description="RIS-induced part of channels through one OpenRIS tile, 3.48-3.68 GHz, outdoors, 8.3 m",
        caveats=CAVEATS,
        cuts=cuts,
        main=POOLED if POOLED in cuts else next(iter(cuts)),
    )


def _induced(h: C64) -> C64:
    """Return what the configuration changes in (position, configuration, frequency, direction)."""
    out: C64 = (h / np.exp(np.log(np.abs(h)).mean(axis=1, keepdims=True))).astype(np.complex64)
    return out


def _cut(name: str, offset_hz: F64, everything: dict[str, tuple[C64, I64]]) -> Cut:
    """Build a cut from the RIS-induced parts of all cuts."""
    induced, rx_deg = everything[name]

    def series(values: C64) -> CsiSeries:
        flat = values.reshape(-1, 1, 1, values.shape[-1])
        return CsiSeries(h=flat, rounds=np.arange(len(flat), dtype=np.int64), subcarrier_hz=offset_hz)

    eves = {}
    for step_deg in EVE_STEPS_DEG:
        there = _moved(rx_deg, step_deg)
        moved = np.where((there >= 0)[:, None, None, None], induced[there], np.complex64(np.nan))[..., 1]
        # Near the end of the arc Eve is on Bob's other side. Those probes are used for the key, but not for the
        # correlations, all of which are to be those of the same displacement.
        further = rx_deg[there] == rx_deg + step_deg
        eves[f"{step_deg}deg"] = EveLinks(
            from_alice=series(moved), from_bob=None, told_over=np.repeat(further, N_CONFIGURATIONS)
        )
    expected = _expected(name, everything)
    if expected is not None:
        eves["codebook"] = EveLinks(from_alice=series(expected), from_bob=None, measured=False)
    key_probes = _key_probes(rx_deg)
    return Cut(
        name=name,
        alice=series(induced[..., 0]),
        bob=series(induced[..., 1]),
        groups=np.repeat(np.arange(len(rx_deg), dtype=np.int64), N_CONFIGURATIONS),
        per_group=True,
        chain=ChainPlan(enhance_options={"step": 20}, quantize_options={"bits": 4, "guard": 0.1}),
        accounting=Accounting(block_rounds=key_probes.size, sacrifice_fraction=0.15),
        eves=eves,
        assumed=tuple(label for label in eves if label in ASSUMED),
        assumption=ASSUMPTION,
        key_probes=key_probes,
        key_note=KEY_NOTE,
    )


def _pool(cuts: list[Cut]) -> Cut:
    """Join cuts, one after another: as if Alice had stood at several places in turn."""

    def join(parts: list[CsiSeries]) -> CsiSeries:
        h = np.concatenate([part.h for part in parts])
        return CsiSeries(h=h, rounds=np.arange(len(h), dtype=np.int64), subcarrier_hz=parts[0].subcarrier_hz)

    probes = np.cumsum([0, *(cut.groups.size for cut in cuts)])
    groups = np.cumsum([0, *(cut.groups[-1] + 1 for cut in cuts)])
    labels = [label for label in cuts[0].eves if all(label in cut.eves for cut in cuts)]
    key_probes = np.concatenate([_key_of(cut) + start for cut, start in zip(cuts, probes, strict=False)])
    eves = {}
    for label in labels:
        links = [cut.eves[label] for cut in cuts]
        heard = [link.from_alice for link in links if link.from_alice is not None]
        told = [link.told_over for link in links if link.told_over is not None]
        eves[label] = EveLinks(
            from_alice=join(heard),
            from_bob=None,
            told_over=np.concatenate(told) if told else None,
            measured=links[0].measured,
        )
    return replace(
        cuts[0],
        name=POOLED,
        alice=join([cut.alice for cut in cuts]),
        bob=join([cut.bob for cut in cuts]),
        groups=np.concatenate([cut.groups + start for cut, start in zip(cuts, groups, strict=False)]),
        accounting=msgspec.structs.replace(cuts[0].accounting, block_rounds=key_probes.size),
        eves=eves,
        key_probes=key_probes,
    )


def _key_of(cut: Cut) -> I64:
    assert cut.key_probes is not None
    return cut.key_probes


def _off_beam_deg(rx_deg: I64) -> I64:
    """Return (position, configuration) the angle from a configuration's aim to the receiver."""
    return rx_deg[:, None] - AIM_DEG[None, :]


def _expected(name: str, everything: dict[str, tuple[C64, I64]]) -> C64 | None:
    """Return (position, configuration, frequency) what an Eve expects who knows the codebook and Bob's position.

    It is the mean beam shape in dB over the angle off the beam, learnt at the transmitter's other positions and thus
    without any measurement of this cut; None where there are no other positions.
    """
    others = [other for key, other in everything.items() if key.split("_")[1] != name.split("_")[1]]
    if not others:
        return None
    rx_deg = everything[name][1]
    angle = np.concatenate([_off_beam_deg(deg).ravel() for _, deg in others])
    level = np.concatenate([np.log(np.abs(h[..., 0])).reshape(-1, h.shape[2]) for h, _ in others])
    known, place = np.unique(angle, return_inverse=True)
    total = np.zeros((known.size, level.shape[1]))
    np.add.at(total, place, level)
    shape = total / np.bincount(place)[:, None]
    wanted = _off_beam_deg(rx_deg)
    at = np.minimum(np.searchsorted(known, wanted), known.size - 1)
    out: C64 = np.exp(np.where((known[at] == wanted)[..., None], shape[at], 0.0)).astype(np.complex64)
    return out


def _key_probes(rx_deg: I64) -> I64:
    """Return the probes that feed the key: configuration by configuration, each over positions `KEY_STEP_DEG` apart.

    The last configuration is left out: the mean over all of them is zero, so it follows from the others. Probes with
    Bob in the beam are left out, too: the codebook is public, and Eve expects those to be strong.
    """
    probe = np.arange(rx_deg.size * N_CONFIGURATIONS, dtype=np.int64).reshape(rx_deg.size, N_CONFIGURATIONS)
    wanted = (rx_deg % KEY_STEP_DEG == 0)[:, None] & (np.abs(_off_beam_deg(rx_deg)) > BEAM_DEG)
    wanted[:, -1] = False
    out: I64 = probe.T[wanted.T]
    return out


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
        arrays: dict[str, Any] = read_npz(file, MAX_BYTES)
    except (OSError, ValueError) as exc:
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
        _check(file, name, arrays[name], (len(arrays[f"{name}_rx_deg"]), N_CONFIGURATIONS, len(freq_hz), 2), "c")
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
            # The published tree also contains an interrupted sweep, "8 - error.csv", which is not used.
            numbered = [file for file in place.glob("*.csv") if file.stem.isdigit()]
            for file in sorted(numbered, key=lambda f: int(f.stem)):
                frequencies, values = _sweep(file)
                if freq_hz is None:
                    freq_hz = frequencies
                if not np.array_equal(frequencies, freq_hz):
                    raise InputError(
                        f"{file}: frequencies differ from the other files'; accepted: the same frequencies in all files"
                    )
                sweeps.append(values)
            if len(sweeps) != N_CONFIGURATIONS:
                raise InputError(
                    f"{place}: {len(sweeps)} CSV files; accepted: one per configuration, {N_CONFIGURATIONS}"
                )
            positions.append(sweeps)
        if not positions:
            raise InputError(f"{folder}: no folder rx_<deg>; accepted: {ACCEPTS}")
        cuts[folder.name] = (np.array(positions), np.array([angle for angle, _ in places], dtype=np.int64))
    assert freq_hz is not None  # `matches` found a cut folder, and an empty one raised above
    return freq_hz, cuts


def _sweep(file: Path) -> tuple[F64, C64]:
    """Return (frequency,) and (frequency, direction) of an analyser's CSV file."""
    try:
        lines = read_whole(file, 1 << 26).decode("ascii").splitlines()
        start = lines.index(_COLUMNS) + 1
        table = np.array([line.split(",") for line in lines[start : lines.index("END", start)]], dtype=np.float64)
        values = 10.0 ** (table[:, [3, 5]] / 20.0) * np.exp(1j * np.radians(table[:, [4, 6]]))
    except (OSError, ValueError, IndexError) as exc:
        raise InputError(f"{file}: {exc}; accepted: an analyser's CSV with columns {_COLUMNS}, closed by END") from exc
    if not np.isfinite(values).all():
        raise InputError(f"{file}: holds values that are not finite; accepted: dB and degrees")
    return table[:, 0], values.astype(np.complex64)
