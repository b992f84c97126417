"""Paper D: channels, secrecy rate and its closed form, eigenvector, coordinate ascent, SDP route, levels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from testbed.core.errors import InputError
from testbed.papers.kit.mutual_information import gaussian_bits_with_error
from testbed.papers.secrecy import coordinate as secrecy_coordinate
from testbed.papers.secrecy import levels as secrecy_levels
from testbed.papers.secrecy import mev, mev_ris, sdp
from testbed.papers.secrecy.model import AP_M, BOB_M, EVE_M, SURFACE_M, Secrecy
from testbed.surface.design import Design
from testbed.surface.geometry import path_gain
from testbed.surface.levels import levels_rad, project


def scene(n: int = 20, seed: int = 1, **options: Any) -> Secrecy:
    return Secrecy.paper(n, np.random.default_rng(seed), **options)


def any_phases(model: Secrecy, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 2 * np.pi, (*model.batch, model.n_elements))


def rate(model: Secrecy, found: Design) -> np.ndarray:
    assert ((np.abs(found.precoders) ** 2).sum(axis=(-2, -1)) <= model.power_w * (1 + 1e-9)).all()
    return model.rate(found.precoders, found.phases_rad)


# the model


def test_the_rate_is_equation_7_written_out() -> None:
    model = scene(3)
    phases, f = any_phases(model), 0.05 * np.random.default_rng(3).standard_normal((3, 4, 1))
    for i, found in enumerate(model.rate(f, phases)):
        phi = np.diag(np.exp(1j * phases[i]))
        bob = abs(((model.h_iu[i] @ phi @ model.g[i] + model.h_au[i]) @ f[i])[0]) ** 2 / 1e-11
        eve = abs(((model.h_ie[i] @ phi @ model.g[i] + model.h_ae[i]) @ f[i])[0]) ** 2 / 1e-11
        assert found == pytest.approx(np.log2(1 + bob) - np.log2(1 + eve))


def test_the_closed_form_is_the_largest_generalised_eigenvalue() -> None:
    """(B + I/P)⁻¹(A + I/P) of the paper, by a general solver; and the precoder reaches it."""
    model = scene(30, power_dbm=np.linspace(-10, 40, 30))
    phases = any_phases(model)
    closed = model.best_rate_bits(torch.as_tensor(phases)).numpy()
    reached = model.rate(model.best_precoder(phases), phases)
    phi = np.exp(1j * phases)
    u, e = (np.einsum("bn,bnm->bm", h * phi, model.g) + d
            for h, d in ((model.h_iu, model.h_au), (model.h_ie, model.h_ae)))  # fmt: skip
    for i in range(30):
        a, b = (np.outer(x[i].conj(), x[i]) / 1e-11 + np.eye(4) / model.power_w[i] for x in (u, e))
        bits = np.log2(eigh(a, b, eigvals_only=True)[-1])
        assert closed[i] == pytest.approx(bits, rel=1e-9, abs=1e-12)
        assert reached[i] == pytest.approx(bits, rel=1e-9, abs=1e-12)


def test_no_beam_is_better_than_the_best_one() -> None:
    model = scene(50)
    phases, rng = any_phases(model), np.random.default_rng(4)
    best = model.rate(model.best_precoder(phases), phases)
    for scale in (1.0, 0.1, 0.01):
        f = model.best_precoder(phases) + scale * (
            rng.standard_normal((50, 4, 1)) + 1j * rng.standard_normal((50, 4, 1))
        )
        f *= np.sqrt(model.power_w)[:, None, None] / np.linalg.norm(f, axis=1, keepdims=True)
        assert (model.rate(f, phases) <= best + 1e-12).all()


def test_where_bob_hears_a_weaker_copy_of_eve_nothing_is_sent() -> None:
    model = scene(5)
    model = replace(model, h_au=0.5 * model.h_ae, h_iu=0.5 * model.h_ie)
    phases = any_phases(model)
    assert model.best_rate_bits(torch.as_tensor(phases)).numpy() == pytest.approx(np.zeros(5), abs=1e-9)
    assert not model.best_precoder(phases).any()
    assert rate(model, secrecy_coordinate.design(model)) == pytest.approx(np.zeros(5), abs=1e-12)


def test_the_closed_form_is_differentiable_and_holds_in_single_precision() -> None:
    model = scene(2, n_elements=4)
    phases = torch.as_tensor(any_phases(model)).requires_grad_()
    assert torch.autograd.gradcheck(model.best_rate_bits, (phases,))
    f = torch.as_tensor(model.best_precoder(any_phases(model, 7))).requires_grad_()
    assert torch.autograd.gradcheck(model.rate_bits, (f, phases))
    single = model.best_rate_bits(phases.detach().float())
    assert single.dtype == torch.float32
    assert single.numpy() == pytest.approx(model.best_rate_bits(phases).detach().numpy(), rel=1e-4)
    low = model.rate_bits(f.detach().to(torch.complex64), phases.detach().float())
    assert low.numpy() == pytest.approx(model.rate_bits(f, phases).detach().numpy(), rel=1e-3, abs=1e-4)


def test_the_rate_is_what_gaussian_symbols_carry() -> None:
    model = scene(1).take(0)
    phases = any_phases(model)
    f = model.best_precoder(phases)
    sent, bob, eve = model.probe(f, phases, 40_000, np.random.default_rng(5))
    (at_bob, error_b), (at_eve, error_e) = (gaussian_bits_with_error(sent, y) for y in (bob, eve))
    error = np.hypot(error_b, error_e)
    assert error < 0.05
    assert abs(at_bob - at_eve - float(model.rate(f, phases))) < 4 * error


def test_drawn_channels_have_the_papers_gains_and_correlation() -> None:
    model = scene(4000, n_elements=4)
    links = {"h_au": (AP_M, BOB_M, 3.0), "h_ae": (AP_M, EVE_M, 3.0), "g": (AP_M, SURFACE_M, 2.2),
             "h_iu": (SURFACE_M, BOB_M, 3.0), "h_ie": (SURFACE_M, EVE_M, 3.0)}  # fmt: skip
    for name, (a, b, exponent) in links.items():
        power = np.mean(np.abs(getattr(model, name)) ** 2)
        assert power == pytest.approx(path_gain(np.array(a), np.array(b), exponent), rel=0.05), name
    assert np.linalg.norm(np.subtract(SURFACE_M, BOB_M)) == pytest.approx(50**0.5)
    scattered = [h - h.mean(axis=0) for h in (model.h_au, model.h_ae)]
    both = np.mean(scattered[0] * scattered[1].conj()) / np.sqrt(np.prod([np.mean(np.abs(s) ** 2) for s in scattered]))
    assert abs(both) == pytest.approx(0.95, abs=0.01)
    # Rician factor 1: half of the power does not change
    assert np.mean(np.abs(model.h_au.mean(axis=0)) ** 2) / np.mean(np.abs(model.h_au) ** 2) == pytest.approx(
        0.5, abs=0.03
    )


# exact coordinate ascent


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_one_update_is_the_exact_best(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    slope = (rng.standard_normal((2, 1)) + 1j * rng.standard_normal((2, 1))) * size
    base = 1 + 2 * np.abs(slope) * (1 + rng.exponential(size=(2, 1)))
    p = secrecy_coordinate._best(base, slope, np.ones(1, complex))
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 5000))

    def ratio(x: np.ndarray) -> np.ndarray:
        top, bottom = (b + 2 * (s * x).real for b, s in zip(base, slope, strict=True))
        return top / bottom

    assert abs(p[0]) == pytest.approx(1.0)
    assert ratio(p)[0] >= ratio(circle).max() * (1 - 1e-9)


def test_the_climb_never_falls_and_ends_where_no_phase_and_no_beam_can_better_it() -> None:
    model = scene(40)
    found = secrecy_coordinate.design(model, tolerance_bits=1e-9)
    bits = rate(model, found)
    assert np.all(np.diff(found.history) > -1e-12)
    assert found.history[-1] == pytest.approx(bits.mean())
    assert bits == pytest.approx(model.best_rate_bits(torch.as_tensor(found.phases_rad)).numpy())
    for n in range(model.n_elements):
        for step in (-0.3, 0.05, 1.5):
            turned = found.phases_rad.copy()
            turned[:, n] += step
            assert (model.best_rate_bits(torch.as_tensor(turned)).numpy() <= bits + 1e-5).all()


def test_without_eve_the_paths_add_up_in_phase() -> None:
    """One antenna, Eve deaf: the optimum is the sum of magnitudes, in closed form."""
    model = scene(20, n_antennas=1)
    model = replace(model, h_ae=0 * model.h_ae, h_ie=0 * model.h_ie)
    heard = np.abs(model.h_au[:, 0]) + np.abs(model.h_iu * model.g[..., 0]).sum(axis=1)
    found = secrecy_coordinate.design(model, start_rad=any_phases(model), tolerance_bits=1e-12)
    assert rate(model, found) == pytest.approx(np.log2(1 + model.power_w * heard**2 / 1e-11), rel=1e-9)


def test_gradient_ascent_from_many_starts_finds_nothing_better() -> None:
    model = scene(6, n_elements=9)
    best = rate(model, secrecy_coordinate.design(model, more_starts=4, rng=np.random.default_rng(1)))
    several = model.take(np.repeat(np.arange(6), 4))
    theta = torch.as_tensor(any_phases(several)).requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=0.1)
    for _ in range(150):
        optimiser.zero_grad()
        (-several.best_rate_bits(theta).sum()).backward()
        optimiser.step()
    ascended = several.best_rate_bits(theta).detach().numpy().reshape(6, 4).max(axis=1)
    assert (ascended <= best + 1e-6).all()
    assert ascended == pytest.approx(best, rel=1e-2)


def test_order_of_the_methods_on_every_channel() -> None:
    model = scene(100)
    alternating, held = secrecy_coordinate.design(model), mev_ris.design(model)
    bare = rate(model.without_surface(), mev.design(model))
    np.testing.assert_allclose(held.precoders, mev.design(model).precoders)
    assert (rate(model, alternating) >= rate(model, held) - 1e-12).all()
    assert (rate(model, held) > bare).mean() > 0.99
    # computed independently of this code: 1.8958 bits over 12 channels of other draws
    bits = rate(model, alternating)
    assert abs(bits.mean() - 1.8958) < 3 * bits.std() * np.hypot(1 / 12**0.5, 1 / 100**0.5)


def test_channels_are_solved_alike_alone_and_together_whatever_the_batch() -> None:
    model = scene(6)
    together = secrecy_coordinate.design(model)
    for i in range(6):
        alone = secrecy_coordinate.design(model.take(i))
        np.testing.assert_allclose(alone.phases_rad, together.phases_rad[i], atol=1e-6)
        assert alone.precoders.shape == (4, 1)
    grid = model.take(np.arange(6).reshape(2, 3))
    np.testing.assert_allclose(rate(grid, secrecy_coordinate.design(grid)).ravel(), rate(model, together), rtol=1e-9)


# a board's levels


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_every_method_answers_on_levels_and_solving_is_never_below_projecting(bits: int) -> None:
    model = scene(30)
    free = secrecy_coordinate.design(model)
    solved = secrecy_levels.design(model, free.phases_rad, bits)
    projected = secrecy_levels.projected(model, free.phases_rad, bits)
    direct, held = secrecy_coordinate.design(model, phase_bits=bits), mev_ris.design(model, bits)
    for found in (solved, projected, direct, held):
        step = found.phases_rad / (2 * np.pi) * 2**bits
        np.testing.assert_allclose(step, np.rint(step), atol=1e-9)
    assert (rate(model, solved) >= rate(model, projected) - 1e-12).all()
    assert rate(model, solved).mean() > rate(model, projected).mean()
    np.testing.assert_allclose(rate(model, direct), rate(model, solved))
    assert (rate(model, solved) <= rate(model, free) + 1e-3).all()
    assert (rate(model, held) <= rate(model, mev_ris.design(model)) + 1e-9).all()


def test_levels_against_all_of_them() -> None:
    """2⁹ patterns tried out: several starts find the best one nearly always, one start comes close."""
    model = scene(12, n_elements=9)
    patterns = np.array(list(itertools.product((0.0, np.pi), repeat=9)))
    best = np.array([
        one.best_rate_bits(torch.as_tensor(patterns)).numpy().max()
        for one in (model.take(np.full(len(patterns), i)) for i in range(12))
    ])  # fmt: skip
    several = secrecy_coordinate.design(model, phase_bits=1, more_starts=10, rng=np.random.default_rng(1))
    single = rate(model, secrecy_coordinate.design(model, phase_bits=1))
    assert (rate(model, several) <= best + 1e-9).all()
    assert (rate(model, several) > best - 1e-9).mean() > 0.8
    assert single.mean() > 0.98 * best.mean()


def test_projection_goes_to_the_nearest_level_around_the_circle() -> None:
    assert project(np.array([-0.1, 0.1, 3.0, 6.2, 100 * np.pi]), 1) == pytest.approx([0, 0, np.pi, 0, 0])
    assert project(np.array([-0.9, 2.3]), 2) == pytest.approx([1.5 * np.pi, 0.5 * np.pi])
    assert levels_rad(3).size == 8
    with pytest.raises(InputError, match="accepted: 1 to 8"):
        project(np.zeros(3), 0)


# the published route


def test_coordinate_ascent_keeps_up_with_the_sdp_route() -> None:
    model = scene(2, seed=3, n_elements=4)
    theirs = sdp.design(model, np.random.default_rng(1), rounds=8, draws=200)
    assert np.all(np.diff(theirs.history) > -1e-9)
    assert (rate(model, secrecy_coordinate.design(model)) >= (1 - 1e-3) * rate(model, theirs)).all()
    assert rate(model, theirs).mean() > 0.95 * rate(model, secrecy_coordinate.design(model)).mean()
    on_levels = sdp.design(model, np.random.default_rng(1), rounds=2, draws=200, phase_bits=1)
    assert set(np.round(on_levels.phases_rad.ravel(), 9)) <= {0.0, round(np.pi, 9)}
    assert rate(model, on_levels).mean() > rate(model.without_surface(), mev.design(model)).mean()


def test_the_relaxation_bounds_the_phases_and_coordinate_ascent_is_at_the_bound() -> None:
    """Its optimum is an upper bound for a held precoder, so it certifies the other solver's answer."""
    model = scene(2, seed=5, n_elements=9)
    held = mev_ris.design(model)
    program = sdp._Program(9)
    for i in range(2):
        a_u, a_e, k_u, k_e = model.take(i).cascades()
        f = held.precoders[i, :, 0] / np.sqrt(model.power_w[i])
        heard = [np.append(k @ f, a @ f) for a, k in ((a_u, k_u), (a_e, k_e))]
        v = program.solve(*heard)
        assert np.diag(v).real == pytest.approx(np.ones(10), abs=1e-2)
        top, bottom = ((w @ v @ w.conj()).real + 1 for w in heard)
        bound, reached = np.log2(top / bottom), model.take(i).rate(held.precoders[i], held.phases_rad[i])
        assert bound - 1e-2 < reached < bound + 1e-3


# bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"power_dbm": float("nan")}, r"P_t = nan dBm, accepted: −100 to 100"),
        ({"power_dbm": 400.0}, "accepted: −100 to 100"),
        ({"n_elements": 24}, "square number"),
        ({"n_elements": -4}, "square number"),
        ({"n_antennas": 0}, "0 antennas, accepted: 1 or more"),
        ({"correlation": 1.5}, "correlation r = 1.5"),
        ({"rician": -1.0}, "Rician factor -1"),
        ({"surface_m": AP_M}, "same point"),
        ({"bob_m": AP_M}, "same point"),
        ({"eve_m": np.ones((2, 3))}, r"eve_m of shape \(2, 3\), accepted: three finite coordinates"),
        ({"bob_m": (1.0, 2.0)}, "bob_m = .* three finite coordinates"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_scenes_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        scene(2, **options)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("h_au", np.full((3, 4), np.nan), "h_au holds 12 values that are not finite"),
        ("g", np.full((3, 25, 4), np.inf), "g holds 300 values"),
        ("h_iu", np.zeros((3, 24), complex), r"h_iu of shape \(3, 24\).*accepted: \(3, 25\)"),
        ("h_ae", np.zeros((2, 4), complex), r"h_ae of shape \(2, 4\).*accepted: \(3, 4\)"),
        ("g", np.zeros(4, complex), "accepted: .*element, antenna"),
        ("power_w", np.zeros(3), "power P_t = 0 W"),
        ("power_w", np.ones(2), r"power_w of shape \(2,\), accepted: one number or \(3,\)"),
        ("noise_w", 0.0, "noise 0 W"),
    ],
)
def test_channels_that_cannot_be_are_refused(field: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(scene(3), **{field: value})


def test_answers_that_cannot_be_are_refused() -> None:
    model = scene(3)
    phases = any_phases(model)
    f = model.best_precoder(phases)
    with pytest.raises(InputError, match=r"a precoder of 1\.21 times P_t"):
        model.rate(1.1 * f, phases)
    with pytest.raises(InputError, match="times P_t"):
        model.rate(np.nan * f, phases)
    with pytest.raises(InputError, match=r"precoders of shape \(3, 4\), accepted: \(3, 4, 1\)"):
        model.rate(f[..., 0], phases)
    with pytest.raises(InputError, match=r"phases of shape \(3, 24\), accepted: \(3, 25\)"):
        model.rate(f, phases[:, :24])
    with pytest.raises(InputError, match="not finite"):
        secrecy_coordinate.design(model, start_rad=np.nan * phases)
    with pytest.raises(InputError, match="phases are not finite"):
        project(np.nan * phases, 1)
    with pytest.raises(InputError, match=r"one channel, not a batch \(3,\)"):
        model.probe(f, phases, 10, np.random.default_rng(1))
    with pytest.raises(InputError, match="0 rounds"):
        secrecy_coordinate.design(model, rounds=0)
    with pytest.raises(InputError, match="2 more starts without a generator"):
        secrecy_coordinate.design(model, more_starts=2)
    with pytest.raises(InputError, match="0 draws"):
        sdp.design(model, np.random.default_rng(1), draws=0)
    with pytest.raises(InputError, match="9 phase bits, accepted: 1 to 8"):
        secrecy_levels.design(model, phases, 9)
