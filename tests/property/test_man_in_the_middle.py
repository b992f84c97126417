"""A relay between Alice and Bob may change, drop, repeat and swap messages: no two different keys, no hang.

Links are authenticated in earnest; here the relay owns the line, so that what stands behind it is tried by itself.
"""

from __future__ import annotations

import copy
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.dialogue import Conversation
from testbed.chain.pipeline import KeyChain
from testbed.core.config import Accounting, ChainPlan
from testbed.core.ledger import PublicMessage
from testbed.core.outcomes import KeyReport
from testbed.core.types import CsiSeries

PLANS = {
    "cascade": ChainPlan(enhance_options={"step": 1}),
    "ldpc": ChainPlan(enhance_options={"step": 1}, quantize_options={"bits": 1}, reconcile="ldpc"),
    "multilevel": ChainPlan(enhance_options={"step": 1}, quantize="equiprobable", reconcile="multilevel"),
}
PROBES, CARRIERS, SEED = 240, 8, 9
DECIDED = KeyReport(block=4, key_bits=128)
"""Judging the length is tested elsewhere; here Alice announces a fixed one."""
MOST_MESSAGES = 20_000
Relay = Callable[[str, PublicMessage], list[tuple[str, PublicMessage]]]
"""(sender, message) → what is delivered instead, each with the sender it is given out for."""


def series(h: Any) -> CsiSeries:
    return CsiSeries(h.astype(np.complex64), np.arange(PROBES), np.arange(CARRIERS) * 625e3)


@cache
def channels() -> tuple[CsiSeries, CsiSeries]:
    rng = np.random.default_rng(1)
    h, *noise = (rng.normal(size=(PROBES, 1, 1, CARRIERS, 2)) @ [1, 1j] for _ in range(3))
    return series(h + 0.03 * noise[0]), series(h + 0.03 * noise[1])


@cache
def chain(name: str) -> KeyChain:
    return KeyChain(PLANS[name], Accounting(epsilon_log2=8), least_key_bits=64)


@dataclass
class Block:
    """One block with a relay in between: agreement, then amplification."""

    name: str
    relay: Relay
    keys: dict[str, Any] = field(default_factory=dict)
    said: list[tuple[str, PublicMessage]] = field(default_factory=list)

    def run(self) -> Block:
        k, (a, b) = chain(self.name), channels()
        ends = {"alice": k.agree("alice", a, 4, SEED), "bob": k.agree("bob", b, 4, SEED)}
        agreed = self.talk(ends)
        # each node begins to amplify on the coordinator's order, which follows once both report a string
        if all(x is not None and x.report.verified for x in agreed.values()):
            ends = {"alice": k.amplify("alice", agreed["alice"], DECIDED, SEED)}
            ends["bob"] = k.amplify("bob", agreed["bob"], None, SEED)
            results = self.talk(ends)
            self.keys = {r: x[0].bits for r, x in results.items() if x is not None and x[0] is not None}
        return self

    def talk(self, ends: dict[str, Any]) -> dict[str, Any]:
        conversations: dict[str, Conversation[Any]] = {role: Conversation(d) for role, d in ends.items()}
        line: deque[tuple[str, PublicMessage]] = deque()
        for role, c in conversations.items():
            self.send(role, c.advance(), line)
        for _ in range(MOST_MESSAGES):
            if not line:
                break
            sender, message = line.popleft()
            reader = "bob" if sender == "alice" else "alice"
            self.send(reader, conversations[reader].advance(message), line)
        else:
            pytest.fail("the discussion does not end")
        for role, c in conversations.items():
            if not c.done:  # as a node does when its deadline has passed
                self.send(role, c.fail("timeout"), line)
            assert c.done
        return {role: c.result for role, c in conversations.items()}

    def send(self, role: str, messages: list[PublicMessage], line: deque[tuple[str, PublicMessage]]) -> None:
        for message in messages:
            self.said.append((role, message))
            line.extend(self.relay(role, message))

    def genuine(self) -> Any:
        """Return the key that Alice meant, by what she said herself; None where she announced none."""
        body = next((m.body for who, m in self.said if who == "alice" and m.kind == "amplify"), None)
        if body is None or not body["length"]:
            return None
        n, length = body["bits"], body["length"]
        matrix = np.unpackbits(np.frombuffer(body["seed"], np.uint8), count=seed_length(n, length))
        return toeplitz_hash(plain(self.name).values, matrix, length)


def honest(sender: str, message: PublicMessage) -> list[tuple[str, PublicMessage]]:
    return [(sender, message)]


@cache
def plain(name: str) -> Any:
    """Alice's string without interference; it does not depend on the messages that she receives."""
    k, (a, b) = chain(name), channels()
    block = Block(name, honest)
    return block.talk({"alice": k.agree("alice", a, 4, SEED), "bob": k.agree("bob", b, 4, SEED)})["alice"]


@cache
def undisturbed(name: str) -> Block:
    return Block(name, honest).run()


# ---------------------------------------------------------------- what a relay does


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of everything in a body that can be changed."""
    found = [path] if path else []
    if isinstance(value, dict):
        found += [p for k, v in value.items() for p in leaves(v, (*path, k))]
    elif isinstance(value, list) and value:
        found += leaves(value[0], (*path, 0)) + leaves(value[-1], (*path, len(value) - 1))
    return found


def spoilt(value: Any, rng: random.Random) -> Any:
    """Return another value, most often of the same type and nearly the same."""
    if rng.random() < 0.1:
        return rng.choice([None, True, 0, -1, 1 << 62, 0.5, float("nan"), "", "x", b"", [], {}, [[]]])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, 0, 2 * value, value ^ (1 << rng.randrange(62)), -value])
    if isinstance(value, float):
        return rng.choice([value * 1.01, value / 2, 0.0, 1.0, -value, float("inf")])
    if isinstance(value, bytes) and value:
        data = bytearray(value)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return rng.choice([bytes(data), bytes(data), bytes(len(data)), b"\xff" * len(data), value[:-1], value + b"\0"])
    if isinstance(value, str):
        return rng.choice([value + "x", value[::-1], ""])
    if isinstance(value, list) and value:
        return rng.choice([value[:-1], value[::-1], [*value, value[-1]], []])
    if isinstance(value, dict) and value:
        return {k: v for k, v in value.items() if k != rng.choice(list(value))}
    return 1


def changed(message: PublicMessage, rng: random.Random) -> PublicMessage:
    what = rng.random()
    if what < 0.12:
        leak = rng.choice([0, message.leaked_bits + 1, max(0, message.leaked_bits - 1), 1 << 40])
        return msgspec.structs.replace(message, leaked_bits=leak)
    if what < 0.16:
        return msgspec.structs.replace(message, kind=rng.choice(["failed", "amplify", "delivered", "x"]))
    body = copy.deepcopy(message.body)
    paths = leaves(body)
    if not paths:
        return msgspec.structs.replace(message, body={"x": 1})
    *folders, last = rng.choice(paths)
    at = body
    for key in folders:
        at = at[key]
    if rng.random() < 0.05 and isinstance(at, dict):
        del at[last]
    else:
        at[last] = spoilt(at[last], rng)
    return msgspec.structs.replace(message, body=body)


class Meddler:
    """Interferes with the message of one number, or from it on with every later one by chance."""

    def __init__(self, at: int, rng: random.Random) -> None:
        self.at, self.rng, self.n = at, rng, -1
        self.held: tuple[str, PublicMessage] | None = None
        self.how = rng.choice(["change"] * 12 + ["drop", "repeat", "swap", "reflect", "older", "every"])
        self.earlier: list[tuple[str, PublicMessage]] = []

    def __call__(self, sender: str, message: PublicMessage) -> list[tuple[str, PublicMessage]]:
        self.n += 1
        self.earlier.append((sender, message))
        held, self.held = self.held, None
        out = [(sender, message), *([held] if held else [])]
        if self.how == "every" and self.n >= self.at and self.rng.random() < 0.3:
            return [(sender, changed(message, self.rng)), *out[1:]]
        if self.n != self.at:
            return out
        match self.how:
            case "change":
                return [(sender, changed(message, self.rng)), *out[1:]]
            case "drop":
                return out[1:]
            case "repeat":
                return [out[0], *out]
            case "swap":
                self.held = out[0]
                return out[1:]
            case "reflect":
                return [("bob" if sender == "alice" else "alice", message), *out]
            case "older":
                return [self.rng.choice(self.earlier), *out[1:]]
        return out


def outcome(block: Block) -> str:
    """Return the outcome of a block, and check what must hold with any manipulation."""
    keys = block.keys
    if len(keys) == 2:
        assert np.array_equal(keys["alice"], keys["bob"]), "two different keys, both called verified"
    for key in keys.values():
        assert np.array_equal(key, block.genuine()), "a key that Alice never meant"
        assert 0 < np.count_nonzero(key) < key.size
    return {0: "no key", 1: f"only {next(iter(keys), '')}", 2: "both"}[len(keys)]


@pytest.mark.parametrize("name", PLANS)
def test_an_honest_line_gives_one_key(name: str) -> None:
    block = undisturbed(name)
    assert outcome(block) == "both"
    assert block.keys["alice"].size > 64


def meddle(name: str, seeds: range) -> Counter[str]:
    """Try manipulations, equally often early, late and among the last messages, where keys are made."""
    n = len(undisturbed(name).said)
    found: Counter[str] = Counter()
    for seed in seeds:
        rng = random.Random(f"{name}/{seed}")
        at = n - 1 - rng.randrange(min(n, 6)) if rng.random() < 0.5 else rng.randrange(n)
        found[outcome(Block(name, Meddler(at, rng)).run())] += 1
    return found


@pytest.mark.parametrize("name", PLANS)
def test_a_relay_gets_no_two_keys_and_nobody_hangs(name: str) -> None:
    found = meddle(name, range(12 if name == "multilevel" else 60))
    assert found["no key"] > 4


@pytest.mark.long
@pytest.mark.parametrize("name", PLANS)
def test_thousands_of_manipulations(name: str) -> None:
    found = meddle(name, range(100, 200 if name == "multilevel" else 2100))
    print(f"\n{name}: {dict(found)}")
    assert found["no key"] > 40


def replacing(changes: dict[str, Callable[[PublicMessage], PublicMessage]]) -> Relay:
    return lambda sender, message: [(sender, changes.get(message.kind, lambda m: m)(message))]


def with_body(**values: Any) -> Callable[[PublicMessage], PublicMessage]:
    return lambda m: msgspec.structs.replace(m, body={**m.body, **values})


@pytest.mark.parametrize("name", PLANS)
def test_a_hash_seed_that_was_changed_or_zeroed_makes_no_key(name: str) -> None:
    """One flipped bit made two keys, a zeroed seed one of zeros that the relay knew."""

    def flipped(m: PublicMessage) -> PublicMessage:
        return with_body(seed=bytes([m.body["seed"][0] ^ 0x80]) + m.body["seed"][1:])(m)

    def zeroed(m: PublicMessage) -> PublicMessage:
        return with_body(seed=bytes(len(m.body["seed"])))(m)

    for change in (flipped, zeroed):
        assert Block(name, replacing({"amplify": change})).run().keys == {}


@pytest.mark.parametrize("name", PLANS)
def test_a_leak_that_is_lowered_everywhere_makes_no_key(name: str) -> None:
    """The relay is consistent: what it takes off a message it takes off the total as well."""

    def total(m: PublicMessage) -> PublicMessage:
        return with_body(leaked=m.body["leaked"] - 10)(m)

    def less(m: PublicMessage) -> PublicMessage:
        return msgspec.structs.replace(m, leaked_bits=m.leaked_bits - 10)

    for kind in ("verify_tag", "quantize_follow", "quantize_lead"):
        block = Block(name, replacing({kind: less, "amplify": total})).run()
        assert outcome(block) == "no key"


@pytest.mark.parametrize("length", [64, 192, 1 << 20, 0, -64, 100])
def test_a_length_that_was_changed_makes_no_key(length: int) -> None:
    """Longer than Alice decided, shorter, none: the hash's seed fits, so that only the length is wrong."""

    def other(m: PublicMessage) -> PublicMessage:
        n = m.body["bits"]
        size = seed_length(n, length) if 0 < length < n else 8
        return with_body(length=length, seed=np.packbits(np.ones(size, np.uint8)).tobytes())(m)

    block = Block("cascade", replacing({"amplify": other})).run()
    assert outcome(block) == "no key"


def test_the_confirmation_cannot_be_answered_with_what_was_heard() -> None:
    """The relay answers Bob in Alice's place with the hash that it received, without knowing the hashed code."""
    said = {m.kind: m for _, m in undisturbed("cascade").said}
    heard = said["confirmed"].body["hash"]

    def own_answer(m: PublicMessage) -> PublicMessage:
        return with_body(proof=heard)(m)

    block = Block("cascade", replacing({"delivered": own_answer})).run()
    assert outcome(block) == "only alice"  # the last message of any protocol may be lost; Bob's node reports it
    assert said["delivered"].body["proof"] not in (heard, bytes(16))
    assert len(said["delivered"].body["proof"]) == len(heard) == 16
