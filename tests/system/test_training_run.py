"""The training phase as users run it: live, replayed, and against the same chain without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.core.config import Training
from testbed.core.registry import make_stage
from testbed.lab import one_process
from testbed.replay.replay import replay
from testbed.report import html


@pytest.mark.usefixtures("few_attacks")
def test_a_training_phase_on_rough_radios_and_its_replay(tmp_path: Path) -> None:
    """Phases of radios whose hardware differs are worthless until Alice has learnt the factor between the two ends."""
    plan = config.load_experiment("mobile_room_calibrated")
    plan = msgspec.structs.replace(
        plan,
        rounds=360,
        training=Training(rounds=120, guard_rounds=10),
        accounting=msgspec.structs.replace(plan.accounting, block_rounds=225, epsilon_log2=32),
        chain=msgspec.structs.replace(plan.chain, enhance_options={"step": 16, "hidden": 0}),
    )
    outcome = one_process.run(plan, config.load_lab("sim_rough"), "sim_rough", tmp_path / "run")
    s = outcome.summary
    assert outcome.status == "finished"
    lesson = s["training"]
    assert (lesson["blocks"], lesson["rounds"], lesson["guard_rounds"], lesson["failures"]) == (1, 120, 10, {})
    assert lesson["public_bytes"] > 120 * 64 * 8  # Bob's CSI
    assert lesson["nmse_after"] < 0.1 * lesson["nmse_before"]
    assert s["kdr_raw"] < 0.08
    assert 0.4 < s["kdr_eve"] < 0.6
    assert s["keys_mismatched"] == 0
    assert next(h for h in s["health"] if h["check"] == "enhancer_trained")["ok"]
    card = lesson["card"]
    assert (card["enhance"], card["data"]["pairs"]) == ("calibrated", 120)
    section = html.make(outcome.folder).read_text().split('id="training"')[1].split("</section>")[0]
    for told in (lesson["model"], card["data"]["bob_sha256"][:16], lesson["file"]):
        assert told in section
    # both nodes keep the model for a restart: one name, Alice's weights at Alice only
    kept: dict[str, Any] = {}
    for node in ("alice", "bob"):
        (path,) = (tmp_path / "state" / "sim_rough" / node / "models").glob("*.npz")
        stage = make_stage("enhance", "calibrated", {"step": 16, "hidden": 0, "model": str(path)})
        assert stage.model_id == lesson["model"]
        assert path == tmp_path / "state" / "sim_rough" / node / lesson["file"]
        with np.load(path) as arrays:
            kept[node] = set(arrays.files)
    assert "private.matrix" in kept["alice"]
    assert not any(name.startswith("private") for name in kept["bob"])
    # the records hold all that is needed to do the same again
    again = replay(outcome.folder)
    assert again["training"]["nmse_after"] == lesson["nmse_after"]
    assert again["training"]["card"]["data"] == card["data"]
    assert again["kdr_raw"] == s["kdr_raw"]
    untrained = msgspec.structs.replace(
        plan,
        training=Training(),
        chain=msgspec.structs.replace(plan.chain, enhance="identity", enhance_options={"step": 16, "scale": "complex"}),
    )
    assert replay(outcome.folder, untrained)["kdr_raw"] > 3 * s["kdr_raw"]
