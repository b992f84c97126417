"""Paper C: covariances, gradients, closed forms, algorithms 1 and 2, baselines, joint solver, quantized phases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.core.errors import InputError
from testbed.papers.kit.mutual_information import gaussian_bits_with_error
from testbed.papers.multicell import alternating, no_ris
from testbed.papers.multicell import joint as cells_joint
from testbed.papers.multicell import levels as cells_levels
from testbed.papers.multicell import phases as cells_phases
from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell import random as cells_random
from testbed.papers.multicell.general import GeneralMultiCell
from testbed.papers.multicell.model import MultiCell
from testbed.papers.multicell.rates import bounds_bits, canonical, rates_bits


def _three_cells(seed: int, n_surfaces: int = 2, n_elements: int = 5, **changes: Any) -> MultiCell:
    rng = np.random.default_rng(seed)
    model = MultiCell.at(
        [(0, 0, 30), (600, 0, 30), (0, 600, 30)], [(280, 0, 1.5), (320, 0, 1.5), (280, 600, 1.5)],
        [(300, 0, 10), (270, 590, 10)][:n_surfaces], n_elements=n_elements, n_chains=3, rng=rng,
    )  # fmt: skip
    return replace(model, weights=np.array([1.0, 2.0, 0.5]), **changes)


def _point(model: MultiCell, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return cells_precoders.random(model, rng), rng.uniform(0, 2 * np.pi, model.n_phases)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2]), st.sampled_from([{}, {"coherent": True}, {"los_known": True}]))
def test_linear_cost_and_theorem_4_agree(seed: int, n_surfaces: int, changes: dict[str, Any]) -> None:
    model = _three_cells(seed, n_surfaces, **changes)
    general = GeneralMultiCell.of(model)
    precoders, phases_rad = _point(model, seed)
    c = model.covariances(phases_rad)
    np.testing.assert_allclose(general.covariances(phases_rad), c, rtol=0, atol=1e-12 * np.abs(c).max())
    ours = model.slopes(precoders, phases_rad)[1]
    contracted = general.slopes(precoders, phases_rad)[1]
    printed = 2 * np.imag(general.theorem_4(precoders, phases_rad).conj() * np.exp(-1j * phases_rad))
    # where no phase matters, rounding is all there is: what the covariances' slopes could give is the scale
    scale = max(float(np.abs(ours).max()), 1e-6)
    assert np.abs(contracted - ours).max() < 1e-8 * scale
    assert np.abs(printed - ours).max() < 1e-8 * scale


def test_gradients_are_those_of_automatic_differentiation() -> None:
    model = _three_cells(1)
    precoders, phases_rad = _point(model, 2)
    p = torch.tensor(precoders, requires_grad=True)
    angles = torch.tensor(phases_rad, requires_grad=True)
    bits = (torch.tensor(model.weights) * bounds_bits(p, model.covariances(angles))).sum()
    bits.backward()
    found, by_phase = model.slopes(precoders, phases_rad)
    assert float(found.bits) == pytest.approx(float(bits.detach()), rel=1e-12)
    assert p.grad is not None
    assert angles.grad is not None
    np.testing.assert_allclose(2 * found.precoders, p.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(by_phase, angles.grad.numpy(), atol=1e-12)


def test_single_precision_and_batches() -> None:
    models = [_three_cells(s) for s in range(3)]
    batch = MultiCell.stack(models)
    points = [_point(m, s) for s, m in enumerate(models)]
    p, phases = np.stack([p for p, _ in points]), np.stack([t for _, t in points])
    double = batch.bounds(p, phases)
    np.testing.assert_allclose(double, [m.bounds(*x) for m, x in zip(models, points, strict=True)], rtol=1e-12)
    c = batch.covariances(torch.tensor(phases, dtype=torch.float32))
    assert c.dtype == torch.complex64
    for function, wanted in ((bounds_bits, double), (rates_bits, batch.rates(p, phases))):
        single = function(torch.tensor(p, dtype=torch.complex64), c)
        np.testing.assert_allclose(single.numpy(), wanted, atol=2e-4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_bound_is_above_the_rate_and_tight_with_all_chains(seed: int) -> None:
    model = _three_cells(seed)
    precoders, phases_rad = _point(model, seed)
    assert (model.rates(precoders, phases_rad) <= model.bounds(precoders, phases_rad) + 1e-9).all()
    full = replace(model, n_chains=4)
    precoders, _ = _point(full, seed)
    np.testing.assert_allclose(full.rates(precoders, phases_rad), full.bounds(precoders, phases_rad), atol=1e-6)
    # canonical directions carry all of it, each of the two ends alone
    c = full.covariances(phases_rad)
    _, b, rho = canonical(precoders, c)
    np.testing.assert_allclose(-np.log2(1 - rho**2).sum(axis=-1), full.bounds(precoders, phases_rad), atol=1e-9)
    z = c.sum(axis=1) + np.eye(4)
    np.testing.assert_allclose(b @ z @ b.conj().swapaxes(-1, -2), np.broadcast_to(np.eye(4), z.shape), atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"los_known": True}, {"coherent": True}])
def test_closed_forms_are_what_probing_gives(changes: dict[str, Any]) -> None:
    """With the Rician links drawn one by one: second moments are all that the closed form looks at."""
    model = _three_cells(3, n_elements=12, **changes)
    precoders, phases_rad = _point(model, 4)
    y, z = model.probe(precoders, phases_rad, 20_000, np.random.default_rng(5))
    for k in range(2):
        for closed, seen in (
            (model.bounds(precoders, phases_rad)[k], z[k]),
            (model.rates(precoders, phases_rad)[k], z[k] @ precoders[k].T),
        ):
            bits, error = gaussian_bits_with_error(y[k], seen)
            assert error < 0.03
            assert abs(bits - closed) < 4 * error
    moment = np.einsum("kpa,kpb->kab", z, z.conj()) / z.shape[1]
    closed = model.covariances(phases_rad).sum(axis=1) + np.eye(4)
    assert np.abs(moment - closed).max() < 0.05 * np.abs(closed).max()


def test_without_a_surface_the_known_rate_comes_out() -> None:
    model = MultiCell.two_cells()
    found = no_ris.design(model)
    assert model.without_surface().rates(found.precoders, found.phases_rad).sum() == pytest.approx(0.485, rel=0.03)


def test_the_stated_geometry_gives_what_was_computed_independently() -> None:
    tall = MultiCell.two_cells(array="tall")
    best = cells_joint.design(tall, np.random.default_rng(1), 4)
    assert tall.rates(best.precoders, best.phases_rad).sum() == pytest.approx(7.3, rel=0.03)
    drawn = MultiCell.stack([MultiCell.two_cells(rng=np.random.default_rng(s)) for s in range(6)])
    bits = cells_joint.design(drawn, np.random.default_rng(1), 3)
    rates = drawn.rates(bits.precoders, bits.phases_rad).sum(axis=-1)
    # 5.6 without word of how many draws: 60 of ours have the mean 5.47, the standard deviation 0.19
    assert rates.mean() == pytest.approx(5.6, rel=0.05)
    assert 4.9 < rates.min() < rates.max() < 7.3
    blind = cells_random.design(drawn, np.random.default_rng(2))
    assert 0.5 < drawn.rates(blind.precoders, blind.phases_rad).sum(axis=-1).mean() < 1.2
    assert (drawn.weighted_bound(blind.precoders, blind.phases_rad) < rates).all()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_algorithms_climb_and_keep_their_bounds(seed: int) -> None:
    model = _three_cells(seed, n_elements=20)
    precoders, phases_rad = _point(model, seed)
    first = cells_precoders.design(model, phases_rad, precoders, 60)
    second = cells_phases.design(model, first.precoders, phases_rad, 60)
    both = alternating.design(model, phases_rad, precoders, rounds=4, inner=30)
    for found in (first, second, both):
        assert np.diff(found.history).min() > -1e-9
        assert found.history[-1] > found.history[0]
        assert found.history[-1] == pytest.approx(float(model.weighted_bound(found.precoders, found.phases_rad)))
        assert ((np.abs(found.precoders) ** 2).sum(axis=(-2, -1)) <= model.power_w * (1 + 1e-9)).all()


def test_algorithm_1_ends_in_a_stationary_point() -> None:
    """Where the power binds, the gradient is a multiple of the precoder (KKT), the multiplier not negative."""
    model = MultiCell.two_cells(rng=np.random.default_rng(4))
    phases_rad = np.random.default_rng(5).uniform(0, 6, 60)
    start = cells_precoders.random(model, np.random.default_rng(6))
    found = cells_precoders.design(model, phases_rad, start, 4000, 1e-12)
    slope = model.slopes(np.asarray(found.precoders, complex), phases_rad)[0].precoders
    for p, g in zip(found.precoders, slope, strict=True):
        multiplier = np.real(np.vdot(p, g)) / np.real(np.vdot(p, p))
        assert multiplier > 0
        assert np.abs(g - multiplier * p).max() < 1e-4 * np.abs(g).max()


def test_the_general_model_serves_the_same_algorithms() -> None:
    model = MultiCell.two_cells(n_elements=8, rng=np.random.default_rng(1))
    precoders, phases_rad = _point(model, 1)
    ours = alternating.design(model, phases_rad, precoders, rounds=2, inner=20)
    same = alternating.design(GeneralMultiCell.of(model), phases_rad, precoders, rounds=2, inner=20)
    assert same.history == pytest.approx(ours.history, rel=1e-6)


def test_the_joint_solver_is_no_worse_than_alternation_and_far_above_the_identity_start() -> None:
    model = MultiCell.stack([MultiCell.two_cells(rng=np.random.default_rng(s)) for s in (0, 1)])
    best = cells_joint.design(model, np.random.default_rng(1), 4)
    bits = model.weighted_bound(best.precoders, best.phases_rad)
    stuck = alternating.design(model, np.random.default_rng(2).uniform(0, 6, (2, 60)))
    assert (bits > 1.2 * model.weighted_bound(stuck.precoders, stuck.phases_rad)).all()
    assert np.diff(best.history).min() > -1e-9


@pytest.mark.parametrize("power_dbm", [0.0, 10.0])
def test_the_joint_solver_climbs_where_the_objective_curves_upwards(power_dbm: float) -> None:
    """At low power the rate grows with the square of the precoders: steps must grow, or the climb stays at its foot."""
    model = MultiCell.two_cells(n_elements=20, n_antennas=6, n_chains=4, power_dbm=power_dbm)
    best = cells_joint.design(model, np.random.default_rng(1), 2, polish=0)
    precoders, phases_rad = cells_joint.random_start(model, np.random.default_rng(2))
    peer = alternating.design(model, phases_rad, precoders)
    assert best.history[-1] > 0.99 * peer.history[-1]


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_levels_climb_above_rounding_to_a_point_that_no_single_element_improves(bits: int) -> None:
    model = MultiCell.stack([MultiCell.two_cells(n_elements=20, rng=np.random.default_rng(s)) for s in (0, 1)])
    best = cells_joint.design(model, np.random.default_rng(1), 2)
    precoders = np.asarray(best.precoders, complex)
    rounded = cells_levels.projected(model, precoders, best.phases_rad, bits)
    climbed = cells_levels.design(model, precoders, best.phases_rad, bits, n_turns=2)
    levels = climbed.phases_rad / (2 * np.pi / 2**bits)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-9)
    value = model.weighted_bound(climbed.precoders, climbed.phases_rad)
    assert (value >= model.weighted_bound(rounded.precoders, rounded.phases_rad)).all()
    for element in (0, 7, 19):
        for level in range(2**bits):
            other = climbed.phases_rad.copy()
            other[:, element] = level * 2 * np.pi / 2**bits
            assert (model.weighted_bound(climbed.precoders, other) <= value * (1 + 1e-5)).all()


def test_levels_come_close_to_trying_every_pattern() -> None:
    model = MultiCell.stack([MultiCell.two_cells(n_elements=7, rng=np.random.default_rng(s)) for s in range(2)])
    best = cells_joint.design(model, np.random.default_rng(1), 2)
    precoders = np.asarray(best.precoders, complex)
    found = cells_levels.design(model, precoders, best.phases_rad, 1)
    value = model.weighted_bound(found.precoders, found.phases_rad)
    patterns = np.pi * ((np.arange(2**6)[:, None] >> np.arange(7)) & 1)  # the last element at 0: a turn of all is free
    every = cells_precoders.design(model, np.broadcast_to(patterns[:, None], (64, 2, 7)), precoders, 150)
    most = model.weighted_bound(every.precoders, every.phases_rad).max(axis=0)
    assert (value <= most * (1 + 1e-3)).all()
    assert (value / most).mean() > 0.97


def test_known_lines_of_sight_leave_nothing_for_the_phases_to_do() -> None:
    model = replace(MultiCell.two_cells(), los_known=True)
    precoders, _ = _point(model, 1)
    rates = [float(model.weighted_bound(precoders, np.random.default_rng(s).uniform(0, 6, 60))) for s in range(3)]
    assert rates == pytest.approx([rates[0]] * 3)
    assert np.abs(model.slopes(precoders, np.zeros(60))[1]).max() < 1e-12


def test_what_cannot_be_is_refused_in_one_line() -> None:
    model = MultiCell.two_cells(n_elements=6)
    precoders, phases_rad = _point(model, 1)
    general = GeneralMultiCell.of(model)
    bad = general.direct.copy()
    bad[0, 1] = np.diag([1.0, 1.0, 1.0, -0.5])
    with pytest.raises(InputError, match=r"direct of base station 0 and terminal 1 is no covariance.*eigenvalue -0.5"):
        replace(general, direct=bad)
    bad[0, 1] = np.eye(4) + np.triu(np.ones((4, 4)), 1)
    with pytest.raises(InputError, match="not Hermitian"):
        replace(general, direct=bad)
    bad[0, 1, 0, 0] = np.nan
    with pytest.raises(InputError, match="not all entries are finite"):
        replace(general, direct=bad)
    for power in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(InputError, match=r"power P_A = .* accepted: finite and above 0"):
            replace(model, power_w=power)
    with pytest.raises(InputError, match="power P_A"):
        MultiCell.two_cells(power_dbm=float("nan"))
    for wrong in (phases_rad[:-1], np.zeros(60), np.array(0.0)):
        with pytest.raises(InputError, match=r"accepted: \(…, 6\)"):
            model.covariances(wrong)
    with pytest.raises(InputError, match=r"phases of the shape \(5,\), accepted: \(6,\)"):
        general.covariances(phases_rad[:-1])
    with pytest.raises(InputError, match="RF chain, antenna"):
        model.rates(precoders[:, :3], phases_rad)
    with pytest.raises(InputError, match=r"a precoder of .* W, accepted: up to P_A = 1 W"):
        model.bounds(2 * precoders, phases_rad)
    with pytest.raises(InputError, match="a precoder of nan W"):
        cells_precoders.design(model, phases_rad, np.nan * precoders)
    with pytest.raises(InputError, match="5 RF chains for 4 antennas"):
        MultiCell.two_cells(n_chains=5)
    with pytest.raises(InputError, match="surface_ut has the shape"):
        replace(model, surface_ut=model.surface_ut[..., :-1])
    with pytest.raises(InputError, match="weights"):
        replace(model, weights=np.array([1.0, -1.0]))
    with pytest.raises(InputError, match="same point"):
        MultiCell.at([(0, 0, 10), (600, 0, 10)], [(280, 0, 1.5), (320, 0, 1.5)], [(0, 0, 10)])
    with pytest.raises(InputError, match="accepted: random, wide, tall"):
        MultiCell.two_cells(array="round")
    with pytest.raises(InputError, match="0 elements"):
        MultiCell.two_cells(n_elements=0)
    with pytest.raises(InputError, match="9 phase bits, accepted: 1 to 8"):
        cells_levels.design(model, precoders, phases_rad, 9)
    for broken in (lambda x: model.rates(precoders, x), lambda x: general.rates(precoders, x)):
        with pytest.raises(InputError, match="phases are not finite"):
            broken(np.nan * phases_rad)
    with pytest.raises(InputError, match="surface_bs: not all entries are finite"):
        replace(model, surface_bs=np.nan * model.surface_bs)
    with pytest.raises(InputError, match=r"phases for a batch \(3,\) on a model of \(2,\)"):
        MultiCell.stack([model, model]).rates(precoders, np.zeros((3, 6)))
    with pytest.raises(InputError, match="2 scenes of 2 kinds"):
        MultiCell.stack([model, replace(model, power_w=2.0)])
    with pytest.raises(InputError, match="0 surfaces of 6 elements"):
        replace(model, through=model.through[..., :0], bs=model.bs[:, :0],
                surface_bs=model.surface_bs[:0], surface_ut=model.surface_ut[:0])  # fmt: skip
    with pytest.raises(InputError, match=r"ut_m of shape \(1, 3\), accepted: 2 times three finite coordinates"):
        MultiCell.at([(0, 0, 30), (600, 0, 30)], [(280, 0, 1.5)], [(300, 0, 10)])
    with pytest.raises(InputError, match="three finite coordinates"):
        MultiCell.two_cells(x_ut_m=float("nan"))
    with pytest.raises(InputError, match="0 starts, accepted: 1 or more"):
        cells_joint.design(model, np.random.default_rng(1), 0)
    with pytest.raises(InputError, match="0 probes of scenes"):
        model.probe(precoders, phases_rad, 0, np.random.default_rng(1))
