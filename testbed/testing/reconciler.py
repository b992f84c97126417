"""The contract of `core.stages.Reconciler`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.chain.dialogue import run
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage
from testbed.core.stages import Evidence, ReconciledBits, Reconciler
from testbed.core.types import U8
from testbed.testing._suite import OptionsSuite, check, refused


def check_reconciler(make: Callable[[], Reconciler]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(ReconcilerSuite, make)


def strings(n: int, errors: int, seed: int) -> tuple[U8, U8]:
    """Return two strings (bit,) that differ in `errors` places."""
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2, n, dtype=np.uint8)
    b = a.copy()
    b[rng.choice(n, errors, replace=False)] ^= 1
    return a, b


class ReconcilerSuite(OptionsSuite):
    """`make()` returns a reconciler whose default options correct 3 % of 256 bits and 5 % of 4000."""

    contract = "reconciler"

    def discuss(self, a: U8, b: U8, rate: float, seed: int = 0) -> tuple[ReconciledBits, ReconciledBits, list[Any]]:
        stage = self.fresh()
        return run(
            stage.alice(Evidence.of(a, rate), np.random.default_rng([seed, 0])),
            stage.bob(Evidence.of(b, rate), np.random.default_rng([seed, 1])),
        )

    def test_both_sides_end_with_alices_string(self) -> None:
        for n in (256, 2000, 20000):
            a, b = strings(n, n // 33, n)
            alice, bob, _ = self.discuss(a, b, 0.03)
            assert np.array_equal(alice.values, a)
            assert np.array_equal(bob.values, a)
            assert alice.corrected == 0
            assert bob.corrected == n // 33
            assert bob.values.dtype == np.uint8

    def test_the_leak_is_counted_and_no_less_than_the_errors_are_worth(self) -> None:
        n, rate = 4000, 0.05
        leaks = []
        for seed in range(5):
            _, _, transcript = self.discuss(*strings(n, int(n * rate), seed), rate, seed)
            leaks.append(sum(m.leaked_bits for _, m in transcript))
        h2 = -rate * np.log2(rate) - (1 - rate) * np.log2(1 - rate)
        # n·h2 − O(log n) bits are needed to name one of C(n, n·rate) error patterns
        assert np.mean(leaks) >= n * h2 - 8

    def test_inputs_are_left_alone_and_the_same_seed_says_the_same(self) -> None:
        a, b = strings(1000, 30, 5)
        a0, b0 = a.copy(), b.copy()
        first = self.discuss(a, b, 0.03)
        second = self.discuss(a, b, 0.03)
        assert np.array_equal(a, a0)
        assert np.array_equal(b, b0)
        assert first[2] == second[2]

    def test_equal_strings_need_no_correction(self) -> None:
        a, _ = strings(500, 0, 1)
        _, bob, _ = self.discuss(a, a.copy(), 0.01)
        assert bob.corrected == 0
        assert np.array_equal(bob.values, a)

    def test_a_hopeless_rate_is_refused(self) -> None:
        a, b = strings(1000, 400, 2)
        with refused(DialogueFailed, "error_rate_too_high"):
            self.discuss(a, b, 0.4)

    def test_eve_without_a_transcript_keeps_her_guess(self) -> None:
        a, _ = strings(600, 0, 3)
        assert np.array_equal(self.fresh().eavesdrop(a, []), a)

    def test_eve_gets_bits_whatever_she_heard(self) -> None:
        a, b = strings(600, 18, 4)
        eve, _ = strings(600, 0, 5)
        _, _, transcript = self.discuss(a, b, 0.03)
        messages = [m for _, m in transcript]
        for heard in (messages, messages[1:], messages[::2], messages[:3], [PublicMessage(kind="x", body={})]):
            guess = self.fresh().eavesdrop(eve, heard)
            assert guess.shape == eve.shape
            assert set(np.unique(guess)) <= {0, 1}
