"""What changes in the course of a block: which expert is right, what Eve's channels mean, by how much she lags."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from testbed.entropy.attack import portfolio
from testbed.entropy.courses import piecewise
from testbed.entropy.facts import Facts
from testbed.entropy.gating import gate, weights_in_groups, weights_of_symbols
from testbed.entropy.judge import Finding, judge
from testbed.entropy.read_off import scores
from testbed.entropy.references import eves
from testbed.entropy.regimes import Estimate, changes, switching
from testbed.entropy.ridge import ridge
from testbed.entropy.shifts import known_candidates
from testbed.papers.secrecy_of_keys.cases import FIRST_ROUND, block, heard, lost_packets, noise, order_changes, series


def of(facts: Facts, name: str) -> Finding:
    (found,) = judge(facts, seed=1, attacks=portfolio(1, [name])).findings
    return found


# ---------------------------------------------------------------- gating


def test_a_gate_finds_spells_and_never_asks_the_probe_itself() -> None:
    rng = np.random.default_rng(1)
    first = np.arange(400) // 40 % 2 == 0
    likely = np.where(first[:, None], [0.0, -1.5], [-1.5, 0.0]) + 0.5 * rng.normal(size=(400, 2))
    found = gate(likely)
    assert np.mean((found.without[:, 0] > found.without[:, 1]) == first) > 0.95
    other = likely.copy()
    other[200] = -other[200] * 50.0
    assert gate(other, turns=1).without[200] == pytest.approx(gate(likely, turns=1).without[200])
    assert gate(other, turns=1).without[201] != pytest.approx(gate(likely, turns=1).without[201])


def test_weights_of_a_symbol_follow_from_all_others() -> None:
    loss = np.log(np.array([[0.9, 0.1]] * 30 + [[0.1, 0.9]] * 30))
    probe, group = np.repeat(np.arange(20), 3), np.repeat([0, 1], 30)
    for w in (weights_of_symbols(loss, probe), weights_in_groups(loss, group, probe)):
        assert w.sum(axis=1) == pytest.approx(1.0)
        assert w[:27, 0].min() > 0.95
        assert w[33:, 1].min() > 0.95
    odd = loss.copy()
    odd[7] = np.log([0.001, 0.999])
    assert weights_in_groups(odd, group, probe)[7] == pytest.approx(weights_in_groups(loss, group, probe)[7])
    assert weights_in_groups(odd, group, probe)[12, 1] > 10 * weights_in_groups(loss, group, probe)[12, 1]


# ---------------------------------------------------------------- regimes


def test_a_regression_that_holds_at_times_is_found_and_one_that_always_holds_is_left_alone() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(size=(400, 4))
    clear = np.arange(400) // 20 % 3 == 0
    for x, changing in (
        (np.where(clear[:, None], noise(rng, y, 0.99), noise(rng, y, 0.1)), True),
        (noise(rng, y, 0.5), False),
    ):
        fit = ridge(x, y)
        first = Estimate(fit.mean, np.broadcast_to(fit.spread, y.shape), fit.freedom)
        known = changes(y, first)
        assert (known is not None) == changing
        if known is not None:

            def again(trust: np.ndarray, x: np.ndarray = x) -> Estimate:
                fit = ridge(x, y, trust=trust)
                return Estimate(fit.mean, np.broadcast_to(fit.spread, y.shape), fit.freedom)

            found = switching(y, first, known, again)
            assert np.abs(y - found.mean)[clear].mean() < 0.25 < 0.4 < np.abs(y - first.mean)[clear].mean()
            assert found.spread[clear].mean() < 0.4
            assert found.spread[~clear].mean() > 0.85


# ---------------------------------------------------------------- what her channels mean


def test_an_eve_whose_channels_change_their_order_is_followed() -> None:
    rng = np.random.default_rng(3)
    every, alice = series(rng, 300)
    facts = block(rng, alice, heard=(heard(order_changes(rng, noise(rng, every, 0.999))),))
    stranger = replace(facts, heard=(heard(rng.normal(size=every.shape)),))
    assert of(facts, "eve_locally").guess_probability > 0.8
    assert of(facts, "eve_direct").guess_probability < 0.6
    assert of(stranger, "eve_locally").guess_probability < 0.3


def test_an_eve_who_lacks_only_a_sign_of_each_round_learns_it_from_the_labels_before() -> None:
    rng = np.random.default_rng(4)
    every, alice = series(rng, 300)
    signs = rng.choice([-1.0, 1.0], (every.shape[0], 1))
    facts = block(rng, alice, heard=(heard(signs * noise(rng, every, 0.999)),))
    stranger = replace(facts, heard=(heard(rng.normal(size=every.shape)),))
    found = judge(facts, seed=1, attacks=portfolio(1, ["eve_sign", "eve_magnitude"]))
    sign, magnitude, together = found.findings
    assert sign.guess_probability > 0.75
    assert magnitude.guess_probability < 0.55
    first = facts.kept_bits / (2 * facts.n_dimensions)  # of each round's first label one bit is left
    assert together.log_loss_bits < sign.log_loss_bits < 3 * first
    assert of(stranger, "eve_sign").guess_probability < 0.3


# ---------------------------------------------------------------- courses of shifts


@pytest.mark.parametrize("order", [np.arange(6), np.array([3, 0, 5, 1, 4, 2])])
def test_a_course_follows_an_eve_who_loses_every_fifteenth_packet(order: np.ndarray) -> None:
    rng = np.random.default_rng(11)
    every, alice = series(rng, 300)
    left = np.delete(
        np.arange(every.shape[0]), rng.choice(np.arange(FIRST_ROUND, FIRST_ROUND + 300), 20, replace=False)
    )
    facts = block(rng, alice, heard=(heard(noise(rng, every, 0.999)[left][:, order]),))
    z, reference = scores(facts), eves(facts)[0]
    assert known_candidates(facts, reference, z).change
    (found,) = piecewise(facts, [reference], z)
    assert found is not None
    true = np.searchsorted(left, facts.rounds)  # where her packet of Alice's round stands in her series
    there = left[true] == facts.rounds
    her = np.full(alice.shape, np.nan)
    her[there] = reference.values[true[there]]
    right = np.isclose(found.inputs, her).all(axis=1)
    assert right[there].mean() > 0.9


def test_nothing_is_followed_of_a_stranger() -> None:
    rng = np.random.default_rng(12)
    every, alice = series(rng, 300)
    facts = block(rng, alice, heard=(heard(lost_packets(20)(rng, rng.normal(size=every.shape))),))
    assert not known_candidates(facts, eves(facts)[0], scores(facts)).change
