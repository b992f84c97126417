"""A run as an xarray Dataset: every link on one grid of rounds, with names, units and coordinates.

xarray is imported here only (extra `notebooks`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from testbed.core.errors import InputError
from testbed.records import documents, reader
from testbed.records.recorded import LinkRecord, RecordedRun

if TYPE_CHECKING:
    import xarray

_LINK_FIELDS = {
    "time_s": ("s", "receiver's device time of the frame's first sample"),
    "snr_db": ("dB", "signal to noise ratio, mean over subcarriers"),
    "cfo_hz": ("Hz", "transmitter's carrier minus receiver's"),
    "rssi_dbfs": ("dBFS", "received power"),
}


def open_run(folder: str | Path) -> xarray.Dataset:
    """Return a run's records; the run may be closed, live or killed.

    Dimensions: link ("alice>bob": bob's measurements of alice), round, rx and tx antenna, subcarrier; pattern, row and
    column where a surface took part. Coordinates: `t0_s` (s), the coordinator's time of each round; `subcarrier_hz`
    (Hz), offsets from the carrier; `tx` and `rx`, a link's nodes. Variables: `csi` (complex64), `snr_db`, `cfo_hz`,
    `rssi_dbfs`, `time_s` and `surface` by link and round, NaN ('') where a link has no record of a round; `kept` and
    `reason` by round; `levels` by pattern. Attributes: title, uid, time, state, and as JSON text experiment, lab,
    summary, and of a replay what was replayed.

    Example: `testbed.open("runs/20260101-120000-mobile_room").snr_db.sel(link="alice>bob").plot()`

    Raises InputError where the folder holds no run, is damaged, or xarray is not installed.
    """
    try:
        import xarray as xr
    except ImportError as exc:
        raise InputError("testbed.open needs xarray; accepted: pip install 'ris-skg-testbed[notebooks]'") from exc
    run = reader.load(Path(folder))
    rounds = _rounds(run)
    links = sorted(run.links)
    variables: dict[str, Any] = {}
    for name, (units, words) in _LINK_FIELDS.items():
        values = np.full((len(links), rounds.size), np.nan)
        for i, link in enumerate(links):
            values[i, np.searchsorted(rounds, run.links[link].rounds)] = getattr(run.links[link], name)
        variables[name] = (("link", "round"), values, {"units": units, "long_name": words})
    variables |= _surface(run, links, rounds) | _csi(run, links, rounds) | _table(run, rounds) | _patterns(run)
    coordinates: dict[str, Any] = {
        "link": links,
        "tx": ("link", [link.split(">")[0] for link in links]),
        "rx": ("link", [link.split(">")[1] for link in links]),
        "round": ("round", rounds, {"long_name": "round"}),
        "t0_s": ("round", _on(rounds, run.rounds.rounds, run.rounds.t0_s, np.nan), _about("s", "start of the round")),
    }
    if "csi" in variables and run.subcarrier_hz is not None:
        coordinates["subcarrier_hz"] = ("subcarrier", run.subcarrier_hz, _about("Hz", "offset from the carrier"))
    if run.patterns:
        coordinates["pattern"] = list(run.patterns)
    return xr.Dataset(variables, coordinates, _attributes(run))


def _about(units: str, words: str) -> dict[str, str]:
    return {"units": units, "long_name": words}


def _rounds(run: RecordedRun) -> Any:
    """Return every round that is in the table or in a link, ascending."""
    parts = [run.rounds.rounds, *(record.rounds for record in run.links.values())]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)


def _on(rounds: Any, own: Any, values: Any, empty: Any) -> Any:
    """Return values by round on the grid of all rounds."""
    out = np.full((rounds.size, *values.shape[1:]), empty, dtype=values.dtype if values.dtype.kind != "U" else object)
    out[np.searchsorted(rounds, own)] = values
    return out


def _surface(run: RecordedRun, links: list[str], rounds: Any) -> dict[str, Any]:
    rows = [_on(rounds, run.links[link].rounds, run.links[link].surface, "") for link in links]
    values = np.stack(rows) if rows else np.zeros((0, rounds.size), object)
    return {"surface": (("link", "round"), values.astype(str), {"long_name": "acknowledged surface pattern"})}


def _csi(run: RecordedRun, links: list[str], rounds: Any) -> dict[str, Any]:
    """Return CSI on the largest number of antennas of any link, NaN beyond a link's own."""
    known: dict[str, LinkRecord] = {link: run.links[link] for link in links if run.links[link].csi is not None}
    if not known:
        return {}
    shapes = [record.csi.shape[1:] for record in known.values() if record.csi is not None]
    out = np.full((len(links), rounds.size, *np.max(shapes, axis=0)), np.nan + 0j, dtype=np.complex64)
    for link, record in known.items():
        assert record.csi is not None
        _, rx, tx, k = record.csi.shape
        out[links.index(link), np.searchsorted(rounds, record.rounds), :rx, :tx, :k] = record.csi
    about = {"units": "", "long_name": "channel estimate, full scale = 1"}
    return {"csi": (("link", "round", "rx_antenna", "tx_antenna", "subcarrier"), out, about)}


def _table(run: RecordedRun, rounds: Any) -> dict[str, Any]:
    table = run.rounds
    return {
        "kept": ("round", _on(rounds, table.rounds, table.kept, False), {"long_name": "used for a key"}),
        "reason": (
            "round",
            _on(rounds, table.rounds, table.reason, "").astype(str),
            {"long_name": "reason of rejection"},
        ),
    }


def _patterns(run: RecordedRun) -> dict[str, Any]:
    shapes = {pattern.levels.shape for pattern in run.patterns.values()}
    if len(shapes) != 1:  # none, or boards of several shapes, which have no common grid
        return {}
    levels = np.stack([pattern.levels for pattern in run.patterns.values()])
    bits = next(iter(run.patterns.values())).phase_bits
    about = {"units": f"2π/{1 << bits}", "long_name": "phase level of an element", "phase_bits": bits}
    return {"levels": (("pattern", "row", "column"), levels, about)}


def _attributes(run: RecordedRun) -> dict[str, Any]:
    def text(value: Any) -> str:
        return json.dumps(json.loads(documents.encode(value)), ensure_ascii=False)

    start = run.start
    told = {} if start.replay is None else {"replay": text(start.replay)}
    return told | {
        "title": str(start.experiment.get("title", "")),
        "uid": start.uid,
        "time": start.time,
        "state": run.state,
        "folder": str(run.folder),
        "experiment": text(start.experiment),
        "lab": text(start.lab),
        "summary": text(run.summary or {}),
    }
