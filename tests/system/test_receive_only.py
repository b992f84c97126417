"""A radio that cannot transmit, such as an RTL-SDR: accepted for Eve only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed import config
from testbed.core.config import Lab
from testbed.lab import processes


def lab_with(tmp_path: Path, role: str) -> str:
    text = config.find(Lab, "sim").read_text(encoding="utf-8")
    old = f'role = "{role}"\ndriver = "sim"'
    assert old in text
    path = tmp_path / "deaf.toml"
    path.write_text(text.replace(old, f"{old}\noptions = {{ receive_only = true }}"))
    return str(path)


@pytest.mark.parametrize("timed", [True, False])
def test_an_eve_who_can_only_receive_is_measured(tmp_path: Path, timed: bool) -> None:
    lab = lab_with(tmp_path, "eve")
    if not timed:
        text = Path(lab).read_text().replace("receive_only = true", "receive_only = true, timed = false")
        Path(lab).write_text(text)
    plan = config.load_experiment("mobile_room")
    plan = msgspec.structs.replace(plan, rounds=6)
    outcome = processes.run(plan, config.load_lab(lab), lab, tmp_path / "run")
    assert outcome.status == "finished"
    assert outcome.summary["pairs_kept"] == 6
    assert [h["ok"] for h in outcome.summary["health"] if h["check"] == "eve_measured"] == [True]
    documents = json.loads((outcome.folder / "run.json").read_text())
    assert '"correction_from": "none"' in json.dumps(documents)


def test_a_bob_who_can_only_receive_is_refused(tmp_path: Path, here: Any) -> None:
    lab = lab_with(tmp_path, "bob")
    said = here("run", "mobile_room", "--lab", lab, "--out", str(tmp_path / "runs"))
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1)
    assert "table [node.bob]: key 'role': 'bob', accepted: 'eve' by driver 'sim'" in said.stderr
    assert not (tmp_path / "runs").exists()
    # started in another way, the node itself refuses
    plan = msgspec.structs.replace(config.load_experiment("mobile_room"), rounds=6)
    outcome = processes.run(plan, config.load_lab(lab), lab, tmp_path / "run")
    assert outcome.status == "failed"
    assert "can only receive" in outcome.detail
