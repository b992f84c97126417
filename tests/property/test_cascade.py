"""Cascade on arbitrary strings, errors, estimates and messages."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.chain.dialogue import Conversation, run
from testbed.chain.reconcile.cascade import ANSWER, ASK, VARIANTS, Cascade
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage
from testbed.core.stages import Evidence

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@quick
@given(
    n=st.integers(1, 3000),
    rate=st.floats(0, 0.5),
    estimate=st.floats(0, 0.25),
    seed=st.integers(0, 2**32),
    variant=st.sampled_from(sorted(VARIANTS)),
)
def test_ends_with_bits_and_an_honest_ledger(n, rate, estimate, seed, variant):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2, n, dtype=np.uint8)
    b = a ^ (rng.random(n) < rate).astype(np.uint8)
    stage = Cascade(variant=variant)
    alice, bob = (
        Conversation(stage.alice(Evidence.of(a, estimate), rng)),
        Conversation(stage.bob(Evidence.of(b, estimate), rng)),
    )
    alice.advance()
    to_alice, steps = bob.advance(), 0
    while to_alice:
        to_bob = [m for message in to_alice for m in alice.advance(message)]
        to_alice = [m for message in to_bob for m in bob.advance(message)]
        steps += 1
        assert steps <= n + 2  # every question holds a new cut
    assert alice.done
    assert bob.done
    assert alice.ledger == bob.ledger
    if bob.result is None:
        assert bob.failure is not None
        return
    assert set(np.unique(bob.result.values)) <= {0, 1}
    flipped = np.count_nonzero(bob.result.values != b)
    assert flipped == bob.result.corrected
    # a flip is made only where Alice's bit is known: nothing that was right is ever made wrong
    assert np.count_nonzero(bob.result.values != a) == np.count_nonzero(b != a) - flipped


@quick
@given(n=st.integers(300, 3000), errors=st.floats(0, 0.2), seed=st.integers(0, 2**32))
def test_default_variant_makes_strings_equal(n, errors, seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2, n, dtype=np.uint8)
    b = a ^ (rng.random(n) < errors).astype(np.uint8)
    actual = np.mean(a != b)
    for _ in range(2):  # ten random parities miss a residue about once in a thousand
        evidence = [Evidence.of(bits, min(actual, 0.25)) for bits in (a, b)]
        try:
            outcome, reason = run(Cascade().alice(evidence[0], rng), Cascade().bob(evidence[1], rng))[1], None
        except DialogueFailed as exc:
            outcome, reason = None, exc.reason
        if outcome is None or np.array_equal(outcome.values, a):
            break
    if outcome is None:
        assert (reason, actual > 0.15) == ("error_rate_too_high", True)
    else:
        assert np.array_equal(outcome.values, a)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**64),
    st.binary(max_size=64),
    st.text(max_size=5),
    st.lists(st.integers()),
)
bodies = st.dictionaries(st.sampled_from(["seed", "passes", "cuts", "bits", "done", "x"]), values)
messages = st.builds(
    PublicMessage, kind=st.sampled_from([ASK, ANSWER, "failed", "?"]), body=bodies, leaked_bits=st.integers(-1, 70)
)


@quick
@given(heard=st.lists(messages, max_size=6), role=st.sampled_from(["alice", "bob"]))
def test_garbage_never_raises(heard, role):
    stage, bits, rng = Cascade(), np.zeros(64, np.uint8), np.random.default_rng(0)
    side = Conversation(
        stage.alice(Evidence.of(bits, 0.05), rng) if role == "alice" else stage.bob(Evidence.of(bits, 0.05), rng)
    )
    side.advance()
    for message in heard:
        side.advance(message)
    assert side.done == (side.result is not None or side.failure is not None)
    assert np.array_equal(np.unique(stage.eavesdrop(bits, heard) > 1), [False])
