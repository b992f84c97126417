"""Seeds are derived by name from one experiment seed, never shared and never global."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for a named purpose; the same names give the same seed on every machine."""
    text = "/".join([str(seed), *map(str, names)]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return an independent random generator for a named purpose."""
    return np.random.default_rng(derive(seed, *names))


def permutation(n: int, seed: int, *names: str | int) -> NDArray[np.int64]:
    """Return a (n,) shuffle of 0 … n−1 for a named purpose, the same with every numpy version.

    Two nodes that shuffle by a published seed may run different numpy releases: only the raw stream of a bit
    generator is guaranteed not to change between them, `Generator.permutation` is not.
    """
    return np.argsort(np.random.PCG64(derive(seed, *names)).random_raw(n), kind="stable")


class Streams:
    """Any number of independent random streams behind one generator.

    For draws that are keyed by time or place: going to another stream costs 2 µs, making a Generator 30 µs or more.
    """

    def __init__(self, seed: int, *names: str | int) -> None:
        self._prefix = hashlib.sha256("/".join([str(seed), *map(str, names)]).encode())
        self._bits = np.random.Philox(key=0)
        self._fresh = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, *key: str | int) -> np.random.Generator:
        """Return the generator at the beginning of the stream `key`; it stays there until the next call."""
        digest = self._prefix.copy()
        digest.update("".join([f"/{k}" for k in key]).encode())
        self._fresh["state"]["key"][:] = np.frombuffer(digest.digest(), "<u8", count=2)
        self._bits.state = self._fresh
        return self._generator
