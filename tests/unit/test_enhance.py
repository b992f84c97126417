import numpy as np
import pytest

from testbed.chain.enhance._features import difference, group_subcarriers, highpass
from testbed.chain.enhance.identity import Identity
from testbed.chain.enhance.savgol import Savgol, smoothing_matrix
from testbed.core.antennas import canonical_antennas
from testbed.core.errors import InputError
from testbed.core.types import CsiSeries


def csi(h: np.ndarray) -> CsiSeries:
    return CsiSeries(h.astype(np.complex64), np.arange(h.shape[0]), np.arange(h.shape[-1]) * 1.0)


def test_identity_in_db_is_the_level_of_the_mean_magnitude() -> None:
    h = np.zeros((1, 1, 1, 4))
    h[0, 0, 0] = [1.0, 3.0, 10.0, 10.0]
    np.testing.assert_allclose(
        Identity(step=2).transform(csi(h), "alice").values, [[20 * np.log10(2.0), 20.0]], atol=1e-5
    )
    np.testing.assert_allclose(Identity(step=2, scale="magnitude").transform(csi(h), "alice").values, [[2.0, 10.0]])


def test_integer_rssi_comes_back_as_integers() -> None:
    rssi_db = -np.arange(60, 97)
    h = 10.0 ** (rssi_db / 20.0)
    values = Identity().transform(csi(h[:, None, None, None]), "alice").values
    np.testing.assert_array_equal(values[:, 0], rssi_db)


def test_a_dead_subcarrier_group_is_missing_not_minus_infinity() -> None:
    h = np.ones((2, 1, 1, 16))
    h[1, 0, 0, :8] = 0.0
    values = Identity(step=8).transform(csi(h), "alice").values
    assert np.isnan(values[1, 0])
    assert np.isfinite(values[0]).all()
    assert np.isfinite(values[1, 1])


def test_incomplete_group_is_left_out() -> None:
    x = np.arange(10.0)[None]
    np.testing.assert_allclose(group_subcarriers(x, 4), [[1.5, 5.5]])
    np.testing.assert_allclose(group_subcarriers(x, 99), [[4.5]])


def test_both_ends_agree_with_several_antennas_only_in_canonical_order() -> None:
    rng = np.random.default_rng(1)
    channel = rng.normal(size=(5, 2, 2, 16)) + 1j * rng.normal(size=(5, 2, 2, 16))
    alice, bob = csi(channel), csi(channel.swapaxes(1, 2))
    stage = Identity()
    ours = stage.transform(canonical_antennas(alice, "alice"), "alice").values
    np.testing.assert_array_equal(ours, stage.transform(canonical_antennas(bob, "bob"), "alice").values)
    assert not np.array_equal(ours, stage.transform(bob, "alice").values)


def test_difference() -> None:
    np.testing.assert_array_equal(
        difference(np.array([[1.0], [4.0], [np.nan], [2.0]])), [[np.nan], [3.0], [np.nan], [np.nan]]
    )


def test_highpass_removes_the_level_of_the_probes_before() -> None:
    x = np.array([[10.0], [12.0], [20.0], [11.0], [np.nan], [15.0], [np.nan], [np.nan], [7.0]])
    expected = [np.nan, 2.0, 9.0, -5.0, np.nan, 4.0, np.nan, np.nan, np.nan]
    np.testing.assert_allclose(highpass(x, 2)[:, 0], expected)


@pytest.mark.parametrize("detrend", ["difference", "highpass"])
def test_detrending_is_causal(detrend: str) -> None:
    rng = np.random.default_rng(2)
    h = rng.normal(size=(60, 1, 1, 8))
    stage = Identity(detrend=detrend, window=8)
    late = h.copy()
    late[40:] *= 5.0
    np.testing.assert_array_equal(
        stage.transform(csi(h), "alice").values[:40], stage.transform(csi(late), "alice").values[:40]
    )


def test_highpass_takes_out_a_slow_drift() -> None:
    rng = np.random.default_rng(3)
    fast = rng.normal(size=(400, 1))
    drift = np.linspace(0.0, 40.0, 400)[:, None]
    out = highpass(fast + drift, 8)[8:]
    assert np.corrcoef(out[:, 0], fast[8:, 0])[0, 1] > 0.9
    assert abs(np.polyfit(np.arange(out.size), out[:, 0], 1)[0]) < 0.005


def test_savgol_keeps_polynomials_and_reduces_noise() -> None:
    rng = np.random.default_rng(4)
    k = np.linspace(-1, 1, 64)
    smooth = smoothing_matrix(64, 11, 3)
    np.testing.assert_allclose(smooth @ (2 + k - k**3), 2 + k - k**3, atol=1e-9)
    assert (smooth @ rng.normal(size=(64, 200))).std() < 0.6
    values = Savgol(step=1, scale="magnitude").transform(csi((2 + k - k**3)[None, None, None, :]), "alice").values
    np.testing.assert_allclose(values[0], 2 + k - k**3, atol=1e-5)  # up to the band's edges


def test_savgol_brings_two_noisy_ends_closer() -> None:
    rng = np.random.default_rng(5)
    taps = rng.normal(size=(300, 4)) + 1j * rng.normal(size=(300, 4))
    h = np.fft.fft(taps, 64, axis=1)

    def noisy() -> CsiSeries:
        noise = rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape)
        return csi((h + noise)[:, None, None, :])

    a, b = noisy(), noisy()

    def agreement(stage: Identity | Savgol) -> float:
        x, y = stage.transform(a, "alice").values, stage.transform(b, "alice").values
        return float(np.mean([np.corrcoef(x[:, d], y[:, d])[0, 1] for d in range(x.shape[1])]))

    assert agreement(Savgol(step=1)) > agreement(Identity(step=1)) + 0.02


@pytest.mark.parametrize("options", [{"step": 0}, {"step": 2.5}, {"scale": "dB"}, {"detrend": "mean"}, {"window": 0}])
def test_identity_refuses_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="accepted"):
        Identity(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"window": 10}, {"window": 3, "order": 3}, {"order": -1}])
def test_savgol_refuses_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="accepted"):
        Savgol(**options)  # type: ignore[arg-type]
