"""Eve by brute force: at toy sizes every string that fits the whole transcript is counted.

The tag is left out at both ends of the comparison: its 128 bits are more than such strings have.
"""

from functools import cache
from math import floor

import numpy as np
import pytest

from testbed.chain.amplify.toeplitz import seed_length, toeplitz_hash
from testbed.chain.dialogue import run
from testbed.chain.reconcile._code import code
from testbed.chain.reconcile.cascade import ANSWER, ASK, Cascade
from testbed.core.stages import Evidence
from testbed.entropy.length import Budget

HASHES = 25


def rule_length(min_entropy: float, leaked: int, epsilon_log2: int) -> int:
    """Return ℓ by the length rule for one block, without steps and the price of telling it: toys have no 64 bits."""
    return max(0, floor(min_entropy - leaked - Budget(epsilon_log2).hashing_bits))


@cache
def strings(n: int) -> np.ndarray:
    return ((np.arange(1 << n)[:, None] >> np.arange(n)) & 1).astype(np.uint8)


def advantage(n: int, told: np.ndarray, eve_error_rate: float, length: int, seed: int = 0) -> float:
    """Return the key's distance from uniform given `told` (string,) and Eve's view, on average over public hashes.

    Eve sees each bit through a binary symmetric channel of this error rate, 0.5: not at all. All she is told is linear,
    so that every view of hers is worth the same and one is enough: all bits 0.
    """
    x, rng = strings(n), np.random.default_rng(seed)
    errors = x.sum(axis=1)
    p = eve_error_rate**errors * (1 - eve_error_rate) ** (n - errors)
    total = 0.0
    for _ in range(HASHES):
        hashed = rng.integers(0, 2, seed_length(n, length), np.uint8)
        matrix = np.stack([toeplitz_hash(e, hashed, length) for e in np.eye(n, dtype=np.uint8)])
        key = ((x.astype(np.float32) @ matrix.astype(np.float32)) % 2 @ 2.0 ** np.arange(length)).astype(np.int64)
        joint = np.bincount(told << length | key, weights=p, minlength=(int(told.max()) + 1) << length)
        joint = joint.reshape(-1, 1 << length)
        total += float(np.abs(joint - joint.mean(axis=1, keepdims=True)).sum()) / 2
    return total / HASHES


@pytest.mark.parametrize("checks", [4, 6])
@pytest.mark.parametrize("eve_error_rate", [0.5, 0.4])
@pytest.mark.parametrize("epsilon_log2", [1, 2])
def test_given_a_syndrome_the_key_is_as_secret_as_promised(checks, eve_error_rate, epsilon_log2):
    n = 16
    length = rule_length(-n * np.log2(1 - eve_error_rate), checks, epsilon_log2)
    assert length > 0 or (eve_error_rate, epsilon_log2) != (0.5, 1)
    syndrome = code(n, checks).syndrome
    told = np.array([syndrome(x)[0] @ (1 << np.arange(checks)) for x in np.eye(n, dtype=np.uint8)])
    values = np.bitwise_xor.reduce(np.where(strings(n) == 1, told, 0), axis=1)
    if length:
        assert advantage(n, values, eve_error_rate, length) <= 2.0 ** Budget(epsilon_log2).quarter_log2 / 2
    # a key of all that the syndrome leaves is not secret from an Eve who saw something; nor one beyond that from anyone
    too_long = n - checks + (2 if eve_error_rate == 0.5 else 0)
    assert advantage(n, values, eve_error_rate, too_long) > 2.0 ** Budget(epsilon_log2).quarter_log2 / 2


def test_given_cascades_whole_discussion_the_key_is_as_secret_as_promised():
    """Bob's questions depend on the errors alone, Alice's answers are linear in her string: both are checked."""
    n, epsilon_log2, lengths = 12, 1, set()
    for wrong in ([], [3], [0, 7]):
        errors = np.zeros(n, np.uint8)
        errors[wrong] = 1
        asked, answers, leaked = [], [], 0
        for alice in [np.zeros(n, np.uint8), *np.eye(n, dtype=np.uint8)]:
            stage = Cascade(variant="original")
            _, bob, said = run(
                stage.alice(Evidence.of(alice, 0.05), np.random.default_rng(1)),
                stage.bob(Evidence.of(alice ^ errors, 0.05), np.random.default_rng(2)),
            )
            assert np.array_equal(bob.values, alice)
            asked.append([m for _, m in said if m.kind == ASK])
            answers.append(
                np.concatenate([np.frombuffer(m.body["bits"], np.uint8) for _, m in said if m.kind == ANSWER])
            )
            leaked = sum(m.leaked_bits for _, m in said)
        assert all(a == asked[0] for a in asked)
        assert not answers[0].any()
        bits = np.unpackbits(np.stack(answers[1:]), axis=1)
        words = bits.astype(np.int64) @ (1 << np.arange(bits.shape[1], dtype=np.int64))
        values = np.unique(np.bitwise_xor.reduce(np.where(strings(n) == 1, words, 0), axis=1), return_inverse=True)[1]
        assert values.max() < 1 << leaked  # the ledger counts at least the published bits
        length = rule_length(n, leaked, epsilon_log2)
        lengths.add(length)
        if length:
            assert advantage(n, values, 0.5, length) <= 2.0 ** Budget(epsilon_log2).quarter_log2 / 2
        assert advantage(n, values, 0.5, n - leaked + 3) > 2.0 ** Budget(epsilon_log2).quarter_log2 / 2
    assert max(lengths) >= 1
