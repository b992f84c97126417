"""Any interval between rounds, with crystals as far apart as they may be: every frame is inside its window."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from testbed import config
from testbed.core.config import Experiment
from testbed.lab import processes
from testbed.records import reader

PPM = {"alice": 20.0, "bob": -20.0, "eve": 7.0}


def lab_file(folder: Path) -> Path:
    """Return the bundled lab with crystals of its own: the nodes' processes read it by themselves."""
    text = (Path(config.__file__).parents[1] / "bundled" / "labs" / "sim.toml").read_text()
    for name, ppm in PPM.items():
        head = f'role = "{name}"\ndriver = "sim"\n'
        assert head in text
        text = text.replace(head, f"{head}options = {{ clock_ppm = {ppm} }}\n")
    path = folder / "lab.toml"
    path.write_text(text)
    return path


def experiment(interval_s: float, rounds: int) -> Experiment:
    plan = config.load_experiment("static_room_fixed")
    probing = msgspec.structs.replace(plan.probing, interval_s=interval_s)
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=rounds)
    return msgspec.structs.replace(plan, rounds=rounds, probing=probing, accounting=accounting)


@pytest.mark.parametrize("interval_s", [200e-6, 2e-3, 0.5, 2.0, 20.0, 120.0])
def test_all_rounds_are_kept_with_crystals_40_ppm_apart(
    interval_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    folder = tmp_path / "run"
    folder.mkdir()
    lab = str(lab_file(tmp_path))
    outcome = processes.run(experiment(interval_s, 16), config.load_lab(lab), lab, folder)
    assert outcome.status == "finished"
    assert outcome.summary["pairs_rejected"] == {}
    assert outcome.summary["pairs_kept"] == 16


def test_an_eve_who_hears_nothing_costs_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing corrects her clock: her windows end later than the others have said what they send, and nobody waits."""
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    folder = tmp_path / "run"
    folder.mkdir()
    lab = str(lab_file(tmp_path))
    plan = experiment(20.0, 32)
    scene = msgspec.structs.replace(plan.scene, eve=msgspec.structs.replace(plan.scene.eve, position_m=(9e4, 0.0, 1.5)))
    outcome = processes.run(msgspec.structs.replace(plan, scene=scene), config.load_lab(lab), lab, folder)
    assert outcome.summary["pairs_rejected"] == {}
    kinds = {event.kind for event in reader.load(folder).events}
    assert "clock_adrift" in kinds
    assert not kinds & {"fault", "no_answer", "left_out", "late_answer"}
