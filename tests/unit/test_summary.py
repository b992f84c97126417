"""What a run was worth: every field, and what happens where it could not be measured."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from testbed.assess.summary import BlockFacts, RawBits, RunFacts, summarise
from testbed.core.outcomes import AgreeReport, EveReport, EveRow, KeyReport
from testbed.core.stages import Verdict

FIELDS = {
    "rounds",
    "pairs_kept",
    "pairs_rejected",
    "wall_s",
    "rounds_per_s",
    "csi_correlation_ab",
    "csi_correlation_ae",
    "csi_correlation_ab_detrended",
    "raw_bits",
    "kdr_raw",
    "kdr_eve",
    "min_entropy_per_bit",
    "reconciliation",
    "key_bits",
    "keys_verified",
    "keys_mismatched",
    "raw_rate_bps",
    "key_rate_bps",
    "key_bits_per_round",
    "randomness",
    "health",
    "secrecy",
    "keys_exposed",
    "keys_reproducible",
}


def agree(side, *, verified=True, failure=None, raw=1000, sacrificed=100, corrected=18, leaked=200):
    return AgreeReport(
        block=0,
        probes=500,
        raw_bits=raw,
        sacrificed_bits=sacrificed,
        sacrificed_errors=2,
        reconciled_bits=raw - sacrificed,
        corrected_bits=corrected if side == "bob" and verified else None,
        leaked_bits=leaked,
        leaked_by_kind={"quantize_lead": 6, "cascade_answer": leaked - 80, "verify_tag": 64, "verified": 10},
        public_bytes=1,
        messages=1,
        verified=verified,
        failure=failure,
    )


def key(bits=300, failure=None, h_min=0.6, eves=None):
    rows = (EveRow(name="eve_now", knows="her signals", guess_probability=0.25, upper_bound=0.3, key_bits=bits),)
    return KeyReport(
        block=0,
        key_bits=bits,
        min_entropy_per_bit=h_min,
        eve_measured=True,
        failure=failure,
        limiting="eve_now",
        eves=rows if eves is None else eves,
        assumptions=("no Eve is better",),
        epsilon_log2={"total": -64.0},
    )


def block(**changes):
    good = BlockFacts(
        alice=agree("alice"),
        bob=agree("bob"),
        eve=EveReport(
            block=0,
            sacrificed_bits=100,
            covered_bits=100,
            sacrificed_errors=45,
            best_link="alice",
            transcript_complete=True,
        ),
        alice_key=key(),
        bob_key=key(),
        alice_digest="aa",
        bob_digest="aa",
        eve_digest="ee",
    )
    return replace(good, **changes)


def facts(*blocks, **changes):
    known = RunFacts(
        rounds=600,
        pairs_kept=500,
        pairs_rejected={"low_snr": 100},
        reconcile="cascade",
        blocks=blocks,
        probing_s=30.0,
        wall_s=3.0,
        csi_correlation_ab=0.98,
        csi_correlation_ae=0.1,
        csi_correlation_ab_detrended=0.97,
        randomness={"runs": {"pass_ratio": 1.0, "p_value": 0.4}},
        health=[Verdict("pairing", True, "fine")],
        keys_exposed=0,
    )
    return replace(known, **changes)


def failed_checks(summary):
    return {entry["check"] for entry in summary["health"] if not entry["ok"]}


def nulls(summary):
    inner = {f"reconciliation.{k}": v for k, v in summary["reconciliation"].items()}
    return {name for name, value in {**summary, **inner}.items() if value is None}


def test_a_good_run_has_every_field_and_passes_every_check():
    s = summarise(facts(block(), block()))
    assert set(s) >= FIELDS
    assert nulls(s) == set()
    assert failed_checks(s) == set()
    assert (s["raw_bits"], s["key_bits"], s["keys_verified"], s["keys_mismatched"]) == (2000, 600, 2, 0)
    assert s["rounds_per_s"] == pytest.approx(200)
    assert s["raw_rate_bps"] == pytest.approx(2000 / 30)
    assert s["key_rate_bps"] == pytest.approx(20)
    assert s["key_bits_per_round"] == pytest.approx(1.0)
    assert s["kdr_raw"] == pytest.approx(20 / 1000)  # corrected plus sacrificed errors: exact without raw bits
    assert s["kdr_eve"] == pytest.approx(0.45)
    assert s["min_entropy_per_bit"] == pytest.approx(0.6)
    assert s["eve_keys_recovered"] == 0


def test_efficiency_counts_parities_only_and_the_errors_that_were_there():
    rate = 18 / 900
    needed = 900 * -(rate * np.log2(rate) + (1 - rate) * np.log2(1 - rate))
    s = summarise(facts(block()))
    assert s["reconciliation"]["efficiency"] == pytest.approx(120 / needed)
    assert s["reconciliation"]["leaked_bits"] == 200


def test_raw_bits_are_the_better_evidence():
    alice = np.zeros(1000, np.uint8)
    bob, eve = alice.copy(), alice.copy()
    bob[:37] = 1
    eve[:480] = 1
    s = summarise(facts(block(raw=RawBits(alice, bob, eve))))
    assert s["kdr_raw"] == pytest.approx(0.037)
    assert s["kdr_eve"] == pytest.approx(0.48)


def test_differing_keys_are_counted_and_give_no_key_bits():
    s = summarise(facts(block(), block(bob_digest="bb")))
    assert (s["keys_verified"], s["keys_mismatched"], s["key_bits"]) == (1, 1, 300)
    assert "keys_equal" in failed_checks(s)


def test_keys_that_were_not_compared_are_not_reported_as_equal():
    s = summarise(facts(block(alice_digest=None, bob_digest=None)))
    assert s["keys_mismatched"] is None
    assert s["keys_verified"] == 1
    assert any("keys_mismatched" in check for check in failed_checks(s))


def test_a_key_on_one_side_only_is_no_key():
    s = summarise(facts(block(bob_key=None, bob_digest=None)))
    assert (s["key_bits"], s["keys_verified"], s["keys_mismatched"]) == (0, 0, 0)
    assert "keys_on_both_sides" in failed_checks(s)


def test_a_key_that_eve_has_is_counted():
    assert summarise(facts(block(eve_digest="aa")))["eve_keys_recovered"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"sacrificed_bits": 0, "covered_bits": 0, "sacrificed_errors": 0},
        {"covered_bits": 0, "sacrificed_errors": 0},
        {"covered_bits": 79},
        {"transcript_complete": False},
    ],
)
def test_an_eve_who_heard_too_little_was_not_measured(change):
    deaf = structs.replace(block().eve, **change)
    assumed = structs.replace(key(), eve_measured=False)
    zeros = np.zeros(1000, np.uint8)
    raw = RawBits(zeros, zeros, 1 - zeros)
    s = summarise(facts(block(eve=deaf, alice_key=assumed, bob_key=assumed, raw=raw)))
    assert s["eve_measured"] is False
    assert {"kdr_eve", "eve_keys_recovered"} <= nulls(s)
    assert "eve_attack_measured" in failed_checks(s)


def test_eve_counts_as_measured_only_where_the_key_went_by_her():
    assumed = structs.replace(key(), eve_measured=False)
    s = summarise(facts(block(alice_key=assumed, bob_key=assumed)))
    assert s["eve_measured"] is False
    assert "eve_attack_measured" in failed_checks(s)


def test_of_an_eve_who_heard_a_part_that_part_counts():
    alice = np.zeros(1000, np.uint8)
    guess = np.where(np.arange(1000) < 500, 1, 0).astype(np.uint8)
    part = structs.replace(block().eve, covered_bits=90, sacrificed_errors=9)
    assert summarise(facts(block(eve=part, raw=RawBits(alice, alice, guess))))["kdr_eve"] == pytest.approx(0.1)


def test_keys_that_eve_may_have_are_not_counted_without_digests():
    s = summarise(facts(block(), block(alice_digest=None, bob_digest=None, eve_digest=None)))
    assert s["eve_measured"] is True
    assert s["eve_keys_recovered"] is None
    assert any("eve_keys_recovered" in check for check in failed_checks(s))


def test_a_failed_block_is_explained():
    broken = BlockFacts(
        alice=agree("alice", verified=False, failure="peer_failed: verification_failed"),
        bob=agree("bob", verified=False, failure="verification_failed: the tags differ"),
    )
    s = summarise(facts(block(), broken))
    assert s["reconciliation"]["frame_failures"] == 1
    assert s["key_bits"] == 300
    detail = next(e["detail"] for e in s["health"] if e["check"] == "blocks_give_keys")
    assert detail == "1 of 2 blocks: verification_failed: the tags differ"
    # of the failed block only a sample is known
    assert s["kdr_raw"] == pytest.approx((20 + 2) / (1000 + 100))


def test_a_block_that_the_coordinator_gave_up_is_explained_in_its_words():
    """Its death takes the reports of all nodes with it, none of which had stopped reporting."""
    died = BlockFacts(None, None, failure="the coordinator's process died")
    peer = BlockFacts(agree("alice", verified=False, failure="peer_failed"), None, failure="bob was lost")
    own = BlockFacts(agree("alice", verified=False, failure="unequal"), None, failure="unequal at alice")
    s = summarise(facts(block(), died, peer, own, BlockFacts(None, None)))
    detail = next(e["detail"] for e in s["health"] if e["check"] == "blocks_give_keys")
    assert detail == (
        "1 of 5 blocks: the coordinator's process died; 1 of 5 blocks: bob was lost; 1 of 5 blocks: unequal; "
        "1 of 5 blocks: a node stopped reporting"
    )


def test_too_few_bits_is_no_failure_of_reconciliation():
    short = replace(block(), alice=agree("alice", verified=False, failure="too_few_bits", raw=100), bob=None)
    assert summarise(facts(short))["reconciliation"]["frame_failures"] == 0


def test_zero_bits_is_an_answer_with_a_reason():
    why = "entropy_exhausted: 900 bits"
    s = summarise(facts(block(alice_key=key(0, why), bob_key=key(0, why), alice_digest=None, bob_digest=None)))
    assert (s["key_bits"], s["keys_verified"], s["keys_mismatched"]) == (0, 0, 0)
    assert any(why in e["detail"] for e in s["health"])


def test_a_killed_run_with_nothing_measured():
    s = summarise(
        RunFacts(rounds=0, pairs_kept=0, pairs_rejected={}, reconcile="cascade", blocks=[], probing_s=None, wall_s=None)
    )
    assert set(s) >= FIELDS
    assert {"wall_s", "csi_correlation_ab", "kdr_raw", "kdr_eve", "randomness", "key_bits_per_round"} <= nulls(s)
    assert s["eve_measured"] is False
    assert "blocks_give_keys" in failed_checks(s)


def test_the_caller_may_know_better_why():
    s = summarise(facts(block(eve=None, eve_digest=None), unmeasured={"kdr_eve": "node eve was lost in round 3"}))
    assert s["kdr_eve"] is None
    assert any(e["detail"] == "node eve was lost in round 3" and "kdr_eve" in e["check"] for e in s["health"])


@given(
    probing_s=st.none() | st.floats(0, 1e6),
    wall_s=st.none() | st.floats(0, 1e6),
    r=st.none() | st.floats(-1, 1) | st.just(float("nan")),
    rounds=st.integers(0, 1000),
    eve=st.booleans(),
    corrected=st.integers(0, 900),
    digests=st.tuples(st.sampled_from([None, "a", "b"]), st.sampled_from([None, "a", "b"])),
)
def test_no_null_without_an_explanation(probing_s, wall_s, r, rounds, eve, corrected, digests):
    one = block(
        bob=agree("bob", corrected=corrected),
        alice_digest=digests[0],
        bob_digest=digests[1],
        eve=block().eve if eve else None,
    )
    s = summarise(
        facts(one, rounds=rounds, probing_s=probing_s, wall_s=wall_s, csi_correlation_ab=r, csi_correlation_ae=r)
    )
    explained = " ".join(e["check"] for e in s["health"] if not e["ok"])
    assert all(name in explained for name in nulls(s))
    assert all(e["detail"] for e in s["health"])
    assert s["keys_mismatched"] in (None, 0, 1)


def test_secrecy_has_a_row_for_every_eve_over_all_blocks():
    def row(name, guess, bits):
        return EveRow(name=name, knows=f"{name}'s", guess_probability=guess, upper_bound=guess, key_bits=bits)

    one = key(eves=(row("eve_now", 0.2, 640), row("assumed", None, 384), row("nearest", 0.3, 192)))
    two = structs.replace(key(eves=(row("eve_now", 0.4, 0), row("assumed", None, 384))), assumptions=("another",))
    s = summarise(facts(block(alice_key=one), block(alice_key=two), block(alice_key=structs.replace(one, eves=()))))
    told = {r["name"]: (r["guess_probability"], r["key_bits"]) for r in s["secrecy"]["eves"]}
    # where "nearest" had nothing to go on, she is no better than the least able one: 192 + 384
    assert told == {"nearest": (0.3, 576), "eve_now": (pytest.approx(0.3), 640), "assumed": (None, 768)}
    assert [r["name"] for r in s["secrecy"]["eves"]] == ["nearest", "eve_now", "assumed"]  # the worst comes first
    assert s["secrecy"]["limiting"] == "eve_now"
    assert s["secrecy"]["epsilon_log2"] == {"total": -64.0}
    assert s["secrecy"]["assumptions"] == ["no Eve is better", "another"]


def test_without_an_eve_the_length_is_split_into_what_the_source_and_what_the_assumption_makes():
    def row(name, bits):
        return EveRow(name=name, knows="one antenna", guess_probability=None, upper_bound=None, key_bits=bits)

    def told(**changes):
        s = summarise(facts(block(eve=None, eve_digest=None, **changes)))
        return [entry["detail"] for entry in s["health"] if entry["check"] == "assumed_eve"]

    none = key(
        bits=0, failure="entropy_exhausted", eves=(row("assumed", 0), row("nearest", 448), row("string_table", 512))
    )
    (said,) = told(alice_key=none, bob_key=none, alice_digest=None, bob_digest=None)
    assert "would leave at most 448 key bits" in said
    assert "the assumed Eve (one antenna) leaves 0: the assumption changes the length by -448" in said
    (said,) = told(alice_key=None, bob_key=None, alice_digest=None, bob_digest=None)
    assert "was not used" in said
    too_short = facts(
        block(eve=None, alice_key=None, bob_key=None), health=[Verdict("eve_measured", True, "by probes")]
    )
    for measured in (summarise(facts(block())), summarise(too_short)):
        assert "assumed_eve" not in {entry["check"] for entry in measured["health"]}


def test_private_nodes_keep_who_could_know_to_themselves():
    s = summarise(facts(block(alice_key=key().public(), bob_key=key().public())))
    assert s["secrecy"] is None
    assert s["min_entropy_per_bit"] is None
    assert any("private mode" in e["detail"] and "secrecy" in e["check"] for e in s["health"])


def test_where_there_is_no_key_the_checks_of_keys_say_so():
    none = BlockFacts(agree("alice", verified=False, failure="too_few_bits"), None)
    s = summarise(facts(none, randomness={}, keys_exposed=None, health=[Verdict("eve_measured", True, "by probes")]))
    told = {e["check"].removeprefix("measured_"): e["detail"] for e in s["health"] if not e["ok"]}
    assert told["blocks_give_keys"].startswith("1 of 1 block: too_few_bits (fewer than 256 bits are left after ")
    assert [told[x] for x in ("randomness", "keys_exposed", "eve_keys_recovered")] == ["there is no key"] * 3
    assert told["kdr_eve"] == "no block reached the comparison of raw bits"
    assert told["secrecy"] == "no block reached the decision on a key's length"
    with_key = summarise(facts(block(), randomness={}))
    assert "the keys have too few bits for the tests" in {e["detail"] for e in with_key["health"]}


def test_keys_of_a_rehearsal_are_counted_as_reproducible():
    blocks = (block(), block(bob_digest="bb"), block(alice_key=key(0, "entropy_exhausted: 1")))
    assert summarise(facts(*blocks))["keys_reproducible"] == 0
    assert summarise(facts(*blocks, rehearsal=True))["keys_reproducible"] == 1  # of those that are verified


def test_exposed_keys_are_unknown_until_an_audit():
    s = summarise(facts(block(), keys_exposed=None))
    assert s["keys_exposed"] is None
    assert any("audit" in e["detail"] and "keys_exposed" in e["check"] for e in s["health"])
    assert summarise(facts(block(), keys_exposed=2))["keys_exposed"] == 2


def test_health_names_the_keys_of_the_modelled_rule():
    told = [e["check"] for e in summarise(facts(block()))["health"]]
    assert "min_entropy_model" not in told
    modelled = structs.replace(key(), entropy="modelled")
    told = [e for e in summarise(facts(block(alice_key=modelled)))["health"] if e["check"] == "min_entropy_model"]
    assert len(told) == 1
    assert told[0]["ok"]
    assert "independent" in told[0]["detail"]
