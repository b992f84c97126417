"""The contract of `core.stages.SurfacePolicy`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from testbed.core.config import PlacedNode, PlacedSurface, Scene
from testbed.core.errors import InputError
from testbed.core.stages import SurfacePolicy
from testbed.core.types import C64, SurfacePattern
from testbed.testing._suite import OptionsSuite, check, skip

BOARDS = (((4, 6), 1), ((3, 5), 2), ((8, 8), 3))
SCENE = Scene(
    alice=PlacedNode(position_m=[4.0, 8.0, 1.5]),
    bob=PlacedNode(position_m=[9.0, 8.0, 1.5]),
    surface=PlacedSurface(position_m=[6.0, 4.0, 1.5], normal=[0.0, 1.0, 0.0]),
)
ROUNDS = 60


def check_policy(make: Callable[[], SurfacePolicy]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(PolicySuite, make)


class PolicySuite(OptionsSuite):
    """`make()` returns a surface policy for the boards of `BOARDS` (or some of them) in the scene `SCENE`."""

    contract = "surface policy"

    def begun(self, shape: tuple[int, int], phase_bits: int, seed: int = 5) -> Any:
        policy = self.fresh()
        policy.survey(SCENE, 2.4e9)
        try:
            policy.begin(shape, phase_bits, seed)
        except InputError:
            skip(f"the policy states that it does not serve a board of {shape}, {phase_bits} bits")
        return policy

    def patterns(self, policy: Any, rounds: int = ROUNDS) -> list[SurfacePattern]:
        """Drive a policy as a run does; every third round is lost."""
        out = []
        for r in range(rounds):
            out.append(policy.pattern_for(r))
            if policy.watches:
                policy.observe(r, {} if r % 3 == 2 else self.links(out[-1], r))
        return out

    def links(self, pattern: SurfacePattern, r: int) -> Mapping[str, C64]:
        """Return the CSI of a static channel over the surface in a round, both ways and to Eve."""
        rng = np.random.default_rng(1)
        path = rng.normal(size=(8, pattern.levels.size)) + 1j * rng.normal(size=(8, pattern.levels.size))
        h = 1.0 + 0.1 * path @ np.exp(1j * pattern.phases_rad.ravel())
        noise = np.random.default_rng([2, r]).normal(size=(4, 8))
        names = ("alice>bob", "bob>alice", "alice>eve", "bob>eve")
        return {n: (h + 0.01 * e)[None, None, :].astype(np.complex64) for n, e in zip(names, noise, strict=True)}

    def served(self) -> list[Any]:
        """Return a begun policy for each board that it serves."""
        out = []
        for shape, bits in BOARDS:
            policy = self.fresh()
            policy.survey(SCENE, 2.4e9)
            try:
                policy.begin(shape, bits, 5)
            except InputError as exc:
                assert "\n" not in str(exc)
                continue
            out.append((shape, bits, policy))
        assert out, f"none of the boards {BOARDS} is served"
        return out

    def test_gives_patterns_that_the_board_takes(self) -> None:
        for shape, bits, policy in self.served():
            for pattern in self.patterns(policy):
                assert pattern.levels.shape == shape
                assert pattern.levels.dtype == np.uint8
                assert pattern.phase_bits == bits
                assert int(pattern.levels.max()) < 1 << bits

    def test_the_same_seed_gives_the_same_patterns(self) -> None:
        for (shape, bits, one), (_, _, two) in zip(self.served(), self.served(), strict=True):
            first, second = ([p.digest for p in self.patterns(x)] for x in (one, two))
            assert first == second, (shape, bits)

    def test_a_round_asked_for_again_has_the_same_pattern(self) -> None:
        for _, _, policy in self.served():
            for r in range(5):
                assert policy.pattern_for(r).digest == policy.pattern_for(r).digest
                if policy.watches:
                    policy.observe(r, {})

    def test_what_does_not_change_holds_one_pattern(self) -> None:
        for _, _, policy in self.served():
            digests = {p.digest for p in self.patterns(policy)}
            assert policy.changes or len(digests) == 1

    def test_rounds_may_be_left_out(self) -> None:
        for shape, _, policy in self.served():
            for r in (0, 3, 4, 50):
                assert policy.pattern_for(r).levels.shape == shape
                if policy.watches:
                    policy.observe(r, {})

    def test_what_is_done_stays_done(self) -> None:
        for _, _, policy in self.served():
            self.patterns(policy, 30)
            if policy.done:
                held = policy.pattern_for(31).digest
                assert policy.pattern_for(40).digest == held
                assert policy.done
