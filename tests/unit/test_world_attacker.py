"""An adversary's surface in the simulated air: a function of time and of what was sent, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim_backend.ticks import duration
from sim_backend.world import RETENTION, Air
from testbed import config
from testbed.core.config import Attacker, Experiment, Multipath, PlacedNode, Scene
from testbed.core.errors import InputError

CARRIER_HZ, RATE_HZ = 5.8e9, 40e6
US = 10**6


def scene(flips: str = "after_transmission", **changes: object) -> Scene:
    plan = {"position_m": [5.0, 8.0, 1.5], "normal": [0.0, -1.0, 0.0], "gain_db": 40.0, "flips": flips, **changes}
    return Scene(
        alice=PlacedNode(position_m=[3.0, 3.0, 1.5]),
        bob=PlacedNode(position_m=[7.0, 4.0, 1.2]),
        eve=PlacedNode(position_m=[5.0, 5.0, 1.0]),
        attacker=Attacker(**plan),  # type: ignore[arg-type]
        multipath=Multipath(n_scatterers=10),
    )


def air_of(of: Scene, seed: int = 1) -> Air:
    air = Air()
    air.reset(of, CARRIER_HZ, seed)
    for name in ("alice", "bob", "eve"):
        air.tune(name, name, CARRIER_HZ, RATE_HZ, 5e-6)
    return air


BURST = np.exp(2j * np.pi * np.random.default_rng(1).random(400)).astype(np.complex64)


def sound(air: Air, tx: str, rx: str, at: int) -> np.ndarray:
    """Send the burst and return what arrives (440 samples)."""
    air.transmit(tx, at, BURST)
    air.check_reception(rx, at, 440)
    return air.hear(rx, at, 440)


def rounds(air: Air, n: int = 3, start: int = 100 * US) -> list[tuple[np.ndarray, np.ndarray]]:
    out = []
    for i in range(n):
        at = start + i * 1000 * US
        out.append((sound(air, "alice", "bob", at), sound(air, "bob", "alice", at + 200 * US)))
    return out


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(np.vdot(a, b)) / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_two_slots_of_a_round_see_different_channels_and_without_flips_the_same() -> None:
    for there, back in rounds(air_of(scene())):
        assert alike(there, back) < 0.98
        assert np.linalg.norm(there - back) > 0.3 * np.linalg.norm(there)
    for there, back in rounds(air_of(scene("never"))):
        np.testing.assert_allclose(there, back, atol=1e-6 * np.abs(there).max())


def test_what_it_does_depends_on_the_seed_and_on_what_was_sent_only() -> None:
    first, again, other = (rounds(air_of(scene(), seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
    assert not np.array_equal(first[0][0], other[0][0])
    # an extra transmission before changes what comes after it
    air = air_of(scene())
    sound(air, "alice", "eve", 30 * US)
    assert not np.array_equal(rounds(air)[0][0], first[0][0])


def test_the_new_pattern_is_there_after_the_reaction_and_not_before() -> None:
    slow = scene(reaction_s=300e-6)
    for there, back in rounds(air_of(slow), n=1):
        np.testing.assert_allclose(there, back, atol=1e-6 * np.abs(there).max())
    # both receive the same burst, in either order
    air = air_of(scene())
    air.transmit("alice", 100 * US, BURST)
    for name in ("bob", "eve"):
        air.check_reception(name, 100 * US, 440)
    one, two = air.hear("bob", 100 * US, 440), air.hear("eve", 100 * US, 440)
    air = air_of(scene())
    air.transmit("alice", 100 * US, BURST)
    for name in ("bob", "eve"):
        air.check_reception(name, 100 * US, 440)
    later, sooner = air.hear("eve", 100 * US, 440), air.hear("bob", 100 * US, 440)
    assert np.array_equal(one, sooner)
    assert np.array_equal(two, later)


def test_it_remembers_transmissions_that_the_air_has_forgotten() -> None:
    def after(gap: int, forget: bool) -> np.ndarray:
        air = air_of(scene())
        sound(air, "alice", "bob", 100 * US)
        if forget:  # a reception without signal: the old burst is dropped
            air.declare("alice", gap)
            air.declare("eve", gap)
            air.check_reception("bob", gap - 100 * US, 400)
            air.hear("bob", gap - 100 * US, 400)
            assert not air._sent
        return sound(air, "bob", "alice", gap)

    gap = 2 * RETENTION
    assert np.array_equal(after(gap, True), after(gap, False))


def test_how_a_receiver_cuts_its_blocks_changes_nothing() -> None:
    def heard(cuts: list[int]) -> np.ndarray:
        air = air_of(scene(reaction_s=1e-6))
        air.transmit("alice", 100 * US, np.tile(BURST, 2))
        air.transmit("eve", 100 * US, BURST[:100])  # the pattern changes while Alice sends
        air.check_reception("bob", 100 * US, 840)
        parts = zip([0, *cuts], [*cuts, 840], strict=True)
        return np.concatenate([air.hear("bob", 100 * US + duration(a, RATE_HZ), b - a) for a, b in parts])

    whole = heard([])
    np.testing.assert_allclose(whole, heard([150, 500, 503]), atol=1e-6 * np.abs(whole).max())


def test_behind_it_nobody_is_reached() -> None:
    away = scene(normal=[0.0, 1.0, 0.0])
    for there, back in rounds(air_of(away), n=1):
        np.testing.assert_allclose(there, back, atol=1e-6 * np.abs(there).max())


def test_mistakes_in_its_table_are_named(tmp_path: Path) -> None:
    text = config.bundled(Experiment)["flip_attack"].read_text()
    for old, new, words in (
        ('flips = "after_transmission"', 'flips = "often"', "scene.attacker.*flips.*accepted.*never"),
        ("normal = [0.0, -1.0, 0.0]", "normal = [0.0, 0.0, 0.0]", "scene.attacker.*normal"),
        ("rows = 32", "rows = 0", "scene.attacker.*rows"),
    ):
        assert old in text
        path = tmp_path / "mine.toml"
        path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=words):
            config.load_experiment(str(path))
