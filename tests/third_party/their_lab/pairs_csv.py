"""Received signal strengths of two ends (and optionally an eavesdropper) in a .csv file, one probe per line, in dBm."""

import numpy as np

from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import InputError
from testbed.core.types import CsiSeries
from testbed.replay.sources import Cut, EveLinks, Recording

ACCEPTS = "a file whose name ends in .pairs.csv, with the columns alice_dbm, bob_dbm and maybe eve_dbm"


def matches(path):
    return path.name.endswith(".pairs.csv") and path.is_file()


def load(path):
    try:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        names = head.split(",")
        values = np.array([[float(cell) for cell in line.split(",")] for line in lines]).reshape(-1, len(names))
    except (OSError, ValueError) as exc:
        raise InputError(f"{path}: no table of numbers: {exc}; accepted: {ACCEPTS}") from exc
    if names[:2] != ["alice_dbm", "bob_dbm"] or not len(values):
        raise InputError(f"{path}: columns {head[:60]!r}, {len(values)} lines; accepted: {ACCEPTS}")
    alice, bob, *eve = (_series(column) for column in values.T)
    eves = {"eve": EveLinks(from_alice=None, from_bob=eve[0])} if eve else {}
    cut = Cut(
        name="pairs",
        alice=alice,
        bob=bob,
        groups=np.zeros(len(values), np.int64),
        per_group=False,
        chain=ChainPlan(),
        accounting=Accounting(block_rounds=len(values)),
        eves=eves,
        assumed=tuple(eves),
    )
    return Recording("pairs_csv", f"{len(values)} probes of {path.name}", (), {cut.name: cut}, cut.name)


def _series(dbm):
    """Return RSSI as CSI of one subcarrier."""
    h = (10 ** (dbm / 20)).astype(np.complex64)[:, None, None, None]
    return CsiSeries(h, np.arange(dbm.size), np.zeros(1))
