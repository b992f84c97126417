"""Everything that a run measured and distilled, as bytes: two runs of one seed are compared by it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def recorded(folder: Path) -> dict[str, bytes]:
    """Return links, bits and rounds of `folder`/run by their place in the record, and the keys in `folder`/state."""
    out: dict[str, bytes] = {}
    with h5py.File(folder / "run" / "rounds.h5") as f:
        for part in ("links", "bits", "rounds"):
            f[part].visititems(lambda k, x, part=part: out.update({f"{part}/{k}": _bytes(x)}))  # type: ignore[misc]
    keys = sorted((folder / "state").glob("*/*/rehearsals/*/block-*.key"))
    return out | {f"{path.parents[2].name}/{path.name}": path.read_bytes() for path in keys}


def _bytes(item: Any) -> bytes:
    if not isinstance(item, h5py.Dataset):
        return b""
    values = np.asarray(item[...])
    if values.dtype != object:
        return values.tobytes()
    # the names of secret patterns contain a random word of the process that drew them
    return re.sub(r"state-[0-9a-f]{6}-", "state-", repr(values.tolist())).encode()
