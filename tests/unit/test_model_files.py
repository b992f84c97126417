"""A saved model named in an experiment: what is refused before anything starts, in which words, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed import cli, config
from testbed.core import registry
from testbed.core.config import Lab
from testbed.core.errors import InputError
from testbed.core.types import CsiSeries
from testbed.lab import surface
from testbed.replay import replay, sources
from testbed.replay.sources import Cut, Recording

EXPERIMENT = """
schema = 1
title = "a saved model"
rounds = 60
scene = { alice = { position_m = [2.0, 3.0, 1.5] }, bob = { position_m = [16.0, 13.0, 1.2] } }
radio = { carrier_hz = 5.8e9, sample_rate_hz = 40e6 }
chain = { enhance = "ENHANCE", enhance_options = { OPTIONS } }
"""
PITCH_HZ = 40e6 / 128
"""Of `ofdm`'s default waveform at 40 MS/s."""


def csi(seed: int, carriers: int, pitch_hz: float, antennas: int) -> CsiSeries:
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(60, antennas, 1, carriers, 2)) @ [1, 1j]
    side = np.arange(1, carriers // 2 + 1)
    return CsiSeries(h.astype(np.complex64), np.arange(60), np.concatenate([-side[::-1], side]) * pitch_hz)


def saved(
    folder: Path, enhance: str = "linear_mmse", carriers: int = 64, pitch_hz: float = PITCH_HZ, antennas: int = 1,
    **options: Any,
) -> Path:  # fmt: skip
    """Train on noise and save."""
    stage = registry.make_stage("enhance", enhance, options)
    alice, bob = (csi(seed, carriers, pitch_hz, antennas) for seed in (1, 2))
    stage.fit(alice, bob, np.random.default_rng(1))
    stage.save(folder / "model.npz")
    return folder / "model.npz"


def told(folder: Path, enhance: str, options: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(EXPERIMENT.replace("ENHANCE", enhance).replace("OPTIONS", options))
    return path


def refusal(folder: Path, enhance: str = "linear_mmse", options: str = "") -> str:
    """Return the error of `testbed run` about the model in `folder`; it must not create a run's folder."""
    path = told(folder, enhance, f'model = "{folder / "model.npz"}"' + options)
    with pytest.raises(InputError) as caught:
        cli.app(["run", str(path), "--out", str(folder / "runs")], standalone_mode=False)
    assert not (folder / "runs").exists()
    said = str(caught.value)
    assert "\n" not in said
    # the message about a bad file names the options, that about a wrong waveform the chain
    about = f": enhance '{enhance}': model '{folder / 'model.npz'}'"
    assert any(f"{path}: table [{table}]{about}" in said for table in ("chain.enhance_options", "chain"))
    assert "{" not in said  # no dump of a table
    return said


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"pitch_hz": PITCH_HZ / 2}, ["another waveform", "-5e+06 to 5e+06", "-1e+07 to 1e+07", "accepted: a model"]),
        ({"carriers": 48}, ["(1, 1, 48)", "(1, 1, 64)", "[probing]"]),
        ({"antennas": 2}, ["(2, 1, 64)", "(1, 1, 64)"]),
        ({"enhance": "pca"}, ["a model of enhance 'pca', this is 'linear_mmse'"]),
        ({"align": False}, ["align = false, here align = true", "accepted: the same in enhance_options"]),
    ],
)
def test_a_model_of_something_else_is_refused_before_anything_starts(
    tmp_path: Path, made: dict[str, Any], words: list[str]
) -> None:
    saved(tmp_path, **made)
    said = refusal(tmp_path)
    for word in words:
        assert word in said


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    assert "npz file" in refusal(tmp_path)


def test_bobs_part_of_a_model_cannot_serve_alice(tmp_path: Path) -> None:
    path = saved(tmp_path)
    alice = registry.make_stage("enhance", "linear_mmse", {"model": str(path)})
    bob = alice.fresh()
    bob.adopt(alice.publication())
    path.write_bytes(bob.dump())
    assert "Bob's part of a model" in refusal(tmp_path)


def test_other_layers_are_refused_and_another_training_is_not(tmp_path: Path) -> None:
    path = saved(tmp_path, "crcnet", filters=1, epochs=1)
    said = refusal(tmp_path, "crcnet", ", filters = 2")
    assert "filters = 1, here filters = 2" in said
    options = (
        f'model = "{path}", filters = 1, epochs = 7, patience = 3, batch = 8, rate = 0.01, validation = 0.4, gap = 1'
    )
    mine = told(tmp_path, "crcnet", options)
    config.check_run(config.load_experiment(str(mine)), str(mine))
    card = registry.make_stage("enhance", "crcnet", {"model": str(path), "filters": 1}).card
    assert card["recipe"]["epochs"] == 1  # the card tells how it was trained


def test_arrays_that_do_not_belong_to_the_card_are_refused_where_they_are_used(tmp_path: Path) -> None:
    path = saved(tmp_path, "pca", components=4)
    with np.load(path) as arrays:
        torn = {k: arrays[k] for k in arrays.files if k != "public.basis"}
    np.savez(path, **torn)
    stage = registry.make_stage("enhance", "pca", {"components": 4, "model": str(path)})
    with pytest.raises(InputError, match=r"model\.npz' cannot be applied: KeyError: 'basis'"):
        stage.transform(csi(3, 64, PITCH_HZ, 1), "bob")


def test_a_replay_refuses_a_model_for_other_csi_by_the_name_of_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = told(tmp_path, "linear_mmse", f'model = "{saved(tmp_path)}"')
    plan = config.load_experiment(str(path))

    def lobby(pitch_hz: float) -> Recording:
        ends = {end: csi(seed, 64, pitch_hz, 1) for end, seed in (("alice", 3), ("bob", 4))}
        cut = Cut("lobby", **ends, groups=np.zeros(60, np.int64), per_group=False, chain=plan.chain,
                  accounting=plan.accounting)  # fmt: skip
        return Recording("measured", "", (), {"lobby": cut}, "lobby")

    monkeypatch.setattr(sources, "load", lambda _: lobby(PITCH_HZ))
    replay.replay(tmp_path, plan)
    monkeypatch.setattr(sources, "load", lambda _: lobby(1e5))
    with pytest.raises(InputError, match=r"cut 'lobby': enhance 'linear_mmse': model .* another waveform.*accepted"):
        replay.replay(tmp_path, plan)


@pytest.mark.parametrize(
    ("rounds", "arguments", "accepted"),
    [(121, [], True), (120, [], False), (600, [], True), (600, ["--rounds", "120"], False)],
)
def test_a_training_that_leaves_no_round_for_a_key_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int, arguments: list[str], accepted: bool
) -> None:
    path = told(tmp_path, "linear_mmse", "")
    text = path.read_text().replace("rounds = 60", f"rounds = {rounds}")
    path.write_text(text + "training = { rounds = 100, guard_rounds = 20 }\n")
    # a lab without the air's driver: refused right after what is asked here
    lab = tmp_path / "lab.toml"
    lab.write_text(config.bundled(Lab)["sim"].read_text().replace('driver = "sim"', 'driver = "smi"', 1))
    with pytest.raises(InputError) as caught:
        cli.app(
            ["run", str(path), "--lab", str(lab), "--out", str(tmp_path / "runs"), *arguments], standalone_mode=False
        )
    if accepted:
        assert "smi" in str(caught.value)
    else:
        for word in (str(path), "table [training]", "rounds = 100", "guard_rounds = 20", "rounds = 120", "accepted"):
            assert word in str(caught.value)


def test_a_search_for_a_pattern_trains_nothing(tmp_path: Path) -> None:
    """Its rounds are a budget, and it makes no key: few of them are not too few for the experiment's training."""
    path = told(tmp_path, "linear_mmse", "")
    path.write_text(path.read_text() + "training = { rounds = 40 }\n")
    plan = config.load_experiment(str(path))
    plan.rounds = 30
    scene = config.load_experiment("static_room_fixed").scene
    plan.scene.surface = scene.surface
    found = surface.plan(plan, str(path), config.load_lab("sim"), "hadamard", "power", 1, "random(1)")
    assert found.training.rounds == 0
    config.check_run(found, str(path))
