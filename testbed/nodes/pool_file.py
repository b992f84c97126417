"""A node's pool of one-time authentication on disk: whole or absent, for one process, readable by its owner only."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from testbed.chain.wegman_carter import MOST_BYTES, PAD_BYTES, PAIR_BYTES, Pool
from testbed.core.errors import InputError, TestbedError
from testbed.core.gate import printable
from testbed.core.whole import read_whole, write_whole

NAME = "pool.json"
DEFAULT_BITS = 1 << 16
"""Enough for 256 blocks if the pool is never refilled."""


def make(paths: list[Path], bits: int = DEFAULT_BITS) -> int:
    """Draw a secret from the operating system's randomness and write it to each path, replacing any earlier pool.

    Returns the number of blocks that it authenticates.
    """
    pool = Pool.of(os.urandom(PAD_BYTES + max(1, bits // (8 * PAIR_BYTES)) * PAIR_BYTES))
    for path in paths:
        write_whole(path, pool.dump())
    return pool.pairs


def read(path: Path) -> Pool:
    """Return the pool in a file; raises InputError in one line if it is invalid or others can read it."""
    try:
        mode, size = path.stat().st_mode & 0o777, path.stat().st_size
        if mode & 0o077:
            raise InputError(f"{path}: readable by others (mode {mode:o}); accepted: 600")
        if size > MOST_BYTES:
            raise InputError(f"{path}: {size} bytes, accepted: a pool of up to {MOST_BYTES}")
        return Pool.load(read_whole(path, MOST_BYTES))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    except ValueError as exc:  # msgspec's errors are ValueErrors, too
        raise InputError(f"{path}: no pool of one-time authentication: {printable(str(exc))}") from exc


class PoolFile:
    """The locked pool of a node's process, since two processes would use the same pads."""

    def __init__(self, folder: Path) -> None:
        """Take the lock; raises InputError where another process has it."""
        self.path = folder / NAME
        self._fd = os.open(folder / f"{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise InputError(f"{self.path}: another process is using this pool; wait for it to end") from None

    def read(self) -> Pool | None:
        """Return the pool, None if there is none; raises InputError."""
        return read(self.path) if self.path.exists() else None

    def write(self, content: bytes) -> None:
        """Write the remaining pads; raises TestbedError if that fails: nothing made with the used ones may be sent."""
        try:
            write_whole(self.path, content)
        except OSError as exc:
            raise TestbedError(f"{self.path}: the used pads cannot be removed: {exc.strerror}") from exc

    def close(self) -> None:
        """Release the lock."""
        os.close(self._fd)
