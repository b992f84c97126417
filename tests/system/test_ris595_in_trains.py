"""The controller's own firmware in a run: the patterns of a train are sent ahead, and latch between its rounds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from testbed import config
from testbed.core.config import Lab
from testbed.lab import processes
from testbed.net import messages as m
from testbed.records import reader

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler: apt-get install gcc")


def test_a_board_that_latches_by_time_has_a_pattern_for_each_round_of_a_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its schedule, of three patterns here, limits the train."""
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path / "state"))
    text = config.find(Lab, "wire_ris595").read_text(encoding="utf-8")
    lab = tmp_path / "lab.toml"
    lab.write_text(text.replace("[world.emulators.ris]", "[world.emulators.ris]\nschedule = 3\n"))
    plan = msgspec.structs.replace(config.load_experiment("static_room"), rounds=12)
    ordered: list[list[int]] = []

    def listen(coordinator: Any, crew: Any) -> None:
        send = coordinator._hub.send

        def heard(node: str, body: Any, **more: Any) -> None:
            if isinstance(body, m.Schedule):
                ordered.append([x.round for x in body.patterns])
            elif isinstance(body, m.Apply | m.ApplyNext):
                ordered.append([body.round])
            send(node, body, **more)

        coordinator._hub.send = heard

    outcome = processes.run(plan, config.load_lab(str(lab)), str(lab), tmp_path / "run", on_coordinator=listen)
    assert outcome.status == "finished"
    assert outcome.summary["pairs_kept"] == 12
    assert [n for train in ordered for n in train] == list(range(12))
    assert max(map(len, ordered)) == 3
    assert len(reader.load(outcome.folder).patterns) >= 12
    assert outcome.summary["csi_correlation_ab"] > 0.9  # nothing but the surface changes
