"""Makes bad inputs out of good ones: bytes, texts and msgpack trees. Everything follows from a seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

NUMBERS = [0, 1, -1, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -0.0, 1e-300, 1e300, 5e-324, 1.7e308, float("inf"), float("-inf"), float("nan"), -1.0, 0.5]
TEXTS = ["", "..", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "a>b>c", "a/b", "é", "𝔞", "x" * 300, "%s%n", "{}", "\n"]
TOKENS = [
    "nan", "inf", "-inf", "1e999", "1e-300", "0", "-1", "9" * 30, "true", '""', '"../x"', "[]", "[[]]", "{}", "null",
    '"\\u0000"', "2026-02-30", "[" * 60, "=", "\n", "#", '"', "'''",
]  # fmt: skip


def spoil_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return other bytes, most often nearly the same."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(9):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.choice([0, 1, 0x7F, 0x80, 0xC1, 0xFF, rng.randrange(256)])
            case 2:
                out[at:at] = rng.randbytes(rng.choice([1, 1, 2, 8, 64]))
            case 3:
                del out[at : at + rng.choice([1, 1, 2, 8, 64])]
            case 4:
                out[at:at] = out[at : at + rng.randrange(1, 40)]
            case 5:
                del out[at:]
            case 6 if others:
                other = rng.choice(others)
                out[at:] = other[rng.randrange(len(other) + 1) :]
            case 7:
                packed = struct.pack(rng.choice(["<I", ">I", "<H", ">Q"]), rng.choice(NUMBERS) & 0xFFFF)
                out[at : at + len(packed)] = packed
            case _:
                out[at:at] = rng.choice(TEXTS).encode()
    return bytes(out)


def spoil_text(text: str, rng: random.Random) -> str:
    """Return another text: words, numbers and lines exchanged, doubled, left out."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0:
                del lines[at]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 2:
                words = lines[at].split(" ")
                words[rng.randrange(len(words))] = rng.choice(TOKENS)
                lines[at] = " ".join(words)
            case 3:
                head, sign, _ = lines[at].partition("=")
                lines[at] = head + sign + " " + rng.choice(TOKENS) if sign else head
            case 4:
                lines[at] = spoil_bytes(lines[at].encode(), rng).decode("utf-8", "replace")
            case _:
                lines[at] = lines[at].replace(rng.choice("0123456789."), rng.choice(TOKENS), 1)
        text = "\n".join(lines)
    return text


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of everything in a tree of dicts and lists."""
    found = [path]
    if isinstance(value, dict):
        found += [p for k, v in value.items() for p in places(v, (*path, k))]
    elif isinstance(value, list):
        found += [p for k in range(min(len(value), 3)) for p in places(value[k], (*path, k))]
    return found


def spoil_value(value: Any, rng: random.Random) -> Any:
    """Return another value, most often of the same type."""
    if rng.random() < 0.25:
        deep: Any = 0
        for _ in range(rng.choice([3, 20, 60])):
            deep = rng.choice([[deep], {"x": deep}])
        extension = msgspec.msgpack.Ext(rng.randrange(-128, 128), rng.randbytes(rng.randrange(9)))
        return rng.choice([None, True, *NUMBERS, *FLOATS, *TEXTS, b"", b"\0" * 9, [], {}, deep, extension])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([*NUMBERS, value + 1, value - 1, -value])
    if isinstance(value, float):
        return rng.choice([*FLOATS, value * 2, -value])
    if isinstance(value, str):
        return rng.choice([*TEXTS, value + "x", value[:-1]])
    if isinstance(value, bytes):
        return spoil_bytes(value, rng)
    if isinstance(value, list):
        return rng.choice([value * 2, value[1:], value[::-1], [], [value], [*value, None]])
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if rng.random() < 0.7} | rng.choice(
            [{}, {"x": 1}, {rng.choice(TEXTS): 0}]
        )
    return 0


def spoil_tree(tree: Any, rng: random.Random) -> Any:
    """Return a copy of a tree with one to three of its values, keys or branches changed."""
    tree = msgspec.msgpack.decode(msgspec.msgpack.encode(tree))
    for _ in range(rng.choice([1, 1, 2, 3])):
        *folders, last = rng.choice(places(tree)[1:] or [(None,)])
        if last is None:
            return spoil_value(tree, rng)
        at = tree
        for key in folders:
            at = at[key]
        if isinstance(at, dict) and rng.random() < 0.15:
            moved = at.pop(last)
            if rng.random() < 0.5:
                at[rng.choice(TEXTS)] = moved
        else:
            at[last] = spoil_value(at[last], rng)
    return tree


def packed(tree: Any) -> bytes:
    """Encode a tree; what msgpack cannot hold becomes something that it can."""
    try:
        return msgspec.msgpack.encode(tree)
    except (OverflowError, ValueError, RecursionError, TypeError):
        return b"\xc1"
