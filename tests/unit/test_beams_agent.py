"""A trained policy as a node's beams: what it is shown, when the closed form stands in, what is refused."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from testbed.core import registry
from testbed.core.errors import InputError

HISTORY = 3


class Learned:
    """Stands for `testbed.agents.policy.LearnedBeams`: remembers what it was shown."""

    def __init__(self, view: str, n_antennas: int = 4) -> None:
        self.view, self.n_antennas = view, n_antennas
        self.learner = SimpleNamespace(stack=SimpleNamespace(history=HISTORY))
        self.shown: list[tuple[str, Any, Any]] = []

    def act(self, role: str, h: Any, fred: Any = None) -> Any:
        self.shown.append((role, h, fred))
        return np.array([0, 0, 1, 0], np.complex64)


def gaussian(seed: int, *shape: int) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "saved.pt"
    path.touch()
    path.with_suffix(".json").touch()
    return path


def made(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, learned: Learned, peer: str, n: int = 4) -> Any:
    stand_in = SimpleNamespace(load_policy=lambda path, run: learned)
    monkeypatch.setitem(sys.modules, "testbed.agents.policy", stand_in)  # type: ignore[arg-type]
    policy = registry.make_stage("beams", "agent", {"checkpoint": str(checkpoint)})
    policy.begin(n, n, peer, 1)
    return policy


def test_both_ends_show_it_the_same_channel(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = Learned("none")
    h = gaussian(1, 4, 4, 9)  # (Bob, Alice, subcarrier)
    seen = []
    for peer, heard in (("bob", 3e-3 * h.swapaxes(0, 1) * np.exp(0.4j)), ("alice", 2e-4 * h * np.exp(2j))):
        policy = made(checkpoint, monkeypatch, learned, peer)
        np.testing.assert_allclose(policy.beam(0), [1, 0, 0, 0])
        policy.hear(0, {peer: heard})
        np.testing.assert_allclose(policy.beam(1), [0, 0, 1, 0])
        seen.append(learned.shown.pop())
    assert [role for role, _, _ in seen] == ["alice", "bob"]
    np.testing.assert_allclose(seen[0][1], seen[1][1], rtol=1e-9)
    assert np.mean(np.abs(seen[0][1]) ** 2) == pytest.approx(1.0)


def test_the_closed_form_stands_in_until_fred_was_heard_often_enough_and_always_at_bob(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = Learned("kalman")
    alice, bob = (made(checkpoint, monkeypatch, learned, peer) for peer in ("bob", "alice"))
    svd = registry.make_stage("beams", "svd", {})
    svd.begin(4, 4, "bob", 1)
    fred = gaussian(7, 4)
    for k in range(HISTORY):
        h = gaussian(k, 4, 4, 9)
        turned = np.repeat((fred * np.exp(1j * k))[:, None, None], 9, axis=2)
        svd.hear(k, {"bob": h})
        alice.hear(k, {"bob": h, "eve": turned})
        bob.hear(k, {"alice": h.swapaxes(0, 1), "eve": turned})
        if k < HISTORY - 1:
            np.testing.assert_allclose(alice.beam(k), svd.beam(k))
    ((role, _, past),) = learned.shown  # once, by Alice
    assert role == "alice"
    assert past.shape == (HISTORY, 4)
    np.testing.assert_allclose(past, np.tile(past[-1], (HISTORY, 1)), atol=1e-9)  # every sounding's phase is taken off
    np.testing.assert_allclose(alice.beam(9), [0, 0, 1, 0])


def test_what_cannot_serve_is_refused_in_one_line(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"nowhere.pt does not exist"):
        registry.make_stage("beams", "agent", {"checkpoint": "nowhere.pt"})
    with pytest.raises(InputError, match="trained for 4 antennas at both ends, these have 2 and 2"):
        made(checkpoint, monkeypatch, Learned("none"), "bob", n=2)
    with pytest.raises(InputError, match="view 'full'"):
        made(checkpoint, monkeypatch, Learned("full"), "bob")


@pytest.mark.parametrize("algorithm", ["sac", "direct"])
def test_a_real_checkpoint_gives_beams(algorithm: str, tmp_path: Path) -> None:
    learner, masac, setting = (
        importlib.import_module(f"testbed.agents.{name}") for name in ("learner", "masac", "setting")
    )
    task = learner.Task((setting.Setting(n_antennas=4),), (1,), view="kalman", frame="turned")
    masac.Masac(task, masac.Config(n_envs=2)).save(tmp_path / "sac.pt")
    direct = importlib.import_module("testbed.agents.direct")
    direct.Direct(setting.Setting(), 1, direct.Config(n_settings=2)).save(tmp_path / "direct.pt")
    path = tmp_path / f"{algorithm}.pt"
    policy = registry.make_stage("beams", "agent", {"checkpoint": str(path)})
    policy.begin(4, 4, "bob", 1)
    fred = gaussian(7, 4, 1, 9)
    for k in range(setting.Setting().history):
        policy.hear(k, {"bob": gaussian(k, 4, 4, 9).astype(np.complex64), "eve": fred.astype(np.complex64)})
    assert policy.beam(9).shape == (4,)
    assert np.linalg.norm(policy.beam(9)) == pytest.approx(1.0, abs=1e-5)
