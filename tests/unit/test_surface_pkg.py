"""Paper A: closed form, exact optimum, baselines, PKG-Net."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from testbed.core.errors import InputError
from testbed.papers.kit.mutual_information import gaussian_bits_with_error
from testbed.papers.pkgnet import exact as pkg_exact
from testbed.papers.pkgnet import levels as pkg_levels
from testbed.papers.pkgnet import net as pkg_net
from testbed.papers.pkgnet import random_start, water_filling
from testbed.papers.pkgnet.model import SingleCell

# M, L, P in dBm, η → bits; computed independently of this code
OPTIMA = [(4, 25, 10, 9.5896), (4, 25, 20, 22.0122), (4, 25, 30, 35.2071), (8, 25, 20, 43.8927), (4, 100, 20, 24.0574)]


@pytest.mark.parametrize(("m", "n", "power_dbm", "bits"), OPTIMA)
def test_the_exact_optimum_to_four_digits(m: int, n: int, power_dbm: float, bits: float) -> None:
    model = SingleCell.paper(m, n, power_dbm)
    found = pkg_exact.design(model)
    assert model.rate(found.precoders, found.phases_rad) == pytest.approx(bits, abs=5e-5)
    assert pkg_exact.rate(model) == pytest.approx(bits, abs=5e-5)
    assert (np.abs(found.precoders) ** 2).sum() == pytest.approx(model.power_a_w * m)


@pytest.mark.parametrize(
    ("m", "n", "power_dbm", "mean_bits"), [(4, 25, 10, 7.43), (4, 25, 20, 18.24), (8, 25, 20, 35.98)]
)
def test_random_configurations_give_the_known_mean(m: int, n: int, power_dbm: float, mean_bits: float) -> None:
    model = SingleCell.paper(m, n, power_dbm, bob_m=np.tile([10.0, 10.0, 0.0], (4000, 1)))
    drawn = random_start.design(model, np.random.default_rng(1))
    rates = model.rate(drawn.precoders, drawn.phases_rad)
    assert abs(rates.mean() - mean_bits) < 4 * rates.std() / np.sqrt(rates.size) + 0.02


def test_gradient_ascent_over_everything_reaches_the_optimum_and_never_more() -> None:
    model = SingleCell.paper(4, 9, 10.0)
    best = float(pkg_exact.rate(model))
    torch.manual_seed(1)
    p = torch.randn(8, 4, 4, dtype=torch.complex128).requires_grad_()
    theta = (6.28 * torch.rand(8, 9, dtype=torch.float64)).requires_grad_()
    optimiser = torch.optim.Adam([p, theta], lr=0.05)
    for _ in range(400):
        scaled = p * ((model.power_a_w * 4) ** 0.5 / torch.linalg.matrix_norm(p)[:, None, None])
        bits = model.rate_bits(scaled, theta)
        assert float(bits.detach().max()) < best + 1e-9
        optimiser.zero_grad()
        (-bits.sum()).backward()
        optimiser.step()
    assert float(bits.detach().max()) == pytest.approx(best, abs=2e-3)


def test_closed_form_is_what_probing_gives() -> None:
    """Within the confidence of the samples; the product of two Gaussians is nearly one with many elements."""
    model = SingleCell.paper(2, 64, 10.0)
    rng = np.random.default_rng(4)
    drawn = random_start.design(model, rng)
    alice, bob = model.probe(drawn.precoders, drawn.phases_rad[0] * np.ones(64), 60_000, rng)
    bits, error = gaussian_bits_with_error(alice, bob)
    assert error < 0.05
    assert abs(bits - model.rate(drawn.precoders, drawn.phases_rad[0] * np.ones(64))) < 4 * error


def test_single_precision_agrees_with_double() -> None:
    model = SingleCell.paper(4, 25, 20.0)
    found = random_start.design(model, np.random.default_rng(2))
    single = model.rate_bits(
        torch.as_tensor(found.precoders, dtype=torch.complex64), torch.as_tensor(found.phases_rad, dtype=torch.float32)
    )
    assert float(single) == pytest.approx(float(model.rate(found.precoders, found.phases_rad)), rel=1e-4)


def test_the_baseline_never_beats_the_optimum_and_nearly_ties() -> None:
    for power_dbm in (0.0, 10.0, 20.0):
        model = SingleCell.paper(4, 25, power_dbm, eta=0.6)
        found = water_filling.design(model)
        rate, best = model.rate(found.precoders, found.phases_rad), pkg_exact.rate(model)
        assert (np.abs(found.precoders) ** 2).sum() == pytest.approx(model.power_a_w * 4)
        assert 0.97 * best < rate <= best + 1e-9


def test_many_positions_are_solved_at_once() -> None:
    bob = np.random.default_rng(1).uniform(5, 15, (50, 3))
    batch = pkg_exact.rate(SingleCell.paper(bob_m=bob))
    assert batch == pytest.approx([float(pkg_exact.rate(SingleCell.paper(bob_m=b))) for b in bob])


def test_a_short_training_gets_close_to_the_optimum_and_is_kept(tmp_path: Path) -> None:
    scene = pkg_net.Scene(n_antennas=2, n_elements=9)
    net = pkg_net.PkgNet(scene, seed=3).train(epochs=30)
    bob = scene.positions(200, np.random.default_rng(5))
    model = scene.model(bob)
    found = pkg_net.design(model, net)
    share = model.rate(found.precoders, found.phases_rad) / pkg_exact.rate(model)
    assert share.mean() > 0.98
    assert share.max() <= 1 + 1e-6
    assert net.history[-1] > net.history[0]
    net.save(tmp_path / "net.pt")
    again = pkg_net.design(model, pkg_net.PkgNet.load(tmp_path / "net.pt"))
    np.testing.assert_array_equal(again.phases_rad, found.phases_rad)
    for rubbish in (b"not a net", b""):
        (tmp_path / "net.pt").write_bytes(rubbish)
        with pytest.raises(InputError, match=r"net\.pt: no trained PKG-Net"):
            pkg_net.PkgNet.load(tmp_path / "net.pt")


def test_a_net_answers_for_models_of_its_scene_of_any_shape_and_for_no_others() -> None:
    net = pkg_net.PkgNet(pkg_net.Scene(n_antennas=2, n_elements=9))
    bob = net.scene.positions(6, np.random.default_rng(1))
    flat = pkg_net.design(net.scene.model(bob), net)
    grid = pkg_net.design(net.scene.model(bob.reshape(2, 3, 3)), net)
    assert grid.precoders.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(grid.phases_rad.reshape(6, 9), flat.phases_rad, atol=1e-5)
    assert pkg_net.design(net.scene.model(bob[0]), net).phases_rad.shape == (9,)
    model = net.scene.model(bob)
    with pytest.raises(InputError, match="without bob_m"):
        pkg_net.design(replace(model, bob_m=None), net)
    with pytest.raises(InputError, match="power_a_w is not what this net was trained for"):
        pkg_net.design(replace(model, power_a_w=0.2), net)
    with pytest.raises(InputError, match="r_b is not what this net was trained for"):
        pkg_net.design(SingleCell.paper(4, 9, bob_m=bob), net)
    with pytest.raises(InputError, match="training with batch = 0"):
        net.train(batch=0)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_phases_on_levels_climb_above_rounding_and_a_common_turn_costs_nothing(bits: int) -> None:
    model = SingleCell.paper(2, 9, bob_m=np.tile([10.0, 10.0, 0.0], (40, 1)))
    phases = random_start.design(model, np.random.default_rng(1)).phases_rad
    phases[0] = 0.5 * np.pi / 2**bits + 1e-3 * np.arange(9)  # all alike, but at the border of two levels
    phases[0, ::2] += np.pi / 2**bits
    rounded, climbed = pkg_levels.projected(model, phases, bits), pkg_levels.design(model, phases, bits)
    rates = [model.rate(found.precoders, found.phases_rad) for found in (rounded, climbed)]
    assert (rates[1] >= rates[0] - 1e-9).all()
    assert np.diff(climbed.history).min() > -1e-9
    best = pkg_exact.rate(model)
    assert (rates[1] <= best + 1e-9).all()
    assert rates[1][0] == pytest.approx(best[0])
    assert rates[1].mean() > 0.99 * best.mean()
    step = climbed.phases_rad / (2 * np.pi / 2**bits)
    np.testing.assert_allclose(step, np.rint(step), atol=1e-9)


def test_complex_covariances_are_probed_as_the_closed_form_has_them() -> None:
    rng = np.random.default_rng(7)

    def drawn(n: int) -> np.ndarray:
        x = rng.standard_normal((n, n)) + 1j * rng.standard_normal((n, n))
        c = x @ x.conj().T + n * np.eye(n)
        return np.asarray(c / np.sqrt(np.outer(np.diag(c).real, np.diag(c).real)))

    model = replace(SingleCell.paper(2, 64, 10.0), r_b=drawn(2), r_i=drawn(64))
    found = pkg_exact.design(model)
    phases = rng.uniform(0, 2 * np.pi, 64)
    alice, bob = model.probe(found.precoders, phases, 40_000, rng)
    bits, error = gaussian_bits_with_error(alice, bob)
    assert abs(bits - model.rate(found.precoders, phases)) < 4 * error
    power = (np.abs(model.probe(np.sqrt(0.005) * np.eye(2), phases, 40_000, rng)[1]) ** 2).mean(axis=0)
    assert power == pytest.approx(0.005 * model.gain(phases) * np.ones(2) + 1e-12, rel=0.05)
    assert pkg_exact.rate(model) == pytest.approx(float(model.rate(found.precoders, found.phases_rad)))


def test_statistics_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="no covariance"):
        SingleCell(np.array([[1.0, 2.0], [2.0, 1.0]]), np.eye(4), np.array(1e-9), np.array(1e-9), 0.1, 0.1)
    with pytest.raises(InputError, match="accepted: finite, all above 0"):
        SingleCell(np.eye(2), np.eye(4), np.array(1e-9), np.array(1e-9), 0.0, 0.1)
    with pytest.raises(InputError, match="same point"):
        SingleCell.paper(bob_m=(5.0, -35.0, 0.0))
    for n in (24, 0, -4):
        with pytest.raises(InputError, match="square number"):
            SingleCell.paper(n_elements=n)
    for bob_m in ((np.nan, 0.0, 0.0), (1.0, 0.0), "here"):
        with pytest.raises(InputError, match=r"bob_m.*, accepted: three finite coordinates"):
            SingleCell.paper(bob_m=bob_m)
    model = SingleCell.paper()
    changes: list[tuple[dict[str, Any], str]] = [
        ({"r_b": np.full((4, 4), np.nan)}, "r_b: not all entries are finite"),
        ({"r_i": np.ones((4, 3))}, r"r_i of shape \(4, 3\)"),
        ({"beta_h": np.nan}, "beta_h: gains must be finite"),
        ({"beta_gf": -1.0}, "beta_gf: gains must be finite and at least 0"),
        ({"beta_gf": np.ones(3)}, r"beta_gf of shape \(3,\)"),
        ({"power_a_w": np.inf}, "accepted: finite, all above 0"),
    ]
    for change, said in changes:
        with pytest.raises(InputError, match=said):
            replace(model, **change)


def test_answers_that_cannot_be_sent_or_set_are_refused() -> None:
    model = SingleCell.paper()
    found = pkg_exact.design(model)
    for p, phases, said in (
        (1.1 * found.precoders, found.phases_rad, r"a precoder of 0\.484 W, accepted: up to P_a·M = 0\.4 W"),
        (np.nan * found.precoders, found.phases_rad, "a precoder of nan W"),
        (found.precoders[:, :2], found.phases_rad, r"precoders of shape \(4, 2\)"),
        (found.precoders, found.phases_rad[:-1], r"phases of shape \(24,\), accepted: \(…, 25\)"),
        (found.precoders, np.nan * found.phases_rad, "phases are not finite"),
    ):
        with pytest.raises(InputError, match=said):
            model.rate(p, phases)
        with pytest.raises(InputError, match=said):
            model.probe(p, phases, 10, np.random.default_rng(1))
    several = SingleCell.paper(bob_m=np.ones((2, 3)))
    for p, phases in ((found.precoders, np.zeros((3, 25))), (np.stack([found.precoders] * 3), np.zeros(25))):
        with pytest.raises(InputError, match=r"for a batch \(3,\) on a model of \(2,\)"):
            several.rate(p, phases)
    with pytest.raises(InputError, match="one position, not a batch"):
        several.probe(found.precoders, found.phases_rad, 10, np.random.default_rng(1))
