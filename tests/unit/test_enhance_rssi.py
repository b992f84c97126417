"""Received powers are channels too: every enhancer takes CSI without phases, of one subcarrier or of many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.chain.enhance.linear_mmse import LinearMmse
from testbed.core import registry
from testbed.core.errors import InputError
from testbed.core.types import CsiSeries

PROBES = 600
OFFSET_DB = 7.0
"""Bob's receiver shows this much less."""


def levels(db: np.ndarray[Any, Any]) -> CsiSeries:
    """A series of levels (probe, subcarrier) in dB."""
    h = (10.0 ** (db / 20.0)).astype(np.complex64)[:, None, None, :]
    return CsiSeries(h, np.arange(len(h)), np.arange(h.shape[-1]) * 312.5e3)


def both_ends(carriers: int, seed: int = 3, noise_db: float = 1.0) -> tuple[CsiSeries, CsiSeries]:
    rng = np.random.default_rng(seed)
    shared = -60.0 + 4.0 * rng.normal(size=(PROBES, carriers))
    alice, bob = (shared + noise_db * rng.normal(size=shared.shape) for _ in range(2))
    return levels(alice), levels(bob - OFFSET_DB)


def options(name: str, carriers: int) -> dict[str, Any]:
    accepted = registry.options_of("enhance", name)
    wanted = {
        "epochs": 2,
        "hidden": 8 if name != "kgnet" else [8, 8],
        "components": min(2, carriers),
        "pairs": 1,
        "codes": 1,
        "step": 1,
    }
    return {k: v for k, v in wanted.items() if k in accepted}


@pytest.mark.parametrize("carriers", [1, 6])
@pytest.mark.parametrize("name", registry.names("enhance", ours=True))
def test_every_enhancer_takes_levels(name: str, carriers: int) -> None:
    if name == "klt" and carriers > 1:
        pytest.skip("klt is the delay domain: of levels it is a transform like any other, and not what they are for")
    alice, bob = both_ends(carriers)
    enhancer = registry.make_stage("enhance", name, options(name, carriers))
    theirs = enhancer
    if enhancer.trainable:
        enhancer.fit(alice, bob, np.random.default_rng(1))
        theirs = registry.make_stage("enhance", name, options(name, carriers))
        theirs.adopt(enhancer.publication())
        assert theirs.model_id == enhancer.model_id
    a, b = enhancer.transform(alice, "alice").values, theirs.transform(bob, "bob").values
    assert a.shape == b.shape
    assert np.isfinite(a).all()
    assert np.isfinite(b).all()
    assert (np.ptp(b, axis=0) > 0).all(), "a column that never changes is no dimension"


def test_a_linear_map_of_levels_is_the_textbook_one() -> None:
    """Of jointly Gaussian levels the best map has slope ρ and leaves 1 − ρ² of Bob's variance; offsets are undone."""
    alice, bob = both_ends(1, noise_db=2.0)
    enhancer = LinearMmse(step=1, gap=0)
    enhancer.fit(alice, bob, np.random.default_rng(1))
    rho = 4.0**2 / (4.0**2 + 2.0**2)
    got = enhancer.transform(alice, "alice").values
    want = enhancer.transform(bob, "bob").values
    slope = np.polyfit(20 * np.log10(np.abs(alice.h.ravel())), got.ravel(), 1)[0]
    assert slope == pytest.approx(rho, abs=0.05)
    assert (got - want).mean() == pytest.approx(0.0, abs=0.3)
    assert np.var(got - want) / np.var(want) == pytest.approx(1 - rho**2, abs=0.08)
    assert enhancer.scores["nmse_after"] == pytest.approx(1 - rho**2, abs=0.1)
    assert enhancer.scores["nmse_before"] > OFFSET_DB**2 / np.var(want)


def test_a_model_of_levels_is_kept_and_takes_the_levels_of_csi_with_phases(tmp_path: Path) -> None:
    """An Eve with a better receiver must not be left out."""
    alice, bob = both_ends(6)
    enhancer = LinearMmse(step=1)
    enhancer.fit(alice, bob, np.random.default_rng(1))
    enhancer.save(tmp_path / "m.npz")
    again = LinearMmse(step=1, model=str(tmp_path / "m.npz"))
    expected = enhancer.transform(alice, "alice").values
    np.testing.assert_array_equal(again.transform(alice, "alice").values, expected)
    phases = np.exp(2j * np.pi * np.random.default_rng(2).random(alice.h.shape))
    turned = CsiSeries((alice.h * phases).astype(np.complex64), alice.rounds, alice.subcarrier_hz)
    np.testing.assert_allclose(again.transform(turned, "alice").values, expected, atol=1e-3)
    assert again.transform(turned, "eve").values.shape == expected.shape


def test_a_model_of_phases_refuses_levels() -> None:
    alice, bob = both_ends(6)
    phases = np.exp(2j * np.pi * np.random.default_rng(2).random(alice.h.shape))
    turned = [CsiSeries((c.h * phases).astype(np.complex64), c.rounds, c.subcarrier_hz) for c in (alice, bob)]
    enhancer = LinearMmse(step=1)
    enhancer.fit(turned[0], turned[1], np.random.default_rng(1))
    with pytest.raises(InputError, match="trained on CSI with phases, this CSI has levels only"):
        enhancer.transform(alice, "alice")


def test_a_level_of_nothing_is_missing_and_a_constant_one_is_refused() -> None:
    alice, bob = both_ends(1)
    enhancer = LinearMmse(step=1)
    enhancer.fit(alice, bob, np.random.default_rng(1))
    alice.h[5] = 0
    got = enhancer.transform(alice, "alice").values
    assert np.isnan(got[5]).all()
    assert np.isfinite(np.delete(got, 5, axis=0)).all()
    flat = levels(np.full((PROBES, 1), -60.0))
    with pytest.raises(ValueError, match="Alice's CSI: the level of subcarrier 0 never changes over 600 probes"):
        LinearMmse(step=1).fit(flat, bob, np.random.default_rng(1))


def test_complex_features_of_levels_are_their_db() -> None:
    alice, _ = both_ends(6)
    as_complex, as_db = (
        registry.make_stage("enhance", "identity", {"step": 2, "scale": scale}).transform(alice, "alice").values
        for scale in ("complex", "db")
    )
    np.testing.assert_array_equal(as_complex, as_db)
