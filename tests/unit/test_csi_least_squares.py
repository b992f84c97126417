"""The estimator against channels that are known. `delays` are in samples from the block's first one."""

import numpy as np
import pytest

from testbed.chain.csi.least_squares import LeastSquares
from testbed.chain.probing.ofdm import Ofdm
from testbed.core import registry
from testbed.core.errors import InputError, ProbeRejected, Reject
from testbed.core.types import IqBlock

RATE_HZ = 40e6
N = 1000
T0_S = 5.0
FRAME = Ofdm().frame(RATE_HZ)
CYCLES = FRAME.bins / FRAME.n_fft
SPACING_HZ = RATE_HZ / FRAME.n_fft
PILOT_POWER = np.mean(np.abs(FRAME.pilots) ** 2)


def response(delays, gains, cycles):
    return (np.array(gains)[:, None] * np.exp(-2j * np.pi * np.outer(delays, cycles))).sum(axis=0)


def through(delays, gains, cfo_hz=0.0, frame=FRAME, n=N):
    """Return (sample,) the frame after a channel with fractional delays, without noise."""
    size = 4096
    spectrum = np.fft.fft(frame.samples, size) * response(delays, gains, np.fft.fftfreq(size))
    return np.fft.ifft(spectrum)[:n] * np.exp(2j * np.pi * cfo_hz / RATE_HZ * np.arange(n))


def noise(sigma2, seed, shape=N):
    rng = np.random.default_rng(seed)
    return np.sqrt(sigma2 / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def at_snr(samples, snr_db, seed, gain):
    """Add noise for a mean SNR on the subcarriers over a channel of mean power gain²."""
    return samples + noise(PILOT_POWER * gain**2 / 10 ** (snr_db / 10), seed, samples.shape)


def block(samples, overflow=False):
    return IqBlock(np.atleast_2d(samples).astype(np.complex64), RATE_HZ, T0_S, overflow)


def estimate(samples, frame=FRAME, **options):
    return LeastSquares(**options).estimate(block(samples), frame)


def arrival(csi):
    """Return the sample of the block at which the frame arrived."""
    return (csi.time_s - T0_S) * RATE_HZ


def in_block_time(csi, cfo_hz=0.0):
    """Undo the reference to the arrival: (rx antenna, subcarrier), delays and phase from the block's first sample."""
    return csi.h[:, 0] * np.exp(-2j * np.pi * (csi.subcarrier_hz + cfo_hz) * (csi.time_s - T0_S))


def nmse(h, truth, any_phase=False):
    if any_phase:
        h = h * np.exp(1j * np.angle(np.vdot(h, truth)))
    return np.sum(np.abs(h - truth) ** 2) / np.sum(np.abs(truth) ** 2)


def why_rejected(samples, **options):
    with pytest.raises(ProbeRejected) as caught:
        estimate(samples, **options)
    return caught.value.reason


@pytest.mark.parametrize("start", [0, 3, 100, 200])
def test_perfect_channel(start):
    csi = estimate(through([start], [0.5j]))
    assert csi.h.shape == (1, 1, 64)
    assert csi.h.dtype == np.complex64
    np.testing.assert_allclose(csi.h[0, 0], 0.5j, atol=1e-4)
    assert arrival(csi) == pytest.approx(start, abs=1e-3)
    assert csi.cfo_hz == pytest.approx(0, abs=1)
    np.testing.assert_allclose(csi.subcarrier_hz, FRAME.subcarrier_hz)


@pytest.mark.parametrize("cfo_hz", [0.0, 100e3, -100e3, 250e3, -290e3])
@pytest.mark.parametrize(
    ("delays", "gains"),
    [
        ([100.37], [0.4]),
        ([88.2, 95.3], [0.1j, 0.3]),  # something before the strongest
        ([100.4, 103.9, 111.2, 124.0], [0.3, 0.2j, -0.2, 0.1]),
        ([100.0, 130.0], [0.3, 0.29j]),
    ],
)
def test_paths_with_fractional_delays(delays, gains, cfo_hz):
    csi = estimate(through(delays, gains, cfo_hz))
    truth = response(delays, gains, CYCLES)
    assert nmse(in_block_time(csi, cfo_hz)[0], truth) < 2e-4


@pytest.mark.parametrize(
    "options",
    [
        {"n_subcarriers": 52, "n_fft": 64, "n_cp": 16, "n_symbols": 2},
        {"n_subcarriers": 30, "n_fft": 32, "n_cp": 16, "n_symbols": 8},
        {"n_subcarriers": 126},
    ],
)
def test_other_designs(options):
    frame = Ofdm(**options).frame(RATE_HZ)
    csi = estimate(through([50, 54], [0.4, 0.2j], 50e3, frame), frame)
    truth = response([50, 54], [0.4, 0.2j], frame.bins / frame.n_fft)
    assert nmse(in_block_time(csi, 50e3)[0], truth) < 2e-4


def test_one_estimator_serves_several_frame_designs():
    estimator, other = LeastSquares(), Ofdm(n_symbols=2, seed=2).frame(RATE_HZ)
    for frame in (FRAME, other, FRAME):
        csi = estimator.estimate(block(through([100], [0.5], 0, frame)), frame)
        np.testing.assert_allclose(csi.h[0, 0], 0.5, atol=1e-4)


def test_arrival_is_the_centre_of_gravity_of_the_paths():
    assert arrival(estimate(through([100, 104], [0.3, 0.3j]))) == pytest.approx(102, abs=0.2)


def test_timing_noise():
    starts = np.random.default_rng(0).uniform(20, 180, 40)
    errors = [arrival(estimate(at_snr(through([s], [0.3]), 20, i, 0.3))) - s for i, s in enumerate(starts)]
    assert np.std(errors) < 0.03
    assert abs(np.mean(errors)) < 0.02


@pytest.mark.parametrize("cfo_hz", [-100e3, 0.0, 100e3])
def test_carrier_offset_at_20_db(cfo_hz):
    clean = through([100, 105.5], [0.3, 0.1], cfo_hz)
    for seed in range(20):
        assert abs(estimate(at_snr(clean, 20, seed, 0.3)).cfo_hz - cfo_hz) < 0.01 * SPACING_HZ


@pytest.mark.parametrize("snr_db", [5, 10, 20, 35])
def test_snr(snr_db):
    clean = through([100.3], [0.3], 20e3)
    found = np.array([np.mean(10 ** (estimate(at_snr(clean, snr_db, s, 0.3)).snr_db / 10)) for s in range(30)])
    assert np.abs(10 * np.log10(found) - snr_db).max() < 1.3  # 192 noise values: 0.35 dB standard deviation
    assert 10 * np.log10(found.mean()) == pytest.approx(snr_db, abs=0.3)


def test_snr_follows_the_channel_over_frequency():
    delays, gains = [100, 106], [0.3, 0.24]
    expected = 20 * np.log10(np.abs(response(delays, gains, CYCLES)))
    csi = estimate(at_snr(through(delays, gains), 30, 1, 0.3))
    assert np.abs((csi.snr_db - csi.snr_db.mean()) - (expected - expected.mean())).max() < 2


def test_error_variance_is_that_of_theory():
    sigma2 = PILOT_POWER * 0.3**2 / 100
    errors = [
        in_block_time(estimate(through([100], [0.3]) + noise(sigma2, seed)))[0] - response([100], [0.3], CYCLES)
        for seed in range(100)
    ]
    theory = sigma2 / (FRAME.n_symbols * PILOT_POWER)
    assert np.mean(np.abs(errors) ** 2) == pytest.approx(theory, rel=0.1)


def test_rssi():
    power = np.mean(np.abs(FRAME.samples) ** 2)
    assert estimate(through([100], [0.1])).rssi_dbfs == pytest.approx(10 * np.log10(power * 0.01), abs=0.2)


@pytest.mark.parametrize("cfo_hz", [0.0, 33e3, -240e3])
@pytest.mark.parametrize("gain", [0.3, 0.005])
def test_dc_offset_does_not_matter(cfo_hz, gain):
    # −40 dBFS: far below the stronger signal, above the weaker one
    delays, gains = [100.3, 107], [gain, 0.5 * gain]
    truth = response(delays, gains, CYCLES)
    samples = at_snr(through(delays, gains, cfo_hz), 25, 3, gain)
    without, with_dc = estimate(samples), estimate(samples + 0.01 * np.exp(1j))
    assert nmse(in_block_time(without, cfo_hz)[0], truth, any_phase=True) < 2e-3
    assert nmse(in_block_time(with_dc, cfo_hz)[0], truth, any_phase=True) < 2e-3
    assert with_dc.rssi_dbfs == pytest.approx(without.rssi_dbfs, abs=0.1)


def test_several_antennas_are_combined_to_find_and_kept_apart_in_h():
    gains = [[0.3, 0.1j], [0.05, -0.25], [0.0, 0.0]]
    clean = np.stack([through([100, 107.5], g, 60e3) for g in gains])
    csi = estimate(at_snr(clean, 30, 1, 0.3))
    assert csi.h.shape == (3, 1, 64)
    truth = np.stack([response([100, 107.5], g, CYCLES) for g in gains])
    assert nmse(in_block_time(csi, 60e3), truth, any_phase=True) < 2e-3
    assert np.abs(csi.h[2]).max() < 0.05


# ---------------------------------------------------------------- what is rejected


def test_noise_is_no_frame():
    for seed in range(500):
        assert why_rejected(noise(0.01, seed)) == Reject.NO_PREAMBLE
    assert why_rejected(np.zeros(N)) == Reject.NO_PREAMBLE


def test_noise_with_dc_is_no_frame():
    for seed in range(50):
        assert why_rejected(noise(1e-6, seed) + 0.01) == Reject.NO_PREAMBLE


@pytest.mark.parametrize("snr_db", [10, 60])
def test_another_waveform_is_no_frame(snr_db):
    for seed in range(2, 42):
        other = Ofdm(seed=seed).frame(RATE_HZ)
        assert why_rejected(at_snr(through([100], [0.5], 0, other), snr_db, seed, 0.5)) == Reject.NO_PREAMBLE


def test_a_carrier_is_no_frame():
    for seed, cycles in enumerate(np.linspace(-0.5, 0.5, 101)):
        tone = 0.5 * np.exp(2j * np.pi * cycles * np.arange(N))
        assert why_rejected(at_snr(tone, 30, seed, 0.5)) in {Reject.NO_PREAMBLE, Reject.TRUNCATED}


def test_a_frame_backwards_is_no_frame():
    assert why_rejected(through([100], [0.5])[::-1]) == Reject.NO_PREAMBLE


def test_clipped():
    samples = through([100], [2.5])
    samples = np.clip(samples.real, -1, 1) + 1j * np.clip(samples.imag, -1, 1)
    assert why_rejected(samples) == Reject.CLIPPED
    assert estimate(samples, clip_fraction=1.0).h.shape == (1, 1, 64)


def test_a_full_scale_burst_outside_the_frame_is_not_clipping():
    samples = through([150], [0.5])
    samples[:20] = 1
    assert arrival(estimate(samples)) == pytest.approx(150, abs=0.1)


def test_clipped_beyond_recognition():
    assert why_rejected(np.sign(noise(1, 0).real) * (1 + 1j)) == Reject.CLIPPED


def test_low_snr():
    reasons = [why_rejected(at_snr(through([100], [0.1]), 0, seed, 0.1)) for seed in range(30)]
    assert reasons.count(Reject.LOW_SNR) >= 25
    assert set(reasons) <= {Reject.LOW_SNR, Reject.NO_PREAMBLE}
    assert why_rejected(at_snr(through([100], [0.1]), 20, 0, 0.1), min_snr_db=25) == Reject.LOW_SNR


def test_carrier_offset_beyond_the_option():
    samples = through([100], [0.5], 60e3)
    assert why_rejected(samples, max_cfo_hz=50e3) == Reject.CFO_RANGE
    assert estimate(samples, max_cfo_hz=70e3).cfo_hz == pytest.approx(60e3, rel=1e-3)


@pytest.mark.parametrize("start", [-20, -5, -1, 201, 210, 400, 800])
def test_truncated(start):
    samples = through([500 + start], [0.5], n=2000)[500:1500]
    assert why_rejected(at_snr(samples, 30, 1, 0.5)) == Reject.TRUNCATED


def test_block_shorter_than_the_frame():
    assert why_rejected(FRAME.samples[:-1]) == Reject.TRUNCATED


@pytest.mark.parametrize("start", range(-900, -20, 40))
def test_a_frame_cut_at_the_front_is_not_taken_for_a_later_one(start):
    samples = through([1000 + start], [0.5], n=2000)[1000:]
    reason = why_rejected(at_snr(samples, 30, 1, 0.5))
    assert reason in {Reject.TRUNCATED, Reject.NO_PREAMBLE, Reject.LOW_SNR}


def test_overflow():
    with pytest.raises(ProbeRejected) as caught:
        LeastSquares().estimate(block(through([100], [0.5]), overflow=True), FRAME)
    assert caught.value.reason == Reject.OVERFLOW


def test_nan_samples_are_rejected():
    samples = through([100], [0.5])
    samples[400] = np.nan
    assert why_rejected(samples) == Reject.NO_PREAMBLE


def test_different_rates_are_a_programming_error():
    with pytest.raises(ValueError, match="Hz"):
        LeastSquares().estimate(block(through([100], [0.5])), Ofdm().frame(20e6))


@pytest.mark.parametrize("stage", ["least_squares", "mmse"])
@pytest.mark.parametrize(
    "options", [{"min_snr_db": 99}, {"clip_fraction": 2}, {"detection_threshold": 0}, {"max_cfo_hz": -1}]
)
def test_refused_options(stage, options):
    (name,) = options
    with pytest.raises(InputError, match=f"key '{name}': .*accepted"):
        registry.make_stage("csi", stage, options)
