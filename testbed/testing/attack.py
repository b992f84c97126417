"""The contract of `entropy.attack.Attack`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts, Heard
from testbed.testing._suite import Suite, check, skip

PROBES, DIMENSIONS, BITS = 120, 3, 2


def check_attack(make: Callable[[int], Attack]) -> None:
    """Raise AssertionError unless the objects that `make(seed)` returns keep the contract."""
    check(AttackSuite, make)


def block(seed: int = 1) -> Facts:
    """Return a block with everything that an attack may need: an Eve who sees much of the channel, patterns, states."""
    rng = np.random.default_rng(seed)
    n = PROBES * DIMENSIONS
    drift = np.cumsum(rng.normal(size=(PROBES, DIMENSIONS)), axis=0) * 0.3 + rng.normal(size=(PROBES, DIMENSIONS))
    ranks = drift.argsort(axis=0).argsort(axis=0)
    value = (ranks * (1 << BITS) // PROBES).astype(np.int64)
    rounds, time_s = np.arange(PROBES), 0.05 * np.arange(PROBES, dtype=np.float64)
    csi = (drift + 0.1j * rng.normal(size=drift.shape)).astype(np.complex128)
    hers = drift + 0.5 * rng.normal(size=drift.shape)
    heard = Heard(
        "eve.0:alice", rounds, time_s, hers, (hers + 0.1j * rng.normal(size=hers.shape)).astype(np.complex128)
    )
    return Facts(
        value=value.ravel(), bits=np.full(n, BITS), probe=np.repeat(rounds, DIMENSIONS),
        dimension=np.tile(np.arange(DIMENSIONS), PROBES), published=np.arange(n) % (10 * DIMENSIONS) < DIMENSIONS,
        rounds=rounds, time_s=time_s, features=drift, csi=csi, heard=(heard,),
        patterns=np.exp(2j * np.pi * rng.integers(0, 2, (PROBES, 4)) / 2).astype(np.complex128),
        responses=(rng.normal(size=(PROBES, 2)) + 1j * rng.normal(size=(PROBES, 2))).astype(np.complex128),
        states=np.arange(PROBES) // 40,
    )  # fmt: skip


class AttackSuite(Suite):
    """`make(seed)` returns an attack."""

    contract = "attack"

    def attack(self, seed: int = 4) -> Attack:
        made: Attack = self.make(seed)
        if not made.applies(block()):
            skip("the attack states that it does not apply to this block")
        return made

    def folds(self, attack: Attack, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
        """Return (train, test) of one fold, hidden as the attack requests."""
        chosen = np.random.default_rng(6).random(PROBES if attack.folds == "probes" else facts.value.size) < 0.1
        hidden = chosen[facts.probe] if attack.folds == "probes" else chosen
        test = np.flatnonzero(hidden & ~facts.published)
        return np.setdiff1d(np.arange(facts.value.size), test), test

    def test_says_what_it_knows(self) -> None:
        made: Attack = self.make(1)
        assert made.knows
        assert made.folds in ("probes", "symbols")

    def test_gives_distributions_and_leaves_the_facts_alone(self) -> None:
        facts, attack = block(), self.attack()
        train, test = self.folds(attack, facts)
        seen = facts.hide(test)
        before = (seen.value.copy(), seen.features.copy(), seen.heard[0].values.copy())
        p = attack.predict(seen, train, test)
        assert p.shape == (test.size, facts.n_labels)
        assert np.isfinite(p).all()
        assert (p >= 0).all()
        np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-6)
        assert attack.degrees_of_freedom >= 0.0
        for now, then in zip((seen.value, seen.features, seen.heard[0].values), before, strict=True):
            np.testing.assert_array_equal(now, then)

    def test_the_same_seed_guesses_the_same_whatever_is_hidden(self) -> None:
        facts, attack = block(), self.attack()
        train, test = self.folds(attack, facts)
        other = block()
        other.value[test] = (other.value[test] + 1) % (1 << BITS)
        one, two = (x.predict(f.hide(test), train, test) for x, f in ((attack, facts), (self.attack(), other)))
        np.testing.assert_allclose(one, two, atol=1e-9)
