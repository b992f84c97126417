"""A train of blocks is estimated as each block alone would be, to the last bit; and carrier offsets of many turns."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest

from testbed.chain.csi.least_squares import LeastSquares
from testbed.chain.csi.mmse import Mmse
from testbed.chain.probing.ofdm import Ofdm
from testbed.core.errors import ProbeRejected, Reject
from testbed.core.types import AntennaFrame, CsiFrame, IqBlock, SoundingFrame

RATE_HZ = 1e6
FRAME = Ofdm().frame(RATE_HZ)
DELAYS = np.array([0, 3, 9])


def received(
    seed: int, cfo_hz: float = 3e3, snr_db: float = 25.0, n: int = 1000, n_rx: int = 1, start: int = 90,
    frame: SoundingFrame = FRAME,
) -> tuple[IqBlock, Any]:  # fmt: skip
    """Return a block with a frame over three random paths from sample `start` on, and the channel (rx, subcarrier)."""
    rng = np.random.default_rng(seed)
    gains = 0.08 * (rng.standard_normal((n_rx, 3)) + 1j * rng.standard_normal((n_rx, 3))) * [1, 0.5, 0.25]
    y = np.zeros((n_rx, n + 2 * frame.samples.size), np.complex128)
    for delay, gain in zip(DELAYS, gains.T, strict=True):
        first = frame.samples.size + start + delay
        y[:, first : first + frame.samples.size] += gain[:, None] * frame.samples
    y = y[:, frame.samples.size :][:, :n] * np.exp(2j * np.pi * cfo_hz / frame.sample_rate_hz * np.arange(n))
    truth = gains @ np.exp(-2j * np.pi * np.outer(DELAYS + start, frame.bins / frame.n_fft))
    sigma = np.sqrt(np.mean(np.abs(frame.pilots) ** 2) * np.mean(np.abs(truth) ** 2) / 10 ** (snr_db / 10) / 2)
    y += sigma * (rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape))
    return IqBlock(y.astype(np.complex64), frame.sample_rate_hz, seed * 1e-2), truth


def error(found: CsiFrame, truth: Any, time_s: float) -> float:
    """Return the normalised error after one common phase; delays are those of `time_s`."""
    h = found.h[:, 0] * np.exp(-2j * np.pi * found.subcarrier_hz * (found.time_s - time_s))
    h = h * np.exp(1j * np.angle(np.vdot(h, truth)))
    return float(np.sum(np.abs(h - truth) ** 2) / np.sum(np.abs(truth) ** 2))


def train() -> list[IqBlock]:
    """Return 64 blocks, with every rejection among them, of two lengths and two numbers of antennas."""
    blocks = [received(seed)[0] for seed in range(64)]
    rng = np.random.default_rng(1)
    noise = 0.01 * (rng.standard_normal((1, 1000)) + 1j * rng.standard_normal((1, 1000)))
    blocks[3] = IqBlock(noise.astype(np.complex64), RATE_HZ, 0.0)
    blocks[8] = IqBlock(blocks[8].samples, RATE_HZ, 0.0, overflow=True)
    blocks[13] = IqBlock(blocks[13].samples[:, :700], RATE_HZ, 0.0)
    blocks[14] = received(14, start=230)[0]
    blocks[20] = received(20, snr_db=0.5)[0]
    loud = blocks[21].samples * 100
    blocks[21] = IqBlock((np.clip(loud.real, -1, 1) + 1j * np.clip(loud.imag, -1, 1)).astype("c8"), RATE_HZ, 0.0)
    blocks[30] = received(30, cfo_hz=400e3)[0]
    blocks[31] = received(31, cfo_hz=-150e3)[0]
    samples = blocks[40].samples.copy()
    samples[0, 500] = np.nan
    blocks[40] = IqBlock(samples, RATE_HZ, 0.0)
    blocks[50], blocks[51] = received(50, n=1300)[0], received(51, n_rx=2)[0]
    return blocks


def same(a: CsiFrame | ProbeRejected, b: CsiFrame | ProbeRejected) -> bool:
    if isinstance(a, ProbeRejected) or isinstance(b, ProbeRejected):
        return str(a) == str(b)
    scalars = (a.cfo_hz, a.time_s, a.rssi_dbfs) == (b.cfo_hz, b.time_s, b.rssi_dbfs)
    return scalars and a.h.tobytes() == b.h.tobytes() and a.snr_db.tobytes() == b.snr_db.tobytes()


def alone(estimator: Any, block: IqBlock) -> CsiFrame | ProbeRejected:
    try:
        return estimator.estimate(block, FRAME)  # type: ignore[no-any-return]
    except ProbeRejected as exc:
        return exc


@pytest.mark.parametrize("estimator", [LeastSquares(), Mmse(rms_delay_s=5e-6)], ids=["least_squares", "mmse"])
@pytest.mark.parametrize("size", [7, 64])
def test_trains_give_what_single_blocks_give(estimator: Any, size: int) -> None:
    blocks = train()
    found = [x for i in range(0, 64, size) for x in estimator.estimate_many(blocks[i : i + size], FRAME)]
    assert len(found) == 64
    assert all(same(x, alone(estimator, block)) for x, block in zip(found, blocks, strict=True))


def test_each_block_has_its_own_reason_and_affects_no_other() -> None:
    found = LeastSquares().estimate_many(train(), FRAME)
    reasons = {i: x.reason for i, x in enumerate(found) if isinstance(x, ProbeRejected)}
    assert reasons == {
        3: Reject.NO_PREAMBLE, 8: Reject.OVERFLOW, 13: Reject.TRUNCATED, 14: Reject.TRUNCATED, 20: Reject.LOW_SNR,
        21: Reject.CLIPPED, 30: Reject.CFO_RANGE, 40: Reject.NO_PREAMBLE,
    }  # fmt: skip
    shapes = {i: x.h.shape for i, x in enumerate(found) if isinstance(x, CsiFrame)}
    assert shapes.pop(51) == (2, 1, 64)
    assert set(shapes.values()) == {(1, 1, 64)}


def test_a_train_is_right_block_by_block() -> None:
    blocks, truths = zip(*(received(seed) for seed in range(40)), strict=True)
    for block, truth, found in zip(blocks, truths, LeastSquares().estimate_many(blocks, FRAME), strict=True):
        assert isinstance(found, CsiFrame)
        assert error(found, truth, block.time_s) < 4e-3
        assert found.cfo_hz == pytest.approx(3e3, abs=60)


def test_a_wide_window_leaves_no_memory_in_use() -> None:
    """Where a clock is very uncertain a window has millions of samples: 250 MB stayed in use afterwards."""
    estimator, wide, narrow = LeastSquares(), received(1, n=600_000, start=400_000)[0], received(2)[0]
    before = alone(estimator, narrow)
    tracemalloc.start()
    try:
        found = estimator.estimate(wide, FRAME)
        kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.time_s == pytest.approx(1e-2 + 0.4, abs=1e-5)
    assert peak_bytes > 16 * 600_000  # what it needs
    assert kept_bytes < 1 << 20
    assert same(alone(estimator, narrow), before)


def test_no_blocks_give_nothing() -> None:
    assert LeastSquares().estimate_many([], FRAME) == []


def test_one_block_at_another_rate_is_a_programming_error() -> None:
    odd = IqBlock(received(0)[0].samples, 2e6, 0.0)
    with pytest.raises(ValueError, match="block at 2e\\+06 Hz, frame at 1e\\+06 Hz"):
        LeastSquares().estimate_many([received(0)[0], odd], FRAME)


def test_channels_of_a_train_stay_when_the_next_one_comes() -> None:
    """Estimators reuse their memory between calls: their results must not be in that memory."""
    estimator = LeastSquares()
    first = estimator.estimate(received(1)[0], FRAME)
    before = first.h.copy(), first.snr_db.copy()
    estimator.estimate_many([received(seed)[0] for seed in range(2, 30)], FRAME)
    np.testing.assert_array_equal(first.h, before[0])
    np.testing.assert_array_equal(first.snr_db, before[1])


# ---------------------------------------------------------------- carrier offsets


@pytest.mark.parametrize(
    ("options", "cycles"),
    [
        ({}, 0.25),
        ({"n_subcarriers": 52, "n_fft": 64, "n_cp": 16}, 6 / 64),
        ({"n_subcarriers": 126}, 1 / 128),  # never less than the preamble's halves tell
        ({"n_fft": 1024, "n_subcarriers": 512}, 0.25),
    ],
)
def test_the_range_is_what_keeps_the_band_inside_the_sampled_one(options: dict[str, int], cycles: float) -> None:
    frame = Ofdm(**options).frame(RATE_HZ)
    assert LeastSquares().range_hz(frame) == pytest.approx(cycles * RATE_HZ)
    assert Mmse(max_cfo_hz=5e3).range_hz(frame) == 5e3


@pytest.mark.parametrize("ppm", [-25, -12, -2, 2, 8, 20, 25])
@pytest.mark.parametrize("snr_db", [6.0, 15.0, 40.0])
def test_crystals_of_25_ppm_at_6_ghz_and_1_ms_s_are_found(ppm: float, snr_db: float) -> None:
    cfo_hz = ppm * 6e3
    for seed in range(8):
        block, truth = received(seed, cfo_hz, snr_db)
        found = LeastSquares().estimate(block, FRAME)
        assert found.cfo_hz == pytest.approx(cfo_hz, abs=400)
        assert error(found, truth, block.time_s) < 3 / (FRAME.n_symbols * 10 ** (snr_db / 10)) + 2e-3


@pytest.mark.parametrize("options", [{}, {"n_fft": 512, "n_cp": 64, "n_subcarriers": 200}, {"n_symbols": 2}])
def test_the_whole_range_is_found(options: dict[str, int]) -> None:
    frame = Ofdm(**options).frame(RATE_HZ)
    estimator = LeastSquares()
    limit_hz = estimator.range_hz(frame)
    for seed, cfo_hz in enumerate(np.linspace(-0.995 * limit_hz, 0.995 * limit_hz, 41)):
        block, truth = received(seed, cfo_hz, 20.0, frame.samples.size + 300, frame=frame)
        found = estimator.estimate(block, frame)
        assert found.cfo_hz == pytest.approx(cfo_hz, abs=0.02 * RATE_HZ / frame.n_fft)
        assert error(found, truth, block.time_s) < 2e-2


@pytest.mark.parametrize("cfo_hz", [-490e3, -300e3, -260e3, 260e3, 350e3, 480e3])
def test_beyond_the_range_the_rejection_says_what_was_measured(cfo_hz: float) -> None:
    for seed in range(5):
        with pytest.raises(ProbeRejected, match=r"Hz, accepted ±250000 Hz") as caught:
            LeastSquares().estimate(received(seed, cfo_hz, 35.0)[0], FRAME)
        assert caught.value.reason == Reject.CFO_RANGE
        assert caught.value.cfo_hz == pytest.approx(cfo_hz, abs=500)


def test_beyond_the_option_the_rejection_says_what_was_measured() -> None:
    with pytest.raises(ProbeRejected, match="accepted ±50000 Hz") as caught:
        LeastSquares(max_cfo_hz=50e3).estimate(received(0, 120e3)[0], FRAME)
    assert caught.value.reason == Reject.CFO_RANGE
    assert caught.value.cfo_hz == pytest.approx(120e3, abs=100)


def test_other_reasons_carry_no_carrier_offset() -> None:
    with pytest.raises(ProbeRejected) as caught:
        LeastSquares().estimate(received(0, snr_db=0.5)[0], FRAME)
    assert caught.value.cfo_hz is None


@pytest.mark.parametrize("cfo_hz", [-150e3, 150e3])
def test_a_sounding_of_several_antennas_is_found_as_far_off(cfo_hz: float) -> None:
    frame = AntennaFrame.of(FRAME, 2)
    n = frame.samples.shape[1] + 200
    y = np.zeros((1, n), np.complex128)
    truth = np.array([0.5, 0.3j])
    y[0, 100 : 100 + frame.samples.shape[1]] = truth @ frame.samples
    y *= np.exp(2j * np.pi * cfo_hz / RATE_HZ * np.arange(n))
    rng = np.random.default_rng(0)
    y += 0.003 * (rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape))
    found = LeastSquares().estimate_antennas(IqBlock(y.astype(np.complex64), RATE_HZ, 0.0), frame)
    h = found.h[0].mean(axis=1)
    assert found.cfo_hz == pytest.approx(cfo_hz, abs=20)
    assert h[1] / h[0] == pytest.approx(truth[1] / truth[0], abs=0.01)


def test_other_waveforms_are_no_frame_at_any_carrier_offset() -> None:
    for seed in range(2, 60):
        other = Ofdm(seed=seed).frame(RATE_HZ)
        found = LeastSquares().estimate_many(
            [received(seed, cfo_hz, 30.0, frame=other)[0] for cfo_hz in (0.0, 40e3, -180e3)], FRAME
        )
        assert [x.reason for x in found if isinstance(x, ProbeRejected)] == [Reject.NO_PREAMBLE] * 3
