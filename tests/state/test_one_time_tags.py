"""Nodes whose discussion has one-time tags: both ends in step, keys pay for it, and it ends when it is used up."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from test_coordinator import Stage
from test_node import LINEAR, ROUNDS, Trio, configure
from test_orders import WELCOME, told

from testbed.chain.pipeline import KeyChain
from testbed.chain.wegman_carter import PAIR_BITS, PAIR_BYTES, Pool
from testbed.core.outcomes import KeyReport, LengthTerm
from testbed.net import messages as m
from testbed.nodes import events as e
from testbed.nodes.state import NodeState

GROSS_BITS = 320
Ends = dict[str, Pool]


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a key may be is decided elsewhere, and takes its time."""
    terms = (LengthTerm(name="hashing", bits=-1.0, why=""),)

    def decide(_: Any, agreed: Any, *__: Any) -> KeyReport:
        return KeyReport(block=agreed.report.block, key_bits=GROSS_BITS, terms=terms)

    monkeypatch.setattr(KeyChain, "decide", decide)


def ends(pairs: int = 8) -> Ends:
    secret = np.random.default_rng(7).bytes(16 + pairs * PAIR_BYTES)
    return {role: Pool.of(secret) for role in ("alice", "bob")}


def distil(trio: Trio, block: int, of: int = 2) -> None:
    size = len(ROUNDS) // of
    order = m.Distil(block=block, rounds=ROUNDS[block * size : (block + 1) * size], timeout_s=5.0)
    for role in ("alice", "bob"):
        trio.take(role, e.Received(order))


def reports(trio: Trio) -> list[KeyReport]:
    return [trio.last(role, m.Amplified).report for role in ("alice", "bob")]


def test_a_block_costs_two_tags_and_its_key_pays_for_the_next() -> None:
    pools = ends()
    trio = Trio(pools=pools)
    for block in range(2):
        distil(trio, block)
        trio.amplify(None, block)
        assert trio.keys["alice"].bits.size == GROSS_BITS - PAIR_BITS
        assert np.array_equal(trio.keys["alice"].bits, trio.keys["bob"].bits)
        for report in reports(trio):
            assert (report.key_bits, report.refill_bits) == (GROSS_BITS - PAIR_BITS, PAIR_BITS)
            assert report.authentication_bits == PAIR_BITS
        assert reports(trio)[0].terms[-1].name == "authentication"
        assert reports(trio)[0].terms[-1].bits == -PAIR_BITS
        assert [p.pairs for p in pools.values()] == [8, 8]
    assert pools["alice"].dump() == pools["bob"].dump()


def test_no_bit_of_the_refill_is_in_the_key_and_the_refill_is_used_next() -> None:
    pools = ends()
    trio = Trio(pools=pools)
    distil(trio, 0)
    trio.amplify(None, 0)
    key = np.packbits(trio.keys["alice"].bits).tobytes()
    pads = Pool.load(pools["alice"].dump())
    newest = pads.offer()[0]
    assert newest[1:] == [0, 1]
    pair = pads.take(newest[0], 0)
    assert pair[:16] not in key
    distil(trio, 1)
    trio.amplify(None, 1)
    confirmed = next(x.message for x in reversed(trio.transcript) if x.message.kind == "confirmed")
    assert confirmed.body["pair"] == [newest[0], 0]


def test_what_a_tag_was_made_with_is_struck_off_on_the_disk_before_the_tag_leaves() -> None:
    trio = Trio(pools=ends())
    distil(trio, 0)
    trio.amplify(None, 0)
    for role, kind in (("bob", "confirmed"), ("alice", "delivered")):
        own = [x for who, x in trio.done if who == role]
        at = next(
            i for i, x in enumerate(own)
            if isinstance(x, e.Publish) and x.envelope.message.kind == kind and x.envelope.sender == role
        )  # fmt: skip
        (stored,) = [x for x in own[:at] if isinstance(x, e.StorePool)]
        assert Pool.load(stored.pool).pairs == (7 if role == "bob" else 8)  # Alice's has the refill already
        assert not isinstance(own[at - 1], e.Publish)


def test_blocks_that_fail_and_messages_that_repeat_leave_both_ends_in_step() -> None:
    pools = ends()
    trio = Trio(pools=pools)
    trio.lost = lambda x: x.message.kind == "confirmed"  # Bob has struck a pair off, Alice has not
    distil(trio, 0, 3)
    trio.amplify(None, 0)
    trio.take("alice", e.Tick(100.0))
    assert trio.keys == {}
    assert [p.pairs for p in pools.values()] == [8, 7]
    assert trio.last("alice", m.Amplified).report.failure == "timeout"
    assert trio.last("bob", m.Amplified).report.authentication_bits == PAIR_BITS
    trio.lost = lambda x: x.message.kind == "delivered"  # Alice has a key and a refill, Bob neither
    distil(trio, 1, 3)
    trio.amplify(None, 1)
    trio.take("bob", e.Tick(200.0))
    assert set(trio.keys) == {"alice"}
    trio.lost = lambda _: False
    distil(trio, 2, 3)
    order = m.Amplify(block=2, eve=None, timeout_s=5.0)
    trio.take("bob", e.Received(order))
    trio.take("alice", e.Received(order))
    for x in list(trio.transcript[-3:]):  # said again, by whoever said it
        for role in ("alice", "bob"):
            trio.take(role, e.Discussed(x))
    assert np.array_equal(trio.keys["alice"].bits, trio.keys["bob"].bits)
    assert pools["alice"].dump() == pools["bob"].dump()
    assert trio.last("alice", m.Amplified).report.key_bits == GROSS_BITS - PAIR_BITS
    numbers = [x.message.body["pair"] for x in trio.transcript if x.message.kind == "confirmed"]
    assert [n for _, n in numbers] == [1, 2]  # number 0 was Bob's message that Alice never heard


@pytest.mark.parametrize("kind", ["quantize_lead", "verify_tag", "amplify", "confirmed", "delivered"])
def test_a_changed_message_is_no_key_whatever_is_computed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes are taken to be broken: every code of `chain.confirm` says yes. The one-time tags do not."""
    monkeypatch.setattr("testbed.chain.confirm.hmac.digest", lambda *_: bytes(64))
    trio = Trio(pools=ends())
    changed: list[str] = []

    def alter(body: Any) -> Any:
        for node in trio.nodes.values():
            take = node.key_maker.take

            def heard(x: m.PublicEnvelope, take: Any = take) -> Any:
                if x.message.kind == kind and not changed and x.index != -2:
                    changed.append(kind)
                    other = msgspec.structs.replace(x.message, body={**x.message.body, "more": 1})
                    x = msgspec.structs.replace(x, message=other)
                return take(x)

            node.key_maker.take = heard  # type: ignore[method-assign]
        return body

    alter(None)
    distil(trio, 0)
    trio.amplify(None, 0)
    assert changed == [kind]
    assert set(trio.keys) <= ({"alice"} if kind == "delivered" else set())
    assert "authentication_failed" in [trio.last(role, m.Amplified).report.failure for role in ("alice", "bob")]


def test_another_secret_or_none_at_one_end_is_no_key() -> None:
    other = {"alice": ends()["alice"], "bob": Pool.of(bytes(16 + 4 * PAIR_BYTES))}
    trio = Trio(pools=other)
    distil(trio, 0)
    trio.amplify(None, 0)
    assert trio.keys == {}
    plain = Trio(pools=ends())
    bob = plain.nodes["bob"].setup
    bob.pool, bob.chain = None, KeyChain(bob.plan.chain, bob.plan.accounting)  # type: ignore[union-attr]
    distil(plain, 0)
    plain.amplify(None, 0)
    assert plain.keys == {}
    assert plain.last("alice", m.Amplified).report.failure == "authentication_failed"


def test_a_pool_that_is_used_up_ends_the_run_in_one_line() -> None:
    pools = ends(1)
    trio = Trio(pools=pools)
    trio.lost = lambda x: x.message.kind in ("confirmed", "delivered")
    distil(trio, 0)
    trio.amplify(None, 0)
    trio.take("alice", e.Tick(100.0))
    assert pools["bob"].pairs == 0
    distil(trio, 1)
    failed = trio.last("bob", m.Failed)
    assert failed.operation == "authenticate"
    assert "used up" in failed.detail
    assert "testbed keys pool" in failed.detail
    assert "\n" not in failed.detail
    with pytest.raises(StopIteration):
        trio.last("alice", m.Failed)  # hers is not: she hears it from the coordinator


def test_ends_without_a_pair_in_common_end_the_run_as_well() -> None:
    pools = {"alice": ends()["alice"], "bob": Pool.of(bytes(range(200)))}
    pools["bob"]._point = pools["alice"]._point
    trio = Trio(pools=pools)
    distil(trio, 0)
    trio.amplify(None, 0)
    assert trio.last("bob", m.Amplified).report.failure == "pool_exhausted"
    assert trio.last("bob", m.Failed).operation == "authenticate"


def test_the_coordinator_ends_a_run_without_authentication() -> None:
    def used_up(node: str, body: Any) -> list[Any] | None:
        failed = m.Failed(operation="authenticate", state="ready", detail="no pool")
        return [failed] if node == "bob" and isinstance(body, m.Distil) else None

    stage = Stage(used_up)
    stage.join()
    stage.wait(4.0)  # the others say goodbye
    assert stage.over is not None
    assert (stage.over.status, stage.over.detail) == ("failed", "bob: authenticate: no pool")


def test_without_a_pool_a_run_is_refused_and_a_rehearsal_is_not() -> None:
    node = NodeState("alice", 1, wegman_carter=True)
    node.handle(e.Received(WELCOME))
    assert "used up or missing" in told(node, configure())
    assert isinstance(node.handle(e.Received(configure(rehearsal=True)))[0], e.Operate)
    assert node.setup.pool is not None
    assert node.setup.pool.is_rehearsal
    for role in ("eve", "ris"):
        other = NodeState(role, 1, wegman_carter=True)
        other.handle(e.Received(WELCOME))
        assert isinstance(other.handle(e.Received(configure()))[0], e.Operate)


def test_a_rehearsal_writes_no_pool() -> None:
    trio = Trio(pools={}, rehearsal=True)
    distil(trio, 0)
    trio.amplify(None, 0)
    assert trio.keys["alice"].bits.size == GROSS_BITS - PAIR_BITS
    assert not any(isinstance(x, e.StorePool) for _, x in trio.done)


def test_private_mode_accepts_one_time_tags_in_place_of_curve() -> None:
    for role in ("alice", "bob", "eve"):
        node = NodeState(role, 1, authenticated=False, wegman_carter=True, pool=ends()["alice"])
        node.handle(e.Received(WELCOME))
        assert isinstance(node.handle(e.Received(configure(experiment_mode=False)))[0], e.Operate)


def test_a_key_that_the_refill_leaves_too_little_of_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def decided(_: Any, agreed: Any, *__: Any) -> KeyReport:
        return KeyReport(block=agreed.report.block, key_bits=PAIR_BITS)

    monkeypatch.setattr(KeyChain, "decide", decided)
    pools = ends()
    trio = Trio(pools=pools)
    distil(trio, 0)
    trio.amplify(None, 0)
    assert trio.keys == {}
    assert trio.last("alice", m.Amplified).report.failure == "key_too_short: 0 bits, accepted here from 1"
    assert [p.pairs for p in pools.values()] == [8, 8]


def test_a_training_that_somebody_changed_makes_no_key_afterwards() -> None:
    """The tags of a block are about the training that its model comes from, too."""
    trio = Trio(pools=ends(), chain=LINEAR)
    order = m.Distil(block=0, rounds=ROUNDS[:100], timeout_s=5.0, purpose="training")
    take = trio.nodes["alice"].key_maker.take

    def heard(x: m.PublicEnvelope) -> Any:
        if x.message.kind == "training_csi":
            x = msgspec.structs.replace(
                x, message=msgspec.structs.replace(x.message, body={**x.message.body, "more": 1})
            )
        return take(x)

    trio.nodes["alice"].key_maker.take = heard  # type: ignore[method-assign]
    for role in ("alice", "bob"):
        trio.take(role, e.Received(order))
    assert all(trio.last(role, m.Trained).report.failure is None for role in ("alice", "bob"))
    order = m.Distil(block=1, rounds=ROUNDS[100:], timeout_s=5.0)
    for role in ("alice", "bob"):
        trio.take(role, e.Received(order))
    assert all(trio.last(role, m.Agreed).report.verified for role in ("alice", "bob"))
    trio.amplify(None, 1)
    assert trio.keys == {}
    assert trio.last("alice", m.Amplified).report.failure == "authentication_failed"


def test_a_training_that_nobody_changed_makes_keys() -> None:
    trio = Trio(pools=ends(), chain=LINEAR)
    order = m.Distil(block=0, rounds=ROUNDS[:100], timeout_s=5.0, purpose="training")
    for role in ("alice", "bob"):
        trio.take(role, e.Received(order))
    order = m.Distil(block=1, rounds=ROUNDS[100:], timeout_s=5.0)
    for role in ("alice", "bob"):
        trio.take(role, e.Received(order))
    trio.amplify(None, 1)
    assert np.array_equal(trio.keys["alice"].bits, trio.keys["bob"].bits)


def test_eve_hashes_her_guess_to_the_same_share() -> None:
    trio = Trio(pools=ends(), eve_sees=1.0)
    distil(trio, 0, 1)
    attacked = trio.attack()
    trio.amplify(attacked, 0)
    heard = trio.last("alice", m.Amplified).public_messages
    trio.take("eve", e.Received(m.GuessKey(block=0, public_messages=heard)))
    guessed = trio.last("eve", m.KeyGuessed).digest
    assert guessed is not None
    assert len(guessed) == 64
