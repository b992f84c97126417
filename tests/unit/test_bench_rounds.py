"""The peers of the benchmark of rounds do the work that they are credited with; growth is fitted as it is."""

from __future__ import annotations

import numpy as np
import pytest

from testbed import config
from testbed.benchmarks import growth, rounds
from testbed.benchmarks._rounds_peers import NumpyRounds
from testbed.core import registry


def test_the_numpy_peer_estimates_the_channels_that_it_simulates() -> None:
    plan = config.load_experiment("mobile_room")
    frame = registry.make_stage("probing", "ofdm", {}).frame(plan.radio.sample_rate_hz)
    found = NumpyRounds(plan, frame).estimates(8)
    at_s = np.asarray(np.arange(8) * plan.probing.interval_s, np.float64)
    true = np.fft.fft(NumpyRounds(plan, frame).taps(at_s), frame.n_fft)[..., frame.bins]
    # the estimate is that of a channel which is some samples earlier or later
    shifts = np.exp(-2j * np.pi * frame.bins * np.arange(-32, 33)[:, None, None, None] / frame.n_fft)
    alike = np.abs((found * (true * shifts).conj()).sum(axis=-1)).max(axis=0)
    alike /= np.linalg.norm(found, axis=-1) * np.linalg.norm(true, axis=-1)
    assert alike.shape == (8, 4)
    assert alike.min() > 0.998
    moved = np.abs((true[0] * true[-1].conj()).sum(axis=-1))
    assert (moved < 0.999 * np.linalg.norm(true[0], axis=-1) * np.linalg.norm(true[-1], axis=-1)).all()


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 16.0), (1.0, 1.0), (0.5, 4.0)])
def test_the_exponent_of_growth_is_that_of_the_measured_times(power: float, ratio: float) -> None:
    plans = {size: (size, None) for size in (64, 256, 1024)}
    row = growth.row("things", plans, lambda size, lab: 1e-3 * (size / 64) ** power)  # type: ignore[arg-type]
    assert row.ratio == pytest.approx(ratio)
    assert row.note.startswith(f"exponent {power:.2f}")
    assert "64: 1000" in row.note


def test_each_size_is_in_the_plan() -> None:
    plan, _ = growth.subcarriers(256)
    frame = registry.make_stage("probing", "ofdm", plan.probing.waveform_options).frame(40e6)
    assert frame.bins.size == 256
    assert growth.antennas(4)[1].node["bob"].options["n_antennas"] == 4
    ris = growth.elements(1024)[1].node["ris"].options
    assert ris["rows"] * ris["columns"] == 1024
    walk = growth.scatterers(500)[0].scene.multipath
    assert walk is not None
    assert walk.n_scatterers == 500


def test_a_row_says_where_the_time_of_a_round_went() -> None:
    told = {name: {"time_s": 1e-4 * k, "beside_s": 1.0} for k, name in enumerate(rounds.PARTS, start=1)}
    pace = {"round": {"rounds": 10, "mean_s": 1.5e-3, **told}}
    said = str(rounds.Pace(2e-3, 1e-3, 9, 10, 0.05, rounds._parts(pace)))
    assert "500 rounds/s, 1.00 ms of CPU a round" in said
    assert "(of 1.50 ms: order 0.10, air 0.20, estimate 0.30, message 0.40, journal 0.50)" in said
    assert rounds._parts({"round": None}) == rounds._parts({}) == ""


def test_a_run_is_timed_in_one_process() -> None:
    found = rounds.in_one_process(config.load_experiment("mobile_room"), config.load_lab("sim"), 20, 5)
    assert found.asked == 20
    assert found.gap_s == pytest.approx(0.05)
    assert 0.0 < found.cpu_s < 60.0
    assert "ms: order " in str(found)
