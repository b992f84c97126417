"""Deciding a length and agreeing on it: the budget, the tag, the steps, and that only the length is said."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from testbed.chain.agreement import Agreed
from testbed.chain.amplification import Amplification, assumed_eve
from testbed.chain.dialogue import Conversation, run
from testbed.chain.knowledge import Knowledge
from testbed.chain.pipeline import KeyChain
from testbed.core.config import Accounting, ChainPlan
from testbed.core.outcomes import KeyReport, SurfaceRecord
from testbed.core.types import CsiSeries
from testbed.entropy import attack, judge
from testbed.entropy.attack import Attack, Broken

N, CARRIERS, SEED = 120, 16, 3
PLAN = ChainPlan(enhance_options={"step": 1})
QUICK = ("eve_now", "string_near")


@pytest.fixture
def few_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = attack.load_attacks()[0]
    monkeypatch.setattr(judge, "load_attacks", lambda: ({name: everything[name] for name in QUICK}, []))


def csi(seed: int) -> CsiSeries:
    common, own = np.random.default_rng(1), np.random.default_rng(seed)
    h = common.normal(size=(N, 1, 1, CARRIERS, 2)) + 0.05 * own.normal(size=(N, 1, 1, CARRIERS, 2))
    return CsiSeries((h @ [1, 1j]).astype(np.complex64), np.arange(N), np.arange(CARRIERS) * 1e6)


@cache
def agreed(block: int = 0) -> tuple[Agreed, Agreed]:
    chain = KeyChain(PLAN, Accounting())
    alice, bob, _ = run(chain.agree("alice", csi(2), block, SEED), chain.agree("bob", csi(3), block, SEED))
    assert alice.report.verified
    return alice, bob


def decide(stage: Amplification, block: int = 0, **surface: Any) -> KeyReport:
    alice = agreed(block)[0]
    record = SurfaceRecord(**surface) if surface else None
    return stage.decide(alice, Knowledge().facts(alice, record), SEED)


# ---------------------------------------------------------------- the budget


def test_there_is_no_key_after_the_planned_number_of_blocks(few_attacks: None) -> None:
    stage = Amplification(Accounting(), blocks=2)
    lengths = [decide(stage, block).key_bits for block in (0, 1, 1)]  # one that is decided again spends nothing
    assert 0 < lengths[1] == lengths[2]
    assert lengths[0] > 0
    third = decide(stage, 2)
    assert third.key_bits == 0
    assert third.failure == "budget_spent: ε is shared among the run's 2 blocks, and this is a further one"
    assert third.public().failure == "budget_spent"


def test_with_more_blocks_every_key_is_shorter(few_attacks: None) -> None:
    terms = {b: {t.name: t.bits for t in decide(Amplification(Accounting(), b)).terms} for b in (1, 1024)}
    assert terms[1]["hashing"] == -132
    assert terms[1024]["hashing"] == -152  # 2·log2 1024 more
    assert terms[1024]["min_entropy"] < terms[1]["min_entropy"]  # the confidence limit is shared out as well
    assert decide(Amplification(Accounting(), 1024)).epsilon_log2 == {
        "total": -64.0, "estimation": -66.0, "correction": -66.0, "amplification": -66.0,
    }  # fmt: skip


def test_an_epsilon_that_the_tag_cannot_give_is_no_key_and_says_what_it_can() -> None:
    # 2^−122 of a tag over about 3000 bits is what two rounds of the polynomial leave: log2(n/128 + 1) ≈ 4.7
    report = decide(Amplification(Accounting(epsilon_log2=128)))
    assert report.key_bits == 0
    assert (
        "asks more of error detection than a tag of 128 bits gives (2^-123); accepted: up to 2^−121" in report.failure
    )
    assert "\n" not in report.failure


def test_the_tightest_epsilon_that_the_tag_gives_is_accepted(few_attacks: None) -> None:
    report = decide(Amplification(Accounting(epsilon_log2=121)))
    assert report.key_bits > 0
    assert {t.name: t.bits for t in report.terms}["hashing"] == -2 * 123


def test_lengths_come_in_steps_of_64_and_are_rounded_down(few_attacks: None) -> None:
    for e in (8, 32, 64, 100):
        report = decide(Amplification(Accounting(epsilon_log2=e)))
        exact = sum(t.bits for t in report.terms)
        assert report.key_bits % 64 == 0
        assert 0 <= exact - report.key_bits < 64


# ---------------------------------------------------------------- who is assumed


def test_the_assumed_eve_is_what_the_user_says_or_a_stated_default() -> None:
    said = Accounting(assumed_eve_correlation=0.3, assumed_eve_antennas=4)
    assert (assumed_eve(said).correlation, assumed_eve(said).antennas) == (0.3, 4)
    far = Accounting(assumed_eve_distance_wavelengths=2.5)
    assert assumed_eve(far).distance_wavelengths == 2.5
    assert assumed_eve(Accounting()).correlation == 0.9


def test_the_sensitivity_falls_with_her_antennas(few_attacks: None) -> None:
    report = decide(Amplification(Accounting(assumed_eve_correlation=0.4)))
    bits = [row.key_bits for row in report.sensitivity]
    assert [row.name for row in report.sensitivity] == ["2 antennas", "4 antennas", "8 antennas", "back later"]
    assert report.key_bits >= bits[0] > bits[1] > bits[2] == 0  # eight of 0.4 know all: 8·0.4² > 1
    assert bits[3] == 0  # without a secret surface nothing stands between her and what was measured


# ---------------------------------------------------------------- attacks that fail


class Crashes(Attack):
    knows = "nothing"

    def predict(self, facts, train, test):
        raise ZeroDivisionError("by her own fault")


class Boasts(Attack):
    knows = "everything, she says"

    def predict(self, facts, train, test):
        return np.full((test.size, facts.n_labels), 0.9)


class Remembers(Attack):
    """Keeps the labels that she is shown while other folds are hidden, and tells them."""

    knows = "what she should not"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.seen: dict[int, int] = {}

    def predict(self, facts, train, test):
        self.seen |= dict(zip(train.tolist(), facts.value[train].tolist(), strict=True))
        p = np.full((test.size, facts.n_labels), 1e-3)
        p[np.arange(test.size), [self.seen.get(i, 0) for i in test.tolist()]] = 1.0
        return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (Crashes, "attack wrong failed: ZeroDivisionError: by her own fault"),
        (Boasts, "attack wrong failed: AttackLied: probabilities of a symbol's labels add up to"),
        (Remembers, "attack wrong failed: AttackLied: its prediction of hidden symbols changed"),
    ],
)
def test_an_attack_that_fails_or_returns_nonsense_stops_the_key_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch, wrong: type[Attack], why: str
) -> None:
    honest = attack.load_attacks()[0]["string_near"]
    monkeypatch.setattr(judge, "load_attacks", lambda: ({"string_near": honest, "wrong": wrong}, []))
    alice, bob = agreed()
    chain = KeyChain(PLAN, Accounting())
    report = chain.decide(alice, Knowledge().facts(alice), SEED)
    assert report.key_bits == 0
    assert report.failure.startswith(why)
    assert "\n" not in report.failure
    # the discussion goes to its end, and both sides know that there is no key
    (key, _), (other, theirs), said = run(
        chain.amplify("alice", alice, report, SEED), chain.amplify("bob", bob, None, SEED)
    )
    assert key is None
    assert other is None
    assert theirs.failure == "entropy_exhausted"
    assert [m.kind for _, m in said] == ["amplify"]
    monkeypatch.setattr(judge, "load_attacks", lambda: ({"string_near": honest}, []))
    assert chain.decide(alice, Knowledge().facts(alice), SEED).key_bits > 0


def test_an_attack_that_cannot_be_loaded_stops_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = attack.load_attacks()[0]["string_near"]
    broken = Broken("theirs", "ImportError: no module named numpi")
    monkeypatch.setattr(judge, "load_attacks", lambda: ({"string_near": honest}, [broken]))
    report = decide(Amplification(Accounting()))
    assert report.key_bits == 0
    assert "theirs failed: could not be loaded: ImportError" in report.failure


# ---------------------------------------------------------------- what is said


def talk(decided: KeyReport, change: dict[str, Any] | None = None) -> tuple[Conversation[Any], Conversation[Any]]:
    """Carry the discussion, the first message changed on the way."""
    chain = KeyChain(PLAN, Accounting())
    alice, bob = agreed()
    a, b = (
        Conversation(chain.amplify("alice", alice, decided, SEED)), Conversation(chain.amplify("bob", bob, None, SEED)),
    )  # fmt: skip
    b.advance()
    (first,) = a.advance()
    to_a = b.advance(msgspec.structs.replace(first, body={**first.body, **(change or {})}))
    for message in to_a:
        for answer in a.advance(message):
            b.advance(answer)
    return a, b


def test_nothing_but_the_length_is_announced() -> None:
    """Two blocks with equal length report the same, even if all other decisions differ."""
    rich = KeyReport(
        block=0, key_bits=256, min_entropy_per_bit=0.83, eve_measured=True, limiting="nearest",
        epsilon_log2={"total": -64.0}, assumptions=("x",),
    )  # fmt: skip
    bare = KeyReport(block=0, key_bits=256)
    bodies = []
    for report in (rich, bare):
        a, b = talk(report)
        bodies.append([m.body for _, m in a.transcript])
        assert np.array_equal(a.result[0].bits, b.result[0].bits)
        assert b.result[1] == bare
    assert bodies[0] == bodies[1]
    assert [set(body) for body in bodies[0]] == [
        {"block", "bits", "leaked", "length", "seed"}, {"block", "hash"}, {"block", "proof"},
    ]  # fmt: skip


def test_what_may_leave_a_private_node_follows_from_the_length_alone() -> None:
    report = decide_fully()
    said = report.public()
    defaults = KeyReport(block=0, key_bits=0)
    for name in ("min_entropy_per_bit", "limiting", "eves", "sensitivity", "terms", "assumptions", "epsilon_log2"):
        assert getattr(report, name) != getattr(defaults, name), name
        assert getattr(said, name) == getattr(defaults, name), name
    assert (said.key_bits, said.eve_measured, said.entropy) == (report.key_bits, report.eve_measured, report.entropy)


@cache
def decide_fully() -> KeyReport:
    alice = agreed()[0]
    chain = KeyChain(PLAN, Accounting())
    return chain.decide(alice, Knowledge().facts(alice), SEED)


def test_bob_refuses_a_length_that_the_rule_can_never_give() -> None:
    bob = agreed()[1]
    longest = Amplification(Accounting()).longest(bob)
    assert longest % 64 == 0
    assert 0 < longest < bob.values.size - bob.ledger.leaked_bits - 132
    a, b = talk(KeyReport(block=0, key_bits=longest))
    assert a.result[0].bits.size == b.result[0].bits.size == longest
    for wrong in (longest + 64, bob.values.size):
        _, b = talk(KeyReport(block=0, key_bits=wrong))
        assert b.failure.reason == "protocol"
        assert str(longest) in b.failure.detail


@pytest.mark.parametrize("length", [1, 63, 65, 255, -64, True, None, 64.0, "64"])
def test_bob_refuses_a_length_that_is_no_multiple_of_64(length: Any) -> None:
    a, b = talk(KeyReport(block=0, key_bits=256), {"length": length})
    assert b.failure.reason == "protocol"
    assert a.failure.reason == "peer_failed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"block": 1}, "protocol"),
        ({"leaked": 0}, "ledger_mismatch"),
        ({"bits": 64}, "ledger_mismatch"),
        ({"seed": b""}, "protocol"),
        ({"seed": b"\0" * 10_000}, "protocol"),
        ({"length": 128}, "protocol"),  # the seed is one for 256 bits
    ],
)
def test_bob_refuses_what_does_not_fit_his_own_account(change: dict[str, Any], reason: str) -> None:
    _, b = talk(KeyReport(block=0, key_bits=256), change)
    assert b.failure.reason == reason
    assert b.result is None


def test_nobody_amplifies_what_was_not_verified_or_not_decided() -> None:
    alice, _ = agreed()
    chain = KeyChain(PLAN, Accounting())
    with pytest.raises(ValueError, match="decides the length first"):
        chain.amplify("alice", alice, None, SEED)
    failed = replace(alice, report=msgspec.structs.replace(alice.report, verified=False, failure="timeout"))
    for what in (
        lambda: chain.amplify("bob", failed, None, SEED),
        lambda: chain.decide(failed, Knowledge().facts(alice), SEED),
    ):
        with pytest.raises(ValueError, match=r"was not verified \(timeout\)"):
            what()


# ---------------------------------------------------------------- public patterns


def test_public_patterns_need_probes_enough_to_tell_the_surface_from_the_rest(few_attacks: None) -> None:
    """A channel under a public pattern has N + 1 coefficients: with too few probes the remaining entropy is unknown."""
    levels = np.random.default_rng(1).integers(0, 2, (N, 63), dtype=np.uint8)
    states = tuple(range(N))
    report = decide(Amplification(Accounting()), states=states, levels=levels.tobytes())
    assert report.key_bits == 0
    assert report.failure.startswith(
        f"public_patterns: {N} probes cannot separate a surface of 64 unknown coefficients"
    )
    assert report.public().failure == "public_patterns"
    # with secret or constant patterns the two need not be separated
    assert decide(Amplification(Accounting()), states=states).key_bits > 0
    still = np.tile(levels[:1], (N, 1)).tobytes()
    assert decide(Amplification(Accounting()), states=(0,) * N, levels=still).key_bits > 0
    small = np.ascontiguousarray(levels[:, :39])
    assert decide(Amplification(Accounting()), states=states, levels=small.tobytes()).key_bits > 0
