"""The pre-shared secret of one-time authentication. It is drawn for the nodes of Alice and Bob; a node on another
machine gets it by a file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from testbed.core.config import Lab
from testbed.core.errors import InputError
from testbed.core.whole import write_whole
from testbed.lab.processes import node_state_dir
from testbed.nodes import pool_file


def ends(lab: Lab) -> list[str]:
    """Return the names of Alice's and Bob's node."""
    return [name for role in ("alice", "bob") if (name := lab.by_role(role)) is not None]


def prepare(lab: Lab, source: str) -> None:
    """Make sure that both ends have a pool before a run starts; draw one if both are local and have none.

    Raises InputError if one is missing while the other end is on another machine.
    """
    local = [name for name in ends(lab) if lab.node[name].local]
    missing = [name for name in local if not (node_state_dir(lab, name) / pool_file.NAME).exists()]
    if len(missing) == 2:
        make(lab, local, pool_file.DEFAULT_BITS, None)
    elif missing:
        raise InputError(
            f"{source}: key 'wegman_carter': {missing[0]!r} has no pool of one-time authentication; accepted: one that "
            f"both ends have, see `testbed keys pool --lab {source}`"
        )


def make(lab: Lab, here: list[str], bits: int, out: Path | None) -> dict[str, Path]:
    """Draw a new secret for the ends on this machine (`here`); for an end on another machine, write it to the file
    `out`, which must be carried there.

    Returns end → file. Raises InputError where a pool is in use, or `out` exists or is needed and missing.
    """
    elsewhere = [name for name in ends(lab) if name not in here]
    if len(elsewhere) == 2:
        raise InputError(f"accepted: nodes of Alice and Bob that run on this machine: {', '.join(ends(lab))}")
    carried = {name: out if out is not None else Path(f"{lab.name}-{name}.pool") for name in elsewhere}
    for path in carried.values():
        if path.exists() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(f"{path}: accepted: the name of a new file in a folder that can be written")
    own = {name: node_state_dir(lab, name) / pool_file.NAME for name in ends(lab) if name in here}
    with ExitStack() as stack:
        for path in own.values():
            stack.callback(pool_file.PoolFile(path.parent).close)
        pool_file.make([*carried.values(), *own.values()], bits)
    return own | carried


def take(lab: Lab, name: str, carried: Path) -> Path:
    """Make the secret in the file `carried` the pool of a node of this machine, and delete the file; returns the path
    of the pool."""
    if name not in ends(lab):
        raise InputError(f"{name!r} cannot have a pool; accepted: {', '.join(ends(lab))}")
    pool = pool_file.read(carried)
    path = node_state_dir(lab, name) / pool_file.NAME
    held = pool_file.PoolFile(path.parent)
    try:
        write_whole(path, pool.dump())
    finally:
        held.close()
    carried.unlink()
    return path


def of(lab: Lab, name: str) -> pool_file.Pool | None:
    """Return the pool of a node of this machine, None if there is none; raises InputError for an invalid file."""
    path = node_state_dir(lab, name) / pool_file.NAME
    return pool_file.read(path) if path.exists() else None
