"""The chain of soft decisions: cells, levels, multistage decoding, the Gaussian model of Eve."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr
from scipy.stats import norm

from testbed.chain.dialogue import Conversation, run
from testbed.chain.enhance.klt import Klt, delay_basis
from testbed.chain.knowledge import Knowledge
from testbed.chain.pipeline import KeyChain
from testbed.chain.quantize.equiprobable import Equiprobable
from testbed.chain.reconcile.multilevel import Multilevel, first_checks
from testbed.core.config import Accounting, ChainPlan
from testbed.core.errors import InputError
from testbed.core.stages import Evidence
from testbed.core.types import Bits, CsiSeries, Features
from testbed.entropy.gaussian_labels import (
    DOUBTS,
    Symbols,
    bit_llr,
    cell_probabilities,
    fit_noise,
    level_entropies,
    noises,
    normal_scores,
    renyi_entropy,
)
from testbed.papers.reciprocity import study_limit as limit

PLAN = ChainPlan(
    enhance="klt", enhance_options={"phase": "coherent"}, quantize="equiprobable", reconcile="multilevel"
)  # fmt: skip
MODELLED = Accounting(entropy="modelled", sacrifice_fraction=0.05)
FAR = msgspec.structs.replace(MODELLED, assumed_eve_distance_wavelengths=1.0)


def pair(n: int, snr_db: float, dimensions: int = 1, seed: int = 1):
    rng = np.random.default_rng(seed)
    h, noise = rng.normal(size=(n, dimensions)), 10 ** (-snr_db / 20)
    return [Features(h + noise * rng.normal(size=h.shape), np.arange(n)) for _ in range(2)]


def series(n: int, snr_db: float, kappa: float = 0.0, seed: int = 1):
    """CSI of one subcarrier at Alice, Bob and Eve."""
    rng = np.random.default_rng(seed)

    def normal():
        return (rng.normal(size=(n, 1, 1, 1)) + 1j * rng.normal(size=(n, 1, 1, 1))) / np.sqrt(2)

    h, noise = normal(), 10 ** (-snr_db / 20)
    seen = h + noise * normal(), h + noise * normal(), kappa * h + np.sqrt(1 - kappa**2) * normal()
    return [CsiSeries(x.astype(np.complex64), np.arange(n), np.zeros(1)) for x in seen]


# ---------------------------------------------------------------- labels


def test_level_entropies_add_up_to_the_entropy_of_the_label_and_approach_the_mutual_information():
    rho = 10 / 11
    for m in (1, 3, 6):

        def entropy(y, m=m):
            p = cell_probabilities(np.array([y]), rho, m, np.arange(1 << m)[None, :])[0]
            return float(-(p * np.log2(np.maximum(p, 1e-300))).sum()) * norm.pdf(y)

        exact = quad(entropy, -9, 9, limit=200)[0]
        assert sum(level_entropies(rho, m)) == pytest.approx(exact, abs=2e-3)
    assert 6 - sum(level_entropies(rho, 6)) == pytest.approx(-0.5 * np.log2(1 - rho**2), abs=0.015)


def test_llr_is_that_of_the_samples():
    rng, rho, m = np.random.default_rng(3), 0.9, 3
    y = rng.normal(size=200_000)
    x = rho * y + np.sqrt(1 - rho**2) * rng.normal(size=y.size)
    cell = np.floor(ndtr(x) * 8).astype(int)
    llr = bit_llr(y, rho, m, 1, cell & 1)
    for low, high in ((-2, -1), (-0.2, 0.2), (1, 2)):
        own = (llr > low) & (llr < high)
        expected = np.mean(1 / (1 + np.exp(-llr[own])))
        assert np.mean(((cell[own] >> 1) & 1) == 0) == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(own.sum()))


@pytest.mark.parametrize("snr_db", [0, 10, 25])
def test_noise_is_found_from_published_cells(snr_db):
    a, b = pair(4000, snr_db)
    za, zb = normal_scores(a.values)[:, 0], normal_scores(b.values)[:, 0]
    cells = np.floor(ndtr(za) * 32).astype(int)
    found = noises()[np.argmax(fit_noise(cells, 5, zb)[0])]
    rho = 1 / (1 + 10 ** (-snr_db / 10))
    assert found == pytest.approx(1 - rho**2, rel=0.12)
    cells[::50] = np.random.default_rng(1).integers(0, 32, 80)
    likely = fit_noise(cells, 5, zb)
    if snr_db == 25:  # one in fifty is an outlier: found, and the noise of the others as before
        which = likely.max(axis=1).argmax()
        assert DOUBTS[which] in (0.01, 0.03)
        assert noises()[np.argmax(likely[which])] == pytest.approx(1 - rho**2, rel=0.12)


def test_symbols_know_whether_labels_are_whole():
    bits = Bits(np.array([1, 0, 1, 1], np.uint8), *(np.array(x) for x in ([0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1])))
    whole = Symbols.of(bits)
    assert whole.whole
    assert whole.value.tolist() == [2, 3]
    assert not Symbols.of(bits.take(np.array([0, 1, 3]))).whole


def test_renyi_entropy_falls_with_its_order_from_shannons():
    shannon = sum(level_entropies(0.8, 4))
    values = [renyi_entropy(0.8, 4, order) for order in (1.0001, 1.1, 1.5, 2.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(shannon, abs=1e-3)
    assert renyi_entropy(0.0, 4, 1.5) == 4


# ---------------------------------------------------------------- stages


def test_better_dimensions_get_more_bits_and_useless_ones_none():
    rng, n = np.random.default_rng(2), 4000
    h, noise = rng.normal(size=(n, 4)), np.array([0.03, 0.1, 0.5, 30.0])
    a, b = (Features(h + noise * rng.normal(size=h.shape), np.arange(n)) for _ in range(2))
    q = Equiprobable()
    draft, lead = q.lead(a, rng)
    _, follow = q.follow(b, lead)
    depth = list(follow.body["depth"])
    assert depth[0] > depth[1] > depth[2] > depth[3] == 0
    alice = q.finish(draft, follow)
    assert np.array_equal(np.bincount(alice.dimension, minlength=4), n * np.array(depth))
    for d in range(3):  # cut by rank: balanced within one
        counts = np.bincount(Symbols.of(alice.take(alice.dimension == d)).value)
        assert counts.max() - counts.min() <= 1
    pilots = q.published(alice, lead)
    assert pilots.sum() == 32 * sum(depth)


@pytest.mark.parametrize("cells", ["rank", "normal"])
@pytest.mark.parametrize(("n", "snr_db"), [(400, 5), (3000, 15), (3000, 30)])
def test_soft_reconciliation_ends_equal_and_leaks_little_more_than_it_must(n, snr_db, cells):
    (a, b), q, r, rng = pair(n, snr_db), Equiprobable(cells=cells), Multilevel(), np.random.default_rng(4)
    draft, lead = q.lead(a, rng)
    bob, follow = q.follow(b, lead)
    alice = q.finish(draft, follow)
    public = np.isin(alice.probe, np.flatnonzero(rng.random(n) < 0.1))
    sides = [Evidence(x.take(~public), 0.2, f, alice.take(public)) for x, f in ((alice, a), (bob, b))]
    one, two, said = run(r.alice(sides[0], rng), r.bob(sides[1], rng))
    assert np.array_equal(one.values, two.values)
    assert np.array_equal(one.values, alice.values[~public])
    rho, m = 1 / (1 + 10 ** (-snr_db / 10)), int(alice.level_bit.max()) + 1
    needed = sum(level_entropies(rho, m)) * np.count_nonzero(~public) / m
    leaked = sum(message.leaked_bits for _, message in said)
    assert 0.93 * needed < leaked < (1.35 if n < 1000 else 1.12) * needed + 100


def test_a_wrong_channel_estimate_is_refused_or_corrected_but_never_silently_wrong():
    (a, b), q, rng = pair(1500, 12), Equiprobable(bits=4), np.random.default_rng(4)
    draft, lead = q.lead(a, rng)
    bob, follow = q.follow(b, lead)
    alice = q.finish(draft, follow)
    public = np.isin(alice.probe, np.arange(150))
    lie = alice.take(public)
    lie = replace(lie, values=np.random.default_rng(1).integers(0, 2, lie.values.size).astype(np.uint8))
    flattered = replace(lie, values=bob.take(public).values)
    for published in (lie, flattered):
        stage = Multilevel(rounds=3)
        sides = [Evidence(x.take(~public), 0.2, f, published) for x, f in ((alice, a), (bob, b))]
        one, two = Conversation(stage.alice(sides[0], rng)), Conversation(stage.bob(sides[1], rng))
        to_two, to_one = one.advance(), two.advance()
        while to_one or to_two:
            to_two, to_one = ([m for x in to_one for m in one.advance(x)], [m for x in to_two for m in two.advance(x)])
        assert two.done
        if two.result is None:
            assert two.failure.reason == "not_decoded"
        elif published is lie:  # no channel at all: everything was sent, nothing is left to go wrong
            assert np.array_equal(two.result.values, one.result.values)


def test_first_checks_grow_with_entropy_and_end_in_clear_bits():
    checks = [first_checks(10_000, h, 0.0) for h in (0.01, 0.1, 0.5, 0.9, 0.99)]
    assert checks == sorted(checks)
    assert checks[-1] == 10_000
    assert 5000 < checks[2] < 5400


def test_klt_dimensions_are_uncorrelated_ordered_and_reciprocal():
    rng, n, f = np.random.default_rng(1), 6000, np.arange(32) * 312.5e3
    values, vectors = delay_basis(f, 100e-9)
    assert np.all(np.diff(values) < 1e-9)
    assert values.sum() == pytest.approx(32)
    h = ((rng.normal(size=(n, 32)) + 1j * rng.normal(size=(n, 32))) * np.sqrt(np.maximum(values, 0) / 2)) @ vectors.T
    csi = CsiSeries(h[:, None, None, :].astype(np.complex64), np.arange(n), f)
    out = Klt(rms_delay_s=100e-9, dimensions=5, phase="coherent").transform(csi, "alice").values
    assert out.shape == (n, 10)
    np.testing.assert_allclose(out.var(axis=0), np.repeat(values[:5], 2) / 2, rtol=0.08)
    assert np.abs(np.corrcoef(out.T) - np.eye(10)).max() < 0.06
    # without a common phase and delay the other end sees the same
    turned = replace(csi, h=(csi.h * np.exp(1j * (rng.uniform(0, 6.28, (n, 1, 1, 1)) + 2e-6 * f))).astype(np.complex64))
    aligned = Klt(rms_delay_s=100e-9, dimensions=5)
    np.testing.assert_allclose(
        aligned.transform(turned, "bob").values, aligned.transform(csi, "alice").values, atol=2e-3
    )


# ---------------------------------------------------------------- pipeline and accounting


def block(n: int, kappa: float, snr_db: float = 18.0, accounting: Accounting = FAR):
    """A block agreed at both ends, and what Eve reports of it."""
    a, b, e = series(n, snr_db, kappa)
    chain = KeyChain(PLAN, accounting)
    alice, bob, _ = run(chain.agree("alice", a, 0, 5), chain.agree("bob", b, 0, 5))
    assert alice.report.verified, alice.report.failure
    assert np.array_equal(alice.values, bob.values)
    known = Knowledge()
    known.add_heard(chain.report_series(e, None))
    return chain, alice, bob, known


def test_a_key_comes_out_by_the_model_and_both_reports_say_so():
    chain, alice, bob, known = block(500, 0.0)
    decided = chain.decide(alice, known.facts(alice), 5)
    (key_a, ours), (key_b, theirs), _ = run(
        chain.amplify("alice", alice, decided, 5), chain.amplify("bob", bob, None, 5)
    )
    assert np.array_equal(key_a.bits, key_b.bits)
    assert ours.entropy == theirs.entropy == "modelled"
    assert ours.key_bits == theirs.key_bits == key_a.bits.size
    assert ours.eve_measured
    assert 0.4 < ours.key_bits / (500 * limit.limits(10**1.8, 0.0)[0]) < 1.0
    assert "labels are independent of one another given what the limiting attack knows" in ours.assumptions
    # sacrificed labels are whole, and pilots among them
    assert Symbols.of(alice.raw.take(alice.sacrificed)).whole


def test_the_nearer_eve_the_shorter_the_key():
    lengths = []
    for kappa in (0.0, 0.6, 0.95):
        chain, alice, _, known = block(500, kappa)
        measured = chain.decide(alice, known.facts(alice), 5)
        assert measured.eve_measured
        lengths.append(measured.key_bits)
        # no chain may keep more than the channel's limit given this Eve
        assert measured.key_bits < 500 * limit.limits(10**1.8, kappa)[0]
    assert lengths[0] > lengths[1] > lengths[2] == 0


def test_an_unmeasured_eve_costs_what_is_assumed():
    chain, alice, _, _ = block(500, 0.0, accounting=MODELLED)
    nobody = chain.decide(alice, Knowledge().facts(alice), 5)
    assert not nobody.eve_measured
    assert nobody.limiting == "assumed"
    assert nobody.key_bits < 500 * limit.limits(10**1.8, 0.9)[0]
    assert nobody.assumptions[2] == "Eve has one antenna, each with correlation 0.9 at most"


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        (Equiprobable, {"bits": 9}), (Equiprobable, {"pilots": 4}), (Equiprobable, {"shortfall": 0.6}),
        (Equiprobable, {"cells": "square"}), (Multilevel, {"rounds": 99}), (Multilevel, {"step": 0.5}),
        (Multilevel, {"margin": 9}), (Klt, {"rms_delay_s": 0.0}), (Klt, {"phase": "odd"}), (Klt, {"dimensions": -1}),
    ],
)  # fmt: skip
def test_refused_options_are_named(stage, options):
    with pytest.raises(InputError, match="accepted"):
        stage(**options)


# ---------------------------------------------------------------- the yardstick


def test_limits_are_the_determinants_written_out():
    snr, kappa = 31.0, 0.6
    cov = np.array([[1, 0, kappa], [0, 1, kappa], [kappa, kappa, 1.0]])
    cov[:2, :2] = [[1 + 1 / snr, 1], [1, 1 + 1 / snr]]
    det = np.linalg.det
    ab_e = np.log2(det(cov[np.ix_([0, 2], [0, 2])]) * det(cov[np.ix_([1, 2], [1, 2])]) / (cov[2, 2] * det(cov)))
    to_eve = np.log2(cov[0, 0] * cov[2, 2] / det(cov[np.ix_([0, 2], [0, 2])]))
    got = limit.limits(snr, kappa)
    assert got[0] == pytest.approx(ab_e)
    assert got[2] == pytest.approx(to_eve)
    assert got[1] == pytest.approx(limit.limits(snr, 0.0)[0] - to_eve)
