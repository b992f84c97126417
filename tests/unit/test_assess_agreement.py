import numpy as np
import pytest

from testbed.assess.agreement import correlation, correlations, detrend, detrended, disagreement, pooled


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_correlation_is_numpys_averaged_over_dimensions() -> None:
    a = noise(1, 100, 3)
    b = a + noise(2, 100, 3) * [0.1, 1.0, 10.0]
    expected = [np.corrcoef(a[:, d], b[:, d])[0, 1] for d in range(3)]
    np.testing.assert_allclose(correlations(a, b), expected)
    assert correlation(a, b) == pytest.approx(np.mean(expected))
    assert pooled(a, b) == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_only_common_probes_count() -> None:
    a, b = noise(3, 50, 1), noise(4, 50, 1)
    a[:5], b[10:20] = np.nan, np.nan
    rest = np.r_[5:10, 20:50]
    assert correlation(a, b) == pytest.approx(np.corrcoef(a[rest, 0], b[rest, 0])[0, 1])


def test_what_cannot_be_measured_is_none() -> None:
    a = noise(5, 50, 2)
    assert correlation(a, np.full_like(a, -65.3)) is None
    assert correlation(a, np.full_like(a, np.nan)) is None
    assert correlation(a[:4], a[:4]) is None
    assert detrended(a, np.full_like(a, np.nan), "median") is None
    assert disagreement(np.zeros(0, np.uint8), np.zeros(0, np.uint8)) is None


@pytest.mark.parametrize("method", ["difference", "median"])
def test_detrended_correlation_unmasks_drift(method: str) -> None:
    drift = np.cumsum(noise(6, 1000, 2), axis=0)
    a, b = drift + 3 * noise(7, 1000, 2), drift + 3 * noise(8, 1000, 2)
    assert correlation(a, b) > 0.9
    assert detrended(a, b, method) < 0.5
    fading = noise(9, 1000, 2)
    assert detrended(fading + 0.1 * a, fading + 0.1 * b, method) > 0.8


def test_median_detrending_follows_numpy_and_skips_gaps() -> None:
    x = noise(10, 40, 1)
    x[13] = np.nan
    out = detrend(x, "median", 5)
    assert out[20, 0] == pytest.approx(x[20, 0] - np.median(x[18:23, 0]))
    assert out[14, 0] == pytest.approx(x[14, 0] - np.nanmedian(x[12:17, 0]))
    assert out[0, 0] == pytest.approx(x[0, 0] - np.median(x[:3, 0]))
    with pytest.raises(ValueError, match="accepted"):
        detrend(x, "median", 4)
    with pytest.raises(ValueError, match="accepted"):
        detrend(x, "mean")


def test_disagreement() -> None:
    assert disagreement(np.array([0, 1, 1, 0], np.uint8), np.array([0, 1, 0, 0], np.uint8)) == 0.25
    with pytest.raises(ValueError, match="accepted"):
        disagreement(np.zeros(3, np.uint8), np.zeros(4, np.uint8))
