"""Seeds are derived by name from one experiment seed, never shared and never global."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for a named purpose; the same names give the same seed on every machine."""
    return int.from_bytes(_digest(seed, *names)[:8], "little") >> 1


def deriver(seed: int, *names: str | int) -> Callable[[str | int], int]:
    """Return what gives `derive(seed, *names, name)` for a last name, in a third of the time."""
    begun = hashlib.sha256("/".join([str(seed), *map(str, names), ""]).encode())

    def derived(name: str | int) -> int:
        whole = begun.copy()
        whole.update(str(name).encode())
        return int.from_bytes(whole.digest()[:8], "little") >> 1

    return derived


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return an independent random generator for a named purpose."""
    # All 256 bits are used, so that a secret seed does not lose entropy.
    return np.random.default_rng(np.frombuffer(_digest(seed, *names), dtype="<u4"))


def secret(seed: int, *names: str | int) -> int:
    """Return a 256-bit seed for a named purpose: as hard to guess as `seed`."""
    return int.from_bytes(_digest(seed, *names), "little")


def _digest(seed: int, *names: str | int) -> bytes:
    return hashlib.sha256("/".join([str(seed), *map(str, names)]).encode()).digest()


def fresh() -> int:
    """Return a 62-bit seed from the operating system's randomness."""
    import secrets

    return secrets.randbits(62)


def permutation(n: int, seed: int, *names: str | int) -> NDArray[np.int64]:
    """Return a (n,) shuffle of 0 … n−1 for a named purpose, the same with every numpy version.

    Two nodes that shuffle by a published seed may run different numpy releases: only the raw stream of a bit
    generator is guaranteed not to change between them, `Generator.permutation` is not.
    """
    return np.argsort(np.random.PCG64(derive(seed, *names)).random_raw(n), kind="stable")


class Streams:
    """Any number of independent random streams, drawn from one generator.

    For draws that are keyed by time or place: changing the stream takes 2 µs, making a Generator 30 µs or more.
    The streams are parts of one counter-based generator (Salmon et al., SC'11), 2¹²⁸ numbers apart.
    """

    def __init__(self, seed: int, *names: str | int) -> None:
        self._bits = np.random.Philox(key=derive(seed, *names))
        self._fresh = self._bits.state
        self._counter = self._fresh["state"]["counter"]
        self._generator = np.random.Generator(self._bits)

    def at(self, key: int, group: int = 0) -> np.random.Generator:
        """Return the generator at the start of stream (`group`, `key`), both ≥ 0; the next call moves it elsewhere."""
        self._counter[2] = key
        self._counter[3] = group
        self._bits.state = self._fresh
        return self._generator

    def words(self, n: int, key: int, group: int = 0) -> NDArray[np.uint32]:
        """Return the first n random words of stream (`group`, `key`); n is even, and the generator goes on after
        them."""
        self.at(key, group)
        return self._bits.random_raw(n // 2).view(np.uint32)
