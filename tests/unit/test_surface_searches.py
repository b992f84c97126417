"""Searches on channels on paper: how near to the best pattern, how noise is taken, that nothing is left to chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.core import patterns, registry, seeds
from testbed.core.errors import InputError
from testbed.core.stages import SurfaceSearch

SHAPE = (6, 6)


class Paper:
    """A channel of a few subcarriers: a static part and one part an element."""

    def __init__(self, seed: int, static: float = 2.0, n_subcarriers: int = 8) -> None:
        rng = np.random.default_rng(seed)

        def gaussian(*shape: int) -> Any:
            return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)

        self.static = static * gaussian(n_subcarriers)
        self.elements = gaussian(1, 36) + 0.2 * gaussian(n_subcarriers, 36)

    def power(self, levels: Any, bits: int) -> float:
        phasor = np.exp(2j * np.pi * np.ravel(levels) / (1 << bits))
        return float(np.mean(np.abs(self.static + self.elements @ phasor) ** 2))

    def best(self, bits: int, restarts: int = 60) -> float:
        """The quantized optimum, by coordinate ascent from many starts."""
        rng, best = np.random.default_rng(0), 0.0
        for _ in range(restarts):
            levels, worth = rng.integers(0, 1 << bits, 36), -1.0
            while (now := self.power(levels, bits)) > worth + 1e-12:
                worth = now
                for i in range(36):
                    tries = []
                    for level in range(1 << bits):
                        levels[i] = level
                        tries.append(self.power(levels, bits))
                    levels[i] = int(np.argmax(tries))
            best = max(best, worth)
        return best


def search(
    name: str, paper: Paper, bits: int, noise: float = 0.0, seed: int = 1, **options: Any
) -> tuple[SurfaceSearch, int]:
    found: SurfaceSearch = registry.make_stage("search", name, options)
    found.begin(patterns.make("random(1)", SHAPE, bits), seeds.generator(seed, "test"))
    rng, asked = np.random.default_rng(2), 0
    while not found.done:
        pattern = found.ask()
        assert found.ask() is pattern
        found.tell(paper.power(pattern.levels, bits) + noise * float(rng.standard_normal()), noise)
        asked += 1
        assert asked < 5000
    return found, asked


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("name", ["greedy", "hadamard"])
def test_within_a_decibel_of_the_quantized_optimum(name: str, bits: int) -> None:
    gaps_db = []
    for seed in range(4):
        paper = Paper(seed)
        found, _ = search(name, paper, bits)
        gaps_db.append(10 * np.log10(paper.best(bits, 20) / paper.power(found.ask().levels, bits)))
    # each ends where no small change helps: of so few elements that may be a lesser summit now and then
    assert np.mean(gaps_db) < 1.0
    assert max(gaps_db) < 2.0


def test_greedy_ends_where_no_other_level_of_any_element_is_better() -> None:
    paper = Paper(2)
    found, _ = search("greedy", paper, 2, sweeps=9)
    held = found.ask().levels
    for i in np.ndindex(SHAPE):
        for level in range(4):
            other = held.copy()
            other[i] = level
            assert paper.power(other, 2) <= paper.power(held, 2) + 1e-12


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_hadamard_finds_each_elements_best_level_exactly_however_weak_the_reference(bits: int) -> None:
    paper = Paper(4, static=0.0, n_subcarriers=1)
    found = registry.make_stage("search", "hadamard", {"groups": 2})
    found.begin(start := patterns.make("random(1)", SHAPE, bits), seeds.generator(1, "test"))
    chosen = seeds.generator(1, "test").permutation(36)[::2]
    for _ in range(2 * 32 * (1 if bits == 1 else 2)):
        found.tell(paper.power(found.ask().levels, bits), 0.0)
    turns = np.exp(2j * np.pi * np.arange(1 << bits) / (1 << bits))
    others = np.setdiff1d(np.arange(36), chosen)
    reference = np.sum(paper.elements[0, others] * turns[start.levels.ravel()[others]])
    pull = (np.conj(reference) * paper.elements[0, chosen])[:, None] * turns
    # the next group begins with the row of all ones: what is held
    assert np.array_equal(found.ask().levels.ravel()[chosen], pull.real.argmax(axis=1))


def test_searches_try_as_many_patterns_as_they_say() -> None:
    paper = Paper(1)
    assert search("random_search", paper, 1, trials=50)[1] == 51
    assert search("conditional_mean", paper, 2, samples=20, rounds=3)[1] == 60
    assert search("hadamard", paper, 1, groups=4, sweeps=1)[1] == 2 * 16 * 4
    assert search("hadamard", paper, 2, groups=4, sweeps=1)[1] == 4 * 16 * 4
    assert search("greedy", paper, 1, sweeps=1)[1] == 36 + 3
    assert search("greedy", paper, 2, sweeps=1, group=4)[1] == 3 * 9 + 1


def test_random_search_keeps_the_best_it_saw() -> None:
    paper = Paper(3)
    found, _ = search("random_search", paper, 1, trials=40)
    rng = seeds.generator(1, "test")
    drawn = [rng.integers(0, 2, SHAPE, dtype=np.uint8) for _ in range(40)]
    drawn.append(patterns.make("random(1)", SHAPE, 1).levels)
    assert paper.power(found.ask().levels, 1) == max(paper.power(x, 1) for x in drawn)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("static", [0.0, 5.0])
def test_conditional_means_do_far_better_than_the_luckiest_of_as_many_patterns(bits: int, static: float) -> None:
    gaps_db, gains_db = [], []
    for seed in range(3):
        paper = Paper(seed, static=static)
        worth, luck = (
            paper.power(search(name, paper, bits, noise=0.5, **options)[0].ask().levels, bits)
            for name, options in (
                ("conditional_mean", {"samples": 120, "rounds": 8}),
                ("random_search", {"trials": 960}),
            )
        )
        gaps_db.append(10 * np.log10(paper.best(bits, 6) / worth))
        gains_db.append(10 * np.log10(worth / luck))
    assert np.mean(gaps_db) < 1.5
    assert np.mean(gains_db) > 1.5


def test_conditional_means_turn_every_element_to_the_static_part() -> None:
    paper = Paper(1, static=40.0, n_subcarriers=1)
    found, _ = search("conditional_mean", paper, 1, samples=2000, rounds=1)
    toward = np.conj(paper.static[0]) * paper.elements[0] * np.where(found.ask().levels.ravel(), -1, 1)
    weak = np.abs(toward.real) < 0.2 * np.abs(toward).mean()
    assert np.all((toward.real > 0) | weak)


@pytest.mark.parametrize("name", ["greedy", "hadamard"])
def test_pure_noise_moves_nearly_nothing_beyond_chance_and_ends(name: str) -> None:
    class Flat(Paper):
        def power(self, levels: Any, bits: int) -> float:
            return 1.0

    _, asked = search(name, Flat(1), 1, noise=0.1)
    assert asked <= 3 * 39 + 2 * 128


def test_many_elements_at_once_bear_more_noise_than_one_at_a_time() -> None:
    gains = {"greedy": [], "hadamard": []}
    for seed in range(6):
        paper = Paper(seed)
        start = paper.power(patterns.make("random(1)", SHAPE, 1).levels, 1)
        for name, gained in gains.items():
            found, _ = search(name, paper, 1, noise=0.5 * start, seed=seed)
            gained.append(10 * np.log10(paper.power(found.ask().levels, 1) / start))
    assert np.mean(gains["hadamard"]) > np.mean(gains["greedy"])


@pytest.mark.parametrize("name", ["greedy", "hadamard", "random_search", "conditional_mean"])
def test_one_seed_one_search(name: str) -> None:
    digests = [search(name, Paper(5), 2, noise=0.1, seed=seed)[0].ask().digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("greedy", {"group": 0}),
        ("greedy", {"sweeps": 0}),
        ("hadamard", {"groups": 1}),
        ("random_search", {"trials": 0}),
        ("conditional_mean", {"samples": 7}),
        ("conditional_mean", {"rounds": 0}),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="accepted"):
        registry.make_stage("search", name, options)
