"""One-time authentication of the discussion: the polynomial, the pool, its file, and both ends in step."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.chain.amplify.verify import PRIME
from testbed.chain.wegman_carter import MOST_AHEAD, PAIR_BITS, PAIR_BYTES, Polynomial, Pool
from testbed.core.errors import DialogueFailed, InputError, TestbedError
from testbed.nodes import pool_file


def secret(pairs: int = 4, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(16 + pairs * PAIR_BYTES)


def both(pairs: int = 4) -> tuple[Pool, Pool]:
    return Pool.of(secret(pairs)), Pool.of(secret(pairs))


# ---------------------------------------------------------------- the polynomial


def test_the_tag_is_the_polynomial_of_all_coefficients_without_a_constant_term() -> None:
    r, pad = 0x1234567890ABCDEF << 40, bytes(range(16))
    said = Polynomial(r)
    said.add("alice", b"x" * 20)
    said.add("bob", b"")
    coefficients = [
        1 + 2 * 20, int.from_bytes(b"x" * 15, "big"), int.from_bytes(b"x" * 5, "big"), 1 + 0 + 1,
    ]  # fmt: skip
    expected = sum(c * pow(r, len(coefficients) - i, PRIME) for i, c in enumerate(coefficients)) % PRIME
    assert said.value == expected
    assert said.tag(pad) == ((expected + int.from_bytes(pad, "big")) % PRIME).to_bytes(16, "big")


def test_different_discussions_have_different_polynomials() -> None:
    """Where messages end, who said them and how long they are is part of what is hashed."""
    talks: list[list[tuple[str, bytes]]] = [
        [], [("alice", b"")], [("bob", b"")], [("alice", b""), ("alice", b"")], [("alice", b"ab")],
        [("alice", b"a"), ("alice", b"b")], [("alice", b"a"), ("bob", b"b")], [("alice", b"\0")], [("alice", b"\0\0")],
        [("alice", bytes(15))], [("alice", bytes(16))], [("alice", bytes(30))], [("alice", b"a" + bytes(15))],
    ]  # fmt: skip
    found = set()
    for talk in talks:
        said = Polynomial(7**30)
        for sender, message in talk:
            said.add(sender, message)
        found.add(said.value)
    assert len(found) == len(talks)


def test_a_copy_goes_on_by_itself() -> None:
    said = Polynomial(99)
    said.add("alice", b"x")
    other = said.copy()
    other.add("bob", b"y")
    assert said.value != other.value


# ---------------------------------------------------------------- the pool


def test_both_ends_choose_the_same_pads_and_neither_ever_again() -> None:
    alice, bob = both(4)
    seen = set()
    for block in range(4):
        name, number, pads, common = bob.choose(alice.offer())
        assert common == [name]
        assert number == block
        assert alice.take(name, number) == pads
        seen |= {pads[:16], pads[16:]}
        assert pads not in bob.dump()
    assert len(seen) == 8
    assert (alice.pairs, bob.pairs) == (0, 0)
    for end in (alice, bob):
        with pytest.raises(DialogueFailed, match="pool_exhausted"):
            end.offer()
    with pytest.raises(DialogueFailed, match="pool_exhausted"):
        bob.choose([[name, 0, 4]])


def test_what_was_used_is_struck_off_the_dump_before_it_can_be_used() -> None:
    alice, bob = both(3)
    whole = bob.dump()
    assert not bob.changed
    _, _, pads, _ = bob.choose(alice.offer())
    assert bob.changed
    again = Pool.load(bob.dump())
    assert again.pairs == 2
    assert len(again.dump()) < len(whole)
    assert again.dump() == bob.dump()
    # a process that dies here and comes back uses another pair
    assert again.choose(alice.offer())[2] != pads


@pytest.mark.parametrize("ahead", ["alice", "bob"])
def test_an_end_that_lost_messages_catches_up(ahead: str) -> None:
    alice, bob = both(8)
    (name, _, _), *_ = alice.offer()
    (alice if ahead == "alice" else bob).take(name, 2)
    name, number, pads, _ = bob.choose(alice.offer())
    assert number == 3
    assert alice.take(name, number) == pads
    assert (alice.pairs, bob.pairs) == (4, 4)


def test_a_pair_that_was_struck_off_is_never_taken_again() -> None:
    alice, bob = both(8)
    name, number, _, _ = bob.choose(alice.offer())
    alice.take(name, number)
    for old in (number, 0, -1, 8, 1 << 31):
        with pytest.raises(DialogueFailed, match="pool_out_of_step"):
            alice.take(name, old)
    with pytest.raises(DialogueFailed, match="pool_out_of_step"):
        alice.take("0" * 16, 1)
    assert alice.pairs == 7


def test_one_forged_message_costs_a_few_pairs_and_ends_far_apart_come_together() -> None:
    alice, bob = both(200)
    (name, first, left), *_ = alice.offer()
    with pytest.raises(DialogueFailed, match="pool_out_of_step"):
        bob.choose([[name, first + 150, left]])
    assert bob.pairs == 200 - MOST_AHEAD
    alice.take(name, 10)
    for _ in range(9):  # Alice is honest: her pool is that far ahead, from a saved copy of Bob's folder
        alice.take(name, alice.offer()[0][1] + 9)
    assert alice.pairs < bob.pairs
    tries = 0
    while True:
        tries += 1
        try:
            name, number, pads, _ = bob.choose(alice.offer())
        except DialogueFailed:
            continue
        break
    assert tries < 10
    assert alice.take(name, number) == pads


@pytest.mark.parametrize(
    "offer", [None, 1, "x", [1], [["x", 0, 1]], [["0" * 16, -1, 1]], [["0" * 16, 0]], [["0" * 16, 0, 1 << 40]], [[]]]
)
def test_an_offer_that_is_none_is_a_failure(offer: Any) -> None:
    with pytest.raises(DialogueFailed, match="protocol"):
        both()[1].choose(offer)


def test_a_refill_is_used_first_and_one_that_only_alice_has_is_forgotten() -> None:
    alice, bob = both(4)
    bits = np.random.default_rng(3).integers(0, 2, PAIR_BITS).astype(np.uint8)
    for end in (alice, bob):
        end.refill(b"one block", bits)
    assert alice.pairs == 5
    name, number, pads, _ = bob.choose(alice.offer())
    assert (number, pads) == (0, np.packbits(bits).tobytes())
    assert alice.take(name, number) == pads
    alice.refill(b"a block whose last message was lost", 1 - bits)
    offer = alice.offer()
    name, number, pads, common = bob.choose(offer)
    assert pads != np.packbits(1 - bits).tobytes()
    assert alice.take(name, number) == pads
    alice.keep(common, [n for n, _, _ in offer])
    assert [n for n, _, _ in alice.offer()] == [name]
    assert alice.pairs == bob.pairs == 3


def test_a_rehearsals_pool_follows_from_its_seed_and_is_marked_so() -> None:
    first, second = Pool.of_rehearsal(5), Pool.of_rehearsal(5)
    assert first.is_rehearsal
    assert first.dump() == second.dump() != Pool.of_rehearsal(6).dump()


# ---------------------------------------------------------------- its file


def test_the_file_is_its_owners_and_of_one_process(tmp_path: Path) -> None:
    path = tmp_path / pool_file.NAME
    assert pool_file.make([path], 1024) == 4
    assert path.stat().st_mode & 0o777 == 0o600
    held = pool_file.PoolFile(tmp_path)
    with pytest.raises(InputError, match="another process is using this pool"):
        pool_file.PoolFile(tmp_path)
    pool = held.read()
    assert pool is not None
    pool.take(pool.offer()[0][0], 1)
    held.write(pool.dump())
    held.close()
    again = pool_file.PoolFile(tmp_path)
    found = again.read()
    assert found is not None
    assert found.pairs == 2
    again.close()
    path.chmod(0o640)
    with pytest.raises(InputError, match=r"pool\.json: readable by others \(mode 640\)"):
        pool_file.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 3000, b'{"point": "AA", "portions": {}}',
        b'{"point": "AAAAAAAAAAAAAAAAAAAAAA==", "portions": {"../x": {"first": 0, "pads": ""}}}',
        b'{"point": "AAAAAAAAAAAAAAAAAAAAAA==", "portions": {"0123456789abcdef": {"first": 0, "pads": "AAAA"}}}',
        b'{"point": "AAAAAAAAAAAAAAAAAAAAAA==", "portions": {"0123456789abcdef": {"first": -1, "pads": ""}}}',
    ],
)  # fmt: skip
def test_a_damaged_pool_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / pool_file.NAME
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputError) as caught:
        pool_file.read(path)
    assert "\n" not in str(caught.value)
    assert "pool.json" in str(caught.value)


def test_two_secrets_are_never_alike(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pool_file.make([tmp_path / name])
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
    assert pool_file.read(tmp_path / "a").bits == 1 << 16


def test_a_pool_that_cannot_be_written_ends_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = pool_file.PoolFile(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(pool_file, "write_whole", full)
    with pytest.raises(TestbedError, match="cannot be removed: No space left"):
        held.write(b"x")
    held.close()
