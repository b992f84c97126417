"""The key chain from CSI to key: what is agreed, what fails and how, what Eve gets."""

from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest

from testbed.chain.amplify.toeplitz import toeplitz_hash
from testbed.chain.dialogue import Conversation, run
from testbed.chain.knowledge import Knowledge
from testbed.chain.pipeline import KeyChain
from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import DialogueFailed
from testbed.core.ledger import PublicMessage
from testbed.core.outcomes import KeyReport
from testbed.core.types import CsiSeries
from testbed.entropy import attack, judge

PLAN = ChainPlan(enhance_options={"step": 1})
PROBES, CARRIERS, BLOCK, SEED = 200, 16, 4, 9


@pytest.fixture(scope="module", autouse=True)
def few_attacks():
    """Judge by a few quick Eves: the portfolio is tried elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        few = {name: attack.load_attacks()[0][name] for name in ("eve_now", "string_near", "nearest")}
        patch.setattr(judge, "load_attacks", lambda: (few, []))
        yield


def chain(**accounting) -> KeyChain:
    return KeyChain(PLAN, Accounting(**accounting))


def gaussian(rng, shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def series(h) -> CsiSeries:
    return CsiSeries(h.astype(np.complex64), np.arange(h.shape[0]), np.arange(h.shape[-1]) * 625e3)


def channels(noise: float, eve_correlation: float = 0.0, seed: int = 1):
    """CSI at Alice, at Bob, of Alice at Eve, of Bob at Eve: independent Rayleigh entries, additive noise."""
    rng = np.random.default_rng(seed)
    shape = (PROBES, 1, 1, CARRIERS)
    h = gaussian(rng, shape)
    near = lambda: eve_correlation * h + np.sqrt(1 - eve_correlation**2) * gaussian(rng, shape)  # noqa: E731
    return [series(x + noise * gaussian(rng, shape)) for x in (h, h, near(), near())]


@cache
def agreed(noise: float = 0.08, eve_correlation: float = 0.0):
    a, b, from_alice, from_bob = channels(noise, eve_correlation)
    k = chain()
    alice, bob, transcript = run(k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED))
    return alice, bob, tuple(m for _, m in transcript), from_alice, from_bob


@cache
def decided(noise: float = 0.08, eve_correlation: float = 0.0, heard: str = "both") -> KeyReport:
    """Alice's decision if Eve reports both her links, one, or none; only with a report no Eve is assumed to be near."""
    alice, _, _, from_alice, from_bob = agreed(noise, eve_correlation)
    k = chain() if heard == "nothing" else chain(assumed_eve_distance_wavelengths=1.0)
    known = Knowledge()
    if heard != "nothing":
        known.add_heard(k.report_series(from_alice, from_bob if heard == "both" else None))
    return k.decide(alice, known.facts(alice), SEED)


def test_both_agree_and_their_reports_match():
    alice, bob, transcript, *_ = agreed()
    assert alice.report.verified
    assert bob.report.verified
    assert np.array_equal(alice.values, bob.values)
    assert set(np.unique(alice.values)) == {0, 1}
    assert alice.ledger == bob.ledger
    assert alice.report.leaked_bits == sum(m.leaked_bits for m in transcript)
    assert alice.report.messages == len(transcript)
    r = bob.report
    assert r.raw_bits == r.sacrificed_bits + r.reconciled_bits
    # whole symbols of two bits, one in twenty
    symbols = np.unique(np.stack([alice.raw.probe, alice.raw.dimension]), axis=1).shape[1]
    assert r.sacrificed_bits == 2 * -(-symbols // 20)
    assert r.raw_bits == 2 * symbols
    # what Bob flipped plus what the sacrifice showed is exactly what differed
    differing = np.count_nonzero(alice.raw.values != bob.raw.values)
    assert differing == r.corrected_bits + r.sacrificed_errors > 0
    assert alice.report.corrected_bits is None  # how many differed stays with Bob
    assert alice.report.leaked_by_kind["verify_tag"] == 128  # all information about the string's tag


def three_bits():
    """Both sides' dialogues with labels of three bits, noisy enough for errors at every place."""
    a, b, *_ = channels(0.05)
    k = KeyChain(msgspec.structs.replace(PLAN, quantize_options={"bits": 3}), Accounting())
    return k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED)


def test_where_bob_corrects_tells_about_the_rest_of_the_label():
    """Bob's questions are public. An error in the most significant of three bits lies in the middle: two bits known."""
    alice, bob, transcript = run(*three_bits())
    kept = np.delete(np.arange(alice.raw.values.size), alice.sacrificed)
    wrong = kept[alice.raw.values[kept] != bob.raw.values[kept]]
    place = alice.raw.level_bit[wrong]
    counts = [int(np.count_nonzero(place == j)) for j in range(3)]
    assert min(counts) > 0
    # what Eve reads off the errors is in fact what is charged for: neighbours by rank give Gray neighbours
    label = alice.raw.values.reshape(-1, 3)[wrong // 3]
    assert np.array_equal(label[place == 0][:, 1:], np.tile([1, 0], (counts[0], 1)))
    assert np.all(label[place == 1][:, 2] == 1)
    verified = transcript[-1][1]
    assert (verified.kind, verified.body) == ("verified", {"corrections": counts})
    # the last place's errors lie at four thresholds, not all as often: they reveal a little about the first two bits
    # too,
    # and labels without errors a little by having none
    counts_told = alice.raw.values.size.bit_length()
    assert 2 * counts[0] + counts[1] < verified.leaked_bits - counts_told < 2 * counts[0] + 1.2 * counts[1] + 40
    for side in (alice, bob):
        assert side.report.leaked_by_kind["verified"] == verified.leaked_bits


@pytest.mark.parametrize(
    "corrections", [None, 7, [1, 2], [1, 2, 3, 4], [-1, 0, 0], [10**9, 0, 0], [0, 0, "1"], [True, 0, 0], [0, 0, 0]]
)
def test_alice_refuses_corrections_that_cannot_be(corrections):
    alice, bob = (Conversation(side) for side in three_bits())
    to_bob, to_alice = alice.advance(), bob.advance()
    while not alice.done:
        to_alice += [m for said in to_bob for m in bob.advance(said)]
        if to_alice[-1].kind == "verified":  # the charge stays as it was: too much for no corrections
            to_alice[-1] = msgspec.structs.replace(to_alice[-1], body={"corrections": corrections})
        to_bob, to_alice = [m for said in to_alice for m in alice.advance(said)], []
    assert alice.result.report.failure == "protocol"


def test_the_number_of_sacrificed_errors_is_charged_for_what_it_can_say():
    alice, bob, *_ = agreed()
    most = alice.report.sacrificed_bits
    for side in (alice, bob):
        assert 2 ** (side.report.leaked_by_kind["sacrifice_errors"] - 1) < most + 1
        assert 2 ** side.report.leaked_by_kind["sacrifice_errors"] >= most + 1


def test_labels_of_one_bit_tell_hardly_anything_by_their_errors():
    a, b, *_ = channels(0.08)
    k = KeyChain(msgspec.structs.replace(PLAN, quantize_options={"bits": 1}), Accounting())
    alice, bob, _ = run(k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED))
    assert bob.report.corrected_bits > 0
    # as both values err alike, what is charged is the digits of the charge
    assert alice.report.leaked_by_kind["verified"] <= alice.raw.values.size.bit_length() + 3


def test_sacrificed_bits_are_gone():
    alice, *_ = agreed()
    kept = np.delete(alice.raw.values, alice.sacrificed)
    assert np.array_equal(alice.values, kept)
    assert alice.sacrificed.size == alice.report.sacrificed_bits


def test_the_same_seed_says_the_same_again():
    a, b, *_ = channels(0.08)
    k = chain()
    _, _, again = run(k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED))
    assert tuple(m for _, m in again) == agreed()[2]


def test_a_recorded_transcript_replays_on_one_side():
    _, b, *_ = channels(0.08)
    alice, _, transcript, *_ = agreed()
    replayed = Conversation(chain().agree("bob", b, BLOCK, SEED))
    said = replayed.advance()
    for m in transcript:
        if m not in said:
            said += replayed.advance(m)
    assert np.array_equal(replayed.result.values, alice.values)


def test_messages_survive_the_wire():
    for m in agreed()[2]:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(m), type=PublicMessage) == m


def test_both_directions_of_a_multi_antenna_link_are_put_in_one_order():
    rng = np.random.default_rng(3)
    h = gaussian(rng, (PROBES, 2, 3, 8))
    k = chain()
    alice, bob, _ = run(
        k.agree("alice", series(h), BLOCK, SEED), k.agree("bob", series(np.swapaxes(h, 1, 2)), BLOCK, SEED)
    )
    assert alice.report.verified
    assert bob.report.corrected_bits == 0


def test_missing_probes_are_dropped_on_both_sides():
    a, b, *_ = channels(0.05)
    a.h[5:20], b.h[15:30] = np.nan, np.nan
    k = chain()
    alice, bob, _ = run(k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED))
    assert alice.report.verified
    assert not set(range(5, 30)) & set(alice.raw.probe.tolist())
    assert np.array_equal(alice.values, bob.values)


@pytest.mark.parametrize("what", ["constant", "missing", "few"])
def test_too_few_bits_is_said_on_both_sides(what):
    a, b, *_ = channels(0.05)
    if what == "constant":
        a, b = (replace(x, h=np.ones_like(x.h)) for x in (a, b))
    elif what == "missing":
        b = replace(b, h=np.full_like(b.h, np.nan))
    else:
        a, b = (CsiSeries(x.h[:10], x.rounds[:10], x.subcarrier_hz) for x in (a, b))
    k = chain()
    alice, bob, _ = run(k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED))
    assert alice.report.failure == "too_few_bits"
    assert bob.report.failure == "peer_failed: too_few_bits"
    assert not alice.report.verified
    assert not bob.report.verified
    assert alice.values.size == bob.values.size == 0
    with pytest.raises(ValueError, match="too_few_bits"):
        k.amplify("alice", alice, None, SEED)


def test_unrelated_channels_are_too_different():
    a, *_ = channels(0.05, seed=1)
    b, *_ = channels(0.05, seed=2)
    k = chain()
    alice, bob, _ = run(k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED))
    assert bob.report.failure == "error_rate_too_high"
    assert alice.report.failure == "peer_failed: error_rate_too_high"
    assert alice.report.reconciled_bits == bob.report.reconciled_bits == 0  # it did not come to that
    assert alice.report.raw_bits == bob.report.raw_bits > alice.report.sacrificed_bits > 0
    assert alice.report.sacrificed_errors == bob.report.sacrificed_errors
    assert 0.4 < alice.report.sacrificed_errors / alice.report.sacrificed_bits < 0.6
    assert alice.ledger.leaked_bits == bob.ledger.leaked_bits


def test_a_reconciler_that_leaves_an_error_is_caught_by_the_tag(monkeypatch):
    a, b, *_ = channels(0.08)
    k = chain()
    honest = k.reconcile.bob

    def careless(evidence, rng):
        outcome = yield from honest(evidence, rng)
        wrong = outcome.values.copy()
        wrong[17] ^= 1
        return replace(outcome, values=wrong)

    monkeypatch.setattr(k.reconcile, "bob", careless)
    alice, bob, _ = run(k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED))
    assert bob.report.failure == "verification_failed"
    assert alice.report.failure == "peer_failed: verification_failed"


def amplify(report, k=None, alice=None, bob=None):
    alice, bob = alice or agreed()[0], bob or agreed()[1]
    k = k or chain()
    return run(k.amplify("alice", alice, report, SEED), k.amplify("bob", bob, None, SEED))


def test_the_key_is_equal_and_as_long_as_the_rule_says():
    report = decided()
    (key_a, report_a), (key_b, report_b), _ = amplify(report)
    alice = agreed()[0]
    assert np.array_equal(key_a.bits, key_b.bits)
    assert report_a == report
    assert report_a.eve_measured
    assert "bits" not in repr(key_a)
    kept = alice.values.size
    terms = {t.name: t.bits for t in report.terms}
    assert list(terms) == ["min_entropy", "leaked", "hashing", "lengths"]
    assert terms["leaked"] == -alice.report.leaked_bits
    assert terms["hashing"] == -2 * (64 + 2)  # one block: log2 B = 0
    assert terms["lengths"] == pytest.approx(-np.log2(kept // 64 + 1))
    assert terms["min_entropy"] == pytest.approx(report.min_entropy_per_bit * kept)
    assert report.key_bits == key_a.bits.size == sum(terms.values()) // 64 * 64 > 0
    # independent entries and an Eve elsewhere: two bits a label, less what a confidence limit at 2^−66 takes
    assert 0.7 * kept < terms["min_entropy"] < kept
    # of it all Bob knows the length
    assert report_b == KeyReport(block=BLOCK, key_bits=report.key_bits)


def test_an_unmeasured_eve_is_assumed():
    assert not decided(heard="nothing").eve_measured
    assert decided(heard="nothing").limiting == "assumed"
    assert 0 < decided(heard="nothing").key_bits < decided().key_bits
    alice = agreed()[0]
    known = Knowledge().facts(alice)
    lengths = {c: chain(assumed_eve_correlation=c).decide(alice, known, SEED) for c in (0.0, 0.9, 0.99)}
    assert lengths[0.9] == decided(heard="nothing")  # the default assumption
    assert lengths[0.0].limiting != "assumed"
    assert lengths[0.0].key_bits > lengths[0.9].key_bits > lengths[0.99].key_bits == 0
    # an assumption holds beside a measured Eve as well: the least counts
    _, _, _, from_alice, from_bob = agreed()
    k, memory = chain(), Knowledge()  # without a statement: the same assumption, so that no report lengthens a key
    memory.add_heard(k.report_series(from_alice, from_bob))
    beside = k.decide(alice, memory.facts(alice), SEED)
    assert (beside.eve_measured, beside.limiting) == (True, "assumed")
    assert beside.key_bits == lengths[0.9].key_bits


def test_an_eve_who_knows_leaves_no_key_and_the_numbers_say_why():
    report = decided(eve_correlation=0.95)
    alice, bob = agreed(0.08, 0.95)[:2]
    (key_a, report_a), (key_b, report_b), transcript = amplify(report, alice=alice, bob=bob)
    assert key_a is None
    assert key_b is None
    assert report_a == report
    assert report_a.key_bits == report_b.key_bits == 0
    assert report_a.failure.startswith("entropy_exhausted: ")
    assert str(alice.report.leaked_bits) in report_a.failure
    assert report_b.failure == "entropy_exhausted"
    assert len(transcript) == 1
    worst = report.eves[0]
    assert (worst.name, worst.key_bits) == (report.limiting, 0)
    assert 0.6 < worst.guess_probability < worst.upper_bound < 0.9  # of four labels, at a correlation of 0.95


def test_ledgers_that_differ_deliver_nothing():
    alice, *_ = agreed()
    fewer = replace(alice.ledger, leaked_bits=alice.ledger.leaked_bits - 1)
    with pytest.raises(DialogueFailed, match="ledger_mismatch"):
        amplify(decided(), alice=replace(alice, ledger=fewer))


def test_no_key_at_bob_before_delivery():
    k = chain()
    alice = Conversation(k.amplify("alice", agreed()[0], decided(), SEED))
    bob = Conversation(k.amplify("bob", agreed()[1], None, SEED))
    bob.advance()
    (confirmed,) = bob.advance(alice.advance()[0])
    assert not alice.done
    assert not bob.done
    (delivered,) = alice.advance(confirmed)
    assert alice.done
    assert not bob.done
    bob.advance(delivered)
    assert np.array_equal(alice.result[0].bits, bob.result[0].bits)


def test_eve_far_away_guesses():
    alice, _, transcript, from_alice, from_bob = agreed()
    k = chain()
    guess = k.eavesdrop(BLOCK, from_alice, from_bob, transcript, complete=True)
    rate = guess.report.sacrificed_errors / guess.report.sacrificed_bits
    assert 0.4 < rate < 0.55
    assert guess.report.transcript_complete
    found = k.guess_key(guess, transcript)
    assert found.reconciled.size == guess.kept.size == alice.values.size
    assert found.key is None


@pytest.mark.parametrize(("lost", "measured"), [(0.1, True), (0.3, False), (1.0, False)])
def test_a_deaf_eve_is_no_measurement(lost, measured):
    """What she did not hear she guesses as 0 and errs on half of: this must not pass for security."""
    alice, _, transcript, from_alice, _ = agreed(0.08, 0.95)
    h = from_alice.h.copy()
    h[: int(lost * PROBES)] = np.nan
    deaf = replace(from_alice, h=h)
    k, known = chain(), Knowledge()
    eve = k.eavesdrop(BLOCK, deaf, None, transcript, True).report
    assert eve.measured == measured
    assert eve.covered_bits == np.count_nonzero(alice.raw.probe[alice.sacrificed] >= int(lost * PROBES))
    # on the rounds that she received she is as good as before
    assert eve.sacrificed_errors <= 0.3 * eve.covered_bits
    known.add_heard(k.report_series(deaf, None))
    report = k.decide(alice, known.facts(alice), SEED)
    assert report.eve_measured == measured
    # what she did hear counts against the key all the same, and an unmeasured Eve is assumed to hear as well as any
    assert report.key_bits <= decided(eve_correlation=0.95, heard="nothing").key_bits
    assert report.key_bits <= k.decide(alice, Knowledge().facts(alice), SEED).key_bits


def test_eves_link_with_few_probes_does_not_hide_the_other():
    _, _, transcript, from_alice, from_bob = agreed(0.08, 0.95)
    h = from_bob.h.copy()
    h[10:] = np.nan
    report = chain().eavesdrop(BLOCK, from_alice, replace(from_bob, h=h), transcript, True).report
    assert report.measured
    assert report.best_link in ("alice", "both")


def test_eve_close_by_errs_less_and_both_links_serve_her_best():
    _, _, transcript, from_alice, from_bob = agreed(0.08, 0.95)
    k = chain()
    both = k.eavesdrop(BLOCK, from_alice, from_bob, transcript, True).report
    one = k.eavesdrop(BLOCK, from_alice, None, transcript, True).report
    assert both.best_link == "both"
    assert one.best_link == "alice"
    assert both.sacrificed_errors < one.sacrificed_errors < 0.3 * one.sacrificed_bits


def test_an_eve_who_hears_all_that_alice_hears_has_the_key():
    """The attack is complete: with Alice's own CSI and the public transcript it ends in Alice's key."""
    a, *_ = channels(0.08)
    k = chain()
    (key, _), _, more = amplify(decided())
    guess = k.eavesdrop(BLOCK, None, a, agreed()[2], True)
    assert guess.report.best_link == "bob"
    # her quantizer has no guard bands of its own but sees which entries were kept
    assert np.mean(guess.raw != agreed()[0].raw.values) < 0.01
    assert np.array_equal(k.guess_key(guess, [m for _, m in more]).key, key.bits)


def test_eves_key_guess_is_the_hash_of_her_string():
    _, _, transcript, from_alice, from_bob = agreed(0.08, 0.95)
    alice, bob = agreed(0.08, 0.95)[:2]
    _, _, more = amplify(KeyReport(block=BLOCK, key_bits=256), alice=alice, bob=bob)
    announced = more[0][1].body
    k = chain()
    guess = k.eavesdrop(BLOCK, from_alice, from_bob, transcript, True)
    found = k.guess_key(guess, [*transcript, *(m for _, m in more)])
    assert np.count_nonzero(found.reconciled != alice.values) < np.count_nonzero(guess.kept != alice.values)
    n, length = found.reconciled.size, announced["length"]
    seed = np.unpackbits(np.frombuffer(announced["seed"], np.uint8), count=n + length - 1)
    assert np.array_equal(found.key, toeplitz_hash(found.reconciled, seed, length))


@pytest.mark.parametrize("heard", [0, 1, 2, 3, 10])
def test_eve_who_missed_messages_does_what_she_can(heard):
    _, _, transcript, from_alice, _ = agreed()
    k = chain()
    guess = k.eavesdrop(BLOCK, from_alice, None, transcript[:heard], complete=False)
    assert not guess.report.transcript_complete
    assert (k.guess_key(guess, transcript[:heard]) is not None) == (heard >= 3)
    assert (guess.report.sacrificed_bits > 0) == (heard >= 3)
    assert (guess.raw.size > 0) == (heard >= 2)


def test_an_eve_without_a_probe_is_no_measurement():
    _, _, transcript, from_alice, _ = agreed()
    nothing = chain().eavesdrop(BLOCK, None, None, transcript, True)
    assert (nothing.report.sacrificed_bits, nothing.report.best_link) == (0, "none")
    other = CsiSeries(from_alice.h[:50], from_alice.rounds[:50], from_alice.subcarrier_hz)
    assert chain().eavesdrop(BLOCK, other, None, transcript, True).report.best_link == "none"


def test_a_discussion_that_hides_the_corrections_is_not_charged_for_them():
    a, b, *_ = channels(0.05)
    plan = msgspec.structs.replace(PLAN, quantize_options={"bits": 3}, reconcile="ldpc")
    k = KeyChain(plan, Accounting())
    alice, bob, transcript = run(k.agree("alice", a, BLOCK, SEED), k.agree("bob", b, BLOCK, SEED))
    assert alice.report.verified
    assert np.array_equal(alice.values, bob.values)
    assert bob.report.corrected_bits > 0
    verified = transcript[-1][1]
    assert (verified.kind, verified.body, verified.leaked_bits) == ("verified", {"corrections": []}, 0)
    assert alice.report.leaked_by_kind["ldpc_syndrome"] > 0
