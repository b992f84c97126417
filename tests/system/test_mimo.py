"""Four antennas at either end: beams that each end finds on its own, and equal keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.core.config import Accounting, BeamPlan
from testbed.lab import one_process
from testbed.records import reader
from testbed.replay.replay import replay


def run(folder: Path, policy: str, rounds: int, lab: str = "sim_mimo", **changes: Any) -> Any:
    plan = config.load_experiment("mimo_walk")
    beams = msgspec.structs.replace(plan.beams, policy=policy)
    plan = msgspec.structs.replace(plan, **{"rounds": rounds, "beams": beams, **changes})
    return one_process.run(plan, config.load_lab(lab), lab, folder / policy)


@pytest.mark.usefixtures("few_attacks")
def test_beams_give_equal_keys_and_a_better_link_than_first_antennas(tmp_path: Path) -> None:
    beams = run(tmp_path, "svd", 416, accounting=Accounting(block_rounds=399, epsilon_log2=32))
    s = beams.summary
    assert s["keys_verified"] == 1
    assert s["keys_mismatched"] == 0
    assert s["key_bits"] > 100
    assert s["pairs_rejected"]["sounding"] == 17
    assert s["pairs_kept"] + sum(s["pairs_rejected"].values()) == 416
    health = {h["check"]: h for h in s["health"]}
    assert health["rounds_kept"]["ok"]
    assert "17 further rounds were soundings" in health["rounds_kept"]["detail"]
    assert health["reciprocity"]["ok"]
    recorded = reader.load(beams.folder)
    for link in recorded.links.values():  # what is recorded is the beams' link, Eve's beside it
        assert link.csi is not None
        assert link.csi.shape[1:3] == (1, 1)
        assert not np.isin(link.rounds % 25, 0).any()
    again = replay(beams.folder)
    assert again["raw_bits"] == s["raw_bits"]
    first = run(tmp_path, "none", 40)
    before = reader.load(first.folder)
    gain_db = np.median(recorded.links["alice>bob"].snr_db) - np.median(before.links["alice>bob"].snr_db)
    assert gain_db > 4.0
    assert s["csi_correlation_ab"] > first.summary["csi_correlation_ab"] + 0.03


def test_a_direct_net_chooses_a_nodes_beams(tmp_path: Path) -> None:
    from testbed.agents import direct, setting  # torch takes seconds, which the other test need not wait for

    checkpoint = tmp_path / "direct.pt"
    options = direct.Config(n_settings=16, decay_steps=60, bob_follows=False)
    direct.Direct(setting.Setting(), 1, options).train(60).save(checkpoint)
    # Eve sends too, for a Fred who stands where she does
    plan = config.load_experiment("mimo_walk")
    changes = {"probing": msgspec.structs.replace(plan.probing, schedule="A>BE B>AE E>AB")}
    heard = {}
    for policy, options in (("svd", {}), ("agent", {"checkpoint": str(checkpoint)})):
        beams = BeamPlan(policy=policy, options=options, sound_every=2)
        done_run = run(tmp_path, policy, 24, beams=beams, **changes)
        assert done_run.summary["pairs_kept"] == 12
        assert done_run.summary["pairs_rejected"].keys() <= {"sounding", "low_snr"}
        link = reader.load(done_run.folder).links["alice>bob"]
        heard[policy] = dict(zip(link.rounds.tolist(), link.csi, strict=True))
    assert heard["svd"].keys() == heard["agent"].keys()
    alike = [k for k in heard["svd"] if np.allclose(heard["svd"][k], heard["agent"][k], rtol=1e-3)]
    # Alice uses SVD until she has received Fred eight times, and the net from then on, which may choose the same beam
    early = [k for k in heard["svd"] if k < 14]
    assert alike[: len(early)] == early
    assert len(alike) <= len(early) + 1 < len(heard["svd"]) - 2
