"""How secret bits may stand in a file, a message or an argument, and the search for them.

A secret is a row of 0 and 1 (a key, raw bits, the levels of a pattern of one bit an element, pads). A stretch of 128 of
them is searched for, long enough never to be met by chance, at its beginning, wherever a byte may begin, and at its
end.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import h5py
import numpy as np

STRETCH = 128


def _of_bytes(data: bytes) -> dict[str, bytes]:
    """Return the spellings of packed bits."""
    hexed, values = data.hex(), list(data)
    out = {
        "bytes": data,
        "hex": hexed.encode(),
        "HEX": hexed.upper().encode(),
        "hex, parted": data.hex(" ").encode(),
        "hex, colons": data.hex(":").encode(),
        "hex, 0x": ", ".join(f"0x{v:02x}" for v in values).encode(),
        "list of bytes": ", ".join(map(str, values)).encode(),
        "JSON list of bytes": ",".join(map(str, values)).encode(),
        "decimal": str(int.from_bytes(data, "big")).encode(),
        "base32": base64.b32encode(data).rstrip(b"=")[:-1],
        "base85": base64.b85encode(data),
        "ascii85": base64.a85encode(data),
        "repr": repr(b"'\"" + data)[5:-1].encode(),
        "URL": quote_from_bytes(data).encode(),
    }
    for shift in range(3):  # wherever in a longer text it begins
        text = base64.b64encode(bytes(shift) + data)[4 if shift else 0 : -4][1:]
        out[f"base64 + {shift}"] = text
        out[f"base64url + {shift}"] = text.replace(b"+", b"-").replace(b"/", b"_")
    return out


def _of_bits(bits: np.ndarray[Any, Any]) -> dict[str, bytes]:
    """Return the spellings of bits that are not packed."""
    told = [str(b) for b in bits.tolist()]
    truths = [str(bool(b)) for b in bits.tolist()]
    out = {
        "a byte a bit": bits.astype(np.uint8).tobytes(),  # also a .npy file's content, and a msgpack list
        "hex of a byte a bit": bits[:64].astype(np.uint8).tobytes().hex().encode(),
        "digits": "".join(told).encode(),
        "list": ", ".join(told).encode(),
        "JSON list": ",".join(told).encode(),
        "lines": "\n".join(told).encode(),
        "numpy's print": " ".join(told[:30]).encode(),
        "floats": ", ".join(f"{b}.0" for b in bits.tolist()).encode(),
        "truths": ", ".join(truths).encode(),
        "JSON truths": ",".join(truths).lower().encode(),
    }
    for kind in ("<i2", "<i4", "<i8", "<f4", "<f8", ">i4", ">f8"):
        out[kind] = bits.astype(kind).tobytes()
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + bits[:64].astype(np.uint8).tobytes())[4 if shift else 0 : -4][1:]
        out[f"base64 of a byte a bit + {shift}"] = text
    return out


def spellings(bits: np.ndarray[Any, Any]) -> dict[str, bytes]:
    """Return what the first 128 of (bit,) 0/1 values look like, by encoding: as they are, inverted, and backwards."""
    bits = np.asarray(bits)[:STRETCH].astype(np.uint8)
    out: dict[str, bytes] = {}
    for how, these in (("", bits), ("inverted ", 1 - bits), ("backwards ", bits[::-1])):
        for order in ("big", "little"):
            packed = np.packbits(these, bitorder=order).tobytes()  # type: ignore[call-overload]
            out |= {f"{how}{order} {name}": text for name, text in _of_bytes(packed).items()}
        out |= {how + name: text for name, text in _of_bits(these).items()}
    out["bytes backwards"] = np.packbits(bits).tobytes()[::-1]
    out["decimal, bytes backwards"] = str(int.from_bytes(np.packbits(bits).tobytes(), "little")).encode()
    return out


def usual(bits: np.ndarray[Any, Any]) -> dict[str, bytes]:
    """Return the spellings that somebody would use without thinking, where there are many secrets to look for."""
    all_of_it = spellings(bits)
    likely = (
        "big bytes", "little bytes", "big hex", "big HEX", "little hex", "big decimal", "big list of bytes", "big repr",
        "a byte a bit", "hex of a byte a bit", "digits", "list", "JSON list", "<i8", "<f8", "inverted big bytes",
        "backwards big bytes", "inverted a byte a bit", "backwards a byte a bit",
    )  # fmt: skip
    return {k: v for k, v in all_of_it.items() if k in likely or k.startswith(("big base64 ", "base64 "))}


def wanted(bits: np.ndarray[Any, Any], every_shift: bool = True) -> dict[str, bytes]:
    """Return all that is searched for of a secret: its beginning at every bit of a byte, and its end."""
    bits = np.asarray(bits)
    out = {f"its end: {k}": v for k, v in spellings(bits[-STRETCH:]).items()} | spellings(bits)
    for shift in range(1, 8 if every_shift and bits.size >= STRETCH + 8 else 1):
        out |= {f"from bit {shift}: {k}": v for k, v in spellings(bits[shift:]).items() if " bytes" in k or "hex" in k}
    return out


def leaks(places: Iterable[tuple[str, bytes]], secrets: Mapping[str, Mapping[str, bytes]]) -> set[tuple[str, str, str]]:
    """Return (place, secret, encoding) for everything that is found; `secrets`: name → what `wanted` gave."""
    found = set()
    for place, text in places:
        for name, ways in secrets.items():
            found |= {(place, name, how) for how, way in ways.items() if way in text}
    return found


def files(*folders: Path, leave_out: tuple[str, ...] = (".key",)) -> Iterator[tuple[str, bytes]]:
    """Yield every file under the folders, and once more what is compressed in it."""
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in leave_out):
            data = path.read_bytes()
            yield str(path), data
            if path.suffix == ".h5":
                yield f"{path}, unpacked", b"|".join(_arrays(path))
            if path.suffix == ".html":
                yield f"{path}, unpacked", b"|".join(_inflated(data))


def _arrays(path: Path) -> list[bytes]:
    parts: list[bytes] = []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind in "iufbc":
            parts.append(np.ascontiguousarray(item[...]).tobytes())

    with h5py.File(path) as file:
        file.visititems(visit)
    return parts


def _inflated(page: bytes) -> Iterator[bytes]:
    """Yield what is embedded in a page: data: URIs, and streams in them."""
    for piece in page.split(b"base64,")[1:]:
        text = piece.split(b'"')[0].split(b"'")[0].split(b")")[0]
        try:
            data = base64.b64decode(text)
        except ValueError:
            continue
        yield data
        for start in (b"\x1f\x8b", b"\x78\x9c", b"\x78\xda"):
            at = data.find(start)
            if at >= 0:
                try:
                    yield zlib.decompressobj(47).decompress(data[at:])
                except zlib.error:
                    continue


def arguments() -> set[bytes]:
    """Return the argument lists of all processes that are running."""
    found = set()
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                found.add((path / "cmdline").read_bytes())
            except OSError:  # it has ended
                continue
    return found


def core_limits(parent: int) -> dict[str, str]:
    """Return the largest core file, in bytes, that each node's process may leave, of those that `parent` started."""
    found = {}
    for path in Path("/proc").iterdir():
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            if path.name.isdecimal() and b"node" in words and _parent(path) == parent:
                row = next(x for x in (path / "limits").read_text().splitlines() if x.startswith("Max core file size"))
                found[words[words.index(b"node") + 1].decode()] = row.split()[4]
        except OSError:  # it has ended
            continue
    return found


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def as_npy(bits: np.ndarray[Any, Any]) -> bytes:
    """Return a .npy file of bits."""
    out = io.BytesIO()
    np.save(out, bits)
    return out.getvalue()
