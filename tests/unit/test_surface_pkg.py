"""Paper A: closed form, exact optimum, baselines, PKG-Net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from testbed.assess.mutual_information import gaussian_bits_with_error
from testbed.core.errors import InputError
from testbed.surface.designers import pkg_exact, pkg_net, pkg_random, pkg_water_filling
from testbed.surface.models.single_cell import SingleCell

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
    drawn = pkg_random.design(model, np.random.default_rng(1))
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
    drawn = pkg_random.design(model, rng)
    alice, bob = model.probe(drawn.precoders, drawn.phases_rad[0] * np.ones(64), 60_000, rng)
    bits, error = gaussian_bits_with_error(alice, bob)
    assert error < 0.05
    assert abs(bits - model.rate(drawn.precoders, drawn.phases_rad[0] * np.ones(64))) < 4 * error


def test_single_precision_agrees_with_double() -> None:
    model = SingleCell.paper(4, 25, 20.0)
    found = pkg_random.design(model, np.random.default_rng(2))
    single = model.rate_bits(
        torch.as_tensor(found.precoders, dtype=torch.complex64), torch.as_tensor(found.phases_rad, dtype=torch.float32)
    )
    assert float(single) == pytest.approx(float(model.rate(found.precoders, found.phases_rad)), rel=1e-4)


def test_the_baseline_never_beats_the_optimum_and_nearly_ties() -> None:
    for power_dbm in (0.0, 10.0, 20.0):
        model = SingleCell.paper(4, 25, power_dbm, eta=0.6)
        found = pkg_water_filling.design(model)
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
    found = pkg_net.design(net, bob)
    share = model.rate(found.precoders, found.phases_rad) / pkg_exact.rate(model)
    assert share.mean() > 0.98
    assert share.max() <= 1 + 1e-6
    assert net.history[-1] > net.history[0]
    net.save(tmp_path / "net.pt")
    again = pkg_net.design(pkg_net.PkgNet.load(tmp_path / "net.pt"), bob)
    np.testing.assert_array_equal(again.phases_rad, found.phases_rad)
    (tmp_path / "net.pt").write_bytes(b"not a net")
    with pytest.raises(InputError, match=r"net\.pt: no trained PKG-Net"):
        pkg_net.PkgNet.load(tmp_path / "net.pt")


def test_statistics_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="no covariance"):
        SingleCell(np.array([[1.0, 2.0], [2.0, 1.0]]), np.eye(4), np.array(1e-9), np.array(1e-9), 0.1, 0.1)
    with pytest.raises(InputError, match="accepted: all above 0"):
        SingleCell(np.eye(2), np.eye(4), np.array(1e-9), np.array(1e-9), 0.0, 0.1)
    with pytest.raises(InputError, match="same point"):
        SingleCell.paper(bob_m=(5.0, -35.0, 0.0))
    with pytest.raises(InputError, match="square number"):
        SingleCell.paper(n_elements=24)
