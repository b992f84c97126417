"""The contract of `core.stages.Enhancer`, and of `TrainableEnhancer` where it is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.core.errors import InputError
from testbed.core.stages import Enhancer, TrainableEnhancer
from testbed.core.types import CsiSeries
from testbed.testing._suite import OptionsSuite, check, refused, skip


def check_enhancer(make: Callable[[], Enhancer]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(EnhancerSuite, make)


def series(seed: int, probes: int = 40, rx: int = 1, tx: int = 1, subcarriers: int = 64) -> CsiSeries:
    """Return white CSI."""
    rng = np.random.default_rng(seed)
    shape = (probes, rx, tx, subcarriers)
    h = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    return CsiSeries(
        h=h, rounds=np.arange(probes) * 3 + 5, subcarrier_hz=np.arange(subcarriers, dtype=np.float64) * 312.5e3
    )


def pair(seed: int, probes: int, *shape: int) -> tuple[CsiSeries, CsiSeries]:
    """Return both ends' CSI of few taps, with noise, and the phase and delay that each frame has at each end."""
    rng = np.random.default_rng(seed)
    rx, tx, n = shape
    f = np.arange(n, dtype=np.float64)
    taps = rng.normal(size=(probes, rx, tx, 6)) + 1j * rng.normal(size=(probes, rx, tx, 6))
    h = taps * np.exp(-np.arange(6) / 2) @ np.exp(-2j * np.pi * np.outer(np.arange(6), f) / 64)

    def end() -> CsiSeries:
        noise = 0.1 * (rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape))
        turn = rng.uniform(0, 2 * np.pi, (probes, 1, 1, 1)) + rng.uniform(-0.05, 0.05, (probes, 1, 1, 1)) * f
        return CsiSeries(((h + noise) * np.exp(1j * turn)).astype(np.complex64), np.arange(probes), f * 312.5e3)

    return end(), end()


class EnhancerSuite(OptionsSuite):
    """`make()` returns an enhancer without a model; a trainable one learns quickly from 120 probes."""

    contract = "enhancer"

    def ready(self, rx: int = 1, tx: int = 1, subcarriers: int = 64) -> Any:
        """Return an enhancer, trained for such CSI where it has to be."""
        stage = self.fresh()
        if isinstance(stage, TrainableEnhancer):
            stage.fit(*pair(7, 120, rx, tx, subcarriers), np.random.default_rng(1))
        return stage

    def narrow(self) -> Any:
        """Return an enhancer whose options request a single dimension, as far as it has such options."""
        cls = type(self.fresh())
        options = {"components": 1, "pairs": 1, "codes": 1, "epochs": 2}
        return cls(**{k: v for k, v in options.items() if hasattr(self.fresh().options, k)})

    def trainable(self) -> Any:
        """Return a trained enhancer; leaves the sentence out where there is nothing to train."""
        if not isinstance(self.fresh(), TrainableEnhancer):
            skip("nothing to train")
        return self.ready()

    def test_gives_one_finite_row_a_probe_and_the_rounds_it_was_given(self) -> None:
        stage, csi = self.ready(), series(1)
        for role in ("alice", "bob", "eve"):
            features = stage.transform(csi, role)
            assert features.values.dtype == np.float64
            assert features.values.shape[0] == 40
            assert features.values.shape[1] >= 2
            assert np.isfinite(features.values).all()
            np.testing.assert_array_equal(features.rounds, csi.rounds)

    def test_both_ends_have_the_same_dimensions(self) -> None:
        alice, bob = pair(8, 30, 1, 1, 64)
        stage = self.ready()
        shapes = {stage.transform(c, r).values.shape for c, r in ((alice, "alice"), (bob, "bob"), (bob, "eve"))}
        assert len(shapes) == 1

    def test_is_deterministic_and_leaves_its_input_alone(self) -> None:
        csi = series(2)
        before = csi.h.copy()
        stage = self.ready()
        np.testing.assert_array_equal(stage.transform(csi, "alice").values, stage.transform(csi, "alice").values)
        np.testing.assert_array_equal(csi.h, before)

    def test_nan_rows_stay_nan_and_spoil_no_other(self) -> None:
        whole, holed = series(3), series(3)
        holed.h[[4, 17]] = np.nan
        stage = self.ready()
        for role in ("alice", "bob"):
            expected, values = stage.transform(whole, role).values, stage.transform(holed, role).values
            assert np.isnan(values[[4, 17]]).all()
            rest = np.delete(np.arange(40), [4, 17])
            # a network's matrix products round differently with other batch sizes
            np.testing.assert_allclose(values[rest], expected[rest], rtol=1e-4, atol=1e-5)

    def test_one_subcarrier_as_rssi_has_it_works(self) -> None:
        stage = self.narrow()
        if isinstance(stage, TrainableEnhancer):
            stage.fit(*pair(7, 60, 1, 1, 1), np.random.default_rng(1))
        assert stage.transform(series(4, subcarriers=1), "alice").values.shape == (40, 1)

    def test_any_number_of_subcarriers_works(self) -> None:
        for n in (52, 31):
            values = self.ready(subcarriers=n).transform(series(4, subcarriers=n), "alice").values
            assert np.isfinite(values).all()

    def test_several_antennas_give_more_dimensions(self) -> None:
        one = self.ready().transform(series(5), "alice").values.shape[1]
        more = self.ready(2, 3).transform(series(5, rx=2, tx=3), "alice").values.shape[1]
        assert more >= one if isinstance(self.fresh(), TrainableEnhancer) else more == 6 * one

    # ------------------------------------------------------------ trainable ones

    def test_without_a_model_it_says_so(self) -> None:
        self.trainable()
        stage = self.fresh()
        assert stage.model_id is None
        with refused(InputError, "no model yet"):
            stage.transform(series(1), "alice")

    def test_the_same_data_and_seed_give_the_same_model(self) -> None:
        stage = self.trainable()
        again = stage.fresh()
        assert again.model_id is None
        again.fit(*pair(7, 120, 1, 1, 64), np.random.default_rng(1))
        assert again.model_id == stage.model_id
        other = again.fresh()
        other.fit(*pair(9, 120, 1, 1, 64), np.random.default_rng(1))
        assert other.model_id != again.model_id

    def test_what_is_published_is_all_that_bob_needs(self) -> None:
        alice = self.trainable()
        bob = alice.fresh()
        bob.adopt(alice.publication())
        assert bob.model_id == alice.model_id
        csi = series(6)
        np.testing.assert_array_equal(bob.transform(csi, "bob").values, alice.transform(csi, "bob").values)

    def test_a_kept_model_is_the_same_again(self) -> None:
        stage = self.trainable()
        again = stage.fresh()
        again.load(stage.dump())
        assert again.model_id == stage.model_id
        csi = series(6)
        np.testing.assert_array_equal(again.transform(csi, "alice").values, stage.transform(csi, "alice").values)

    def test_a_model_for_other_csi_is_refused(self) -> None:
        stage = self.trainable()
        other = CsiSeries(series(1).h, series(1).rounds, series(1).subcarrier_hz * 2)
        for changed, what in (
            (series(1, subcarriers=52), "trained for"),
            (series(1, rx=2), "trained for"),
            (other, "another waveform"),
        ):
            with refused(InputError, what):
                stage.transform(changed, "alice")

    def test_csi_without_anything_to_learn_is_refused(self) -> None:
        stage = self.trainable().fresh()
        alice, bob = pair(7, 120, 1, 1, 64)
        rng = np.random.default_rng(1)
        few = np.where(np.arange(120)[:, None, None, None] < 110, np.nan, alice.h)
        with refused(ValueError, "10 of 120 probes"):
            stage.fit(CsiSeries(few, alice.rounds, bob.subcarrier_hz), bob, rng)
        constant = alice.h.copy()
        constant[..., 5] = 0
        with refused(ValueError, "Re of subcarrier 5 never changes"):
            stage.fit(CsiSeries(constant, alice.rounds, alice.subcarrier_hz), bob, rng)
        with refused(ValueError, "other rounds"):
            stage.fit(CsiSeries(alice.h, alice.rounds + 1, alice.subcarrier_hz), bob, rng)
        assert stage.model_id is None
