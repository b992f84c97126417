"""LDPC on arbitrary strings, errors, estimates and messages."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.chain.amplify.verify import draw_point, verification_tag
from testbed.chain.dialogue import Conversation
from testbed.chain.reconcile.ldpc import REPLY, SYNDROME, Ldpc
from testbed.core.ledger import PublicMessage
from testbed.core.stages import Evidence

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@quick
@given(
    n=st.integers(1, 3000),
    rate=st.floats(0, 0.5),
    estimate=st.floats(0, 0.25),
    rounds=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
def test_corrected_or_refused_never_silently_wrong(n, rate, estimate, rounds, seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2, n, dtype=np.uint8)
    b = a ^ (rng.random(n) < rate).astype(np.uint8)
    stage = Ldpc(rounds=rounds)
    alice = Conversation(stage.alice(Evidence.of(a, estimate), rng))
    bob = Conversation(stage.bob(Evidence.of(b, estimate), rng))
    to_bob, steps = alice.advance() + [m for m in bob.advance()], 0
    while to_bob:
        to_alice = [m for message in to_bob for m in bob.advance(message)]
        to_bob = [m for message in to_alice for m in alice.advance(message)]
        steps += 1
        assert steps <= rounds + 2
    assert alice.done
    assert bob.done
    assert alice.ledger == bob.ledger
    if bob.result is None:
        assert bob.failure is not None
        assert bob.failure.reason == "not_decoded"
        return
    # a syndrome may fit a wrong string of a short code: the tag that the pipeline sends next tells
    point = draw_point(rng)
    same = verification_tag(a, point) == verification_tag(bob.result.values, point)
    assert same == np.array_equal(a, bob.result.values)
    if rate <= 0.8 * estimate:
        assert same


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**64),
    st.binary(max_size=64),
    st.text(max_size=5),
    st.lists(st.integers(-2, 70), max_size=3),
)
bodies = st.dictionaries(st.sampled_from(["seed", "checks", "bits", "failed", "x"]), values)
messages = st.builds(
    PublicMessage, kind=st.sampled_from([SYNDROME, REPLY, "failed", "?"]), body=bodies, leaked_bits=st.integers(-1, 70)
)


@quick
@given(heard=st.lists(messages, max_size=6), role=st.sampled_from(["alice", "bob"]))
def test_garbage_never_raises(heard, role):
    stage, mine, rng = Ldpc(), Evidence.of(np.zeros(64, np.uint8), 0.05), np.random.default_rng(0)
    side = Conversation(stage.alice(mine, rng) if role == "alice" else stage.bob(mine, rng))
    side.advance()
    for message in heard:
        side.advance(message)
    assert side.done == (side.result is not None or side.failure is not None)
    assert np.array_equal(np.unique(stage.eavesdrop(mine.bits.values, heard) > 1), [False])
