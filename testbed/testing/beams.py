"""The contract of `core.stages.BeamPolicy`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.core.errors import InputError
from testbed.core.stages import BeamPolicy
from testbed.core.types import C64
from testbed.testing._suite import OptionsSuite, check

LINKS = ((4, 4, "bob"), (4, 4, "alice"), (2, 3, "bob"), (1, 1, "alice"))
"""Links as (own antennas, the peer's antennas, the peer)."""


def check_beam_policy(make: Callable[[], BeamPolicy]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(BeamPolicySuite, make)


def heard(seed: int, own: int, theirs: int) -> C64:
    """Return a channel (own antenna, transmitter's antenna, subcarrier), with a phase of its own."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(own, theirs, 1)) + 1j * rng.normal(size=(own, theirs, 1))
    ripple = 0.1 * (rng.normal(size=(own, theirs, 9)) + 1j * rng.normal(size=(own, theirs, 9)))
    return ((h + ripple) * 1e-3 * np.exp(1j * rng.uniform(0, 6.3))).astype(np.complex64)


class BeamPolicySuite(OptionsSuite):
    """`make()` returns a beam policy that serves at least one of `LINKS`."""

    contract = "beam policy"

    def begun(self) -> list[tuple[int, int, str, Any]]:
        out = []
        for own, theirs, peer in LINKS:
            policy = self.fresh()
            try:
                policy.begin(own, theirs, peer, 9)
            except InputError as exc:
                assert "\n" not in str(exc)
                continue
            out.append((own, theirs, peer, policy))
        assert out, f"none of the links {LINKS} is served"
        return out

    def is_a_beam(self, w: Any, own: int) -> None:
        assert w.shape == (own,)
        assert np.iscomplexobj(w)
        np.testing.assert_allclose(np.linalg.norm(w), 1.0, rtol=1e-4)

    def test_has_a_beam_before_anything_was_heard(self) -> None:
        for own, _, _, policy in self.begun():
            self.is_a_beam(policy.beam(0), own)

    def test_has_a_beam_whatever_was_heard(self) -> None:
        for own, theirs, peer, policy in self.begun():
            for r, links in enumerate(
                (
                    {},
                    {peer: heard(1, own, theirs)},
                    {"eve": heard(2, own, 1)},
                    {peer: heard(3, own, theirs), "eve": heard(4, own, 1)},
                )
            ):
                policy.hear(10 * r, links)
                self.is_a_beam(policy.beam(10 * r + 1), own)

    def test_the_same_soundings_give_the_same_beams(self) -> None:
        for (own, theirs, peer, one), (_, _, _, two) in zip(self.begun(), self.begun(), strict=True):
            for r in range(4):
                for policy in (one, two):
                    policy.hear(10 * r, {peer: heard(r, own, theirs), "eve": heard(90 + r, own, 1)})
                np.testing.assert_array_equal(one.beam(10 * r + 1), two.beam(10 * r + 1))
                np.testing.assert_array_equal(one.beam(10 * r + 1), one.beam(10 * r + 1))

    def test_what_was_heard_is_left_alone(self) -> None:
        for own, theirs, peer, policy in self.begun():
            h = heard(1, own, theirs)
            before = h.copy()
            policy.hear(0, {peer: h})
            policy.beam(1)
            np.testing.assert_array_equal(h, before)
