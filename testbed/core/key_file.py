"""A delivered key on disk: a JSON object of its length and its bits, readable by its owner only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from testbed.core.types import U8
from testbed.core.whole import read_whole

MAX_BYTES = 1 << 24
"""Largest size of such a file; the longest block's key takes some kilobytes."""


def mark_of(path: Path) -> Path:
    """Return the path of the empty file beside a key's file that says that both ends have this key."""
    return path.with_suffix(".confirmed")


class _File(Struct, forbid_unknown_fields=True):
    bits: Annotated[int, Meta(ge=1, le=4 * MAX_BYTES)]
    hex: str
    """The bits, eight in a byte, the first one on top; the last byte is filled up with zeros."""


def content(bits: U8) -> str:
    """Return the text of a key's file; (bit,) of 0 and 1."""
    return json.dumps({"bits": int(bits.size), "hex": np.packbits(bits).tobytes().hex()})


def read(path: Path) -> U8:
    """Return a key's bits, (bit,); raises OSError where it cannot be read, ValueError where it is no such file."""
    found = msgspec.json.decode(read_whole(path, MAX_BYTES), type=_File)
    packed = bytes.fromhex(found.hex)
    if len(packed) != (found.bits + 7) // 8:
        raise ValueError(f"{found.bits} bits in {len(packed)} bytes")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=found.bits)
