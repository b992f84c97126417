"""Policies round by round, and what live probes are worth to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from testbed.core import patterns, registry
from testbed.core.errors import InputError
from testbed.surface import objectives
from testbed.surface.policies.closed_loop import ClosedLoop

SHAPE = (4, 4)


def policy(name: str, **options: Any) -> Any:
    made = registry.make_stage("policy", name, options)
    made.begin(SHAPE, 1, 7)
    return made


def test_a_sweep_dwells_and_starts_over() -> None:
    codebook = ["uniform", "stripes(1)", "hadamard(3)"]
    sweep = policy("sweep", codebook=codebook, dwell=2)
    digests = [patterns.make(spec, SHAPE, 1).digest for spec in codebook]
    assert [sweep.pattern_for(r).digest for r in range(8)] == [digests[i] for i in (0, 0, 1, 1, 2, 2, 0, 0)]
    assert sweep.changes
    assert not policy("sweep", codebook=["uniform"]).changes


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sweep", {"codebook": []}, "'codebook'.*length >= 1"),
        ("sweep", {"codebook": ["uniform"], "dwell": 0}, "'dwell': 0 given"),
        ("sweep", {"codebook": ["wobble"]}, "wobble"),
        ("sweep", {}, "codebook"),
        ("fixed", {"pattern": "gone.json"}, "cannot be read"),
        ("closed_loop", {"search": "oracle"}, "accepted: conditional_mean, greedy, hadamard, random_search"),
        ("closed_loop", {"objective": "luck"}, "accepted: 'power', 'correlation', 'key_rate', 'leakage'"),
        ("closed_loop", {"budget": 5}, "budget = 5, accepted: 0"),
        (
            "closed_loop",
            {"search_options": {"grop": 2}},
            "table .search_options.: unknown key 'grop'; did you mean 'group'",
        ),
        ("closed_loop", {"probes": 0}, "'probes': 0 given.*from 1"),
    ],
)
def test_refusals_say_what_is_accepted(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        registry.make_stage("policy", name, options)


def links(power: float) -> dict[str, Any]:
    return {"alice>bob": np.full((1, 1, 4), np.sqrt(power), np.complex64)}


def worth_of(pattern: Any) -> float:
    """A toy: the more elements stand at level 1, the better."""
    return 1.0 + float(pattern.levels.sum())


def drive(loop: ClosedLoop, rounds: int, lost: Any = lambda r: False) -> list[str]:
    digests = []
    for r in range(rounds):
        pattern = loop.pattern_for(r)
        digests.append(pattern.digest)
        loop.observe(r, {} if lost(r) else links(worth_of(pattern)))
    return digests


def test_a_closed_loop_measures_the_start_searches_and_confirms() -> None:
    loop = policy("closed_loop", start="uniform", confirm=3)
    digests = drive(loop, 120)
    assert loop.phase == "held"
    assert loop.done
    assert len(set(digests[:3])) == 1
    assert loop.before == pytest.approx(1.0)
    assert loop.after == pytest.approx(17.0)
    assert loop.best[0].levels.all()
    assert digests[-1] == loop.best[0].digest


def test_lost_rounds_are_probed_again() -> None:
    whole, holed = (policy("closed_loop", start="uniform", confirm=2, probes=2) for _ in range(2))
    drive(whole, 200)
    drive(holed, 400, lost=lambda r: r % 3 == 1)
    assert holed.tried == whole.tried
    assert holed.best[0].digest == whole.best[0].digest
    assert holed.unjudged > 0


def test_every_pattern_is_held_for_as_many_rounds_as_are_averaged() -> None:
    digests = drive(policy("closed_loop", start="uniform", confirm=2, probes=3), 32)
    assert all(len(set(digests[i : i + 3])) == 1 for i in range(2, 30, 3))


def test_a_budget_cuts_the_search_short_and_still_confirms() -> None:
    loop = policy("closed_loop", start="uniform", confirm=4, budget=20)
    digests = drive(loop, 20)
    assert loop.done
    assert loop.tried == 12
    assert loop.after == pytest.approx(worth_of(loop.best[0]))
    assert len(set(digests[16:])) == 1
    assert loop.after > loop.before


def test_a_result_worse_than_the_start_is_dropped() -> None:
    loop = policy("closed_loop", search="random_search", search_options={"trials": 5}, confirm=2, start="uniform")
    for r in range(40):
        pattern = loop.pattern_for(r)
        # it looks good while it is searched for, and bad when it is measured afresh
        loop.observe(r, links(1.0 if loop.phase == "start" else 2.0 if loop.phase == "search" else 0.1))
    assert loop.phase == "held"
    assert loop.best[0].digest == loop.pattern_for(99).digest == patterns.make("uniform", SHAPE, 1).digest
    assert loop.after == pytest.approx(1.0)
    assert pattern.digest == loop.best[0].digest


# ---------------------------------------------------------------- objectives


def response(seed: int, n: int = 200) -> Any:
    rng = np.random.default_rng(seed)
    delays, gains = rng.uniform(0, 8, 6), rng.standard_normal(6) + 1j * rng.standard_normal(6)
    return np.exp(-2j * np.pi * np.outer(np.arange(n) / n, delays)) @ gains


def noisy(h: Any, snr_db: float, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    sigma = np.sqrt(np.mean(np.abs(h) ** 2)) * 10 ** (-snr_db / 20)
    n = (rng.standard_normal(h.size) + 1j * rng.standard_normal(h.size)) * sigma / np.sqrt(2)
    turn = np.exp(1j * rng.uniform(0, 2 * np.pi) - 2j * np.pi * rng.uniform(-1, 1) * np.arange(h.size) / h.size)
    return ((h + n) * turn).astype(np.complex64)[None, None]


def both(snr_db: float, seed: int = 1, eve: Any = None) -> dict[str, Any]:
    h = response(seed)
    out = {"alice>bob": noisy(h, snr_db, 10), "bob>alice": noisy(h, snr_db, 11)}
    return out if eve is None else {**out, "alice>eve": noisy(eve, snr_db, 12)}


def judged(name: str, found: dict[str, Any]) -> float:
    result = objectives.by_name(name).judge([found])
    assert result is not None
    return result[0]


def test_power_is_power() -> None:
    assert judged("power", links(4.0)) == pytest.approx(4.0)
    assert objectives.by_name("power").text(100.0) == "20.000 dB"


def test_correlation_rises_with_snr_and_takes_no_notice_of_phases_and_delays() -> None:
    found = [judged("correlation", both(snr_db)) for snr_db in (0, 10, 30)]
    assert found[0] < found[1] < found[2]
    assert found[2] > 0.98


def test_key_rate_knows_the_snr_and_takes_off_what_eve_shares() -> None:
    for snr_db in (10, 20):
        snr = 10 ** (snr_db / 10)
        expected = -np.log2(1 - (snr / (1 + snr)) ** 2)
        assert judged("key_rate", both(snr_db)) == pytest.approx(expected, abs=0.5)
    far, near = (judged("key_rate", both(20, eve=response(s))) for s in (2, 1))
    assert near < 1.0 < far


def test_leakage_prefers_an_eve_who_sees_another_channel() -> None:
    far, near = (judged("leakage", both(25, eve=response(s))) for s in (2, 1))
    assert near < -0.95
    assert near < far < -0.05


def test_a_round_without_what_is_needed_is_not_judged_and_spread_needs_two() -> None:
    power = objectives.by_name("power")
    assert power.judge([{}]) is None
    assert objectives.by_name("leakage").judge([both(20)]) is None
    assert power.judge([links(1.0), {}]) == (pytest.approx(1.0), 0.0)
    mean, spread = power.judge([links(1.0), links(3.0)]) or (0, 0)
    assert (mean, spread) == (pytest.approx(2.0), pytest.approx(np.sqrt(2)))
