"""Cascade: efficiency, what is counted, what it refuses, what Eve gets out of it."""

import numpy as np
import pytest

from testbed.chain.dialogue import Conversation, run
from testbed.chain.reconcile.cascade import ANSWER, ASK, VARIANTS, Cascade
from testbed.core.errors import DialogueFailed, InputError
from testbed.core.ledger import PublicMessage
from testbed.core.seeds import permutation
from testbed.core.stages import Evidence


def h2(e: float) -> float:
    return float(-e * np.log2(e) - (1 - e) * np.log2(1 - e))


def strings(n: int, rate: float, seed: int):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2, n, dtype=np.uint8)
    b = a.copy()
    b[rng.choice(n, round(n * rate), replace=False)] ^= 1
    return a, b


def discuss(a, b, estimate: float, variant: str = "weighted", seed: int = 0):
    stage = Cascade(variant=variant)
    rng = np.random.default_rng(seed)
    _, bob, transcript = run(stage.alice(Evidence.of(a, estimate), rng), stage.bob(Evidence.of(b, estimate), rng))
    return bob, [m for _, m in transcript]


def leak(messages) -> int:
    return sum(m.leaked_bits for m in messages)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.10])
def test_efficiency_on_ten_kbit(rate):
    a, b = strings(10240, rate, 7)
    bob, messages = discuss(a, b, rate)
    assert np.array_equal(bob.values, a)
    assert leak(messages) / (a.size * h2(rate)) <= 1.10
    assert len(messages) / 2 < 250  # round trips


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_corrects(variant):
    a, b = strings(4096, 0.04, 3)
    bob, _ = discuss(a, b, 0.04, variant)
    assert np.array_equal(bob.values, a)


@pytest.mark.parametrize(
    ("rate", "estimate"),
    [(0.05, 0.0), (0.10, 0.0), (0.0, 0.0), (0.0, 0.1), (0.10, 0.03), (0.02, 0.15), (0.2, 0.2), (0.2, 0.1)],
)
def test_a_wrong_estimate_costs_efficiency_only(rate, estimate):
    a, b = strings(2048, rate, 11)
    bob, messages = discuss(a, b, estimate)
    assert np.array_equal(bob.values, a)
    assert leak(messages) <= a.size


def test_leak_is_the_number_of_different_cuts_asked():
    a, b = strings(3000, 0.06, 2)
    _, messages = discuss(a, b, 0.06)
    asked = set()
    for m in messages:
        if m.kind == ASK and "cuts" in m.body:
            asked |= set(zip(m.body["passes"], np.frombuffer(m.body["cuts"], "<u4").tolist(), strict=True))
    assert leak(messages) == len(asked)
    assert all(m.leaked_bits == 0 for m in messages if m.kind == ASK)
    # the parity of the whole string is asked once, not once a pass
    assert sum(cut == a.size for _, cut in asked) == 1


def test_the_published_parities_are_independent():
    """The ledger is the rank of what was said, except for the chance that random shuffles repeat a parity."""
    a, b = strings(256, 0.05, 4)
    _, messages = discuss(a, b, 0.05)
    seed = messages[0].body["seed"]
    rows = []
    for m in messages:
        if m.kind == ASK and "cuts" in m.body:
            for p, cut in zip(m.body["passes"], np.frombuffer(m.body["cuts"], "<u4").tolist(), strict=True):
                rows.append(sum(1 << int(i) for i in permutation(256, seed, "cascade", p)[:cut]))
    basis: dict[int, int] = {}
    for row in rows:
        while row and row.bit_length() in basis:
            row ^= basis[row.bit_length()]
        if row:
            basis[row.bit_length()] = row
    assert leak(messages) == len(rows)
    assert len(rows) - len(basis) <= 0.1 * len(rows)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
def test_tiny_strings(n):
    a, b = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
    b[0] = 1
    try:
        values, reason = discuss(a, b, 0.2)[0].values, None
    except DialogueFailed as exc:
        values, reason = a, exc.reason
    assert reason in (None, "error_rate_too_high")  # a correction may need more parities than there are bits
    assert np.array_equal(values, a)


def test_unrelated_strings_fail_explicitly():
    a, _ = strings(2048, 0, 1)
    b, _ = strings(2048, 0, 2)
    with pytest.raises(DialogueFailed, match="error_rate_too_high"):
        discuss(a, b, 0.1)


def test_unknown_variant_is_refused():
    with pytest.raises(InputError, match="accepted: 'original'"):
        Cascade(variant="best")


def test_alice_that_contradicts_herself_is_found_out():
    """In one pass her parities belong to another string: Bob would flip the same bit to and fro without end."""
    a, b = strings(512, 0.1, 1)
    other = a.copy()
    other[:40] ^= 1  # an even number, so that the parity of the whole string fits both
    bob = Conversation(Cascade().bob(Evidence.of(b, 0.1), np.random.default_rng(0)))
    (ask,) = bob.advance()
    seed = ask.body["seed"]
    while not bob.done:
        passes, cuts = ask.body["passes"], np.frombuffer(ask.body["cuts"], "<u4")
        told = [
            (a if p == 0 else other)[permutation(512, seed, "cascade", p)][:cut].sum() % 2
            for p, cut in zip(passes, cuts, strict=True)
        ]
        body = {"bits": np.packbits(np.array(told, np.uint8)).tobytes()}
        (ask,) = bob.advance(PublicMessage(kind=ANSWER, body=body, leaked_bits=len(told)))
    assert bob.failure is not None
    assert str(bob.failure) == "protocol: Alice's parities contradict one another"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"seed": -1, "passes": b"\0", "cuts": b"\1\0\0\0"},
        {"seed": "x", "passes": b"\0", "cuts": b"\1\0\0\0"},
        {"seed": 1, "passes": b"\0", "cuts": b"\1\0\0"},
        {"seed": 1, "passes": b"", "cuts": b""},
        {"seed": 1, "passes": b"\0", "cuts": b"\0\0\0\0"},
        {"seed": 1, "passes": b"\0", "cuts": b"\xff\xff\xff\xff"},
        {"seed": 1, "passes": 5, "cuts": [1]},
        {"done": "yes"},
    ],
)
def test_garbage_questions_end_alice(body):
    alice = Conversation(Cascade().alice(Evidence.of(np.zeros(300, np.uint8), 0.01), np.random.default_rng(0)))
    alice.advance()
    (told,) = alice.advance(PublicMessage(kind=ASK, body=body))
    assert told.kind == "failed"
    assert alice.failure is not None
    assert alice.failure.reason == "protocol"


def test_alice_answers_no_more_than_n_parities():
    n = 300
    alice = Conversation(Cascade().alice(Evidence.of(np.zeros(n, np.uint8), 0.01), np.random.default_rng(0)))
    alice.advance()
    cuts = np.arange(1, n + 1, dtype="<u4").tobytes()
    (first,) = alice.advance(PublicMessage(kind=ASK, body={"seed": 1, "passes": bytes(n), "cuts": cuts}))
    (again,) = alice.advance(PublicMessage(kind=ASK, body={"passes": bytes(n), "cuts": cuts}))
    assert (first.leaked_bits, again.leaked_bits) == (n, 0)  # what was said before tells nothing new
    alice.advance(PublicMessage(kind=ASK, body={"passes": bytes([1]), "cuts": b"\5\0\0\0"}))
    assert alice.failure is not None


@pytest.mark.parametrize("body", [{}, {"bits": b""}, {"bits": b"\0" * 999}, {"bits": 7}])
def test_garbage_answers_end_bob(body):
    bob = Conversation(Cascade().bob(Evidence.of(np.zeros(300, np.uint8), 0.01), np.random.default_rng(0)))
    bob.advance()
    bob.advance(PublicMessage(kind=ANSWER, body=body, leaked_bits=1))
    assert bob.failure is not None
    assert bob.failure.reason == "protocol"


def test_answers_that_count_less_than_they_tell_end_bob():
    bob = Conversation(Cascade().bob(Evidence.of(np.zeros(300, np.uint8), 0.01), np.random.default_rng(0)))
    (ask,) = bob.advance()
    size = (len(ask.body["passes"]) + 7) // 8
    bob.advance(PublicMessage(kind=ANSWER, body={"bits": bytes(size)}, leaked_bits=0))
    assert bob.failure is not None
    assert bob.failure.reason == "protocol"


@pytest.mark.parametrize("bob_rate", [0.05, 0.10])
def test_eve_with_few_errors_gains_from_the_parities(bob_rate):
    a, b = strings(8192, bob_rate, 9)
    _, messages = discuss(a, b, bob_rate)
    eve, _ = strings(8192, 0, 9)
    rng = np.random.default_rng(1)
    eve[rng.choice(8192, 205, replace=False)] ^= 1  # 2.5 %
    better = Cascade().eavesdrop(eve, messages)
    assert np.count_nonzero(better != a) < 0.85 * 205


def test_eve_who_knows_nothing_learns_little():
    a, b = strings(4096, 0.02, 9)
    _, messages = discuss(a, b, 0.02)
    eve = np.random.default_rng(1).integers(0, 2, 4096, dtype=np.uint8)
    better = Cascade().eavesdrop(eve, messages)
    # 0.15 bit per bit was said: at most that much of her ignorance can go
    assert np.mean(better != a) > 0.35
