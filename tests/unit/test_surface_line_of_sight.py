"""The model made of a scene's geometry: it agrees with the simulated air, and is refused where it is impossible."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from sim_backend.channel import Channel, responses
from testbed import config
from testbed.core import patterns, registry
from testbed.core.config import Multipath, PlacedNode, Scene
from testbed.core.errors import InputError
from testbed.core.types import SurfacePattern
from testbed.surface import focus
from testbed.surface.line_of_sight import LineOfSight

CARRIER_HZ = 5.8e9
SHAPE = (8, 8)


def scene(**changes: Any) -> Scene:
    found = config.load_experiment("static_room").scene
    return msgspec.structs.replace(found, multipath=Multipath(n_scatterers=0, direct_db=0.0), **changes)


def moved(name: str, position_m: list[float]) -> Scene:
    return scene(**{name: msgspec.structs.replace(getattr(scene(), name), position_m=position_m)})


def drawn(seed: int, phase_bits: int = 2) -> SurfacePattern:
    return patterns.make(f"random({seed})", SHAPE, phase_bits)


def test_the_air_and_the_model_agree_on_every_pattern() -> None:
    room = scene()
    models = {f"alice>{rx}": LineOfSight.of(room, CARRIER_HZ, SHAPE, "alice", rx) for rx in ("bob", "eve")}
    for seed in range(5):
        pattern = drawn(seed)
        found = responses(Channel(room, CARRIER_HZ, 1), CARRIER_HZ, np.zeros(1), np.zeros(1), pattern)
        for link, model in models.items():
            assert model.response(pattern) == pytest.approx(complex(found[link][0, 0]), rel=1e-9)


def test_bobs_and_eves_power_and_their_correlation_are_predicted_in_a_room_full_of_bodies() -> None:
    """What the bodies add is one number a link, fitted on other patterns than those that are predicted."""
    room = config.load_experiment("static_room").scene
    probed: dict[str, list[complex]] = {"alice>bob": [], "alice>eve": []}
    chosen = [drawn(seed, 1) for seed in range(300)]
    for pattern in chosen:
        found = responses(Channel(room, CARRIER_HZ, 1), CARRIER_HZ, np.zeros(1), np.zeros(1), pattern)
        for link, values in probed.items():
            values.append(complex(found[link][0, 0]))
    power, predicted = {}, {}
    for link, values in probed.items():
        model = LineOfSight.of(room, CARRIER_HZ, SHAPE, "alice", link.split(">")[1])
        bare = np.array([model.response(p, 0.0) for p in chosen])
        rest = complex(np.mean(np.array(values)[:50] - bare[:50]))
        power[link] = np.abs(np.array(values)[50:]) ** 2
        predicted[link] = np.abs(bare[50:] + rest) ** 2
        np.testing.assert_allclose(predicted[link], power[link], rtol=1e-6)
    both = [np.corrcoef(x["alice>bob"], x["alice>eve"])[0, 1] for x in (power, predicted)]
    assert both[0] == pytest.approx(both[1], abs=1e-6)
    # in theory |ρ|² of the elements' paths, were the static part not there: far apart, they share next to nothing
    bob, eve = (LineOfSight.of(room, CARRIER_HZ, SHAPE, "alice", x).elements for x in ("bob", "eve"))
    theory = abs(np.vdot(bob, eve)) ** 2 / np.vdot(bob, bob).real / np.vdot(eve, eve).real
    assert abs(both[0]) < theory + 4 / np.sqrt(250)


@pytest.mark.parametrize("phase_bits", [1, 2, 3])
def test_the_best_candidate_is_within_half_a_decibel_of_the_quantized_optimum(phase_bits: int) -> None:
    model = LineOfSight.of(scene(), CARRIER_HZ, SHAPE)
    rng = np.random.default_rng(3)
    for _ in range(4):  # with any rest of the channel
        size = float(rng.uniform(0, 2)) * np.abs(model.elements).sum()
        rest = size * np.exp(1j * rng.uniform(0, 2 * np.pi))
        found = max(abs(model.response(p, rest)) for p in focus.candidates(model, phase_bits))
        turns = np.exp(2j * np.pi * np.arange(1 << phase_bits) / (1 << phase_bits))
        # the optimum is aligned with some phase: all of them on a fine grid
        best = 0.0
        for phase in np.linspace(0, 2 * np.pi, 2000, endpoint=False):
            pull = (np.exp(-1j * phase) * model.elements)[:, None] * turns
            best = max(best, abs(rest + np.sum(model.elements * turns[pull.real.argmax(axis=1)])))
        assert 20 * np.log10(best / found) < 0.5


def test_the_design_is_the_closed_form_focus() -> None:
    model = LineOfSight.of(scene(), CARRIER_HZ, SHAPE)
    phases = focus.design(model).phases_rad
    reached = abs(model.direct + model.elements @ np.exp(1j * phases))
    assert reached == pytest.approx(abs(model.direct) + np.abs(model.elements).sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: scene(surface=None), "no surface"),
        (lambda: moved("bob", [6.0, 0.0, 1.5]), r"\[scene.bob\].*own point"),
        (lambda: moved("bob", [6.0, -1.0, 1.5]), r"\[scene.bob\].*behind the surface"),
        (lambda: moved("bob", [4.0, 3.0, 1.5]), r"\[scene.alice\] and \[scene.bob\].*same point"),
        (lambda: scene(bob=PlacedNode(near="alice")), r"\[scene.bob\].*position_m"),
    ],
)
def test_a_scene_that_cannot_be_modelled_is_refused_in_one_line(made: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        LineOfSight.of(made(), CARRIER_HZ, SHAPE)
    assert "\n" not in str(refused.value)


def test_a_pattern_of_another_board_is_refused() -> None:
    with pytest.raises(InputError, match="4×4 elements on a model of 8×8"):
        LineOfSight.of(scene(), CARRIER_HZ, SHAPE).response(patterns.make("uniform", (4, 4), 1))


def test_a_loop_with_a_model_needs_the_scene_and_refuses_one_it_cannot_use() -> None:
    loop = registry.make_stage("policy", "closed_loop", {"model": "start"})
    with pytest.raises(InputError, match="which this experiment does not give"):
        loop.begin(SHAPE, 1, 1)
    with pytest.raises(InputError, match="behind the surface"):
        loop.survey(moved("bob", [6.0, -1.0, 1.5]), CARRIER_HZ)
    with pytest.raises(InputError, match=r"'model': 'oracle' given.*accepted: 'none', 'start', 'answer'"):
        registry.make_stage("policy", "closed_loop", {"model": "oracle"})
