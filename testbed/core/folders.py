"""Makes the folder of results before the work begins whose results it is to hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from testbed.core.errors import InputError

ACCEPTED = "accepted: a folder that this user can write, or the name of a new one in such a folder"


def make(folder: Path, mode: int = 0o777) -> None:
    """Make a folder, and its parents, where they are missing; `mode` is that of the folder itself.

    Raises InputError, which says why, where it cannot be made or nothing can be written into it.
    """
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"{folder}: cannot be made: {_why(folder, exc)}; {ACCEPTED}") from exc
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: cannot be written; {ACCEPTED}")


def _why(folder: Path, exc: OSError) -> str:
    for path in (folder, *folder.parents):
        if os.path.lexists(path) and not path.is_dir():
            return f"{path} is a link that leads nowhere" if path.is_symlink() else f"{path} is not a folder"
    return exc.strerror or str(exc)


@contextlib.contextmanager
def reserved(folder: Path, mode: int = 0o777) -> Iterator[None]:
    """Make a folder as `make` does; remove it, and the parents that were made for it, where they stay empty."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    make(folder, mode)
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
