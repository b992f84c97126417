"""A run in a notebook: one Dataset with names, units and coordinates; rounds.h5 itself has its dimensions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import testbed
from testbed.core.errors import InputError
from testbed.core.types import SurfacePattern
from testbed.records import documents
from testbed.records.writer import RunWriter

xarray = pytest.importorskip("xarray", reason="the extra `notebooks` is not installed")
pytest.importorskip("h5netcdf", reason="the extra `notebooks` is not installed")

CARRIERS, ROUNDS = 6, 5
LEVELS = np.arange(6, dtype=np.uint8).reshape(2, 3) % 2


def csi(link: str, round: int) -> np.ndarray[Any, Any]:
    n_rx = 2 if link.endswith("eve") else 1
    rng = np.random.default_rng([round, n_rx, *link.encode()])
    return (rng.normal(size=(n_rx, 1, CARRIERS, 2)) @ [1, 1j]).astype(np.complex64)


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    """Three links; Bob has nothing of round 2, Eve has two antennas."""
    lab = {"node": {n: {"role": n} for n in ("alice", "bob", "eve")}}
    axis = (np.arange(CARRIERS) - 2) * 1e5
    w = RunWriter(tmp_path / "run", documents.start({"title": "five"}, lab, subcarrier_hz=axis))
    digest = SurfacePattern(LEVELS, 1).digest
    w.pattern(digest, LEVELS, 1)
    for r in range(ROUNDS):
        for link in ("alice>bob", "bob>alice", "alice>eve"):
            if (link, r) != ("alice>bob", 2):
                w.probe(r, link.split(">")[1], link, 7.0 + r, 20.0 + r, -50.0, -30.0, digest, csi(link, r))
        w.round(r, r != 2, "low_snr" if r == 2 else None, digest, r * 0.1)
    w.bits(0, "alice", "raw", np.array([0, 1, 1], np.uint8))
    w.flush()
    return w


def check(data: Any, state: str) -> None:
    assert dict(data.sizes) == {
        "link": 3, "round": 5, "rx_antenna": 2, "tx_antenna": 1, "subcarrier": 6, "pattern": 1, "row": 2, "column": 3,
    }  # fmt: skip
    np.testing.assert_array_equal(data.csi.sel(link="bob>alice", round=3).values[0], csi("bob>alice", 3)[0])
    np.testing.assert_array_equal(data.csi.sel(link="alice>eve", round=3).values, csi("alice>eve", 3))
    assert np.isnan(data.csi.sel(link="alice>bob", round=2)).all()
    assert np.isnan(data.csi.sel(link="alice>bob", rx_antenna=1)).all()
    np.testing.assert_allclose(data.subcarrier_hz, (np.arange(CARRIERS) - 2) * 1e5)
    assert data.subcarrier_hz.attrs["units"] == "Hz"
    np.testing.assert_allclose(data.t0_s, np.arange(ROUNDS) * 0.1)
    assert data.t0_s.attrs["units"] == "s"
    assert data.snr_db.sel(link="alice>bob", round=4).item() == 24.0
    assert {name: data[name].attrs["units"] for name in ("snr_db", "cfo_hz", "rssi_dbfs", "time_s")} == {
        "snr_db": "dB", "cfo_hz": "Hz", "rssi_dbfs": "dBFS", "time_s": "s",
    }  # fmt: skip
    assert data.kept.values.tolist() == [True, True, False, True, True]
    assert data.reason.values.tolist() == ["", "", "low_snr", "", ""]
    digest = str(data.surface.sel(link="bob>alice", round=0).item())
    np.testing.assert_array_equal(data.levels.sel(pattern=digest), LEVELS)
    assert data.rx.sel(link="alice>eve").item() == "eve"
    assert (data.attrs["title"], data.attrs["state"]) == ("five", state)
    assert json.loads(data.attrs["experiment"]) == {"title": "five"}


def test_a_live_and_a_closed_run_give_the_same(writer: RunWriter) -> None:
    check(testbed.open(writer.folder), "live")
    writer.close(documents.stop("ok"), {"key_bits": 3})
    closed = testbed.open(writer.folder)
    check(closed, "closed")
    assert json.loads(closed.attrs["summary"]) == {"key_bits": 3}
    closed.to_netcdf(writer.folder / "copy.nc", engine="h5netcdf", invalid_netcdf=True)


def test_rounds_h5_opens_with_its_dimensions(writer: RunWriter) -> None:
    writer.close(documents.stop("ok"), {})
    path = writer.folder / "rounds.h5"
    with xarray.open_dataset(path, group="links/alice>eve", engine="h5netcdf") as link:
        assert link.csi.dims == ("round", "rx_antenna", "tx_antenna", "subcarrier")
        assert link.snr_db.dims == ("round",)
        assert link.indexes["round"].tolist() == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(link.csi[3], csi("alice>eve", 3))
    with xarray.open_dataset(path, group="links/alice>bob", engine="h5netcdf") as link:
        assert link.indexes["round"].tolist() == [0, 1, 3, 4]
        assert link.csi.shape == (4, 1, 1, 6)
    with xarray.open_dataset(path, group="rounds", engine="h5netcdf") as table:
        assert table.kept.dims == ("round",)
    with xarray.open_dataset(path, group="patterns", engine="h5netcdf") as patterns:
        assert dict(patterns.sizes) == {"row": 2, "column": 3}
    with xarray.open_dataset(path, engine="h5netcdf") as top:
        assert top.subcarrier_hz.dims == ("subcarrier",)
    groups: list[str] = []
    with h5py.File(path) as f:
        f.visititems(lambda name, item: groups.append(name) if isinstance(item, h5py.Group) else None)
    for group in groups:
        with xarray.open_dataset(path, group=group, engine="h5netcdf") as data:
            assert not [d for d in data.sizes if str(d).startswith("phony")], group


def test_a_run_without_anything_and_what_is_no_run(tmp_path: Path) -> None:
    lab = {"node": {n: {"role": n} for n in ("alice", "bob")}}
    w = RunWriter(tmp_path / "run", documents.start({"mode": "private"}, lab))
    w.probe(0, "bob", "alice>bob", 0.0, 9.0, 0.0, -30.0)
    w.close(documents.stop("aborted"), None)
    data = testbed.open(tmp_path / "run")
    assert "csi" not in data
    assert data.snr_db.values.tolist() == [[9.0]]
    with pytest.raises(InputError, match="no such folder"):
        testbed.open(tmp_path / "nothing")


def test_nothing_heavy_is_imported_before_it_is_asked_for() -> None:
    asked = (
        "import sys, testbed; dir(testbed); print([m for m in ('xarray', 'numpy', 'torch', 'zmq') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_replay_is_a_function_and_stays_a_package(tmp_path: Path) -> None:
    from testbed.replay import sources

    assert sources.load
    with pytest.raises(InputError, match="no such file or folder"):
        testbed.replay(tmp_path / "none.npz")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = testbed.nothing
