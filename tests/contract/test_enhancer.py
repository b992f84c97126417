"""Every enhancer the registry finds keeps the contract."""

import numpy as np
import pytest

from testbed.core import registry
from testbed.core.errors import InputError
from testbed.core.types import CsiSeries

pytestmark = pytest.mark.parametrize("name", registry.stage_names("enhance"))


def series(seed: int, probes: int = 40, rx: int = 1, tx: int = 1, subcarriers: int = 64) -> CsiSeries:
    rng = np.random.default_rng(seed)
    shape = (probes, rx, tx, subcarriers)
    h = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    return CsiSeries(h=h, rounds=np.arange(probes) * 3 + 5, subcarrier_hz=np.arange(subcarriers) * 312.5e3)


def test_gives_one_finite_row_a_probe_and_the_rounds_it_was_given(name: str) -> None:
    csi = series(1)
    features = registry.make_stage("enhance", name, {}).transform(csi)
    assert features.values.dtype == np.float64
    assert features.values.shape[0] == 40
    assert features.values.shape[1] >= 2
    assert np.isfinite(features.values).all()
    np.testing.assert_array_equal(features.rounds, csi.rounds)


def test_is_deterministic_and_leaves_its_input_alone(name: str) -> None:
    csi = series(2)
    before = csi.h.copy()
    stage = registry.make_stage("enhance", name, {})
    np.testing.assert_array_equal(stage.transform(csi).values, stage.transform(csi).values)
    np.testing.assert_array_equal(csi.h, before)


def test_nan_rows_stay_nan_and_spoil_no_other(name: str) -> None:
    whole, holed = series(3), series(3)
    holed.h[[4, 17]] = np.nan
    stage = registry.make_stage("enhance", name, {})
    expected, values = stage.transform(whole).values, stage.transform(holed).values
    assert np.isnan(values[[4, 17]]).all()
    rest = np.delete(np.arange(40), [4, 17])
    np.testing.assert_allclose(values[rest], expected[rest])


def test_works_on_one_subcarrier_as_rssi_has_it(name: str) -> None:
    features = registry.make_stage("enhance", name, {}).transform(series(4, subcarriers=1))
    assert features.values.shape == (40, 1)


def test_antenna_pairs_have_their_own_dimensions(name: str) -> None:
    stage = registry.make_stage("enhance", name, {})
    one = stage.transform(series(5)).values.shape[1]
    assert stage.transform(series(5, rx=2, tx=3)).values.shape[1] == 6 * one


def test_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="accepted"):
        registry.make_stage("enhance", name, {"no_such_option": 1})
