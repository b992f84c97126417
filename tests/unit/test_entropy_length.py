"""The length rule: its ledger, its budget, and Eves that are assumed."""

from __future__ import annotations

from math import log2
from typing import Any

import numpy as np
import pytest
from scipy.special import j0

from testbed.core.errors import InputError
from testbed.entropy.facts import Earlier, Facts, Heard
from testbed.entropy.gaussian_labels import renyi_entropy
from testbed.entropy.judge import Failure, Finding, Judgement
from testbed.entropy.length import STEP, AssumedEve, Budget, key_length


def facts(n: int = 1000, bits: int = 2) -> Facts:
    every = np.arange(n)
    return Facts(
        value=np.zeros(n, int),
        bits=np.full(n, bits),
        probe=every,
        dimension=np.zeros(n, int),
        published=np.zeros(n, bool),
        rounds=every,
        time_s=every * 0.1,
        features=np.zeros((n, 1)),
    )


def finding(name: str = "eve_now", estimated: float = 900.0, loss: float = 1900.0, freedom: float = 0.0) -> Finding:
    return Finding(name, "her own signals", 1000, 300, 0.4, loss, 0.0, freedom, 1.0, estimated)


def judgement(*findings: Finding, failures: tuple[Failure, ...] = ()) -> Judgement:
    return Judgement(1000, 2000, findings or (finding(),), failures, 10, -70.0)


def test_the_ledger_adds_up_to_the_length() -> None:
    key = key_length(facts(), judgement(), 250, Budget(64, 4))
    lengths = log2(2000 // 64 + 1)
    by_name = {t.name: t.bits for t in key.terms}
    assert by_name == pytest.approx({"min_entropy": 900.0, "leaked": -250.0, "hashing": -136.0, "lengths": -lengths})
    assert key.bits == int(sum(by_name.values())) // STEP * STEP == 448
    assert key.limiting == "eve_now"
    assert key.failure is None


def test_published_bits_of_kept_symbols_are_taken_off() -> None:
    all_of_it = key_length(facts(), judgement(), 0, Budget())
    less = key_length(facts(), judgement(), 0, Budget(), published_bits=128)
    assert all_of_it.bits - less.bits == 128
    assert {t.name for t in less.terms} > {"published"}


def test_the_worst_eve_sets_the_length_and_each_has_her_row() -> None:
    found = judgement(finding("eve_now", 900.0), finding("nearest", 600.0), finding("string_near", 1500.0))
    key = key_length(facts(), found, 0, Budget())
    assert key.limiting == "nearest"
    assert [r.name for r in key.eves] == ["nearest", "eve_now", "string_near"]
    assert [r.key_bits for r in key.eves] == [448, 704, 1344]
    assert key.bits == key.eves[0].key_bits


def test_the_modelled_rule_takes_log_loss_and_the_largest_freedom() -> None:
    found = judgement(finding("a", loss=1800.0, freedom=10.0), finding("b", loss=1900.0, freedom=200.0))
    key = key_length(facts(), found, 0, Budget(), "modelled")
    assert key.min_entropy_bits == pytest.approx(2000.0 - 1.3 * (200.0 + 0.72 * 200.0))
    assert any("independent" in text for text in key.assumptions)
    assert key_length(facts(), judgement(finding(loss=999.0)), 0, Budget(), "modelled").bits == 0  # the cliff


def test_an_attack_that_failed_leaves_no_key_and_is_named() -> None:
    found = judgement(failures=(Failure("nearest", "MemoryError: too much"),))
    key = key_length(facts(), found, 0, Budget())
    assert key.bits == 0
    assert key.failure == "attack nearest failed: MemoryError: too much"
    assert key.limiting == "nearest"
    assert all(row.key_bits == 0 for row in key.eves)


def test_nothing_judged_is_no_key_even_with_an_assumption() -> None:
    empty = Judgement(1000, 2000, (), (), 10, -70.0)
    key = key_length(facts(), empty, 0, Budget(), assumed=AssumedEve(correlation=0.0))
    assert (key.bits, key.limiting) == (0, None)
    assert "no attack applies" in str(key.failure)


def test_too_little_entropy_is_said_with_its_terms() -> None:
    key = key_length(facts(), judgement(finding(estimated=150.0)), 30, Budget())
    assert key.bits == 0
    assert str(key.failure).startswith("entropy_exhausted: 150 min_entropy − 30 leaked − 132 hashing")


def test_more_blocks_cost_two_bits_for_each_doubling() -> None:
    assert Budget(64, 1).hashing_bits == 132.0
    assert Budget(64, 8).hashing_bits == 138.0
    assert Budget(64, 8).quarter_log2 == -66


@pytest.mark.parametrize(("epsilon", "blocks"), [(0, 1), (300, 1), (64, 0)])
def test_impossible_budgets_are_refused(epsilon: int, blocks: int) -> None:
    with pytest.raises(InputError, match="accepted"):
        Budget(epsilon, blocks)


def test_a_tag_has_to_be_good_enough_for_epsilon() -> None:
    Budget(64, 1000).check_tag(20_000, 128)
    with pytest.raises(InputError, match=r"ε = 2\^−64 over 1 blocks asks more .* a tag of 64 bits"):
        Budget(64, 1).check_tag(20_000, 64)


def test_epsilon_is_shared_out_over_the_run() -> None:
    shares = key_length(facts(), judgement(), 0, Budget(64, 10)).epsilon_log2
    parts = [shares[k] for k in ("estimation", "correction", "amplification")]
    assert shares["total"] == -64
    assert sum(2.0**p for p in parts) <= 0.75 * 2.0**-64


# ---------------------------------------------------------------- assumed Eves


def test_an_assumed_eve_without_correlation_leaves_everything() -> None:
    assert AssumedEve(correlation=0.0).min_entropy(facts(), Budget()) == 2000.0


def test_the_assumed_entropy_is_renyis() -> None:
    rho, order = 0.5, 1.4
    bound = 1000 * renyi_entropy(rho, 2, order) - (64 + 3) / (order - 1)
    found = AssumedEve(correlation=rho).min_entropy(facts(), Budget())
    assert bound <= found < 1000 * renyi_entropy(rho, 2, 1.0001)


def test_antennas_and_nearness_only_shorten_a_key() -> None:
    for eves in (
        [AssumedEve(correlation=0.3, antennas=n) for n in (1, 2, 4, 8)],
        [AssumedEve(distance_wavelengths=0.3, antennas=n) for n in (1, 2, 4, 8)],
        [AssumedEve(correlation=r) for r in (0.0, 0.2, 0.5, 0.9, 1.0)],
        [AssumedEve(distance_wavelengths=d) for d in (5.0, 1.0, 0.5, 0.2, 0.05, 0.0)],
    ):
        left = [e.min_entropy(facts(), Budget()) for e in eves]
        assert left == sorted(left, reverse=True)
        assert left[0] > left[-1]


def test_an_eve_at_a_distance_is_not_helped_by_the_zeros_of_bessel() -> None:
    # at the first zero, d = 0.383 wavelengths, the next extremum counts: |J0| = 0.403 at 0.61
    eve = AssumedEve(distance_wavelengths=2.4048 / (2 * np.pi))
    assert eve.joint_correlation == pytest.approx(0.403, abs=0.005)
    near = AssumedEve(distance_wavelengths=0.1)
    assert near.joint_correlation == pytest.approx(float(j0(0.2 * np.pi)), abs=0.01)


def test_independent_antennas_add_their_squares() -> None:
    assert AssumedEve(correlation=0.3, antennas=4).joint_correlation == pytest.approx(0.6)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"correlation": 0.3, "distance_wavelengths": 1.0},
        {"correlation": 1.5},
        {"distance_wavelengths": -1.0},
        {"correlation": 0.1, "antennas": 0},
    ],
)
def test_invalid_assumptions_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(InputError, match="accepted"):
        AssumedEve(**fields)  # type: ignore[arg-type]


def test_the_least_of_measured_and_assumed_counts_and_sensitivity_only_goes_down() -> None:
    found = judgement(finding(estimated=1700.0))
    mild = key_length(facts(), found, 0, Budget(), assumed=AssumedEve(correlation=0.01))
    hard = key_length(facts(), found, 0, Budget(), assumed=AssumedEve(correlation=0.5))
    assert (mild.limiting, hard.limiting) == ("eve_now", "assumed")
    assert hard.bits < mild.bits
    for key in (mild, hard):
        rows = [key.bits, *(r.key_bits for r in key.sensitivity)]
        assert rows == sorted(rows, reverse=True)
        assert [r.name for r in key.sensitivity] == ["2 antennas", "4 antennas", "8 antennas", "back later"]
    assert "correlation 0.5" in " ".join(hard.assumptions)


def test_an_unmeasured_eve_is_said() -> None:
    assert "no Eve was measured" in key_length(facts(), judgement(), 0, Budget()).assumptions
    heard = Heard("eve.0:alice", np.arange(3), np.zeros(3), np.zeros((3, 1)))
    measured = Facts(**{**{f: getattr(facts(), f) for f in Facts.__slots__}, "heard": (heard,)})
    assert "no Eve was measured" not in key_length(measured, judgement(), 0, Budget()).assumptions


# ---------------------------------------------------------------- a secret surface of few elements


def under_states(
    states: list[int], state_bits: int | None, published: int = 0, earlier: tuple[Earlier, ...] = ()
) -> Facts:
    """One label of 8 bits in each of 16 dimensions a probe: 128 bits that follow from the surface's state."""
    n, d = len(states), 16
    hidden = np.arange(n * d) >= published
    return Facts(
        value=np.zeros(n * d, np.int64), bits=np.full(n * d, 8), probe=np.repeat(np.arange(n), d),
        dimension=np.tile(np.arange(d), n), published=~hidden, rounds=np.arange(n), time_s=np.arange(n) * 0.1,
        features=np.zeros((n, d)), states=np.array(states), state_bits=state_bits, earlier=earlier,
    )  # fmt: skip


def known_states(*states: int) -> Earlier:
    n = len(states)
    return Earlier("block 0", True, np.arange(-n, 0), np.arange(-n, 0) * 0.1, np.zeros((n, 16)), np.array(states))


def test_a_surface_gives_no_more_bits_than_its_patterns_were_drawn_with() -> None:
    fifty = list(range(50))
    assert under_states(fifty, 40).surface_bits == 50 * 40
    assert under_states(fifty, 40, published=10).surface_bits == 50 * 40 - 10 * 8
    assert under_states(fifty * 2, 40).surface_bits == 50 * 40
    assert under_states(fifty, 40, earlier=(known_states(-1, 7, 7, 9),)).surface_bits == 48 * 40
    assert under_states([0, 1, 2, 0], 2).surface_bits == pytest.approx(log2(4 * 3 * 2))
    assert under_states([2, 1, 3, 0], 2, earlier=(known_states(0, 1),)).surface_bits == pytest.approx(1.0)
    assert under_states(fifty, None).surface_bits is None


@pytest.mark.parametrize("rule", ["estimated", "modelled"])
def test_labels_beyond_the_surfaces_bits_make_no_key(rule: Any) -> None:
    """16 elements of one bit, 100 rounds: only 1600 bits were drawn, even if 12 800 label bits look random to the
    attacks.
    """
    seen = under_states(list(range(100)), 16)
    free = Judgement(1600, 12800, (finding(estimated=12000.0, loss=12700.0),), (), 1, -66.0)
    length = key_length(seen, free, 100, Budget(64, 1), rule)
    assert length.limiting == "surface_counted"
    drawn = sum(log2((1 << 16) - i) for i in range(100))
    assert length.min_entropy_bits == pytest.approx(drawn)
    assert length.bits == int(drawn - 100 - 2 * 66 - log2(12800 // STEP + 1)) // STEP * STEP
    row = next(r for r in length.eves if r.name == "surface_counted")
    assert row.key_bits == length.bits


def test_what_if_the_patterns_were_known_or_somebody_came_back() -> None:
    """200 states of 16 bits: of 12 000 bits that the attacks leave, what moves besides is the rest."""
    seen = under_states(list(range(100)), 16)
    free = Judgement(1600, 12800, (finding(estimated=12000.0, loss=12700.0),), (), 1, -66.0)
    length = key_length(seen, free, 100, Budget(64, 1))
    rows = {r.name: r.key_bits for r in length.sensitivity}
    # the key is capped by what was drawn: whoever knows that has everything, whoever comes back lacks the states
    assert rows == {"pattern known": 0, "back later": length.bits}
    few = under_states([0, 1] * 50, 1)
    rows = {r.name: r.key_bits for r in key_length(few, free, 0, Budget(64, 1)).sensitivity}
    assert rows == {"pattern known": 0, "back later": 0}
    public = under_states(list(range(100)), None)
    length = key_length(public, free, 100, Budget(64, 1))
    rows = {r.name: r.key_bits for r in length.sensitivity}
    assert rows == {"pattern known": length.bits, "back later": 0}
    assert length.bits > 10_000
    assert any("2^16" in text for text in key_length(seen, free, 0, Budget()).assumptions)
