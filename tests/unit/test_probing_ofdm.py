import numpy as np
import pytest

from testbed.chain.probing.ofdm import Ofdm
from testbed.core import registry
from testbed.core.errors import InputError

RATE_HZ = 40e6
DESIGNS = [{}, {"n_subcarriers": 52, "n_fft": 64, "n_cp": 16, "n_symbols": 2}, {"n_subcarriers": 126, "seed": 7}]


@pytest.mark.parametrize("options", DESIGNS)
def test_layout(options):
    frame = Ofdm(**options).frame(RATE_HZ)
    x, n_fft, n_cp = frame.samples, frame.n_fft, frame.n_cp
    assert x.dtype == np.complex64
    assert x.size == frame.preamble_len + frame.n_symbols * (n_cp + n_fft)
    preamble = x[: frame.preamble_len]
    np.testing.assert_allclose(preamble[: -frame.preamble_half], preamble[frame.preamble_half :], atol=1e-6)
    symbols = x[frame.preamble_len :].reshape(frame.n_symbols, n_cp + n_fft)
    assert (symbols == symbols[0]).all()
    assert (symbols[:, :n_cp] == symbols[:, -n_cp:]).all()
    spectrum = np.fft.fft(symbols[0, n_cp:]) / np.sqrt(n_fft)
    np.testing.assert_allclose(spectrum[frame.bins], frame.pilots, atol=1e-5)
    unused = np.delete(np.arange(n_fft), frame.bins % n_fft)
    assert np.abs(spectrum[unused]).max() < 1e-5


@pytest.mark.parametrize("options", DESIGNS)
def test_bins_are_symmetric_around_an_unused_carrier(options):
    frame = Ofdm(**options).frame(RATE_HZ)
    n = options.get("n_subcarriers", 64)
    assert frame.bins.tolist() == [*range(-n // 2, 0), *range(1, n // 2 + 1)]
    np.testing.assert_allclose(frame.subcarrier_hz, frame.bins * RATE_HZ / frame.n_fft)


@pytest.mark.parametrize("options", DESIGNS)
def test_amplitudes(options):
    frame = Ofdm(**options).frame(RATE_HZ)
    assert np.ptp(np.abs(frame.pilots)) < 1e-6
    assert np.abs(frame.samples).max() == pytest.approx(0.9, abs=1e-6)
    preamble = frame.samples[frame.n_cp : frame.preamble_len]
    symbol = frame.samples[frame.preamble_len + frame.n_cp :][: frame.n_fft]
    assert np.mean(np.abs(preamble) ** 2) == pytest.approx(np.mean(np.abs(symbol) ** 2), rel=1e-4)
    for part in (preamble, symbol):  # random phases give 7 dB and more
        assert 10 * np.log10(np.max(np.abs(part) ** 2) / np.mean(np.abs(part) ** 2)) < 4


def test_preamble_occupies_the_same_band():
    frame = Ofdm().frame(RATE_HZ)
    spectrum = np.abs(np.fft.fft(frame.samples[frame.n_cp : frame.preamble_len]))
    even = frame.bins[frame.bins % 2 == 0]
    assert np.ptp(spectrum[even]) < 1e-4 * spectrum[even].max()
    assert np.delete(spectrum, even % frame.n_fft).max() < 1e-5 * spectrum[even].max()


def test_same_options_same_frame_other_seed_other_frame():
    a, b, c = Ofdm(seed=3).frame(RATE_HZ), Ofdm(seed=3).frame(RATE_HZ), Ofdm(seed=4).frame(RATE_HZ)
    assert (a.samples == b.samples).all()
    overlap = abs(np.vdot(a.samples, c.samples)) / np.linalg.norm(a.samples) / np.linalg.norm(c.samples)
    assert overlap < 0.3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_subcarriers": 63}, "even"),
        ({"n_subcarriers": 128}, "n_fft − 2 = 126"),
        ({"n_subcarriers": 8}, "from 16"),
        ({"n_fft": 130}, "multiple of 4"),
        ({"n_fft": 1 << 20}, "8192"),
        ({"n_cp": 65}, "4 to n_fft/2 = 64"),
        ({"n_cp": 3}, "from 4"),
        ({"n_symbols": 1}, "from 2 to 256"),
        ({"seed": -1}, "from 0"),
        ({"n_symbols": 4.0}, "n_symbols"),
        ({"n_cp": True}, "n_cp"),
    ],
)
def test_refused_options_say_what_is_accepted(options, says):
    with pytest.raises(InputError, match=says):
        registry.make_stage("probing", "ofdm", options)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_refused_sample_rate(rate):
    with pytest.raises(ValueError, match="sample_rate_hz"):
        Ofdm().frame(rate)
