"""The contract of `core.stages.Quantizer`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec
import numpy as np

from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage
from testbed.core.stages import Quantizer
from testbed.core.types import Bits, Features
from testbed.testing._suite import OptionsSuite, check


def check_quantizer(make: Callable[[], Quantizer]) -> None:
    """Raise AssertionError unless what `make` returns keeps the contract."""
    check(QuantizerSuite, make)


def channel(seed: int, noise: float, probes: int = 120, dimensions: int = 4) -> tuple[Features, Features, Features]:
    """Return Alice's and Bob's view of one channel, and Eve's of another."""
    rng = np.random.default_rng(seed)
    shape = (probes, dimensions)
    common = rng.normal(size=shape)
    rounds = np.arange(probes)
    return (
        Features(common + noise * rng.normal(size=shape), rounds),
        Features(common + noise * rng.normal(size=shape), rounds),
        Features(rng.normal(size=shape), rounds),
    )


def over_the_air(message: PublicMessage) -> PublicMessage:
    """Return a message as the other end receives it."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=PublicMessage)


def exchange(q: Quantizer, a: Features, b: Features) -> tuple[Bits, Bits, PublicMessage, PublicMessage]:
    """Return both ends' bits and the two messages of one exchange."""
    draft, lead = q.lead(a, np.random.default_rng(7))
    bob, follow = q.follow(b, over_the_air(lead))
    return q.finish(draft, over_the_air(follow)), bob, lead, follow


def assert_same_origin(x: Bits, y: Bits) -> None:
    np.testing.assert_array_equal(x.probe, y.probe)
    np.testing.assert_array_equal(x.dimension, y.dimension)
    np.testing.assert_array_equal(x.level_bit, y.level_bit)


class QuantizerSuite(OptionsSuite):
    """`make()` returns a quantizer whose default options give bits from 120 probes of 4 dimensions."""

    contract = "quantizer"

    def test_identical_features_give_identical_bits(self) -> None:
        a, _, _ = channel(1, 0.0)
        alice, bob, _, _ = exchange(self.fresh(), a, a)
        assert alice.values.size > 100
        assert set(np.unique(alice.values)) == {0, 1}
        assert_same_origin(alice, bob)
        np.testing.assert_array_equal(alice.values, bob.values)

    def test_both_sides_keep_the_same_origins_in_probe_dimension_place_order(self) -> None:
        a, b, _ = channel(2, 0.2)
        q = self.fresh()
        alice, bob, _, _ = exchange(q, a, b)
        assert_same_origin(alice, bob)
        order = np.lexsort((alice.level_bit, alice.dimension, alice.probe))
        np.testing.assert_array_equal(order, np.arange(alice.values.size))
        # for soft decoding the last places are useful although they are nearly random
        assert np.mean(alice.values != bob.values) < (0.35 if q.whole_symbols else 0.25)

    def test_same_features_and_rng_give_the_same_bits_and_messages(self) -> None:
        a, b, _ = channel(3, 0.1)
        q = self.fresh()
        first, second = exchange(q, a, b), exchange(q, a, b)
        np.testing.assert_array_equal(first[0].values, second[0].values)
        assert first[2:] == second[2:]

    def test_nothing_is_remembered_from_one_block_to_the_next(self) -> None:
        a, b, _ = channel(3, 0.1)
        other, _, _ = channel(9, 0.1)
        q = self.fresh()
        first = exchange(q, a, b)
        exchange(q, other, other)
        again = exchange(q, a, b)
        np.testing.assert_array_equal(first[0].values, again[0].values)
        assert first[2:] == again[2:]

    def test_the_features_are_left_alone(self) -> None:
        a, b, e = channel(3, 0.1)
        kept = [f.values.copy() for f in (a, b, e)]
        q = self.fresh()
        _, _, lead, follow = exchange(q, a, b)
        q.eavesdrop(e, lead, follow)
        for f, before in zip((a, b, e), kept, strict=True):
            np.testing.assert_array_equal(f.values, before)

    def test_probes_that_either_side_lacks_are_dropped(self) -> None:
        a, b, _ = channel(4, 0.1)
        a.values[[3, 50]] = np.nan
        b.values[[8, 50, 119]] = np.nan
        alice, bob, _, _ = exchange(self.fresh(), a, b)
        assert_same_origin(alice, bob)
        assert not np.isin(alice.probe, [3, 8, 50, 119]).any()
        assert alice.values.size > 100

    def test_eve_guesses_exactly_the_kept_bits_and_no_better_than_chance_from_another_channel(self) -> None:
        a, b, e = channel(5, 0.05, probes=400)
        q = self.fresh()
        alice, _, lead, follow = exchange(q, a, b)
        guess, covered = q.eavesdrop(e, lead, follow)
        assert covered.all()
        assert covered.shape == guess.values.shape
        assert_same_origin(guess, alice)
        assert abs(np.mean(guess.values != alice.values) - 0.5) < 5 * 0.5 / np.sqrt(alice.values.size)
        # With Alice's own measurements, Eve must guess nearly all bits: this shows that the attack works.
        assert np.mean(q.eavesdrop(a, lead, follow)[0].values != alice.values) < 0.02

    def test_eve_without_measurements_guesses_zero_and_says_so(self) -> None:
        a, b, e = channel(6, 0.05)
        q = self.fresh()
        _, _, lead, follow = exchange(q, a, b)
        e.values[:40] = np.nan
        guess, covered = q.eavesdrop(e, lead, follow)
        np.testing.assert_array_equal(covered, guess.probe >= 40)
        assert guess.values[covered].any()
        assert not guess.values[~covered].any()
        e.values[:] = np.nan
        guess, covered = q.eavesdrop(e, lead, follow)
        assert not guess.values.any()
        assert not covered.any()

    def test_messages_say_what_they_leak(self) -> None:
        a, b, _ = channel(7, 0.05)
        alice, _, lead, follow = exchange(self.fresh(), a, b)
        assert 0 <= lead.leaked_bits + follow.leaked_bits < alice.values.size

    def test_what_was_published_is_said_bit_by_bit(self) -> None:
        a, b, _ = channel(7, 0.05)
        q = self.fresh()
        alice, _, lead, _ = exchange(q, a, b)
        told = q.published(alice, lead)
        assert told.shape == alice.values.shape
        assert told.dtype == np.bool_
        assert not told.all()

    def test_nothing_measured_gives_no_bits(self) -> None:
        nothing = Features(np.full((50, 3), np.nan), np.arange(50))
        alice, bob, _, _ = exchange(self.fresh(), nothing, nothing)
        assert alice.values.size == bob.values.size == 0

    def test_a_constant_column_gives_no_bits_of_its_own_and_spoils_no_other(self) -> None:
        a, b, _ = channel(8, 0.05)
        for side in (a, b):
            side.values[:, 1] = 3.0
        alice, bob, _, _ = exchange(self.fresh(), a, b)
        assert_same_origin(alice, bob)
        assert 1 not in alice.dimension
        assert np.mean(alice.values != bob.values) < 0.2
        for side in (a, b):
            side.values[:] = 3.0
        with contextlib.suppress(DialogueFailed):  # it may report that there are too few samples
            alice, _, _, _ = exchange(self.fresh(), a, b)
            assert alice.values.size == 0
