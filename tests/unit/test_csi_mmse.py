import numpy as np
import pytest

from testbed.chain.csi.least_squares import LeastSquares
from testbed.chain.csi.mmse import Mmse
from testbed.chain.probing.ofdm import Ofdm
from testbed.core import registry
from testbed.core.errors import InputError, ProbeRejected, Reject
from testbed.core.types import IqBlock

RATE_HZ = 40e6
FRAME = Ofdm().frame(RATE_HZ)
CYCLES = FRAME.bins / FRAME.n_fft
PILOT_POWER = np.mean(np.abs(FRAME.pilots) ** 2)


def exponential_channel(rms_samples, rng):
    """Return whole-sample delays over one cyclic prefix and complex Gaussian gains of mean total power 0.01."""
    delays = np.arange(32)
    profile = np.exp(-delays / rms_samples)
    profile *= 0.01 / profile.sum()
    return delays, np.sqrt(profile / 2) * (rng.standard_normal(32) + 1j * rng.standard_normal(32))


def error(csi, truth):
    h = csi.h[0, 0] * np.exp(-2j * np.pi * csi.subcarrier_hz * csi.time_s)
    h = h * np.exp(1j * np.angle(np.vdot(h, truth)))
    return np.sum(np.abs(h - truth) ** 2) / np.sum(np.abs(truth) ** 2)


def mean_errors(rms_samples, snr_db, estimators, n=30):
    """Return the mean normalised error of each estimator over the same random channels."""
    errors = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        delays, gains = exponential_channel(rms_samples, rng)
        samples = np.convolve(np.concatenate([np.zeros(80), FRAME.samples, np.zeros(89)]), gains)
        truth = (gains[:, None] * np.exp(-2j * np.pi * np.outer(delays + 80, CYCLES))).sum(axis=0)
        sigma2 = PILOT_POWER * np.mean(np.abs(truth) ** 2) / 10 ** (snr_db / 10)
        noise = rng.standard_normal((2, samples.size)) * np.sqrt(sigma2 / 2)
        block = IqBlock((samples + noise[0] + 1j * noise[1])[None].astype(np.complex64), RATE_HZ, 0.0)
        errors.append([error(e.estimate(block, FRAME), truth) for e in estimators])
    return np.mean(errors, axis=0)


@pytest.mark.parametrize("rms_samples", [1, 3, 6])
def test_better_than_least_squares_at_5_db(rms_samples):
    ls, mmse = mean_errors(
        rms_samples, 5, [LeastSquares(min_snr_db=0), Mmse(rms_delay_s=rms_samples / RATE_HZ, min_snr_db=0)]
    )
    assert 10 * np.log10(ls / mmse) > 3


@pytest.mark.parametrize("snr_db", [5, 20, 35])
@pytest.mark.parametrize("rms_delay_s", [1e-12, 1e-9, 1e-6, 1e-4])
def test_a_wrong_delay_spread_costs_little(snr_db, rms_delay_s):
    ls, mmse = mean_errors(4, snr_db, [LeastSquares(min_snr_db=0), Mmse(rms_delay_s=rms_delay_s, min_snr_db=0)], n=15)
    assert 10 * np.log10(mmse / ls) < 0.5


def test_all_fields_but_h_are_those_of_least_squares():
    rng = np.random.default_rng(1)
    samples = np.concatenate([np.zeros(80), 0.3 * FRAME.samples, np.zeros(120)])
    samples = samples + 0.02 * (rng.standard_normal(1000) + 1j * rng.standard_normal(1000))
    block = IqBlock(np.stack([samples, 1j * samples]).astype(np.complex64), RATE_HZ, 2.0)
    a, b = LeastSquares().estimate(block, FRAME), Mmse().estimate(block, FRAME)
    assert (a.time_s, a.cfo_hz, a.rssi_dbfs) == (b.time_s, b.cfo_hz, b.rssi_dbfs)
    np.testing.assert_array_equal(a.snr_db, b.snr_db)
    assert b.h.shape == (2, 1, 64)
    assert b.h.dtype == np.complex64
    assert np.var(np.abs(b.h)) < 0.3 * np.var(np.abs(a.h))


def test_rejects_as_least_squares_does():
    with pytest.raises(ProbeRejected) as caught:
        Mmse().estimate(IqBlock(np.zeros((1, 1000), np.complex64), RATE_HZ, 0.0), FRAME)
    assert caught.value.reason == Reject.NO_PREAMBLE


@pytest.mark.parametrize("rms_delay_s", [0.0, -1e-9, 1.0, float("nan")])
def test_refused_delay_spread(rms_delay_s):
    with pytest.raises(InputError, match="rms_delay_s"):
        registry.make_stage("csi", "mmse", {"rms_delay_s": rms_delay_s})
