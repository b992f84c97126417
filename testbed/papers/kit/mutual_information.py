"""Mutual information from samples: Gaussian (covariances) and general (nearest neighbours)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma

from testbed.core.types import F64


def gaussian_bits(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return I(x; y) in bits of jointly Gaussian samples (sample, dimension), real, or complex circular ones.

    −log₂ Π(1 − c²) over the canonical correlations c, half of it where real. Biased upwards by about
    d_x·d_y / (n ln 2) bits, half of it where real.
    """

    def whitened(v: NDArray[Any]) -> NDArray[Any]:
        q: NDArray[Any] = np.linalg.qr(v - v.mean(axis=0))[0]
        return q

    c = np.linalg.svd(whitened(x).conj().T @ whitened(y), compute_uv=False)
    bits = -np.log2(np.maximum(1 - c**2, 1e-300)).sum()
    return float(bits if np.iscomplexobj(x) or np.iscomplexobj(y) else bits / 2)


def gaussian_bits_with_error(x: NDArray[Any], y: NDArray[Any], parts: int = 20) -> tuple[float, float]:
    """Return I(x; y) in bits and its standard error; the jackknife removes the bias of finite samples."""
    n = len(x) // parts * parts
    x, y = x[:n], y[:n]
    whole = gaussian_bits(x, y)
    mine = np.arange(n) % parts
    left = np.array([gaussian_bits(x[mine != i], y[mine != i]) for i in range(parts)])
    mean = parts * whole - (parts - 1) * left.mean()
    return float(mean), float(np.sqrt((parts - 1) * left.var()))


def nearest_neighbour_bits(x: F64, y: F64, k: int = 4) -> float:
    """Return I(x; y) in bits of real samples (sample, dimension) of any distribution.

    Kraskov, Stögbauer and Grassberger, Phys. Rev. E 69 (2004), estimator 1. It is accurate in few dimensions; if the
    dependence is very strong for the number of samples, the estimate is too low.
    """
    n = len(x)
    if not 0 < k < n or len(y) != n:
        raise ValueError(f"{n} and {len(y)} samples, k = {k}: accepted: equally many, more than k ≥ 1")
    both = np.hstack([x, y])
    distance: Any = cKDTree(both).query(both, k + 1, p=np.inf)[0]
    radius = np.nextafter(distance[:, k], 0)
    near = [cKDTree(v).query_ball_point(v, radius, p=np.inf, return_length=True) for v in (x, y)]
    nats = digamma(k) + digamma(n) - (digamma(near[0]) + digamma(near[1])).mean()
    return float(max(nats, 0.0) / np.log(2))
