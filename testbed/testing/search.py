"""The contract of `core.stages.SurfaceSearch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.core.errors import InputError
from testbed.core.stages import SurfaceSearch
from testbed.core.types import SurfacePattern
from testbed.testing._suite import OptionsSuite, check

BOARDS = (((4, 6), 1), ((3, 5), 2))
MOST_TRIALS = 20_000


def check_search(make: Callable[[], SurfaceSearch]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(SearchSuite, make)


class Air:
    """A noiseless channel over a surface: power |h0 + Σ h·e^{jφ}|²."""

    def __init__(self, n: int, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.direct = 2.0 + 1.0j
        self.paths = rng.normal(size=n) + 1j * rng.normal(size=n)

    def worth(self, pattern: SurfacePattern) -> float:
        return float(abs(self.direct + self.paths @ np.exp(1j * pattern.phases_rad.ravel())) ** 2)


class SearchSuite(OptionsSuite):
    """`make()` returns a search that ends within 20 000 trials on a board of 24 elements."""

    contract = "surface search"

    def start(self, shape: tuple[int, int], bits: int, seed: int = 1) -> SurfacePattern:
        return SurfacePattern(np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=np.uint8), bits)

    def begun(self) -> list[tuple[SurfacePattern, Air, Any]]:
        """Return (start, channel, search) for each board that is served."""
        out = []
        for shape, bits in BOARDS:
            search, start = self.fresh(), self.start(shape, bits)
            try:
                search.begin(start, np.random.default_rng(5))
            except InputError as exc:
                assert "\n" not in str(exc)
                continue
            out.append((start, Air(start.levels.size), search))
        assert out, f"none of the boards {BOARDS} is served"
        return out

    def run(self, search: Any, air: Air, error: float = 0.0) -> list[str]:
        """Search to the end; return the digests of the patterns that were tried."""
        tried: list[str] = []
        while not search.done:
            assert len(tried) < MOST_TRIALS, "it does not end"
            pattern = search.ask()
            tried.append(pattern.digest)
            search.tell(air.worth(pattern), error)
        return tried

    def test_asks_for_patterns_that_the_board_takes(self) -> None:
        for start, air, search in self.begun():
            for _ in range(200):
                pattern = search.ask()
                assert pattern.levels.shape == start.levels.shape
                assert pattern.levels.dtype == np.uint8
                assert pattern.phase_bits == start.phase_bits
                assert int(pattern.levels.max()) < 1 << start.phase_bits
                if search.done:
                    break
                search.tell(air.worth(pattern), 0.0)

    def test_asks_the_same_until_it_is_told(self) -> None:
        for _, air, search in self.begun():
            for _ in range(20):
                if search.done:
                    break
                first = search.ask().digest
                assert search.ask().digest == first
                search.tell(air.worth(search.ask()), 0.0)

    def test_ends_and_then_asks_for_what_it_found(self) -> None:
        for start, air, search in self.begun():
            self.run(search, air)
            found = search.ask()
            assert search.ask().digest == found.digest
            rng = np.random.default_rng(8)
            others = [
                air.worth(self.start(start.levels.shape, start.phase_bits, int(s)))
                for s in rng.integers(1 << 30, size=200)
            ]
            assert air.worth(found) > np.quantile(others, 0.9), "no better than patterns drawn at random"

    def test_noise_is_coped_with(self) -> None:
        for _, air, search in self.begun():
            rng = np.random.default_rng(2)
            trials = 0
            while not search.done and trials < MOST_TRIALS:
                search.tell(air.worth(search.ask()) + float(rng.normal()), 1.0)
                trials += 1
            assert search.done

    def test_the_same_generator_gives_the_same_search(self) -> None:
        for (_, air, one), (_, _, two) in zip(self.begun(), self.begun(), strict=True):
            assert self.run(one, air) == self.run(two, air)

    def test_the_start_is_left_alone(self) -> None:
        for start, air, search in self.begun():
            before = start.levels.copy()
            self.run(search, air)
            np.testing.assert_array_equal(start.levels, before)
