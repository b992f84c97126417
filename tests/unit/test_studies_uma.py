"""The studies' source of paper B's channels: snapshots, what is kept of them, and what radios measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.core import registry
from testbed.core.errors import InputError
from testbed.papers.reciprocity import uma_walk


class Air:
    """Rayleigh channels in place of the library's, and how often they were asked for."""

    calls = 0

    @classmethod
    def responses(cls, scene: Any, carrier_hz: float, seed: int, time_s: Any, f_hz: Any, pattern: Any) -> Any:
        cls.calls += 1
        rng = np.random.default_rng(seed)
        links = ["alice>bob"] + (["alice>eve", "bob>eve"] if scene.eve is not None else [])
        return {name: rng.normal(size=(time_s.size, f_hz.size, 2)) @ np.array([3.0, 3.0j]) for name in links}


@pytest.fixture(autouse=True)
def air(monkeypatch: pytest.MonkeyPatch) -> type[Air]:
    Air.calls = 0
    uma_walk._computed.cache_clear()
    monkeypatch.setattr(registry, "load_driver", lambda group, name: Air)
    monkeypatch.delenv(uma_walk.CACHE_VARIABLE, raising=False)
    return Air


def test_snapshots_are_normalised_and_kept(tmp_path: Path) -> None:
    walk = uma_walk.Walk(n_probes=50, eve_near="bob", eve_wavelengths=0.2)
    first, again = uma_walk.snapshots(walk, tmp_path), uma_walk.snapshots(walk, tmp_path)
    assert Air.calls == 1
    np.testing.assert_array_equal(first.ab, again.ab)
    assert (np.abs(first.ab) ** 2).mean() == pytest.approx(1.0, rel=1e-5)
    assert first.eve(walk) is first.ae
    uma_walk.snapshots(uma_walk.Walk(n_probes=50, seed=2), tmp_path)
    assert Air.calls == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_spoilt_file_is_named(tmp_path: Path) -> None:
    walk = uma_walk.Walk(n_probes=50)
    path = tmp_path / uma_walk.file_name(walk)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=f"{path.name}: not the snapshots of a walk"):
        uma_walk.snapshots(walk, tmp_path)
    np.savez(path, ab=np.ones((3, 64)))
    with pytest.raises(InputError, match=r"accepted: snapshots \(probe, subcarrier\) = \(50, 64\)"):
        uma_walk.snapshots(walk, tmp_path)


def test_a_missing_library_says_what_else_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise InputError("scene.uma needs the library sionna-no-rt")

    monkeypatch.setattr(Air, "responses", refuse)
    with pytest.raises(InputError, match=r"needs the library sionna-no-rt; without it: set TESTBED_UMA_SNAPSHOTS"):
        uma_walk.snapshots(uma_walk.Walk(n_probes=50))


def test_measured_channels_have_the_noise_and_the_errors_asked_for() -> None:
    walk = uma_walk.Walk(n_probes=2000)
    found = uma_walk.snapshots(walk)
    clean = uma_walk.Impairments(10.0, 0, 0, 0, 0, ripple_db=0)
    alice, bob = uma_walk.pair(found, walk, clean)
    for end in (alice, bob):
        assert (np.abs(end - found.ab) ** 2).mean() == pytest.approx(0.1, rel=0.02)
    assert abs(np.vdot(alice - found.ab, bob - found.ab)) / alice.size < 0.002  # noise of each end is its own
    silent = clean.at(200.0)
    rippled = uma_walk.measure(found.ab, walk, "alice", "bob", uma_walk.replace(silent, ripple_db=0.5))
    ripple_db = 20 * np.log10(np.abs(rippled[0] / found.ab[0]))
    assert 0.4 < ripple_db.std() < 1.1  # two chains of 0.5 dB
    np.testing.assert_allclose(rippled / found.ab, (rippled / found.ab)[:1].repeat(2000, axis=0), rtol=1e-6)
    turned = uma_walk.measure(found.ab, walk, "alice", "bob", uma_walk.replace(silent, free_running=True)) / found.ab
    np.testing.assert_allclose(np.abs(turned), 1.0, rtol=1e-6)
    assert abs(turned[:, 0].mean()) < 0.1
    late = uma_walk.measure(found.ab, walk, "alice", "bob", uma_walk.replace(silent, timing_s=0, timing_jitter_s=2e-9))
    slope = np.diff(np.unwrap(np.angle(late / found.ab), axis=1), axis=1).mean(axis=1)
    assert (-slope / (2 * np.pi * 20e6 / 64)).std() == pytest.approx(2e-9, rel=0.1)


def test_repetitions_share_hardware_and_not_noise() -> None:
    walk = uma_walk.Walk(n_probes=200)
    found = uma_walk.snapshots(walk)
    plan = uma_walk.Impairments(30.0)
    one, same, other = (uma_walk.measure(found.ab, walk, "alice", "bob", plan, r) for r in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
    assert abs(np.vdot(one, other)) / np.linalg.norm(one) / np.linalg.norm(other) > 0.98
