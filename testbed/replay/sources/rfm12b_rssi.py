"""868 MHz ping-pong RSSI between two RFM12B nodes, with a third one listening.

From surendra060/KeyDerivationWirelessChannel.

Text, one capture row per line: dBm integers separated by `;`, the line ending in `&`; plain or gzipped. `nodeX_Y` is
what X measured of packets that Y sent. RSSI becomes CSI of one subcarrier, h = 10^(dBm/20), so the chain sees it as it
sees any other channel.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import InputError
from testbed.core.types import F64, I64, CsiSeries
from testbed.core.whole import read_whole
from testbed.replay.sources import Cut, EveLinks, Recording

MAX_BYTES = 1 << 28
"""Largest number of bytes of one file, uncompressed."""
ACCEPTS = (
    "folder with sniffer_nodeA_B.txt[.gz] and sniffer_nodeB_A.txt[.gz], or static_nodeA and static_nodeB likewise, "
    "or the published folder 1_RSS_RAWdataFile_Conditioning"
)

CAVEATS = (
    "missing RSSI was replaced upstream by constants (-70 at A, -72 at B, -66 and -67 at Eve) "
    "and cannot be distinguished from measured values",
    "which row of Eve's files belongs to which row of A and B is assumed from the upstream script, not proved",
    "Eve's receiver saturates on A (two values only) and her place is not documented: figures hold for her only",
    "a line joins several captures, so neighbouring values of a line need not be neighbours in time",
)
PUBLISHED = {
    "sniffer": "Proc_SnifferData/RSS_conditionedDataSample",
    "static": "Proc_Static/RSS_conditionedDataSample",
}
LOWEST_DBM, HIGHEST_DBM = -120, -1
KEY_STEP = 12
"""Keys are made of every 12th probe only, because something in this room moved periodically. From the last 40 bits and
the public indices, a share of 0.77 to 0.81 of the bits can be predicted in some parts if every probe is used, and 0.54
to 0.57 with every 12th."""
INTERVAL_S = 0.21
"""About 10 ms from probe to reply, then a random wait of 100 to 300 ms."""


def matches(path: Path) -> bool:
    return _find(path, "sniffer_nodeA_B") is not None or _find(path, "static_nodeA") is not None


def load(path: Path) -> Recording:
    """Read the `sniffer` cut (with Eve) and the `static` cut, whichever are there."""
    cuts = {}
    if _find(path, "sniffer_nodeA_B") is not None:
        alice, groups = _read(path, "sniffer_nodeA_B")
        bob = _read_like(path, "sniffer_nodeB_A", groups)
        eve = EveLinks(
            from_alice=_read_like(path, "sniffer_nodeE_A", groups) if _find(path, "sniffer_nodeE_A") else None,
            from_bob=_read_like(path, "sniffer_nodeE_B", groups) if _find(path, "sniffer_nodeE_B") else None,
        )
        heard = eve.from_alice is not None or eve.from_bob is not None
        cuts["sniffer"] = Cut(
            name="sniffer",
            alice=alice,
            bob=bob,
            groups=groups,
            per_group=False,
            eves={"node31": eve} if heard else {},
            assumed=("node31",) if heard else (),
            assumption="Eve has no better position than the measured one (node 31)" if heard else "",
            **_plan(groups.size),
        )
    if _find(path, "static_nodeA") is not None:
        alice, groups = _read(path, "static_nodeA")
        cuts["static"] = Cut(
            name="static",
            alice=alice,
            bob=_read_like(path, "static_nodeB", groups),
            groups=groups,
            per_group=False,
            **_plan(groups.size),
        )
    return Recording(
        name="rfm12b_rssi",
        description="RSSI in dBm, RFM12B at 868 MHz, ping-pong probing",
        caveats=CAVEATS,
        cuts=cuts,
        main="sniffer" if "sniffer" in cuts else "static",
    )


def _plan(n_probes: int) -> dict[str, Any]:
    """Return the settings that both cuts recommend."""
    return {
        "chain": ChainPlan(
            enhance_options={"step": 1, "detrend": "highpass", "window": 32},
            quantize_options={"bits": 1, "guard": 0.3},
        ),
        "accounting": Accounting(block_rounds=14_000),
        "key_probes": np.arange(0, n_probes, KEY_STEP, dtype=np.int64),
        "key_note": f"every {KEY_STEP}th probe: the fading repeats about every 5 probes (r = 0.3); in some "
        "parts, earlier bits would predict 4 bits of 5",
        "interval_s": INTERVAL_S,
    }


def _find(path: Path, stem: str) -> Path | None:
    """Return a link's file: in this folder, or at its place in the published repository."""
    kind, _, node = stem.partition("_")
    places = (path / f"{stem}.txt.gz", path / f"{stem}.txt", path / PUBLISHED[kind] / f"{node}.txt")
    return next((place for place in places if place.is_file()), None)


def _read(path: Path, stem: str) -> tuple[CsiSeries, I64]:
    """Return a link's series and the row number of each probe."""
    file = _find(path, stem)
    if file is None:
        raise InputError(f"{path / stem}.txt.gz: missing; accepted: {ACCEPTS}")
    dbm = _rows(file)
    n_rows, n_columns = dbm.shape
    amplitude = np.where(dbm == 0, np.nan, 10.0 ** (dbm / 20.0)).astype(np.complex64)
    series = CsiSeries(
        h=amplitude.reshape(-1, 1, 1, 1), rounds=np.arange(dbm.size, dtype=np.int64), subcarrier_hz=np.zeros(1)
    )
    return series, np.repeat(np.arange(n_rows, dtype=np.int64), n_columns)


def _read_like(path: Path, stem: str, groups: I64) -> CsiSeries:
    series, own = _read(path, stem)
    if not np.array_equal(own, groups):
        raise InputError(
            f"{_find(path, stem)}: {own[-1] + 1} rows, {own.size} values; accepted: the same rows as node A's file, "
            f"{groups[-1] + 1} rows, {groups.size} values"
        )
    return series


def _rows(file: Path) -> F64:
    """Return (row, value) in dBm; 0 where the value is missing."""
    try:
        raw = read_whole(file, MAX_BYTES)
        if file.suffix == ".gz":
            with gzip.open(io.BytesIO(raw)) as stream:
                raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise OSError(f"more than {MAX_BYTES} bytes")
        text = raw
    except (OSError, EOFError, zlib.error) as exc:
        raise InputError(
            f"{file}: cannot be read, damaged or truncated ({exc}); accepted: gzipped text, whole"
        ) from exc
    rows: list[list[int]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.strip().rstrip(b"&").rstrip(b";")
        if not fields:
            continue
        try:
            rows.append([int(value) for value in fields.split(b";")])
        except ValueError as exc:
            raise InputError(f"{file}: line {number}: {exc}; accepted: integers in dBm separated by ';'") from exc
        if len(rows[-1]) != len(rows[0]):
            raise InputError(
                f"{file}: line {number}: {len(rows[-1])} values; accepted: as many as in the first line, {len(rows[0])}"
            )
    if not rows:
        raise InputError(f"{file}: no values; accepted: lines of integers in dBm separated by ';'")
    dbm = np.array(rows, dtype=np.float64)
    wrong = (dbm != 0) & ((dbm < LOWEST_DBM) | (dbm > HIGHEST_DBM))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{file}: row {row + 1}, value {column + 1}: {dbm[row, column]:.0f} dBm; "
            f"accepted: {LOWEST_DBM} to {HIGHEST_DBM}, or 0 for a missing value"
        )
    return dbm
