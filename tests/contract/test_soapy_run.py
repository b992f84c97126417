"""A run whose three nodes drive devices behind SoapySDR, each in a process of its own, on the simulated air."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
import soapy_air
from benches import soapy_library

from testbed import config
from testbed.core.config import Accounting
from testbed.lab import processes

LAB = """
schema = 1
name = "soapy"
curve = false  # a device has a second connection to the air, for its clock
[world]
driver = "sim"
pace = "virtual"
[world.emulators.alice]
[world.emulators.bob]
[world.emulators.eve]
rx_only = true
"""
NODE = """
[node.{0}]
role = "{0}"
driver = "soapy"
tx_gain_db = 60.0
rx_gain_db = {1}
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A lab file, and the module's emulator as an installed package of somebody else's would have it."""
    info = tmp_path / "site" / "soapy_emulator-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: soapy-emulator\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[testbed.emulators]\nsoapy = soapy_air:EmulatedSoapy\n")
    folders = [tmp_path / "site", Path(soapy_air.__file__).parent]
    for folder in folders:
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv(soapy_air.MODULE, soapy_library())
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    path = tmp_path / "soapy.toml"
    path.write_text(LAB + "".join(NODE.format(name, 5.0) for name in ("alice", "bob", "eve")))
    return str(path)


def test_a_run_on_devices_behind_soapysdr_ends_in_equal_keys(lab: str, tmp_path: Path) -> None:
    plan = config.load_experiment("mobile_room")
    plan = msgspec.structs.replace(plan, rounds=320, accounting=Accounting(block_rounds=320, epsilon_log2=16))
    outcome = processes.run(plan, config.load_lab(lab), lab, tmp_path / "run")
    s = outcome.summary
    assert outcome.status == "finished", outcome.detail
    assert s["pairs_kept"] > 310
    assert s["csi_correlation_ab"] > 0.9
    assert (s["keys_verified"], s["keys_mismatched"]) == (1, 0)
    assert [h["ok"] for h in s["health"] if h["check"] == "eve_measured"] == [True]
    drivers = json.dumps(json.loads((outcome.folder / "run.json").read_text()))
    assert drivers.count('"module": "testbed_loopback"') >= 3
