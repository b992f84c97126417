"""The contract of `core.stages.Sounder`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from testbed.core.stages import Sounder
from testbed.testing._suite import OptionsSuite, check, refused

RATE_HZ = 20e6


def check_waveform(make: Callable[[], Sounder]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(WaveformSuite, make)


class WaveformSuite(OptionsSuite):
    """`make()` returns a sounder."""

    contract = "waveform"

    def test_samples_fit_a_converter(self) -> None:
        frame = self.fresh().frame(RATE_HZ)
        assert frame.samples.dtype == np.complex64
        assert frame.samples.ndim == 1
        assert np.isfinite(frame.samples).all()
        assert 0.1 < np.abs(frame.samples).max() <= 1.0

    def test_the_parts_lie_where_it_says(self) -> None:
        frame = self.fresh().frame(RATE_HZ)
        symbol = frame.n_cp + frame.n_fft
        assert frame.samples.size == frame.preamble_len + frame.n_symbols * symbol
        assert frame.n_symbols >= 2
        half = frame.preamble_half
        two = frame.samples[frame.preamble_len - 2 * half : frame.preamble_len]
        np.testing.assert_allclose(two[:half], two[half:], atol=1e-5)
        symbols = frame.samples[frame.preamble_len :].reshape(frame.n_symbols, symbol)
        np.testing.assert_allclose(symbols, np.broadcast_to(symbols[0], symbols.shape), atol=1e-6)
        np.testing.assert_allclose(symbols[0, : frame.n_cp], symbols[0, -frame.n_cp :], atol=1e-6)

    def test_the_pilots_are_what_the_symbols_carry(self) -> None:
        frame = self.fresh().frame(RATE_HZ)
        body = frame.samples[frame.preamble_len + frame.n_cp :][: frame.n_fft]
        spectrum = np.fft.fft(body) / np.sqrt(frame.n_fft)
        np.testing.assert_allclose(spectrum[frame.bins], frame.pilots, atol=1e-4)
        unused = np.delete(spectrum, frame.bins % frame.n_fft)
        assert np.abs(unused).max() < 1e-3 * np.abs(frame.pilots).max()
        assert np.abs(frame.pilots).min() > 0

    def test_bins_ascend_and_leave_out_dc(self) -> None:
        frame = self.fresh().frame(RATE_HZ)
        assert (np.diff(frame.bins) > 0).all()
        assert 0 not in frame.bins
        assert np.abs(frame.bins).max() < frame.n_fft / 2

    def test_the_rate_changes_nothing_but_the_axis(self) -> None:
        one, two = self.fresh().frame(RATE_HZ), self.fresh().frame(RATE_HZ / 4)
        np.testing.assert_array_equal(one.samples, two.samples)
        assert (one.sample_rate_hz, two.sample_rate_hz) == (RATE_HZ, RATE_HZ / 4)
        np.testing.assert_allclose(one.subcarrier_hz, 4 * two.subcarrier_hz)

    def test_both_ends_make_the_same_frame(self) -> None:
        one, two = self.fresh().frame(RATE_HZ), self.fresh().frame(RATE_HZ)
        np.testing.assert_array_equal(one.samples, two.samples)
        np.testing.assert_array_equal(one.pilots, two.pilots)

    def test_no_sample_rate_is_refused(self) -> None:
        for rate in (0.0, -1.0, float("nan"), float("inf")):
            with refused(ValueError, "sample_rate_hz"):
                self.fresh().frame(rate)
