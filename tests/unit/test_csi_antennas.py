"""Soundings that tell the transmitter's antennas apart, through both estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.chain.csi.least_squares import LeastSquares
from testbed.chain.csi.mmse import Mmse
from testbed.chain.probing.ofdm import Ofdm
from testbed.core.errors import ProbeRejected, Reject
from testbed.core.types import AntennaFrame, IqBlock

RATE_HZ = 40e6
FRAME = Ofdm().frame(RATE_HZ)
CYCLES = FRAME.bins / FRAME.n_fft


def sounded(n_rx: int, n_tx: int, snr_db: float, seed: int, cfo_hz: float = 3e3) -> tuple[IqBlock, AntennaFrame, Any]:
    """Return a block, its frame and the truth (rx, tx, subcarrier)."""
    rng = np.random.default_rng(seed)
    frame = AntennaFrame.of(FRAME, n_tx)
    delays = np.arange(8)
    profile = np.exp(-delays / 2) / np.exp(-delays / 2).sum() * 0.01
    shape = (n_rx, n_tx, 8)
    gains = np.sqrt(profile / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    padded = np.pad(frame.samples, ((0, 0), (80, 100)))
    y = np.array([sum(np.convolve(padded[t], gains[r, t]) for t in range(n_tx)) for r in range(n_rx)])
    y = y * np.exp(2j * np.pi * cfo_hz / RATE_HZ * np.arange(y.shape[1]))
    truth = gains @ np.exp(-2j * np.pi * np.outer(delays + 80, CYCLES))
    sigma = np.sqrt(np.mean(np.abs(FRAME.pilots) ** 2) * np.mean(np.abs(truth) ** 2) / 10 ** (snr_db / 10) / 2)
    y += sigma * (rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape)) + 0.001
    return IqBlock(y.astype(np.complex64), RATE_HZ, 0.0), frame, truth


def error(found: Any, truth: Any) -> float:
    """Return the normalised error after one common phase, which no receiver knows; delays are those of `time_s`."""
    h = found.h * np.exp(-2j * np.pi * found.subcarrier_hz * found.time_s)
    h = h * np.exp(1j * np.angle(np.vdot(h, truth)))
    return float(np.sum(np.abs(h - truth) ** 2) / np.sum(np.abs(truth) ** 2))


@pytest.mark.parametrize(("n_rx", "n_tx"), [(1, 1), (1, 4), (4, 1), (3, 2), (4, 4), (2, 5)])
def test_every_pair_is_estimated_as_well_as_a_single_antenna(n_rx: int, n_tx: int) -> None:
    """Total power is the same, so is the variance of each pair: σ²/(n_symbols · pilot²).

    Something is added by what is left of the carrier offset, which turns the later antennas against the first.
    """
    errors = []
    for seed in range(6):
        block, frame, truth = sounded(n_rx, n_tx, 20.0, seed)
        found = LeastSquares().estimate_antennas(block, frame)
        assert found.h.shape == (n_rx, n_tx, 64)
        assert found.cfo_hz == pytest.approx(3e3, abs=600)
        errors.append(error(found, truth))
    assert -27.5 < 10 * np.log10(np.mean(errors)) < -23.5  # −26.0 by theory


def test_smoothing_helps_every_pair() -> None:
    ls, mmse = (
        np.mean([error(e.estimate_antennas(*(b := sounded(4, 4, 8.0, seed))[:2]), b[2]) for seed in range(6)])
        for e in (LeastSquares(), Mmse(rms_delay_s=2 / RATE_HZ))
    )
    assert 10 * np.log10(ls / mmse) > 3


def test_one_antenna_is_the_plain_frame() -> None:
    block, frame, _ = sounded(2, 1, 25.0, 3)
    np.testing.assert_allclose(frame.samples[0], FRAME.samples, atol=1e-6)
    plain, several = LeastSquares().estimate(block, FRAME), LeastSquares().estimate_antennas(block, frame)
    np.testing.assert_allclose(several.h, plain.h, atol=1e-4 * np.abs(plain.h).max())
    assert several.time_s == plain.time_s


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8])
def test_one_antenna_sends_at_a_time(n: int) -> None:
    frame = AntennaFrame.of(FRAME, n)
    assert ((frame.samples != 0).sum(axis=0) <= 1).all()
    assert ((frame.samples != 0).sum(axis=1)[1:] == FRAME.samples.size - FRAME.preamble_len).all()
    assert frame.duration_s == frame.samples.shape[1] / RATE_HZ


def test_a_section_that_is_cut_off_is_truncated() -> None:
    block, frame, _ = sounded(2, 4, 25.0, 4)
    cut = IqBlock(block.samples[:, : 80 + frame.samples.shape[1] - 40], RATE_HZ, 0.0)
    with pytest.raises(ProbeRejected) as caught:
        LeastSquares().estimate_antennas(cut, frame)
    assert caught.value.reason == Reject.TRUNCATED
