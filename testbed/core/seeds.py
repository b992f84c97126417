"""Seeds are derived by name from one experiment seed, never shared and never global."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for a named purpose; the same names give the same seed on every machine."""
    text = "/".join([str(seed), *map(str, names)]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return an independent random generator for a named purpose."""
    return np.random.default_rng(derive(seed, *names))
