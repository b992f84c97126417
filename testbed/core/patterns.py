"""Surface patterns by name, as experiment files, the command line and saved results give them.

uniform               every element at level 0; uniform(2): at level 2
random(7)             every element drawn uniformly, from seed 7
stripes(4)            columns alternate between level 0 and half a turn every 4; stripes(4, rows): rows do
beam(30, 10)          towards azimuth 30°, elevation 10° for a wave that comes from broadside
beam(30, 10, -20, 0)  the same for a wave that comes from azimuth −20°, elevation 0° (elements half a wavelength
                      apart; angles as seen by an observer facing the surface)
hadamard(3)           row 3 of the Hadamard matrix over the elements, −1 being half a turn
0x9F…                 hexadecimal, `phase_bits` bits per element, by rows; element 1 (top left) has the highest bits
some/file.json        a saved pattern (`save`)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from testbed.core import seeds
from testbed.core.errors import InputError
from testbed.core.gate import printable
from testbed.core.types import U8, SurfacePattern
from testbed.core.whole import read_whole, write_whole
from testbed.core.words import counted

Shape = tuple[int, int]
ACCEPTED = "uniform(LEVEL), random(SEED), stripes(WIDTH), beam(AZIMUTH, ELEVATION), hadamard(ROW), 0xHEX, a .json file"


def check(spec: str) -> None:
    """Raise InputError where `spec` names no pattern of any board; the file of a saved pattern must exist."""
    if spec.startswith(("0x", "0X")):
        if not re.fullmatch(r"0[xX][0-9a-fA-F]+", spec):
            raise InputError(f"pattern {spec!r}: not hexadecimal")
    elif spec.endswith(".json"):
        load(Path(spec))
    else:
        _parse(spec)


def make(spec: str, shape: Shape, phase_bits: int) -> SurfacePattern:
    """Return the pattern that `spec` names on a board of (rows, columns) elements of `phase_bits` bits.

    Raises InputError, one line, for a name that is unknown or does not fit the board.
    """
    if spec.startswith(("0x", "0X")):
        check(spec)
        return from_hex(spec, shape, phase_bits)
    if spec.endswith(".json"):
        pattern, _ = load(Path(spec))
        if pattern.levels.shape != shape or pattern.phase_bits != phase_bits:
            raise InputError(
                f"{spec}: a pattern of {_size(pattern.levels.shape, pattern.phase_bits)}, "
                f"accepted by this board: {_size(shape, phase_bits)}"
            )
        return pattern
    name, arguments = _parse(spec)
    try:
        levels = _MAKERS[name](shape, phase_bits, *arguments)
    except ValueError as exc:
        raise InputError(f"pattern {spec!r}: {exc}") from exc
    return SurfacePattern(np.asarray(levels, dtype=np.uint8), phase_bits)


def quantize(phases_rad: Any, phase_bits: int) -> U8:
    """Return the levels (…) nearest to phases (…) in radians."""
    n_levels = 1 << phase_bits
    return np.asarray(np.rint(np.asarray(phases_rad) * (n_levels / (2 * np.pi))) % n_levels, dtype=np.uint8)


def steering(
    shape: Shape,
    phase_bits: int,
    azimuth_deg: float,
    elevation_deg: float,
    from_azimuth_deg: float = 0.0,
    from_elevation_deg: float = 0.0,
    spacing_wavelengths: float = 0.5,
) -> U8:
    """Return (row, column) levels that turn a plane wave from one direction into one towards another.

    Azimuth grows to the right and elevation upwards for an observer facing the surface; both 0 is broadside.
    """  # fmt: skip
    right, up = _direction(azimuth_deg, elevation_deg)
    from_right, from_up = _direction(from_azimuth_deg, from_elevation_deg)
    rows, columns = shape
    y = ((rows - 1) / 2 - np.arange(rows))[:, None] * spacing_wavelengths
    x = (np.arange(columns) - (columns - 1) / 2)[None, :] * spacing_wavelengths
    # The path over (x, y) is shorter by the projections of (x, y) on both directions; the element's phase cancels this.
    return quantize(-2 * np.pi * (x * (right + from_right) + y * (up + from_up)), phase_bits)


def _direction(azimuth_deg: float, elevation_deg: float) -> tuple[float, float]:
    if not (-90 <= azimuth_deg <= 90 and -90 <= elevation_deg <= 90):
        raise ValueError(f"direction ({azimuth_deg:g}°, {elevation_deg:g}°), accepted from −90° to 90°")
    azimuth, elevation = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    return float(np.sin(azimuth) * np.cos(elevation)), float(np.sin(elevation))


# ---------------------------------------------------------------- text


def to_hex(pattern: SurfacePattern) -> str:
    """Return `0x…`: element 1 (top left) in the most significant bits, by rows, padded with zeros at the end."""
    bits = (pattern.levels.reshape(-1, 1) >> np.arange(pattern.phase_bits - 1, -1, -1)) & 1
    digits = -(-bits.size // 4)
    return "0x" + np.packbits(bits.astype(np.uint8).ravel()).tobytes().hex()[:digits]


def from_hex(text: str, shape: Shape, phase_bits: int) -> SurfacePattern:
    """Read what `to_hex` writes; raises InputError for any other number of digits."""
    digits, wanted = text[2:], -(-shape[0] * shape[1] * phase_bits // 4)
    if len(digits) != wanted:
        raise InputError(f"pattern of {len(digits)} hexadecimal digits, accepted {wanted} ({_size(shape, phase_bits)})")
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(digits + "0" * (len(digits) % 2)), np.uint8))
    n_bits = shape[0] * shape[1] * phase_bits
    if bits[n_bits:].any():
        raise InputError(f"pattern {text!r}: bits beyond the last element are set, accepted: zeros")
    levels = bits[:n_bits].reshape(*shape, phase_bits) @ (1 << np.arange(phase_bits - 1, -1, -1))
    return SurfacePattern(levels.astype(np.uint8), phase_bits)


MAX_BYTES = 1 << 24
"""Largest size of a saved pattern's file, in bytes."""


class _Saved(Struct, frozen=True):
    """What `save` writes."""

    rows: Annotated[int, Meta(ge=1, le=1 << 16)]
    columns: Annotated[int, Meta(ge=1, le=1 << 16)]
    phase_bits: Annotated[int, Meta(ge=1, le=8)]
    levels: Annotated[str, Meta(pattern="^0[xX][0-9a-fA-F]+$")]
    digest: str
    provenance: dict[str, Any] = {}


def save(path: Path, pattern: SurfacePattern, provenance: dict[str, Any]) -> None:
    """Write a pattern and its provenance as JSON."""
    rows, columns = pattern.levels.shape
    document = {"rows": rows, "columns": columns, "phase_bits": pattern.phase_bits, "levels": to_hex(pattern),
                "digest": pattern.digest, "provenance": provenance}  # fmt: skip
    try:
        write_whole(path, json.dumps(document, indent=2) + "\n", private=False)
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {exc.strerror}") from exc


def load(path: Path) -> tuple[SurfacePattern, dict[str, Any]]:
    """Return a saved pattern and its provenance; raises InputError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path.stat().st_size} bytes, accepted up to {MAX_BYTES}")
        saved = msgspec.convert(json.loads(read_whole(path, MAX_BYTES).decode()), _Saved)
        pattern = from_hex(saved.levels, (saved.rows, saved.columns), saved.phase_bits)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc
    except (ValueError, RecursionError) as exc:  # msgspec.ValidationError is a ValueError
        raise InputError(f"{path}: no saved pattern: {printable(str(exc))}") from exc
    if saved.digest != pattern.digest:
        raise InputError(f"{path}: damaged: its digest is not that of its levels")
    return pattern, saved.provenance


def _size(shape: tuple[int, ...], phase_bits: int) -> str:
    return f"{'×'.join(map(str, shape))} elements of {phase_bits} bit"


# ---------------------------------------------------------------- by name


def _parse(spec: str) -> tuple[str, list[Any]]:
    match = re.fullmatch(r"\s*([a-z]+)\s*(?:\(([^()]*)\))?\s*", spec)
    if match is None or match[1] not in _MAKERS:
        raise InputError(f"no pattern is called {spec!r}; accepted: {ACCEPTED}")
    words = [w.strip() for w in match[2].split(",")] if match[2] else []
    kinds = _ARGUMENTS[match[1]]
    least = sum(not optional for _, optional in kinds)
    if not least <= len(words) <= len(kinds):
        raise InputError(f"pattern {spec!r}: {counted(len(words), 'argument')}, accepted {least} to {len(kinds)}")
    arguments = []
    for word, (kind, _) in zip(words, kinds, strict=False):
        try:
            value = kind(word)
        except ValueError as exc:
            raise InputError(f"pattern {spec!r}: {word!r} given, accepted: {_KIND_NAMES[kind]}") from exc
        arguments.append(value)
    return match[1], arguments


def _uniform(shape: Shape, phase_bits: int, level: int = 0) -> Any:
    if not 0 <= level < 1 << phase_bits:
        raise ValueError(f"level {level}, accepted 0 to {(1 << phase_bits) - 1}")
    return np.full(shape, level)


def _random(shape: Shape, phase_bits: int, seed: int) -> Any:
    return seeds.generator(seed, "pattern").integers(0, 1 << phase_bits, size=shape, dtype=np.uint8)


def _stripes(shape: Shape, phase_bits: int, width: int, along: str = "columns") -> Any:
    n = shape[0] if along == "rows" else shape[1]
    if not 1 <= width <= n:
        raise ValueError(f"width {width}, accepted 1 to {n} ({along})")
    rows, columns = np.indices(shape)
    return (rows if along == "rows" else columns) // width % 2 * (1 << phase_bits >> 1)


def _hadamard(shape: Shape, phase_bits: int, row: int) -> Any:
    n = shape[0] * shape[1]
    order = 1 << (n - 1).bit_length()
    if not 0 <= row < order:
        raise ValueError(f"row {row}, accepted 0 to {order - 1}")
    # Sylvester's matrix: the sign at (i, j) is the parity of the bits that i and j share
    parity = np.array([(row & j).bit_count() & 1 for j in range(n)])
    return parity.reshape(shape) * (1 << phase_bits >> 1)


def _natural(word: str) -> int:
    if not re.fullmatch(r"[0-9]+", word):
        raise ValueError
    return int(word)


def _degrees(word: str) -> float:
    if not abs(float(word)) <= 90:  # false for NaN, too
        raise ValueError
    return float(word)


def _axis(word: str) -> str:
    if word not in ("rows", "columns"):
        raise ValueError
    return word


_MAKERS: dict[str, Callable[..., Any]] = {
    "uniform": _uniform, "random": _random, "stripes": _stripes, "beam": steering, "hadamard": _hadamard,
}  # fmt: skip
_KIND_NAMES: dict[Callable[[str], Any], str] = {
    _natural: "a whole number from 0", _degrees: "a number of degrees from −90 to 90", _axis: "rows, columns",
}  # fmt: skip
# (type, optional) of each argument
_ARGUMENTS: dict[str, list[tuple[Callable[[str], Any], bool]]] = {
    "uniform": [(_natural, True)],
    "random": [(_natural, False)],
    "stripes": [(_natural, False), (_axis, True)],
    "beam": [(_degrees, False), (_degrees, False), (_degrees, True), (_degrees, True)],
    "hadamard": [(_natural, False)],
}
