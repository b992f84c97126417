"""The studies of quantizers: what they measure is right where theory knows the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.papers.kit.study import Study
from testbed.papers.reciprocity import quantized, uma_walk
from testbed.papers.reciprocity import study_leakage as leakage
from testbed.papers.reciprocity import study_quantizers as quantizers
from testbed.papers.reciprocity.quantized import CASES, GREEDY, HUNGARIAN, ILP, KMEANS, SCALAR


def rayleigh(n: int, m: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).normal(size=(n, m, 2)) @ np.array([1.0, 1.0j]) / np.sqrt(2)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put snapshots of independent Rayleigh channels where a study looks for the air's; Eve's correlation is given."""
    monkeypatch.setenv(uma_walk.CACHE_VARIABLE, str(tmp_path))

    def keep(walk: uma_walk.Walk, rho: float = 0.0) -> uma_walk.Walk:
        ab, other = (rayleigh(walk.n_probes, walk.n_subcarriers, seed) for seed in (walk.seed, walk.seed + 1000))
        links = {"ab": ab}
        if walk.eve_near:
            heard = rho * ab + np.sqrt(1 - rho**2) * other
            links |= {"ae": heard, "be": heard}
        np.savez(tmp_path / uma_walk.file_name(walk), **{k: v.astype(np.complex64) for k, v in links.items()})
        return walk

    return keep


def test_bits_of_a_coefficient_are_neighbours() -> None:
    h = rayleigh(60, 3)
    parts = quantized.features(h, True).values
    np.testing.assert_array_equal(parts[:, 4], h[:, 2].real)
    np.testing.assert_array_equal(parts[:, 5], h[:, 2].imag)
    for case in CASES:
        block = quantized.quantized(case, h, h, 1)
        assert block.alice.shape == (180, 4)
        assert block.kdr == block.label_errors == 0.0
        np.testing.assert_array_equal(quantized.guessed(case, block, h), block.alice)
    block = quantized.quantized(KMEANS, h, h, 1)
    changed = h.copy()
    far = int(np.argmax(np.abs(h[:, 1])))
    changed[far, 1] *= -1.0
    wrong = (quantized.guessed(KMEANS, block, changed) != block.alice).any(axis=1)
    assert wrong[far * 3 + 1]
    assert wrong.sum() <= 9  # of 180: its subcarrier's level and gain shift a little


def test_estimates_of_information_are_right_and_without_bias() -> None:
    rng = np.random.default_rng(1)
    k, n, p = 16, 4000, 0.2
    x, y = rng.integers(0, k, n), rng.integers(0, k, n)
    assert quantized.entropy_bits(x, k) == pytest.approx(4.0, abs=0.005)
    assert abs(quantized.shared_bits(x, y, k)) < 0.01  # the plug-in estimate would say 0.04
    noisy = np.where(rng.random(n) < p, (x + rng.integers(1, k, n)) % k, x)
    theory = 4.0 + (1 - p) * np.log2(1 - p) + p * np.log2(p / (k - 1))
    assert quantized.shared_bits(x, noisy, k) == pytest.approx(theory, abs=0.06)


def test_a_perfect_eve_knows_all_and_a_blind_one_nothing() -> None:
    bits = np.random.default_rng(1).integers(0, 2, (4000, 4)).astype(np.uint8)
    other = np.random.default_rng(2).integers(0, 2, (4000, 4)).astype(np.uint8)
    assert leakage.leaks(bits, bits) == pytest.approx({"labels": 1.0, "bits": 1.0}, abs=0.01)
    assert leakage.leaks(other, bits) == pytest.approx({"labels": 0.0, "bits": 0.0}, abs=0.005)
    one = bits.copy()
    one[:, 1:] = other[:, 1:]
    assert leakage.leaks(one, bits) == pytest.approx({"labels": 0.25, "bits": 0.25}, abs=0.01)


def test_an_eve_with_analogue_values_knows_more_than_her_label_and_less_than_the_bound() -> None:
    found = leakage._swept(leakage.Sweep(1, 0.8, 3000))
    for case in leakage.CASES:
        leak = found[case.label]
        assert 0 < leak["bits"] < leak["labels"] < leak["analogue"] + 0.02 < found["bound"] + 0.02
        assert leak["labels"] < leak["alice"]
    # a sign tells I = 1 − E[h(P(sign | y))]: known by integration
    rng, rho = np.random.default_rng(1), 0.8
    sign = leakage.analogue_bits(lambda x: (x.real > 0).astype(np.int64), rho, rng)
    from scipy.stats import norm

    y = np.random.default_rng(2).normal(size=200_000) * np.sqrt(0.5)
    up = norm.cdf(rho * y / np.sqrt((1 - rho**2) / 2))
    assert sign == pytest.approx(1 + np.mean(up * np.log2(up) + (1 - up) * np.log2(1 - up)), abs=0.05)


def test_both_exact_quantizers_give_one_key_and_disagreement_falls_with_noise(kept: Any) -> None:
    walk = kept(uma_walk.Walk(n_probes=40, n_subcarriers=8))
    loud, quiet = (quantizers._compare(quantizers.Point(walk, "noise", snr_db)) for snr_db in (10.0, 30.0))
    for case in CASES:
        assert quiet[case.label]["kdr"] < 0.5 * loud[case.label]["kdr"]
    assert quiet[ILP.label]["keys"] == quiet[HUNGARIAN.label]["keys"] != b""
    assert HUNGARIAN.label not in quantizers._compare(quantizers.Point(walk, "impairments", 20.0))


def test_balance_at_bob_undoes_a_gain_that_k_means_does_not(kept: Any) -> None:
    found = quantizers._mismatched(
        kept(uma_walk.Walk(n_probes=60, n_subcarriers=8))
    )  # (gain, k-means | greedy | exact)
    assert found[0, 0] < found[0, 2]
    assert found[-1, 2] < 0.5 * found[-1, 0]
    np.testing.assert_allclose(found[:, 2], found[0, 2], atol=1e-9)


@pytest.mark.parametrize("end", ["alice", "bob"])
def test_an_eve_in_place_leaks_by_the_correlation_of_her_channel(kept: Any, end: str) -> None:
    walk = uma_walk.Walk(n_probes=90, n_subcarriers=8, eve_near=end, eve_wavelengths=0.1)
    near, far = (leakage._in_place(kept(walk, rho)) for rho in (0.95, 0.1))
    assert near["correlation"] == pytest.approx(0.95, abs=0.02)
    assert far["correlation"] < 0.2
    for case in leakage.CASES:
        for story in ("plain", "compensated", "compensated, Eve too"):
            assert far[case.label][story]["bits"] < 0.03 < near[case.label][story]["bits"]
    assert near[ILP.label]["kdr compensated"] < near[ILP.label]["kdr"]
    assert near[SCALAR.label]["kdr compensated"] == near[SCALAR.label]["kdr"]  # magnitudes: a factor is taken out


def test_times_and_keys_come_in_the_order_of_their_quantizers(kept: Any) -> None:
    took = quantizers._timed(96, 16, 0.1, 1)
    assert len(took) == 4
    assert min(took) > 0
    walk = kept(uma_walk.Walk(seed=3, n_probes=80, n_subcarriers=2))
    keys = quantizers._raw_key(walk)
    assert [key.shape for key in keys] == [(160, 4)] * len(CASES)
    sizes = np.bincount(quantized.symbols(keys[CASES.index(GREEDY)]), minlength=16)
    assert (sizes == 10).all()
    uneven = np.bincount(quantized.symbols(keys[CASES.index(KMEANS)]), minlength=16)
    assert np.ptp(uneven) > 3


@pytest.mark.long
@pytest.mark.parametrize("module", [quantizers, leakage])
def test_a_quick_run_keeps_what_must_hold(module: Any) -> None:
    pytest.importorskip("sionna", reason="the extra `uma` is not installed")
    with Study("x", "B", quick=True) as study:
        module.run(study)
    claims = study.results(0.0)["claims"]
    assert [c for c in claims if c["must_hold"] and not c["holds"]] == []
