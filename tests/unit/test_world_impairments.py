"""The front end's imperfections, each measured in samples against what was set."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim_backend.impairments import FrontEnd, Oscillator, RadioOptions, device_clock
from testbed.core.errors import InputError
from testbed.core.options import driver_options
from testbed.core.radio import RadioSettings

RATE_HZ = 20e6
SETTINGS = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=RATE_HZ, tx_gain_db=0.0, rx_gain_db=0.0)
IDEAL = {
    "noise_figure_db": 0.0,
    "clock_ppm": 0.0,
    "phase_noise_linewidth_hz": 0.0,
    "chain_ripple_db": 0.0,
    "adc_bits": 24,
    "dc_offset_dbfs": -200.0,
    "timing_jitter_s": 0.0,
}
MS = 10**9


def front(seed: int = 1, world_seed: int = 2, settings: RadioSettings = SETTINGS, **changes: float) -> FrontEnd:
    return FrontEnd("alice", RadioOptions(**{**IDEAL, **changes}), seed, world_seed, settings)


def test_powers_are_in_dbm() -> None:
    sent = front(tx_power_dbm=3.0, settings=RadioSettings(2.4e9, RATE_HZ, 7.0, 0.0)).send(np.ones(64, np.complex64), 0)
    assert 10 * np.log10(np.mean(np.abs(sent) ** 2)) == pytest.approx(10.0, abs=0.01)
    heard, _ = front(full_scale_dbm=-20.0, settings=RadioSettings(2.4e9, RATE_HZ, 0.0, 10.0)).hear(
        np.full(64, 10 ** (-36 / 20), np.complex64), 0
    )
    assert 20 * np.log10(np.abs(heard)).mean() == pytest.approx(-6.0, abs=0.05)


@pytest.mark.parametrize("noise_figure_db", [0.0, 6.0])
def test_noise_floor_is_ktb(noise_figure_db: float) -> None:
    quiet, _ = front(
        noise_figure_db=noise_figure_db, full_scale_dbm=-60.0, settings=RadioSettings(2.4e9, RATE_HZ, 0.0, 0.0)
    ).hear(np.zeros(50_000, np.complex64), 0)
    power_dbm = 10 * np.log10(np.mean(np.abs(quiet) ** 2)) - 60.0
    assert power_dbm == pytest.approx(-174 + 10 * np.log10(RATE_HZ) + noise_figure_db, abs=0.1)
    assert abs(np.mean(quiet**2)) < 0.03 * np.mean(np.abs(quiet) ** 2)  # circular


def test_converter_rounds_and_clips() -> None:
    out, _ = front(adc_bits=4, full_scale_dbm=0.0).hear(np.array([0.3 + 0.01j, 5 - 5j], np.complex64), 0)
    scale = 8 * out * np.exp(0j)
    np.testing.assert_array_equal(scale, np.rint(scale.real) + 1j * np.rint(scale.imag))
    assert np.abs(out.view(np.float32)).max() <= 1.0
    loud, _ = front(adc_bits=4, full_scale_dbm=0.0).hear(
        (10 * np.exp(2j * np.pi * np.arange(100) / 7)).astype(np.complex64), 0
    )
    assert set(np.unique(loud.real)) <= {-1.0, 0.875, *np.arange(-8, 8) / 8}
    assert loud.real.min() == -1.0
    assert loud.real.max() == 0.875


def test_dc_offset() -> None:
    out, _ = front(dc_offset_dbfs=-30.0, full_scale_dbm=-20.0).hear(np.zeros(1000, np.complex64), 0)
    assert 20 * np.log10(np.abs(out.mean())) == pytest.approx(-30.0, abs=0.1)


@pytest.mark.parametrize("ppm", [-1.5, 0.0, 2.0])
def test_carrier_offset_is_what_was_set_and_continuous(ppm: float) -> None:
    """Two receptions 1 ms apart lie on one rotating phasor."""
    radio, ones = front(cfo_ppm=ppm), np.ones(4000, np.complex64)
    early, late = radio.send(ones, 5 * MS), radio.send(ones, 6 * MS)
    cfo_hz = np.polyfit(np.arange(4000) / RATE_HZ, np.unwrap(np.angle(early)), 1)[0] / (2 * np.pi)
    assert cfo_hz == pytest.approx(ppm * 2400, abs=0.1)
    turn = np.angle(late[0] / early[0] * np.exp(-2j * np.pi * ppm * 2400 * 1e-3))
    assert turn == pytest.approx(0.0, abs=1e-3)
    heard, _ = radio.hear(early * 0.05, 5 * MS)  # its own oscillator cancels the offset that it added
    assert np.ptp(np.unwrap(np.angle(heard))) < 0.02


def test_phases_of_two_runs_and_two_radios_are_unrelated() -> None:
    starts = [front(world_seed=w).oscillator.phase_rad(0, 1, RATE_HZ)[0] for w in range(200)]
    assert abs(np.exp(1j * np.array(starts)).mean()) < 0.2


def test_phase_noise_is_a_wiener_process() -> None:
    """Variance of a phase step over τ is 2π·linewidth·τ, in, across and far beyond the construction's cells."""
    linewidth_hz = 100.0
    for tau_s, n in ((2e-6, 2000), (50e-6, 400), (5e-3, 300), (3.0, 150)):
        steps = []
        for i in range(n):
            oscillator = Oscillator(i, "x", 0.0, linewidth_hz) if tau_s > 1 else _ONE
            start = int((i + 0.3) * 1e12 * tau_s * 1.7) if tau_s <= 1 else 10**11
            start -= start % 10**6  # between whole microseconds there are straight lines
            a, b = (oscillator.phase_rad(t, 1, RATE_HZ)[0] for t in (start, start + int(tau_s * 1e12)))
            steps.append(b - a)
        wanted = 2 * np.pi * linewidth_hz * tau_s
        assert np.var(steps) == pytest.approx(wanted, rel=5 * np.sqrt(2 / n)), tau_s


_ONE = Oscillator(77, "x", 0.0, 100.0)


@given(st.integers(0, 4 * 10**12), st.integers(1, 3000))
@settings(max_examples=20, deadline=None)
def test_phase_is_a_function_of_time(start: int, n: int) -> None:
    """However one gets there: asked fresh, after other times, or as part of a longer stretch."""
    start -= start % 50_000
    fresh = Oscillator(5, "x", 100.0, 50.0).phase_rad(start, n, RATE_HZ)
    used = Oscillator(5, "x", 100.0, 50.0)
    used.phase_rad(start + 3 * 10**12, 10, RATE_HZ)
    used.phase_rad(0, 10, RATE_HZ)
    np.testing.assert_array_equal(used.phase_rad(start, n, RATE_HZ), fresh)
    longer = used.phase_rad(start, n + 100, RATE_HZ)[:n]
    np.testing.assert_allclose(longer, fresh, atol=1e-9)


def test_windows_of_any_lengths_leave_no_memory_in_use() -> None:
    """No two windows of a node may have the same length while its clock's doubt grows. For each of the last 64 lengths,
    the times of all samples were kept: 8 bytes a sample, 450 MB for windows of 22 ms."""
    oscillator = Oscillator(3, "x", 100.0, 50.0)
    lengths = [300_000 + 7 * i for i in range(8)]
    tracemalloc.start()
    try:
        phases = [oscillator.phase_rad(0, n, RATE_HZ)[-1] for n in lengths]
        kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    fresh = [Oscillator(3, "x", 100.0, 50.0).phase_rad(0, n, RATE_HZ)[-1] for n in lengths]
    np.testing.assert_array_equal(phases, fresh)
    assert peak_bytes > 8 * lengths[0]
    assert kept_bytes < 1 << 20


def test_shorter_windows_share_the_times_of_longer_ones() -> None:
    used = Oscillator(3, "x", 100.0, 50.0)
    for n in (900, 40_000, 1000, 100_000, 900):
        for rate_hz in (RATE_HZ, 7.3e6):
            fresh = Oscillator(3, "x", 100.0, 50.0).phase_rad(12 * MS, n, rate_hz)
            np.testing.assert_array_equal(used.phase_rad(12 * MS, n, rate_hz), fresh)


def test_chains_ripple_as_configured_differ_by_direction_and_stay() -> None:
    spectra = []
    impulse = np.zeros(64, np.complex64)
    impulse[0] = 1.0
    for seed in range(100):
        radio = front(seed=seed, chain_ripple_db=0.5, full_scale_dbm=0.0, noise_figure_db=0.0)
        sent = np.fft.fft(radio.send(impulse, 0))
        spectra.append(np.abs(sent))
        again = front(seed=seed, chain_ripple_db=0.5, world_seed=99).send(impulse, 7 * MS)
        np.testing.assert_allclose(np.abs(np.fft.fft(again)), spectra[-1], rtol=1e-5)
        heard, _ = radio.hear(impulse, 0)
        assert np.ptp(np.abs(np.fft.fft(heard)) - spectra[-1]) > 0.01
    ripple_db = 20 * np.log10(np.array(spectra))
    assert np.sqrt(np.mean(ripple_db**2)) == pytest.approx(0.5, rel=0.15)


def test_gain_steps_are_as_frequent_and_as_large_as_configured() -> None:
    radio = front(gain_step_db=3.0, gain_step_probability=0.3, full_scale_dbm=0.0)
    field = np.full(16, 0.3, np.complex64)
    gains_db = np.array([20 * np.log10(np.abs(radio.hear(field, k * MS)[0]).mean() / 0.3) for k in range(400)])
    stepped = np.abs(gains_db) > 1
    np.testing.assert_allclose(np.abs(gains_db[stepped]), 3.0, atol=0.05)
    assert stepped.mean() == pytest.approx(0.3, abs=0.1)
    assert {True, False} == set(gains_db[stepped] > 0)


def test_jitter_has_the_spread_that_was_set() -> None:
    radio = front(timing_jitter_s=2e-9)
    ticks = np.array([radio.jitter("rx", k) for k in range(1500)])
    assert ticks.std() == pytest.approx(2000, rel=0.1)
    assert np.abs(ticks).max() <= 8000
    assert radio.jitter("tx", 3) != radio.jitter("rx", 3)


def test_lost_samples_are_flagged() -> None:
    radio = front(overflow_probability=1.0, full_scale_dbm=0.0)
    ramp = (np.arange(1, 513) / 600).astype(np.complex64)
    out, overflow = radio.hear(ramp, 0)
    assert overflow
    assert len(out) == 512
    assert np.abs(np.diff(np.abs(out))).max() > 0.05
    assert not front().hear(ramp, 0)[1]


def test_the_same_moment_sounds_the_same() -> None:
    lifelike = RadioOptions(gain_step_db=1.0, gain_step_probability=0.5)
    field = np.full(100, 1e-3, np.complex64)
    one, two, other_run, other_radio = (
        FrontEnd(name, lifelike, 1, world, SETTINGS) for name, world in (("bob", 2), ("bob", 2), ("bob", 3), ("eve", 2))
    )
    two.hear(field, 8 * MS)
    reference = one.hear(field, 5 * MS)[0]
    np.testing.assert_array_equal(two.hear(field, 5 * MS)[0], reference)
    assert not np.array_equal(other_run.hear(field, 5 * MS)[0], reference)
    assert not np.array_equal(other_radio.hear(field, 5 * MS)[0], reference)


def test_clocks_are_drawn_unless_given() -> None:
    drawn = [device_clock("bob", RadioOptions(), seed) for seed in range(50)]
    assert all(abs(c.ppm) <= 2 and abs(c.offset_s) <= 1e-3 for c in drawn)
    assert len({c.ppm for c in drawn}) == 50
    given = device_clock("bob", RadioOptions(clock_ppm=1.5, clock_offset_s=0.5), 1)
    assert (given.ppm, given.offset_s) == (1.5, 0.5)


@pytest.mark.parametrize(
    ("options", "names"),
    [({"noise_figur_db": 6}, "noise_figur_db"), ({"adc_bits": 0}, "adc_bits"), ({"timed": "no"}, "timed")],
)
def test_wrong_options_name_the_key_and_what_is_accepted(options: dict[str, object], names: str) -> None:
    with pytest.raises(InputError, match=rf"node\.bob\..*{names}.*accepted: "):
        driver_options(options, RadioOptions, "bob")
