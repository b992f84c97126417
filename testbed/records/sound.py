"""Checks that a run's records are consistent: the folder may come from any source, and a page is made from it.

`reader` has already checked the formats. This file checks the names, shapes, lengths and values on which all other code
relies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core.errors import InputError, TestbedError
from testbed.core.gate import is_identifier, link_ends, printable
from testbed.records.recorded import LinkRecord, RecordedRun

log = logging.getLogger("testbed.records")
MAX_NODES = 64
KINDS = ("raw", "reconciled", "guess", "guess_reconciled")
_COLUMNS = ("rounds", "time_s", "snr_db", "cfo_hz", "rssi_dbfs", "surface")


def check(run: RecordedRun) -> RecordedRun:
    """Return the run; raises InputError, one line, naming the folder and what does not fit."""
    try:
        _start(run)
        for name, link in run.links.items():
            _link(name, link, run)
        _rounds(run)
        _patterns(run)
        _bits(run)
        _documents(run)
    except ValueError as exc:
        raise InputError(f"{run.folder}: damaged: {exc}") from exc
    return run


@contextmanager
def damaged(folder: Path, what: str) -> Iterator[None]:
    """Turn any error while a run's records are used into an InputError of one line that names the run.

    Consistent records may still contain impossible values; `what` says what could not be done with them.
    """
    try:
        yield
    except (TestbedError, OSError, MemoryError):
        raise
    except Exception as exc:
        log.debug("%s", folder, exc_info=True)
        detail = printable(str(exc) or type(exc).__name__)
        raise InputError(f"{folder}: {what}: damaged: {type(exc).__name__}: {detail}") from exc


def _want(fits: Any, what: str) -> None:
    if not fits:
        raise ValueError(what)


def _start(run: RecordedRun) -> None:
    axis = run.start.subcarrier_hz
    _want(axis is None or np.isfinite(axis).all(), "subcarrier_hz: accepted: finite numbers")
    nodes = run.start.lab.get("node", {})
    _want(isinstance(nodes, dict) and len(nodes) <= MAX_NODES, f"lab.node: accepted: a table of up to {MAX_NODES}")
    for name, place in nodes.items():
        _want(is_identifier(name) and isinstance(place, dict), f"lab.node {printable(str(name), 60)!r}: not a node")
    for table in ("accounting", "probing", "radio", "scene", "chain", "training", "surface", "records", "beams"):
        _want(isinstance(run.start.experiment.get(table, {}), dict | None), f"experiment.{table}: accepted: a table")


def _link(name: str, link: LinkRecord, run: RecordedRun) -> None:
    _want(link_ends(name) is not None, f"link {printable(name, 80)!r}: accepted: 'transmitter>receiver'")
    n = link.rounds.size
    for column in _COLUMNS:
        values = getattr(link, column)
        _want(values.shape == (n,), f"link {name}: {column} of shape {values.shape} for {n} rounds")
    _want(link.rounds.dtype.kind in "iu", f"link {name}: rounds of type {link.rounds.dtype}")
    _want(not n or link.rounds[0] >= 0, f"link {name}: round {link.rounds[0] if n else 0}")
    _want(not np.any(np.diff(link.rounds) < 0), f"link {name}: rounds out of order")
    for column in _COLUMNS[1:-1]:
        kind = getattr(link, column).dtype.kind
        _want(kind == "f", f"link {name}: {column} of type {getattr(link, column).dtype}")
    if link.csi is None:
        return
    axis = run.start.subcarrier_hz
    _want(link.csi.dtype == np.complex64 and link.csi.ndim == 4, f"link {name}: CSI {link.csi.dtype} {link.csi.shape}")
    fits = link.csi.shape[0] == n and min(link.csi.shape[1:], default=0) > 0
    _want(fits, f"link {name}: CSI of shape {link.csi.shape} for {n} rounds")
    fits = axis is None or link.csi.shape[3] == len(axis)
    _want(fits, f"link {name}: not as many subcarriers ({link.csi.shape[3]}) as in subcarrier_hz")


def _rounds(run: RecordedRun) -> None:
    table, n = run.rounds, run.rounds.rounds.size
    for column in ("rounds", "kept", "reason", "surface", "t0_s"):
        values = getattr(table, column)
        _want(values.shape == (n,), f"rounds: {column} of shape {values.shape} for {n} rounds")
    _want(table.rounds.dtype.kind in "iu" and table.kept.dtype == np.bool_, "rounds: a column has a wrong type")
    _want(table.t0_s.dtype.kind == "f", f"rounds: t0_s of type {table.t0_s.dtype}")
    _want(not np.any(np.diff(table.rounds) <= 0) and (not n or table.rounds[0] >= 0), "rounds: out of order")


def _patterns(run: RecordedRun) -> None:
    for digest, pattern in run.patterns.items():
        _want(is_identifier(digest), f"pattern {printable(digest, 60)!r}: accepted: letters and digits")
        levels = pattern.levels
        _want(levels.ndim == 2 and levels.dtype == np.uint8, f"pattern {digest}: {levels.dtype} {levels.shape}")
        _want(1 <= pattern.phase_bits <= 8, f"pattern {digest}: {pattern.phase_bits} phase bits")
        _want(not levels.size or levels.max() < 1 << pattern.phase_bits, f"pattern {digest}: a level is too high")


def _bits(run: RecordedRun) -> None:
    for (block, node, kind), values in run.bits.items():
        where = f"bits of block {block}"
        _want(isinstance(block, int) and block >= 0 and is_identifier(node) and kind in KINDS, f"{where}: names")
        fits = values.ndim == 1 and values.dtype == np.uint8 and (not values.size or values.max() <= 1)
        _want(fits, f"{where}: accepted: a row of 0 and 1")


def _documents(run: RecordedRun) -> None:
    for block in run.blocks:
        for name in {*block.agree, *block.key}:
            _want(is_identifier(name), f"block {block.block}: node {printable(name, 60)!r}")
