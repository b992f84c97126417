"""Four antennas at either end, as processes: beams that each end finds on its own, and equal keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from testbed import launch, replay
from testbed.core import config
from testbed.records import reader


def run(folder: Path, policy: str, rounds: int, lab: str = "sim_mimo", **changes: Any) -> Any:
    plan = config.load_experiment("mimo_walk")
    plan = msgspec.structs.replace(
        plan, rounds=rounds, beams=msgspec.structs.replace(plan.beams, policy=policy), **changes
    )
    return launch.run(plan, config.load_lab(lab), lab, folder / policy)


def test_beams_give_equal_keys_and_a_better_link_than_first_antennas(tmp_path: Path) -> None:
    beams = run(tmp_path, "svd", 416, accounting=config.Accounting(block_rounds=399, epsilon_log2=32))
    s = beams.summary
    assert s["keys_verified"] == 1
    assert s["keys_mismatched"] == 0
    assert s["key_bits"] > 100
    assert s["pairs_rejected"]["sounding"] == 17
    assert s["pairs_kept"] + sum(s["pairs_rejected"].values()) == 416
    health = {h["check"]: h for h in s["health"]}
    assert health["rounds_kept"]["ok"]
    assert "17 more sounded the antennas" in health["rounds_kept"]["detail"]
    assert health["reciprocity"]["ok"]
    recorded = reader.load(beams.folder)
    for link in recorded.links.values():  # what is recorded is the beams' link, Eve's beside it
        assert link.csi is not None
        assert link.csi.shape[1:3] == (1, 1)
        assert not np.isin(link.rounds % 25, 0).any()
    again = replay.replay(beams.folder)
    assert again["raw_bits"] == s["raw_bits"]
    first = run(tmp_path, "none", 40)
    before = reader.load(first.folder)
    gain_db = np.median(recorded.links["alice>bob"].snr_db) - np.median(before.links["alice>bob"].snr_db)
    assert gain_db > 4.0
    assert s["csi_correlation_ab"] > first.summary["csi_correlation_ab"] + 0.03
