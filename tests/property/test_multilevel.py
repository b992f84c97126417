"""Multilevel reconciliation: arbitrary channels, estimates and messages; and all reconcilers over lengths and rates."""

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from testbed.chain.amplify.verify import draw_point, verification_tag
from testbed.chain.dialogue import Conversation
from testbed.chain.quantize.equiprobable import Equiprobable
from testbed.chain.reconcile.cascade import Cascade
from testbed.chain.reconcile.ldpc import Ldpc
from testbed.chain.reconcile.multilevel import PLAN, REPLY, SYNDROME, Multilevel, _Frame
from testbed.core.ledger import PublicMessage
from testbed.core.stages import Evidence, Reconciler
from testbed.core.types import Features

quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def talk(stage: Reconciler, a: Evidence, b: Evidence, change=lambda m: m):
    rng = np.random.default_rng(0)
    one, two = Conversation(stage.alice(a, rng)), Conversation(stage.bob(b, rng))
    to_two, to_one = one.advance(), two.advance()
    for _ in range(3000):
        if not (to_one or to_two):
            break
        said_two = [m for x in to_two for m in two.advance(change(x))]
        said_one = [m for x in to_one for m in one.advance(change(x))]
        to_two, to_one = said_one, said_two
    assert one.done
    assert two.done
    return one, two


@quick
@given(
    n=st.integers(130, 900),
    snr_db=st.floats(-5, 35),
    bits=st.integers(1, 6),
    outliers=st.sampled_from([0.0, 0.01, 0.2]),
    seed=st.integers(0, 2**32),
)
def test_any_channel_ends_equal_or_is_refused(n, snr_db, bits, outliers, seed):
    rng, noise = np.random.default_rng(seed), 10 ** (-snr_db / 20)
    h = rng.normal(size=(n, 1))
    a, b = (h + noise * rng.normal(size=h.shape) for _ in range(2))
    strange = rng.random(n) < outliers
    b[strange] = rng.normal(size=(int(strange.sum()), 1)) * 3
    q = Equiprobable(bits=bits)
    draft, lead = q.lead(Features(a, np.arange(n)), rng)
    bob, follow = q.follow(Features(b, np.arange(n)), lead)
    alice = q.finish(draft, follow)
    public = np.isin(alice.probe, rng.permutation(n)[: n // 8])
    sides = [
        Evidence(x.take(~public), 0.3, Features(f, np.arange(n)), alice.take(public)) for x, f in ((alice, a), (bob, b))
    ]
    one, two = talk(Multilevel(), *sides)
    assert one.ledger == two.ledger
    if two.result is None:
        assert two.failure.reason == "not_decoded"
    else:
        # bits that the model calls certain may still be wrong: few, and the tag that follows tells
        assert np.mean(one.result.values != two.result.values) < 0.02


@st.composite
def corruptions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    """Alice's bits, Bob's with 0 to 30 % wrong, scattered, in one burst or every k-th, and an estimate of that rate."""
    n, seed = draw(st.integers(64, 1500)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    wrong = round(draw(st.floats(0, 0.3)) * n)
    how = draw(st.sampled_from(["scattered", "burst", "comb"]))
    a = rng.integers(0, 2, n, dtype=np.uint8)
    b = a.copy()
    if how == "scattered":
        b[rng.choice(n, wrong, replace=False)] ^= 1
    elif how == "burst":
        b[(int(rng.integers(n)) + np.arange(wrong)) % n] ^= 1
    elif wrong:
        b[:: max(1, n // wrong)] ^= 1
    actual = float(np.mean(a != b))
    return a, b, min(0.25, actual * draw(st.sampled_from([0.3, 1.0, 1.0, 1.3])))


@pytest.mark.parametrize("stage", [Cascade, Ldpc, Multilevel])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(case=corruptions())
def test_any_corruption_is_corrected_or_refused(stage, case):
    """Refused: by the reconciler, or by the tag that the pipeline sends next. Within the code's reach: corrected."""
    a, b, estimate = case
    alice, bob = talk(stage(), Evidence.of(a, estimate), Evidence.of(b, estimate))
    right = bob.result is not None and np.array_equal(bob.result.values, a)
    if bob.result is not None:
        point = draw_point(np.random.default_rng(a.size))
        assert (verification_tag(bob.result.values, point) == verification_tag(a, point)) == right
        assert bob.result.corrected == np.count_nonzero(bob.result.values != b)
    else:
        told = alice.failure if bob.failure.reason == "peer_failed" else bob.failure
        assert told.reason in ("error_rate_too_high", "not_decoded")
    if a.size >= 256 and 0 < np.mean(a != b) <= min(0.15, 1.01 * estimate):
        assert right


@pytest.mark.parametrize("stage", [Cascade, Ldpc, Multilevel])
@pytest.mark.parametrize(("n", "rate"), [(256, 0.005), (256, 0.2), (2048, 0.05), (16_384, 0.2), (65_536, 0.01)])
def test_every_length_and_error_rate_is_corrected(stage, n, rate):
    rng = np.random.default_rng(n)
    a = rng.integers(0, 2, n, dtype=np.uint8)
    b = a.copy()
    b[rng.choice(n, round(rate * n), replace=False)] ^= 1
    one, two = talk(stage(), Evidence.of(a, rate), Evidence.of(b, rate))
    assert one.ledger == two.ledger
    assert two.result is not None, two.failure
    assert np.array_equal(two.result.values, a)


# rounds = 3: it does not get as far as the bits themselves, which would put it right
@pytest.mark.parametrize("stage", [Cascade(), Ldpc(), Multilevel(rounds=3)])
@pytest.mark.parametrize("fault", ["truncated", "flipped"])
def test_what_is_tampered_with_ends_refused_or_different_from_alices(stage, fault):
    """A truncated message is refused. Flipped bits are a wrong syndrome: nothing that fits it is Alice's string."""
    rng = np.random.default_rng(5)
    a = rng.integers(0, 2, 2000, dtype=np.uint8)
    b = a.copy()
    b[rng.choice(2000, 40, replace=False)] ^= 1
    hit = []

    def change(message):
        bits = message.body.get("bits")
        if not bits or hit:
            return message
        hit.append(message.kind)
        new = bits[:-1] if fault == "truncated" else bytes([bits[0] ^ 0x10]) + bits[1:]
        return msgspec.structs.replace(message, body={**message.body, "bits": new})

    one, two = talk(stage, Evidence.of(a, 0.02), Evidence.of(b, 0.02), change)
    assert hit
    if fault == "truncated":
        assert two.failure.reason == "protocol"
        assert one.failure.reason == "peer_failed"
    else:
        assert two.result is None or not np.array_equal(two.result.values, a)


@pytest.mark.parametrize("outliers", [0.01, 0.03])
def test_short_blocks_with_outliers_that_no_pilot_shows_are_corrected(outliers):
    """A syndrome of few bits fits many strings, and a few pilots tell little of the noise."""
    wrong = 0
    for seed in range(12):
        rng, n = np.random.default_rng(seed), 320
        h = rng.normal(size=(n, 6))
        a, b = (h + 0.2 * rng.normal(size=h.shape) for _ in range(2))
        b[rng.random(n) < outliers] *= -1.0  # a frame whose phase was found the other way round
        q = Equiprobable(cells="normal", shortfall=0.2)
        draft, lead = q.lead(Features(a, np.arange(n)), rng)
        bob, follow = q.follow(Features(b, np.arange(n)), lead)
        alice = q.finish(draft, follow)
        public = q.published(alice, lead)
        sides = [
            Evidence(x.take(~public), 0.3, Features(f, np.arange(n)), alice.take(public))
            for x, f in ((alice, a), (bob, b))
        ]
        one, two = talk(Multilevel(), *sides)
        assert one.ledger == two.ledger
        assert two.result is not None, two.failure
        wrong += not np.array_equal(one.result.values, two.result.values)
    assert wrong == 0


@pytest.mark.parametrize("n", [40, 319, 3158])
@pytest.mark.parametrize("share", [0.002, 0.02, 0.3, 0.8])
def test_a_frame_that_never_decodes_ends_with_its_bits_within_the_default_messages(n, share):
    bits = np.random.default_rng(n).integers(0, 2, n, dtype=np.uint8)
    alice, bob = (_Frame(0, [0], np.arange(n), max(8, round(share * n))) for _ in range(2))
    bob.told = alice.first(bits)
    while not bob.clear:
        count = bob.next_count(0.015)
        told = alice.more(bits, 0.015)
        assert told.size == count
        bob.learn(told, 0.015)
    assert bob.asked <= 16
    assert np.array_equal(bob.decode(np.zeros(n)), bits)


values = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 2**64), st.binary(max_size=64), st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 70), st.lists(st.integers(-2, 70), max_size=3)), max_size=3),
)  # fmt: skip
bodies = st.dictionaries(st.sampled_from(["seed", "groups", "bits", "failed", "x"]), values)
kinds = st.sampled_from([PLAN, SYNDROME, REPLY, "failed", "?"])
messages = st.builds(PublicMessage, kind=kinds, body=bodies, leaked_bits=st.integers(-1, 70))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(heard=st.lists(messages, max_size=6), role=st.sampled_from(["alice", "bob"]))
def test_garbage_never_raises(heard, role):
    stage, mine, rng = Multilevel(), Evidence.of(np.zeros(64, np.uint8), 0.05), np.random.default_rng(0)
    side = Conversation(stage.alice(mine, rng) if role == "alice" else stage.bob(mine, rng))
    side.advance()
    for message in heard:
        side.advance(message)
    assert side.done == (side.result is not None or side.failure is not None)
