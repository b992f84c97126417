"""Radios that cannot time their samples, simulated: rounds go step by step, and world time passes all the same."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from testbed import config
from testbed.core.config import Lab
from testbed.lab import processes


def test_a_run_without_timing_measures_the_same_channel_at_both_ends(tmp_path: Path) -> None:
    text = config.find(Lab, "sim").read_text(encoding="utf-8")
    lab = tmp_path / "untimed.toml"
    lab.write_text(text.replace('driver = "sim"\ntx', 'driver = "sim"\noptions = { timed = false }\ntx'))
    assert lab.read_text().count("timed = false") == 3
    plan = config.load_experiment("mobile_room")
    plan = msgspec.structs.replace(plan, rounds=60)
    s = processes.run(plan, config.load_lab(str(lab)), str(lab), tmp_path / "run").summary
    assert s["pairs_kept"] > 55
    assert s["csi_correlation_ab"] > 0.9
    assert s["probing_s"] > 2.9  # Bob walked for three seconds of the world's


@pytest.mark.parametrize("lab", ["wire_ris", "wire_ris595"])
def test_a_board_on_a_serial_line_steers_the_simulated_surface(tmp_path: Path, lab: str) -> None:
    plan = msgspec.structs.replace(config.load_experiment("static_room"), rounds=30)
    s = processes.run(plan, config.load_lab(lab), lab, tmp_path / "run").summary
    assert s["pairs_kept"] > 27
    assert s["csi_correlation_ab"] > 0.9  # nothing but the surface changes: without it, there is only noise
