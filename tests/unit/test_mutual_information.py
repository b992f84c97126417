"""Estimates of mutual information against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from testbed.papers.kit.mutual_information import gaussian_bits, gaussian_bits_with_error, nearest_neighbour_bits


def pair(n: int, d: int, rho: float, complex_valued: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    draw = [rng.standard_normal((n, d)) for _ in range(4)]
    x, z = (draw[0] + 1j * draw[1], draw[2] + 1j * draw[3]) if complex_valued else (draw[0], draw[1])
    return x, rho * x + np.sqrt(1 - rho**2) * z


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.99])
def test_gaussian_estimate_is_within_its_error(rho: float, complex_valued: bool) -> None:
    x, y = pair(20_000, 3, rho, complex_valued)
    bits, error = gaussian_bits_with_error(x, y)
    exact = -3 * np.log2(1 - rho**2) / (1 if complex_valued else 2)
    assert 0 < error < 0.1
    assert abs(bits - exact) < 4 * error + 1e-3


def test_invertible_maps_change_nothing() -> None:
    x, y = pair(500, 3, 0.8, False)
    mixed = x @ np.array([[1.0, 2, 0], [0, 3, 1], [5, 0, 1]]) + 7
    assert gaussian_bits(mixed, y) == pytest.approx(gaussian_bits(x, y))


def test_nearest_neighbours_see_what_covariances_do_not() -> None:
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (4000, 1))
    y = x**2 + 0.01 * rng.standard_normal(x.shape)
    assert gaussian_bits(x, y) < 0.01
    assert nearest_neighbour_bits(x, y) > 2.0


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_nearest_neighbours_agree_with_the_gaussian_formula(rho: float) -> None:
    x, y = pair(4000, 1, rho, False)
    assert nearest_neighbour_bits(x, y) == pytest.approx(-np.log2(1 - rho**2) / 2, abs=0.05)
