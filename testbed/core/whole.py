"""Writes a valuable file so that it is complete or absent after a kill, a power failure or a full disk.

A temporary file in the same folder is written and synced to the disk; only then is it renamed, and the folder synced.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, *, private: bool = True, fresh: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write; afterwards the file is on the disk under its own name, or, on an error, absent.

    `private`: only its owner can read it. `fresh`: raises FileExistsError where `path` exists, which is not changed.
    `shared`: other processes may be writing the same file; the last one, or the first `fresh` one, wins.

    with whole(Path("model.npz")) as part:
        part.write_bytes(model)
    """
    # The name is fixed unless other processes write, so that the next write replaces the file of a killed process.
    part = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600 if private else 0o666))
    try:
        yield part
        _sync(part)
        if fresh:
            os.link(part, path)
        else:
            os.replace(part, path)
    except OSError as exc:
        exc.filename = exc.filename or str(path)  # that of a write, such as to a full disk, names no file
        raise
    finally:
        part.unlink(missing_ok=True)
    _sync(path.parent)


def write_whole(path: Path, content: bytes | str, *, private: bool = True, fresh: bool = False) -> None:
    """Write `content` (text as UTF-8) as `whole` does."""
    with whole(path, private=private, fresh=fresh, shared=True) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def require_regular(path: Path) -> None:
    """Raise OSError where a path exists and is neither a regular file nor a link to one. Reading a pipe or a device may
    never end, and an attacker may have put one there."""
    mode = path.stat().st_mode if path.exists() else stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def read_whole(path: Path, most_bytes: int) -> bytes:
    """Return the content of a file that somebody else may have named or written, without ever waiting for it.

    Raises OSError where it cannot be read, is no regular file, or has more than `most_bytes`.
    """
    require_regular(path)
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise OSError(errno.EFBIG, f"{size} bytes, accepted up to {most_bytes}", str(path))
        return file.read(most_bytes)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
