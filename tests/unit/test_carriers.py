"""Carriers far apart: the node follows Alice's; record and summary say what was lost, also of failed rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_backend.local import world_in_thread
from sim_backend.radio import SimRadio
from testbed.assess import carriers
from testbed.config import load_experiment, load_lab
from testbed.coordinator.events import Note, RoundOver
from testbed.coordinator.recorder import Recorder
from testbed.coordinator.round import Rounds
from testbed.core.config import (
    Accounting,
    ChainPlan,
    Multipath,
    NodePlace,
    PlacedNode,
    ProbingPlan,
    RadioPlan,
    Scene,
    to_dict,
)
from testbed.core.registry import make_stage
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext
from testbed.net import messages as m
from testbed.nodes.carrier import CarrierTracker
from testbed.nodes.operations import RadioWork
from testbed.records import documents, reader
from testbed.records.recorded import RecordedRun
from testbed.records.writer import RunWriter

RATE_HZ, CARRIER_HZ = 1e6, 5.8e9
RANGE_HZ = 250e3


def test_a_radio_is_left_alone_within_half_of_the_range() -> None:
    tracker = CarrierTracker(CARRIER_HZ, RANGE_HZ, 3.0)
    for _ in range(100):
        tracker.hear(120e3)
        assert tracker.wanted_ppm() is None


def test_a_single_wrong_estimate_tunes_nothing() -> None:
    tracker = CarrierTracker(CARRIER_HZ, RANGE_HZ, 0.0)
    for i in range(100):
        tracker.hear(240e3 if i % 8 == 3 else 1e3)
        assert tracker.wanted_ppm() is None


def test_a_carrier_that_drifts_is_followed() -> None:
    """A crystal that moves by 60 ppm in 6000 frames: the offset never leaves the range by which frames are found."""
    tracker, correction_ppm, tuned, worst_hz = CarrierTracker(CARRIER_HZ, RANGE_HZ, 0.0), 0.0, 0, 0.0
    for i in range(6000):
        own_ppm = 0.01 * i
        off_hz = -1e-6 * (own_ppm - correction_ppm) * CARRIER_HZ  # Alice's carrier minus this radio's
        worst_hz = max(worst_hz, abs(off_hz))
        tracker.hear(off_hz)
        wanted_ppm = tracker.wanted_ppm()
        if wanted_ppm is not None:
            correction_ppm, tuned = wanted_ppm, tuned + 1
    assert tuned == 2
    assert worst_hz < 0.55 * RANGE_HZ


def test_what_no_crystal_has_is_not_followed() -> None:
    tracker = CarrierTracker(CARRIER_HZ, RANGE_HZ, 150.0)
    for _ in range(8):
        tracker.hear(-350e3)  # would make 210 ppm
    assert tracker.wanted_ppm() is None
    assert tracker.correction_ppm == 150.0


SCENE = Scene(
    alice=PlacedNode(position_m=[2.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[9.0, 8.0, 1.5]),
    multipath=Multipath(n_scatterers=0, direct_db=0.0),
)


def test_a_node_finds_frames_again_that_were_beyond_its_range(tmp_path: Path) -> None:
    """Crystals of ± 25 ppm at 5.8 GHz and 1 MS/s: 290 kHz, of which 250 kHz are accepted."""
    with world_in_thread(SCENE, seed=3) as endpoint:
        radios = []
        for name, ppm in (("alice", 25.0), ("bob", -25.0)):
            context = DriverContext(seed=5, world=endpoint, identity=None, state_dir=tmp_path)
            radios.append(SimRadio(name, context, timed=False, cfo_ppm=ppm, clock_ppm=0.0))
        alice, bob = radios
        work = RadioWork(bob, NodePlace(role="bob", driver="sim", rx_gain_db=20.0), tmp_path, lambda _: None)
        plan = m.Configure(
            radio=RadioPlan(carrier_hz=CARRIER_HZ, sample_rate_hz=RATE_HZ), probing=ProbingPlan(), chain=ChainPlan(),
            accounting=Accounting(), experiment_mode=True, record_iq=False, seed=1, timed=False,
        )  # fmt: skip
        work.configure(plan, "run", 1)
        alice.use_timing(False)
        alice.configure(bob.settings)
        frame = make_stage("probing", "ofdm", {}).frame(RATE_HZ)
        alice.transmit(IqBlock(frame.samples[None, :], RATE_HZ, 0.0))
        links, told_ppm = [], []
        for number in range(10):
            done: Any = work.step(m.Step(round=number, step=0, action="receive", tx="alice", last=True))
            (report,) = done.reports
            links += report.rounds[0].links
            told_ppm.append(report.correction_ppm)
        for radio in radios:
            radio.close()
    assert [link.reason for link in links] == ["cfo_range"] * 8 + [None] * 2
    assert [link.cfo_hz for link in links[:8]] == pytest.approx([290e3] * 8, abs=500)
    assert abs(links[9].cfo_hz) < 500
    assert told_ppm[:7] == [None] * 7
    assert told_ppm[7] == pytest.approx(-50.0, abs=0.1)
    assert told_ppm[8:] == [None] * 2


# ---------------------------------------------------------------- record and summary


def a_run(folder: Path, rows: list[tuple[str, float]], retuned: bool = False) -> RecordedRun:
    """Record rounds of Bob's receptions of Alice: (reason or '', carrier offset in Hz)."""
    experiment = load_experiment("onair_first_key")
    lab = load_lab("wire")
    frame = make_stage("probing", "ofdm", experiment.probing.waveform_options).frame(4e6)
    start = documents.start(
        to_dict(experiment), to_dict(lab), drivers={"bob": {"correction_ppm": 3.0}}, subcarrier_hz=frame.subcarrier_hz
    )
    writer = RunWriter(folder, start)
    recorder = Recorder(writer, lab, "run", private=False)
    csi = np.ones((1, 1, frame.bins.size), np.complex64)
    for number, (reason, cfo_hz) in enumerate(rows):
        link = m.LinkResult(
            tx="alice", reason=reason or None, cfo_hz=cfo_hz, shape=csi.shape, csi=None if reason else csi.tobytes()
        )
        recorder.round(
            RoundOver(round=number, kept=not reason, reason=reason or None, links={"bob": [link]}, surface=None,
                      start_s=0.1 * number)
        )  # fmt: skip
    if retuned:
        recorder.note(Note("retuned", {"node": "bob", "round": 8, "correction_ppm": -41.5}))
    recorder.totals(0, {})
    writer.close(documents.stop("ok"), None)
    return reader.load(folder)


def test_offsets_of_failed_rounds_are_on_record_and_name_the_option(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", [("cfo_range", 600e3 + i) for i in range(12)])
    experiment = load_experiment("onair_first_key")
    found = carriers.offsets(run, experiment)
    link = found["alice>bob"]
    assert (link["frames"], link["cfo_hz"], link["rejected"]) == (0, None, 12)
    assert link["rejected_cfo_ppm"] == pytest.approx(600e3 / 2450, abs=0.01)
    (verdict,) = carriers.verdict(run, experiment, found)
    assert not verdict.ok
    assert "found within ± 500000 Hz" in verdict.detail
    assert "alice → bob 12 frames lost at +600006 Hz" in verdict.detail
    assert f"Set correction_ppm = {3.0 - 600005.5 / 2450:.2f} in [node.bob]" in verdict.detail


def test_drift_is_told_and_what_was_tuned_anew(tmp_path: Path) -> None:
    rows = [("", 10e3 + 10.0 * i) for i in range(200)]
    experiment = load_experiment("onair_first_key")
    run = a_run(tmp_path / "a", rows)
    found = carriers.offsets(run, experiment)
    # medians of the first and the last twenty are 180 frames apart
    assert found["alice>bob"]["drift_ppm"] == pytest.approx(1800 / 2450)
    (verdict,) = carriers.verdict(run, experiment, found)
    assert verdict.ok
    assert "drift +0.73 ppm" in verdict.detail
    tuned = a_run(tmp_path / "b", rows, retuned=True)
    found = carriers.offsets(tuned, experiment)
    assert found["alice>bob"]["drift_ppm"] is None
    assert "bob to -41.50 ppm" in carriers.verdict(tuned, experiment, found)[0].detail


def test_a_run_without_frames_has_nothing_to_say(tmp_path: Path) -> None:
    experiment = load_experiment("onair_first_key")
    run = a_run(tmp_path / "run", [("no_preamble", 0.0)] * 3)
    assert carriers.offsets(run, experiment) == {}
    assert carriers.verdict(run, experiment, {}) == []


def test_the_coordinator_notes_what_a_node_tuned_to() -> None:
    assert Rounds._retuned("bob", 3, None) == []
    (note,) = Rounds._retuned("bob", 3, -4.0)
    assert note == Note("retuned", {"node": "bob", "round": 3, "correction_ppm": -4.0})
