"""Every enhancer the registry finds keeps the contract, trained first where it has to be."""

from functools import cache
from typing import Any

import numpy as np
import pytest

from testbed.core import registry
from testbed.core.errors import InputError
from testbed.core.stages import Enhancer, TrainableEnhancer
from testbed.core.types import CsiSeries

NAMES = registry.stage_names("enhance")
TRAINABLE = [n for n in NAMES if registry.stage_class("enhance", n).trainable]
everyone = pytest.mark.parametrize("name", NAMES)
trainable = pytest.mark.parametrize("name", TRAINABLE)


def series(seed: int, probes: int = 40, rx: int = 1, tx: int = 1, subcarriers: int = 64) -> CsiSeries:
    rng = np.random.default_rng(seed)
    shape = (probes, rx, tx, subcarriers)
    h = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    return CsiSeries(h=h, rounds=np.arange(probes) * 3 + 5, subcarrier_hz=np.arange(subcarriers) * 312.5e3)


def pair(seed: int, probes: int, *shape: int) -> tuple[CsiSeries, CsiSeries]:
    """Return both ends' CSI of few taps, with noise, and the phase and delay that each frame has at each end."""
    rng = np.random.default_rng(seed)
    rx, tx, n = shape
    f = np.arange(n)
    taps = rng.normal(size=(probes, rx, tx, 6)) + 1j * rng.normal(size=(probes, rx, tx, 6))
    h = taps * np.exp(-np.arange(6) / 2) @ np.exp(-2j * np.pi * np.outer(np.arange(6), f) / 64)

    def end() -> CsiSeries:
        noise = 0.1 * (rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape))
        turn = rng.uniform(0, 2 * np.pi, (probes, 1, 1, 1)) + rng.uniform(-0.05, 0.05, (probes, 1, 1, 1)) * f
        return CsiSeries(((h + noise) * np.exp(1j * turn)).astype(np.complex64), np.arange(probes), f * 312.5e3)

    return end(), end()


def quick(name: str) -> dict[str, Any]:
    """Return options under which training takes no time, where there are such."""
    return {"epochs": 2} if "epochs" in registry.options_of("enhance", name) else {}


@cache
def stage_for(name: str, rx: int = 1, tx: int = 1, subcarriers: int = 64) -> Enhancer:
    stage: Enhancer = registry.make_stage("enhance", name, quick(name))
    if isinstance(stage, TrainableEnhancer):
        stage.fit(*pair(7, 120, rx, tx, subcarriers), np.random.default_rng(1))
    return stage


@everyone
@pytest.mark.parametrize("role", ["alice", "bob", "eve"])
def test_gives_one_finite_row_a_probe_and_the_rounds_it_was_given(name: str, role: str) -> None:
    csi = series(1)
    features = stage_for(name).transform(csi, role)
    assert features.values.dtype == np.float64
    assert features.values.shape[0] == 40
    assert features.values.shape[1] >= 2
    assert np.isfinite(features.values).all()
    np.testing.assert_array_equal(features.rounds, csi.rounds)


@everyone
def test_both_ends_have_the_same_dimensions(name: str) -> None:
    alice, bob = pair(8, 30, 1, 1, 64)
    stage = stage_for(name)
    shapes = {stage.transform(c, r).values.shape for c, r in ((alice, "alice"), (bob, "bob"), (bob, "eve"))}
    assert len(shapes) == 1


@everyone
def test_is_deterministic_and_leaves_its_input_alone(name: str) -> None:
    csi = series(2)
    before = csi.h.copy()
    stage = stage_for(name)
    np.testing.assert_array_equal(stage.transform(csi, "alice").values, stage.transform(csi, "alice").values)
    np.testing.assert_array_equal(csi.h, before)


@everyone
@pytest.mark.parametrize("role", ["alice", "bob"])
def test_nan_rows_stay_nan_and_spoil_no_other(name: str, role: str) -> None:
    whole, holed = series(3), series(3)
    holed.h[[4, 17]] = np.nan
    stage = stage_for(name)
    expected, values = stage.transform(whole, role).values, stage.transform(holed, role).values
    assert np.isnan(values[[4, 17]]).all()
    rest = np.delete(np.arange(40), [4, 17])
    # a network's matrix products round differently with other batch sizes
    np.testing.assert_allclose(values[rest], expected[rest], rtol=1e-4, atol=1e-5)


@everyone
def test_one_subcarrier_as_rssi_has_it_works(name: str) -> None:
    narrow = {"components": 1, "pairs": 1, "codes": 1}
    options = {k: v for k, v in narrow.items() if k in registry.options_of("enhance", name)}
    stage = registry.make_stage("enhance", name, quick(name) | options)
    if name in TRAINABLE:
        stage.fit(*pair(7, 60, 1, 1, 1), np.random.default_rng(1))
    assert stage.transform(series(4, subcarriers=1), "alice").values.shape == (40, 1)


@everyone
@pytest.mark.parametrize("subcarriers", [52, 31])
def test_any_number_of_subcarriers_works(name: str, subcarriers: int) -> None:
    values = stage_for(name, subcarriers=subcarriers).transform(series(4, subcarriers=subcarriers), "alice").values
    assert np.isfinite(values).all()


@everyone
def test_several_antennas_give_more_dimensions(name: str) -> None:
    one = stage_for(name).transform(series(5), "alice").values.shape[1]
    more = stage_for(name, 2, 3).transform(series(5, rx=2, tx=3), "alice").values.shape[1]
    assert more == 6 * one if name not in TRAINABLE else more >= one


@everyone
def test_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="accepted"):
        registry.make_stage("enhance", name, {"no_such_option": 1})


@trainable
def test_without_a_model_it_says_so(name: str) -> None:
    stage = registry.make_stage("enhance", name, {})
    assert stage.model_id is None
    with pytest.raises(InputError, match="no model yet"):
        stage.transform(series(1), "alice")


@trainable
def test_the_same_data_and_seed_give_the_same_model(name: str) -> None:
    again = stage_for(name).fresh()
    assert again.model_id is None
    again.fit(*pair(7, 120, 1, 1, 64), np.random.default_rng(1))
    assert again.model_id == stage_for(name).model_id
    other = again.fresh()
    other.fit(*pair(9, 120, 1, 1, 64), np.random.default_rng(1))
    assert other.model_id != again.model_id


@trainable
def test_what_is_published_is_all_that_bob_needs(name: str) -> None:
    alice, bob = stage_for(name), stage_for(name).fresh()
    bob.adopt(alice.publication())
    assert bob.model_id == alice.model_id
    csi = series(6)
    np.testing.assert_array_equal(bob.transform(csi, "bob").values, alice.transform(csi, "bob").values)


@trainable
def test_a_kept_model_is_the_same_again(name: str) -> None:
    stage, again = stage_for(name), stage_for(name).fresh()
    again.load(stage.dump())
    assert again.model_id == stage.model_id
    csi = series(6)
    np.testing.assert_array_equal(again.transform(csi, "alice").values, stage.transform(csi, "alice").values)


@trainable
@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (series(1, subcarriers=52), "trained for"),
        (series(1, rx=2), "trained for"),
        (CsiSeries(series(1).h, series(1).rounds, series(1).subcarrier_hz * 2), "another waveform"),
    ],
)
def test_a_model_for_other_csi_is_refused(name: str, changed: CsiSeries, what: str) -> None:
    with pytest.raises(InputError, match=what):
        stage_for(name).transform(changed, "alice")


@trainable
def test_csi_without_anything_to_learn_is_refused(name: str) -> None:
    stage = stage_for(name).fresh()
    alice, bob = pair(7, 120, 1, 1, 64)
    rng = np.random.default_rng(1)
    holed = CsiSeries(
        np.where(np.arange(120)[:, None, None, None] < 110, np.nan, alice.h), alice.rounds, bob.subcarrier_hz
    )
    with pytest.raises(ValueError, match="10 of 120 probes"):
        stage.fit(holed, bob, rng)
    constant = alice.h.copy()
    constant[..., 5] = 0
    with pytest.raises(ValueError, match="Re of subcarrier 5 never changes"):
        stage.fit(CsiSeries(constant, alice.rounds, alice.subcarrier_hz), bob, rng)
    with pytest.raises(ValueError, match="other rounds"):
        stage.fit(CsiSeries(alice.h, alice.rounds + 1, alice.subcarrier_hz), bob, rng)
    assert stage.model_id is None
