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
    beams = run(tmp_path, "svd", 500)
    s = beams.summary
    assert s["keys_verified"] == 1
    assert s["keys_mismatched"] == 0
    assert s["key_bits"] > 100
    assert s["pairs_rejected"]["sounding"] == 20
    assert s["pairs_kept"] + sum(s["pairs_rejected"].values()) == 500
    health = {h["check"]: h for h in s["health"]}
    assert health["rounds_kept"]["ok"]
    assert "20 more sounded the antennas" in health["rounds_kept"]["detail"]
    assert health["reciprocity"]["ok"]
    recorded = reader.load(beams.folder)
    for link in recorded.links.values():  # what is recorded is the beams' link, Eve's beside it
        assert link.csi is not None
        assert link.csi.shape[1:3] == (1, 1)
        assert not np.isin(link.rounds % 25, 0).any()
    again = replay.replay(beams.folder)
    assert again["raw_bits"] == s["raw_bits"]
    first = run(tmp_path, "none", 60)
    before = reader.load(first.folder)
    gain_db = np.median(recorded.links["alice>bob"].snr_db) - np.median(before.links["alice>bob"].snr_db)
    assert gain_db > 4.0
    assert s["csi_correlation_ab"] > first.summary["csi_correlation_ab"] + 0.03


def test_first_antennas_only_is_the_run_of_single_antennas(tmp_path: Path) -> None:
    """Antenna 1 is where the node is, with the parts and noise of a radio that has no other."""
    one = config.load_lab("sim_mimo")
    for name in ("alice", "bob"):
        one.node[name] = msgspec.structs.replace(one.node[name], options={})
    plan = msgspec.structs.replace(config.load_experiment("mimo_walk"), rounds=12, beams=config.BeamPlan())
    several = launch.run(plan, config.load_lab("sim_mimo"), "sim_mimo", tmp_path / "four")
    single = launch.run(plan, one, "sim_mimo", tmp_path / "one")
    a, b = (reader.load(x.folder).links["alice>bob"].csi for x in (several, single))
    assert a is not None
    assert b is not None
    # the air sums sixteen convolutions another way, and the converter rounds
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())
