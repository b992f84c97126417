"""Names of the files in a run's folder, and functions that write a file completely or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from testbed.core.errors import DiskFull, InputError
from testbed.core.whole import whole as whole  # the way every file of a run is written

JOURNAL = "journal.sqlite"
LOCK = "journal.lock"
ROUNDS = "rounds.h5"
RUN = "run.json"
SUMMARY = "summary.json"
REPORT = "report.html"
FIGURES = "figures"
"""Folder of the report's figures."""

_NOT_HASHED = (RUN, REPORT, LOCK)
"""Files without a hash: run.json, which cannot contain its own, and the report, which can be made again at any time."""


MAX_JSON = 1 << 28
"""Largest size of run.json and of summary.json: a million events."""
MAX_BYTES = 1 << 36
"""Largest size of rounds.h5 and of the journal."""


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner can read, where it is missing; its parents get the usual mode."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True, mode=0o700)


def make_private(path: Path) -> None:
    """Make an empty file that only its owner can read, for raw bits and CSI."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))
    path.chmod(0o600)


def newest_inside(folder: Path) -> str:
    """Return "; the newest run in it: runs/…" for a folder that contains runs and is none itself, else ''."""
    inside = [path.parent for name in (RUN, JOURNAL) for path in folder.glob(f"*/{name}")]
    return f"; the newest run in it: {max(inside, key=lambda run: run.stat().st_mtime)}" if inside else ""


def written_s(folder: Path) -> float:
    """Return when a run's journal was written last, as time of day in s; 0 where there is none."""
    paths = [p for p in folder.glob(f"{JOURNAL}*") if not p.name.endswith("-shm")]
    return max((p.stat().st_mtime for p in paths), default=0.0)


def sha512(path: Path) -> str:
    """Return the hex sha512 of a file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha512").hexdigest()


def hashes(folder: Path) -> dict[str, str]:
    """Return path (relative, '/') → sha512 of all files of a closed run, except those without a hash."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file())
    names = ((p.relative_to(folder).as_posix(), p) for p in paths)
    return {
        n: sha512(p)
        for n, p in names
        if n not in _NOT_HASHED and not n.startswith((JOURNAL, f"{FIGURES}/")) and p.suffix != ".part"
    }


RESERVE_BYTES = 32 << 20
"""Bytes that a run's folder needs in addition to its records: for the report, SQLite's files, and the file system."""


def free_bytes(folder: Path) -> int:
    """Return how many bytes may be written under `folder`, or under its nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def needed_to_close(folder: Path) -> int:
    """Return the largest number of bytes that the lasting files of a run take when they are made from its journal."""
    sizes = ((folder / (JOURNAL + end)) for end in ("", "-wal"))
    return RESERVE_BYTES + sum(path.stat().st_size for path in sizes if path.exists()) // 2


_NOTHING_FITS_BYTES = 1 << 20
"""If less is free, a library's error counts as that of a full disk, whatever it says: SQLite cannot open a database,
HDF5 cannot count references."""


def disk_full(folder: Path, then: str | None = None) -> DiskFull:
    """Return the error for a run that can no longer be written: one line, with the remedy."""
    missing_mb = max(1, (needed_to_close(folder) - free_bytes(folder)) >> 20)
    return DiskFull(f"{folder}: disk full: free {missing_mb} MB, then {then or f'`testbed report {folder}`'}")


def is_of_full_disk(exc: Exception, folder: Path) -> bool:
    """Return whether any library's error comes from the full disk of a run's folder."""
    if getattr(exc, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = str(exc).lower()
    return "disk is full" in words or "no space left" in words or free_bytes(folder) < _NOTHING_FITS_BYTES


@contextmanager
def on_disk(folder: Path, then: str | None = None) -> Iterator[None]:
    """Turn the error of a full disk, raised in the block by any library, into `disk_full`."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as exc:
        if not is_of_full_disk(exc, folder):
            raise
        raise disk_full(folder, then) from exc


class Lock:
    """Marks a run as being written. The kernel releases the lock whenever the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock; raises InputError naming the folder where another process holds it."""
        self._path = folder / LOCK
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise InputError(f"{folder}: another process is writing this run; wait for it to end") from None

    def release(self, remove: bool) -> None:
        """Release the lock; `remove` its file where it is no longer needed."""
        if remove:
            self._path.unlink(missing_ok=True)
        os.close(self._fd)


def held(folder: Path) -> bool:
    """Whether a living process is writing this run."""
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
