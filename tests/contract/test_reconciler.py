"""Every reconciler that the registry finds keeps the contract of `core.stages.Reconciler`."""

import numpy as np
import pytest

from testbed.chain.dialogue import run
from testbed.core import registry
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage
from testbed.core.stages import Evidence, Reconciler

pytestmark = pytest.mark.parametrize("name", registry.names("reconcile"))


def make(name: str) -> Reconciler:
    return registry.make_stage("reconcile", name, {})


def strings(n: int, errors: int, seed: int):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2, n, dtype=np.uint8)
    b = a.copy()
    b[rng.choice(n, errors, replace=False)] ^= 1
    return a, b


def discuss(name: str, a, b, rate: float, seed: int = 0):
    stage = make(name)
    return run(
        stage.alice(Evidence.of(a, rate), np.random.default_rng([seed, 0])),
        stage.bob(Evidence.of(b, rate), np.random.default_rng([seed, 1])),
    )


@pytest.mark.parametrize("n", [256, 2000, 20000])
def test_both_sides_end_with_alices_string(name, n):
    a, b = strings(n, n // 33, n)
    alice, bob, _ = discuss(name, a, b, 0.03)
    assert np.array_equal(alice.values, a)
    assert np.array_equal(bob.values, a)
    assert alice.corrected == 0
    assert bob.corrected == n // 33
    assert bob.values.dtype == np.uint8


def test_the_leak_is_counted_and_no_less_than_the_errors_are_worth(name):
    n, rate = 4000, 0.05
    leaks = []
    for seed in range(5):
        _, _, transcript = discuss(name, *strings(n, int(n * rate), seed), rate, seed)
        leaks.append(sum(m.leaked_bits for _, m in transcript))
    h2 = -rate * np.log2(rate) - (1 - rate) * np.log2(1 - rate)
    # n·h2 − O(log n) bits are needed to name one of C(n, n·rate) error patterns
    assert np.mean(leaks) >= n * h2 - 8


def test_inputs_are_left_alone_and_the_same_seed_says_the_same(name):
    a, b = strings(1000, 30, 5)
    a0, b0 = a.copy(), b.copy()
    first = discuss(name, a, b, 0.03)
    second = discuss(name, a, b, 0.03)
    assert np.array_equal(a, a0)
    assert np.array_equal(b, b0)
    assert first[2] == second[2]


def test_equal_strings_need_no_correction(name):
    a, _ = strings(500, 0, 1)
    _, bob, _ = discuss(name, a, a.copy(), 0.01)
    assert bob.corrected == 0
    assert np.array_equal(bob.values, a)


def test_hopeless_rate_is_refused(name):
    a, b = strings(1000, 400, 2)
    with pytest.raises(DialogueFailed, match="error_rate_too_high"):
        discuss(name, a, b, 0.4)


def test_eve_without_a_transcript_keeps_her_guess(name):
    a, _ = strings(600, 0, 3)
    assert np.array_equal(make(name).eavesdrop(a, []), a)


def test_eve_gets_bits_whatever_she_heard(name):
    a, b = strings(600, 18, 4)
    eve, _ = strings(600, 0, 5)
    _, _, transcript = discuss(name, a, b, 0.03)
    messages = [m for _, m in transcript]
    for heard in (messages, messages[1:], messages[::2], messages[:3], [PublicMessage(kind="x", body={})]):
        guess = make(name).eavesdrop(eve, heard)
        assert guess.shape == eve.shape
        assert set(np.unique(guess)) <= {0, 1}
