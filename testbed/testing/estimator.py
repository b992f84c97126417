"""The contract of `core.stages.CsiEstimator`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.core import registry
from testbed.core.errors import ProbeRejected, Reject
from testbed.core.stages import CsiEstimator
from testbed.core.types import C64, AntennaFrame, CsiFrame, IqBlock, SoundingFrame
from testbed.testing._suite import OptionsSuite, check, refused

RATE_HZ = 20e6
TAPS = np.array([0.5, 0.0, 0.2j, -0.1])


def check_estimator(make: Callable[[], CsiEstimator]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(EstimatorSuite, make)


def received(
    samples: C64, seed: int = 1, start: int = 300, cfo_hz: float = 0.0, snr_db: float = 40.0, rx: int = 1
) -> C64:
    """Return (rx antenna, sample): the samples through `TAPS`, `start` samples late, with carrier offset and noise."""
    rng = np.random.default_rng(seed)
    through = np.convolve(samples, TAPS)
    y = np.zeros((rx, start + through.size + 300), np.complex128)
    turns = np.exp(0.7j * np.arange(rx))[:, None]
    y[:, start : start + through.size] = turns * through
    y *= np.exp(2j * np.pi * cfo_hz / RATE_HZ * np.arange(y.shape[1]))
    level = np.sqrt(np.mean(np.abs(through) ** 2) / 2) * 10 ** (-snr_db / 20)
    noise = level * (rng.normal(size=y.shape) + 1j * rng.normal(size=y.shape))
    return (y + noise).astype(np.complex64)


def likeness(h: Any, frame: SoundingFrame) -> float:
    """Return the likeness of (subcarrier,) CSI with `TAPS`, for any phase and delay: 1 is equal."""
    truth = np.exp(-2j * np.pi * np.outer(frame.bins, np.arange(TAPS.size)) / frame.n_fft) @ TAPS
    delays = np.exp(2j * np.pi * np.outer(np.linspace(-8, 8, 641), frame.bins) / frame.n_fft)
    return float(np.abs(delays @ (h * truth.conj())).max() / (np.linalg.norm(h) * np.linalg.norm(truth)))


class EstimatorSuite(OptionsSuite):
    """`make()` returns an estimator; it is given frames of the waveform `ofdm`."""

    contract = "estimator"

    def frame(self) -> SoundingFrame:
        made: SoundingFrame = registry.make_stage("probing", "ofdm", {}).frame(RATE_HZ)
        return made

    def test_finds_channel_offset_and_time_of_a_frame(self) -> None:
        frame, estimator = self.frame(), self.fresh()
        for cfo_hz in (0.0, 12_300.0, -7_000.0):
            block = IqBlock(received(frame.samples, cfo_hz=cfo_hz), RATE_HZ, 7.0)
            found = estimator.estimate(block, frame)
            assert found.h.shape == (1, 1, frame.bins.size)
            assert found.h.dtype == np.complex64
            assert likeness(found.h[0, 0], frame) > 0.999
            assert abs(found.cfo_hz - cfo_hz) < 200.0
            # the mean delay of these taps is below one sample
            assert abs(found.time_s - (7.0 + 300 / RATE_HZ)) < 2.0 / RATE_HZ
            np.testing.assert_allclose(found.subcarrier_hz, frame.subcarrier_hz)
            assert abs(float(found.snr_db.mean()) - 40.0) < 6.0
            assert np.isfinite(found.rssi_dbfs)

    def test_every_antenna_is_estimated(self) -> None:
        frame = self.frame()
        found = self.fresh().estimate(IqBlock(received(frame.samples, rx=3), RATE_HZ, 0.0), frame)
        assert found.h.shape == (3, 1, frame.bins.size)
        for h in found.h[:, 0]:
            assert likeness(h, frame) > 0.999

    def test_the_transmitters_antennas_are_told_apart_with_one_phase(self) -> None:
        frame = self.frame()
        sounding = AntennaFrame.of(frame, 2)
        parts = [received(samples, seed=i) for i, samples in enumerate(sounding.samples)]
        found = self.fresh().estimate_antennas(IqBlock(parts[0] + 1j * parts[1], RATE_HZ, 0.0), sounding)
        assert found.h.shape == (1, 2, frame.bins.size)
        first, second = found.h[0]
        assert likeness(first, frame) > 0.999
        # the second antenna's channel is the first one's times j
        assert abs(np.vdot(first, second) / np.vdot(first, first) - 1j) < 0.05

    def test_many_blocks_give_what_each_gives_alone(self) -> None:
        frame, estimator = self.frame(), self.fresh()
        good = [IqBlock(received(frame.samples, seed=s, start=s * 40), RATE_HZ, float(s)) for s in (3, 5)]
        cut = IqBlock(good[0].samples[:, :400], RATE_HZ, 0.0)
        found = estimator.estimate_many([good[0], cut, good[1]], frame)
        assert [type(x) for x in found] == [CsiFrame, ProbeRejected, CsiFrame]
        for block, csi in zip(good, found[::2], strict=True):
            np.testing.assert_array_equal(csi.h, self.fresh().estimate(block, frame).h)
        assert estimator.estimate_many([], frame) == []

    def test_carrier_offsets_are_found_up_to_the_range_that_is_stated(self) -> None:
        frame, estimator = self.frame(), self.fresh()
        range_hz = estimator.range_hz(frame)
        assert 0 < range_hz < RATE_HZ
        block = IqBlock(received(frame.samples, cfo_hz=0.9 * range_hz), RATE_HZ, 0.0)
        assert abs(estimator.estimate(block, frame).cfo_hz - 0.9 * range_hz) < 200.0

    def test_is_deterministic_and_leaves_the_block_alone(self) -> None:
        frame = self.frame()
        samples = received(frame.samples)
        before = samples.copy()
        block, estimator = IqBlock(samples, RATE_HZ, 0.0), self.fresh()
        one, two = estimator.estimate(block, frame), estimator.estimate(block, frame)
        np.testing.assert_array_equal(one.h, two.h)
        np.testing.assert_array_equal(samples, before)

    def test_what_cannot_be_used_is_rejected_with_its_reason(self) -> None:
        frame, estimator = self.frame(), self.fresh()
        good = received(frame.samples)
        rng = np.random.default_rng(3)
        noise = (0.01 * (rng.normal(size=(1, 3000)) + 1j * rng.normal(size=(1, 3000)))).astype(np.complex64)
        for block, reason in (
            (IqBlock(noise, RATE_HZ, 0.0), Reject.NO_PREAMBLE),
            (IqBlock(good[:, :400], RATE_HZ, 0.0), Reject.TRUNCATED),
            (IqBlock(good, RATE_HZ, 0.0, overflow=True), Reject.OVERFLOW),
            (
                IqBlock(np.clip(good.real * 20, -1, 1) + 1j * np.clip(good.imag * 20, -1, 1), RATE_HZ, 0.0),
                Reject.CLIPPED,
            ),
        ):
            try:
                estimator.estimate(block, frame)
            except ProbeRejected as exc:
                assert exc.reason == reason, f"rejected as {exc.reason}; expected: {reason}"
            else:
                raise AssertionError(f"not rejected; expected: {reason}")

    def test_another_sample_rate_is_a_programming_error(self) -> None:
        frame = self.frame()
        with refused(ValueError, "Hz"):
            self.fresh().estimate(IqBlock(received(frame.samples), RATE_HZ / 2, 0.0), frame)
