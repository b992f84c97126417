"""The chain of soft decisions (soft_walk: KLT, equally likely cells, multilevel LDPC, modelled entropy), as it is run.

On simulated radios, over the wire, and replayed from the record of either.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from testbed import config
from testbed.core.config import Lab
from testbed.lab import one_process, processes
from testbed.records import reader
from testbed.replay.replay import replay

ROUNDS = 600
"""Shorter blocks are corrected too, but have little more entropy than their syndromes reveal."""


def _libiio() -> None:
    pytest.importorskip("iio", exc_type=Exception, reason="libiio is not installed: apt-get install libiio0")


@pytest.mark.usefixtures("few_attacks")
@pytest.mark.parametrize("lab", ["sim", pytest.param("wire", marks=pytest.mark.long)])
def test_soft_decisions_give_a_key_and_the_record_gives_it_again(tmp_path: Path, lab: str) -> None:
    if lab == "wire":
        _libiio()
        lab = str(tmp_path / "unlocked.toml")  # 5.8 GHz are beyond a Pluto as it is sold
        text = config.find(Lab, "wire").read_text(encoding="utf-8")
        Path(lab).write_text(re.sub(r"(\[world\.emulators\.\w+\])", r'\1\nmodel = "ad9364"', text))
    plan = config.load_experiment("soft_walk")
    assert (plan.chain.reconcile, plan.accounting.entropy) == ("multilevel", "modelled")
    accounting = msgspec.structs.replace(plan.accounting, block_rounds=ROUNDS, epsilon_log2=16)
    plan = msgspec.structs.replace(plan, rounds=ROUNDS, accounting=accounting)
    drive = one_process.run if lab == "sim" else processes.run
    outcome = drive(plan, config.load_lab(lab), lab, tmp_path / "run")
    s = outcome.summary
    assert outcome.status == "finished"
    assert s["pairs_kept"] > 0.95 * ROUNDS
    assert (s["keys_verified"], s["keys_mismatched"], s["eve_keys_recovered"]) == (1, 0, 0)
    assert s["key_bits"] > 0
    assert s["reconciliation"]["method"] == "multilevel"
    reports = [k for block in reader.load(outcome.folder).blocks for k in block.key.values()]
    assert [k.entropy for k in reports] == ["modelled", "modelled"]
    again = replay(outcome.folder, plan)
    assert (again["keys_verified"], again["keys_mismatched"]) == (1, 0)
    assert again["kdr_raw"] == s["kdr_raw"]
    assert again["raw_bits"] == s["raw_bits"]
    assert again["key_bits"] == s["key_bits"]
    # row by row: Eve's node reports rejected rounds, too, and the record has them
    assert again["secrecy"]["eves"] == s["secrecy"]["eves"]
