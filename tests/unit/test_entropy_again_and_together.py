"""What a referee found: a track that is walked again at another pace, an Eve whose channels are as many as elements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.assess.audit import _left
from testbed.core.types import F64
from testbed.entropy.attack import portfolio
from testbed.entropy.facts import Earlier, Heard
from testbed.entropy.judge import Finding, judge
from testbed.entropy.length import Budget, key_length
from testbed.papers.secrecy_of_keys.cases import block

STEP_M, TRACK_M, PLACES = 0.11, 34.0, 160


def finding(facts: object, name: str) -> Finding:
    judgement = judge(facts, seed=1, attacks=portfolio(1, [name]))
    assert judgement.failures == ()
    return judgement.findings[0]


@pytest.mark.parametrize("pace", [0.75, -1.3])
def test_a_track_walked_again_at_another_pace_is_known(pace: float) -> None:
    rng = np.random.default_rng(7)
    shape = rng.normal(size=(6, PLACES))

    def measured(place_m: F64) -> F64:
        values = np.stack([np.interp(place_m, np.linspace(0, TRACK_M, PLACES), s) for s in shape], axis=1)
        return np.asarray(values + 0.05 * rng.normal(size=values.shape))

    first_m = np.arange(300) * STEP_M
    again_m = (np.arange(int(299 / abs(pace))) * abs(pace)) * STEP_M
    rounds = np.arange(300)
    before = Earlier("block 0", True, rounds, rounds * 0.05, measured(first_m))
    now = measured(again_m if pace < 0 else first_m[-1] - again_m)
    facts = block(rng, now, rounds=np.arange(337, 337 + len(now)))
    facts = replace(facts, earlier=(before,))
    stranger = replace(before, features=rng.normal(size=before.features.shape))
    known = finding(facts, "recurrence_warped")
    assert known.guess_probability > 0.8
    assert known.log_loss_bits < facts.kept_bits / 4  # so the rule "modelled" leaves nothing
    assert finding(replace(facts, earlier=(stranger,)), "recurrence_warped").guess_probability < 0.42


def test_an_eve_with_more_channels_than_the_surface_has_elements_knows_what_it_does() -> None:
    """Four antennas with six subcarriers each and sixteen elements: no antenna's combination does, all channels do."""
    rng = np.random.default_rng(5)
    n, elements, carriers = 500, 16, 6
    pattern = np.concatenate([np.ones((n, 1)), rng.choice([-1.0, 1.0], (n, elements))], axis=1)

    def heard(noise: float, phase: F64) -> np.ndarray:
        paths = rng.normal(size=(elements + 1, carriers)) + 1j * rng.normal(size=(elements + 1, carriers))
        h = pattern @ paths
        spread = rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape)
        return np.asarray((h + noise * spread) * np.exp(1j * phase))

    alice = heard(0.1, rng.uniform(0, 2 * np.pi, (n, 1)))
    facts = block(rng, 20 * np.log10(np.abs(alice)), csi=alice, states=np.arange(n))
    common = rng.uniform(0, 2 * np.pi, (n, 1))
    hers = [heard(0.1, common) for _ in range(4)]
    eves = tuple(
        Heard(f"eve.{a}:alice", facts.rounds, facts.time_s, 20 * np.log10(np.abs(h)), h) for a, h in enumerate(hers)
    )
    whole = finding(replace(facts, heard=eves), "eve_channels")
    assert whole.guess_probability > 0.8
    assert finding(replace(facts, heard=eves), "array_combined").guess_probability < whole.guess_probability - 0.2


def test_an_audit_without_news_exposes_no_key_of_either_rule() -> None:
    """An Eve of correlation 0.7 guesses half of the labels and still leaves more than a bit of each."""
    rng = np.random.default_rng(2)
    alice = rng.normal(size=(500, 6))
    hers = 0.7 * alice + np.sqrt(1 - 0.7**2) * rng.normal(size=alice.shape)
    facts = block(rng, alice)
    facts = replace(facts, heard=(Heard("eve.0:alice", facts.rounds, facts.time_s, hers),))
    judgement = judge(facts, seed=1, attacks=portfolio(1, ["eve_now"]))
    for rule in ("estimated", "modelled"):
        granted = key_length(facts, judgement, 0, Budget(64), rule).bits
        assert granted > 1000
        assert _left(judgement.findings[0], rule, facts.kept_bits) > granted
    assert granted > _left(judgement.findings[0], "estimated", facts.kept_bits)


def test_what_eve_measured_while_training_was_published_is_a_map_of_the_room() -> None:
    """The places of the training come again in any order: no shift fits, but her own signals say which place it is."""
    rng = np.random.default_rng(9)
    places, order = 200, rng.permutation(200)
    alices, hers = rng.normal(size=(2, places, 6))
    rounds = np.arange(places)
    training = Earlier("training", True, rounds, rounds * 0.05, alices + 0.03 * rng.normal(size=alices.shape))
    now = block(rng, alices[order] + 0.03 * rng.normal(size=alices.shape), rounds=rounds + 250)
    signals = np.concatenate([hers, hers[order]]) + 0.03 * rng.normal(size=(2 * places, 6))
    when = np.concatenate([rounds, rounds + 250])
    told = Heard("eve.0:alice", when, when * 0.05, signals)
    late = Heard("eve.0:alice", when[places:], when[places:] * 0.05, signals[places:])
    with_map = finding(replace(now, earlier=(training,), heard=(told,)), "eve_fingerprint")
    assert with_map.guess_probability > 0.7
    assert finding(replace(now, earlier=(training,), heard=(late,)), "eve_fingerprint").guess_probability < 0.35
    assert finding(replace(now, heard=(told,)), "eve_fingerprint").guess_probability < 0.35
