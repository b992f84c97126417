"""Any channel gives either a rejected probe or a good estimate. Delays in samples, offsets in subcarriers."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.chain.csi.least_squares import LeastSquares
from testbed.chain.probing.ofdm import Ofdm
from testbed.core.errors import ProbeRejected
from testbed.core.types import IqBlock

RATE_HZ = 40e6
N = 1000
FRAME = Ofdm().frame(RATE_HZ)
CYCLES = FRAME.bins / FRAME.n_fft
SIZE = 4096
SPECTRUM = np.fft.fft(FRAME.samples, SIZE)
ESTIMATOR = LeastSquares()
RANGE = ESTIMATOR.range_hz(FRAME) / RATE_HZ * FRAME.n_fft


def response(delays, gains, cycles):
    return (gains[:, None] * np.exp(-2j * np.pi * np.outer(delays, cycles))).sum(axis=0)


def sound(start, spread, n_paths, cfo, snr_db, dc, seed):
    """Return the estimate and the true response for `n_paths` random paths between start and start + spread."""
    rng = np.random.default_rng(seed)
    delays = start + np.concatenate([[0.0], spread * rng.random(n_paths - 1)])
    gains = rng.standard_normal(n_paths) + 1j * rng.standard_normal(n_paths)
    gains *= 0.2 / np.linalg.norm(gains)
    truth = response(delays, gains, CYCLES)
    samples = np.fft.ifft(SPECTRUM * response(delays, gains, np.fft.fftfreq(SIZE)))[:N]
    samples = samples * np.exp(2j * np.pi * cfo / FRAME.n_fft * np.arange(N))
    sigma2 = np.mean(np.abs(FRAME.pilots) ** 2) * np.mean(np.abs(truth) ** 2) / 10 ** (snr_db / 10)
    samples += np.sqrt(sigma2 / 2) * (rng.standard_normal(N) + 1j * rng.standard_normal(N)) + dc
    return ESTIMATOR.estimate(IqBlock(samples[None].astype(np.complex64), RATE_HZ, 0.0), FRAME), truth


def error(csi, truth):
    h = csi.h[0, 0] * np.exp(-2j * np.pi * csi.subcarrier_hz * csi.time_s)
    h = h * np.exp(1j * np.angle(np.vdot(h, truth)))
    return np.sum(np.abs(h - truth) ** 2) / np.sum(np.abs(truth) ** 2)


def bound(snr_db):
    """Twice the theory's error, and what paths near both ends of the cyclic prefix leak between symbols."""
    return 2 / (FRAME.n_symbols * 10 ** (snr_db / 10)) + 3e-3


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    start=st.floats(5, 165),
    spread=st.floats(0, 24),
    n_paths=st.integers(1, 12),
    cfo=st.floats(-0.95, 0.95) | st.floats(-0.999 * RANGE, 0.999 * RANGE),
    snr_db=st.floats(6, 50),
    dc=st.sampled_from([0.0, 0.01, -0.01j]),
    seed=st.integers(0, 10**6),
)
def test_within_the_limits_the_frame_is_found_and_right(start, spread, n_paths, cfo, snr_db, dc, seed):
    csi, truth = sound(start, spread, n_paths, cfo, snr_db, dc, seed)
    assert error(csi, truth) < bound(snr_db)
    assert abs(csi.cfo_hz / RATE_HZ * FRAME.n_fft - cfo) < 0.02
    assert start - 1 < csi.time_s * RATE_HZ < start + spread + 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    start=st.floats(-900, 1000),
    cfo=st.floats(-60, 60),
    snr_db=st.floats(-10, 50),
    n_paths=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_outside_the_limits_it_is_rejected_or_right(start, cfo, snr_db, n_paths, seed):
    try:
        csi, truth = sound(start, 12.0, n_paths, cfo, snr_db, 0.0, seed)
    except ProbeRejected:
        return
    assert abs(cfo) < RANGE + 0.05
    assert -14 < start < 201
    assert error(csi, truth) < bound(snr_db)
