"""Radios that time their samples in one lab with a radio that cannot: none uses timing, and the run works."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from testbed import config
from testbed.lab import processes

MIXED = """
schema = 1
name = "mixed"

[world]
driver = "sim"

[world.emulators.bob]
model = "ad9364"

[node.alice]
role = "alice"
driver = "sim"
tx_gain_db = -6.0

[node.bob]
role = "bob"
driver = "pluto"
tx_gain_db = -6.0
rx_gain_db = 15.0

[node.eve]
role = "eve"
driver = "sim"
"""


def test_a_pluto_between_simulated_radios_gives_equal_keys(tmp_path: Path) -> None:
    pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")
    lab = tmp_path / "mixed.toml"
    lab.write_text(MIXED)
    plan = config.load_experiment("mobile_room")
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=300, epsilon_log2=16)
    plan = msgspec.structs.replace(plan, rounds=300, accounting=accounting)
    outcome = processes.run(plan, config.load_lab(str(lab)), str(lab), tmp_path / "run")
    s = outcome.summary
    assert outcome.status == "finished"
    assert s["pairs_kept"] > 290
    assert s["csi_correlation_ab"] > 0.9
    assert (s["keys_verified"], s["keys_mismatched"]) == (1, 0)
    assert s["key_bits"] > 0
    keys = [
        [p.read_text() for p in (tmp_path / "state" / "mixed" / n / "rehearsals").glob("*/*.key")]
        for n in ("alice", "bob")
    ]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 1
