"""Scenes of TR 38.901 UMa: the standard's delays, powers and angles, and correlations that geometry gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim_backend import uma
from sim_backend.channel import Channel, responses
from testbed.core.config import PlacedNode, Scene, Uma
from testbed.core.errors import InputError
from testbed.core.types import SPEED_OF_LIGHT_M_S

CARRIER_HZ = 2.4e9
LAMBDA_M = SPEED_OF_LIGHT_M_S / CARRIER_HZ
ALICE, BOB = np.array([0.0, 0.0, 25.0]), np.array([100.0, 0.0, 1.5])


@pytest.fixture
def rays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drop of 200 rays without the library, so that geometry is checked everywhere."""

    def drawn(plan: Uma, alice: Any, bob: Any, carrier_hz: float, seed: int) -> tuple[Any, ...]:
        rng = np.random.default_rng(seed)
        n = 200
        delay_s = np.concatenate([[0.0], rng.exponential(2e-7, n - 1)])
        angles = [rng.uniform(-np.pi, np.pi, n) if i % 2 == 0 else rng.uniform(1.2, 1.9, n) for i in range(4)]
        return delay_s, np.exp(-delay_s / 2e-7), *angles, 4.0, 95.0

    monkeypatch.setattr(uma, "_rays", drawn)


def scene(**options: Any) -> Scene:
    return Scene(
        alice=PlacedNode(position_m=list(ALICE)),
        bob=PlacedNode(position_m=list(BOB), velocity_m_s=[0.0, 0.5, 0.0]),
        eve=PlacedNode(near="bob", offset_wavelengths=0.15),
        uma=Uma(**options),
    )


@pytest.mark.usefixtures("rays")
@pytest.mark.parametrize("sight", [False, True])
def test_bodies_lie_in_the_rays_directions_and_as_far_as_delays_say(sight: bool) -> None:
    drawn = uma.draw(scene(line_of_sight=sight), CARRIER_HZ, 1)
    assert drawn.far_m is not None
    near, far = drawn.position_m - BOB, drawn.far_m - ALICE
    r = np.linalg.norm(near, axis=1)
    np.testing.assert_allclose(np.linalg.norm(far, axis=1), r)
    assert r.min() >= uma.CLEARANCE_M - 1e-9
    delay_s, _, aod, zod, aoa, zoa, *_ = uma._rays(Uma(), ALICE, BOB, CARRIER_HZ, uma.derive(1, "uma"))
    np.testing.assert_allclose(near / r[:, None], uma._unit(aoa, zoa), atol=1e-9)
    np.testing.assert_allclose(far / r[:, None], uma._unit(aod, zod), atol=1e-9)
    length = 2 * r + np.linalg.norm(drawn.position_m - drawn.far_m, axis=1)
    excess_s = (length - np.linalg.norm(BOB - ALICE)) / SPEED_OF_LIGHT_M_S - delay_s
    if sight:
        assert np.median(np.abs(excess_s)) < 1e-12  # only echoes that would need a body too near come later
    else:
        np.testing.assert_allclose(excess_s, excess_s[0], atol=1e-13)


@pytest.mark.usefixtures("rays")
@pytest.mark.parametrize(
    ("options", "gain_db"), [({"gain_db": -70.0}, -70.0), ({"gain_db": 10.0, "pathloss": True}, -85.0)]
)
def test_path_gain_is_what_was_asked_for(options: dict[str, Any], gain_db: float) -> None:
    channel = Channel(scene(line_of_sight=True, **options), CARRIER_HZ, 1)
    amplitude, delay_s = channel.paths("alice", "bob", 0.0, CARRIER_HZ)
    assert 10 * np.log10((np.abs(amplitude) ** 2).sum()) == pytest.approx(gain_db, abs=0.01)
    assert np.abs(amplitude[0]) ** 2 / (np.abs(amplitude[1:]) ** 2).sum() == pytest.approx(4.0, rel=1e-3)
    assert delay_s[0] == pytest.approx(np.linalg.norm(BOB - ALICE) / SPEED_OF_LIGHT_M_S)


@pytest.mark.usefixtures("rays")
def test_eve_correlates_as_the_angles_at_bob_say() -> None:
    """Averaged over bandwidth and track, against Σ p exp(jk·d) over the rays' directions of arrival."""
    found, theory = [], []
    for seed in range(6):
        channel = Channel(scene(), CARRIER_HZ, seed)
        h = responses(channel, CARRIER_HZ, np.arange(0.0, 20.0, 0.5), np.linspace(-40e6, 40e6, 64), None)
        a, b = h["alice>bob"], h["alice>eve"]
        found.append((a.conj() * b).mean() / np.sqrt((np.abs(a) ** 2).mean() * (np.abs(b) ** 2).mean()))
        _, power, _, _, aoa, zoa, *_ = uma._rays(Uma(), ALICE, BOB, CARRIER_HZ, uma.derive(seed, "uma"))
        step = channel.position_m("eve", 0.0) - channel.position_m("bob", 0.0)
        turn = np.exp(2j * np.pi / LAMBDA_M * (uma._unit(aoa, zoa) @ step))
        theory.append((power * turn).sum() / power.sum())
    assert np.abs(np.subtract(found, theory)).max() < 0.12
    assert 0.5 < np.abs(theory).min() < np.abs(theory).max() < 0.95  # something to get wrong


@pytest.mark.usefixtures("rays")
def test_links_are_reciprocal_and_seeds_differ() -> None:
    one, again, other = (Channel(scene(), CARRIER_HZ, seed) for seed in (1, 1, 2))
    there, _ = one.paths("alice", "bob", 3.0, CARRIER_HZ)
    back, _ = again.paths("bob", "alice", 3.0, CARRIER_HZ)
    np.testing.assert_array_equal(there, back)
    assert not np.allclose(there, other.paths("alice", "bob", 3.0, CARRIER_HZ)[0])


@pytest.mark.usefixtures("rays")
def test_ends_too_close_for_the_standard_are_refused() -> None:
    close = scene()
    close.bob.position_m = [5.0, 0.0, 1.5]
    with pytest.raises(InputError, match="accepted from 10 m"):
        uma.draw(close, CARRIER_HZ, 1)


def test_the_library_draws_a_drop_of_the_standard() -> None:
    pytest.importorskip("sionna.phy", reason="sionna-no-rt is not installed: pip install 'ris-skg-testbed[uma]'")
    spreads = []
    for seed in range(5):
        delay_s, power, _, _, aoa, _, k_factor, loss_db = uma._rays(Uma(), ALICE, BOB, CARRIER_HZ, seed)
        mean_s = (power * delay_s).sum() / power.sum()
        spreads.append(np.sqrt((power * (delay_s - mean_s) ** 2).sum() / power.sum()))
        assert power.sum() == pytest.approx(1.0, abs=0.01)
        assert delay_s.shape == aoa.shape
        assert 80 < loss_db < 125
        assert k_factor > 0
    assert 1e-7 < np.median(spreads) < 1.2e-6  # TR 38.901 table 7.5-6: 10^−6.46 s out of sight at 2.4 GHz
    again = uma._rays(Uma(), ALICE, BOB, CARRIER_HZ, 4)
    np.testing.assert_array_equal(again[0], delay_s)


def test_a_missing_library_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim_backend.server import SimWorld
    from testbed.config import load_experiment

    scene = load_experiment("uma_walk").scene
    SimWorld.check(load_experiment("static_room").scene)
    monkeypatch.setattr(uma.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the library sionna-no-rt: pip install"):
        SimWorld.check(scene)
