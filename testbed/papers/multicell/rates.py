"""Paper C's key rates from precoders and channel covariances: R_k, its bound, and the bound's gradients.

All functions take precoders P (…, cell, stream, antenna) and covariances C (…, i, j, antenna, antenna) of the channel
from base station i to terminal j, C_ij = E{h_ij h_ij^H} over the noise power. Leading axes broadcast.

Terminal k receives y_k = Σ_i P_i h_ik + n; base station k receives z̃_k = Σ_j h_kj + n and keeps z_k = P_k z̃_k:

    Y_k = Σ_i P_i C_ik P_i^H + I,   Z_k = Σ_j C_kj + I,   E_k = Y_k − P_k C_kk Z_k⁻¹ C_kk P_k^H,
    R_k^ub = I(y_k; z̃_k) = log₂ det Y_k − log₂ det E_k                                            (paper C eq. 11)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64

LN2 = float(np.log(2.0))
C128 = NDArray[np.complex128]


def bounds_bits(precoders: Any, covariances: Any) -> Any:
    """Return R_k^ub (…, cell) in bits, of numpy arrays or (differentiable) torch tensors, in their precision."""
    xp = namespace(covariances)
    y, e = _downlink(precoders, covariances)[-2:]
    return (xp.linalg.slogdet(y)[1] - xp.linalg.slogdet(e)[1]) / LN2


def rates_bits(precoders: Any, covariances: Any) -> Any:
    """Return R_k = I(y_k; z_k) (…, cell) in bits, paper C eq. 8; numpy or torch.

    If a precoder does not use all streams, P_k Z_k P_k^H is singular. Therefore noise that is as small as the precision
    allows is added to z_k; it keeps the logarithms finite, and can only lower the rate.
    """
    xp = namespace(covariances)
    z, own, _, y, _ = _downlink(precoders, covariances)
    p_h = adjoint(precoders)
    both = precoders @ own @ p_h
    r_z = precoders @ z @ p_h
    size = abs(xp.einsum("...mm->...", r_z))[..., None, None]
    # far above the rounding errors of the two determinants, whose difference would otherwise exceed the bound
    r_z = r_z + xp.finfo(r_z.dtype).eps ** (2 / 3) * size * eye_like(r_z)
    rest = r_z - both @ xp.linalg.solve(y, adjoint(both))
    return (xp.linalg.slogdet(r_z)[1] - xp.linalg.slogdet(rest)[1]) / LN2


@dataclass(frozen=True)
class Slopes:
    """The weighted sum of bounds and its gradient: dR = Σ tr(D_ij dC_ij) + 2 Re tr(G_i^H dP_i)."""

    bits: Any
    """(…) the sum."""
    covariances: C128
    """D (…, i, j, antenna, antenna), Hermitian."""
    precoders: C128
    """G (…, cell, stream, antenna) = ∂R/∂P*."""


def slopes(precoders: C128, covariances: C128, weights: Any) -> Slopes:
    """Return the bound's gradients with respect to all of its arguments, in bits (numpy)."""
    _, own, t, y, e = _downlink(precoders, covariances)
    k = list(range(own.shape[-3]))
    w = np.asarray(weights)[..., :, None, None] / LN2
    bits = (np.asarray(weights) * (np.linalg.slogdet(y)[1] - np.linalg.slogdet(e)[1])).sum(axis=-1) / LN2
    y_inv, e_inv = w * np.linalg.inv(y), w * np.linalg.inv(e)
    p_h = adjoint(precoders)
    difference = (y_inv - e_inv)[..., None, :, :, :]
    d = p_h[..., :, None, :, :] @ difference @ precoders[..., :, None, :, :]
    seen = p_h @ e_inv @ precoders  # weight times P^H E⁻¹ P (…, cell, antenna, antenna)
    d = d - (t @ seen @ adjoint(t))[..., :, None, :, :]
    d[..., k, k, :, :] += t @ seen + seen @ adjoint(t)
    g = (difference @ precoders[..., :, None, :, :] @ covariances).sum(axis=-3)
    return Slopes(bits, d, g + e_inv @ precoders @ own @ t)


class KeyRates(ABC):
    """The interface of a scene for designers; a subclass computes the covariances. Shapes as in the functions above."""

    weights: F64
    """(cell,) weights in the sum that is maximised."""

    @abstractmethod
    def covariances(self, phases_rad: Any) -> Any:
        """Return C (…, i, j, antenna, antenna) for phases (…, element)."""

    @abstractmethod
    def phase_slopes(self, d: C128, phases_rad: F64) -> C128:
        """Return ∂R/∂v* (…, element) from D (…, i, j, antenna, antenna), dR = Σ tr(D_ij dC_ij)."""

    @abstractmethod
    def check_precoders(self, precoders: Any) -> None:
        """Raise InputError if precoders have another shape or exceed the power."""

    def slopes(self, precoders: C128, phases_rad: F64) -> tuple[Slopes, F64]:
        """Return the gradients of Σ w R^ub and, from them, dR/dθ (…, element)."""
        found = slopes(precoders, self.covariances(phases_rad), self.weights)
        by_v = self.phase_slopes(found.covariances, phases_rad)
        return found, 2 * np.imag(by_v * np.exp(-1j * phases_rad))

    def rates(self, precoders: C128, phases_rad: F64) -> F64:
        """Return R_k (…, cell) in bits."""
        self.check_precoders(precoders)
        return np.asarray(rates_bits(precoders, self.covariances(phases_rad)))

    def bounds(self, precoders: C128, phases_rad: F64) -> F64:
        """Return R_k^ub (…, cell) in bits."""
        self.check_precoders(precoders)
        return np.asarray(bounds_bits(precoders, self.covariances(phases_rad)))

    def weighted_bound(self, precoders: C128, phases_rad: F64) -> F64:
        """Return Σ w_k R_k^ub (…) in bits, the objective."""
        return np.asarray((self.weights * self.bounds(precoders, phases_rad)).sum(axis=-1))


def canonical(precoders: C128, covariances: C128) -> tuple[C128, C128, Any]:
    """Return A (…, cell, stream, stream), B (…, cell, stream, antenna) and ρ (…, cell, stream), descending (numpy).

    A y_k and B z̃_k have uncorrelated entries of unit variance; entry m of the one is correlated with entry m of the
    other only, by ρ_m. Either end can compute its own from the statistics before it quantizes. Σ −log₂(1 − ρ²) =
    R_k^ub.
    """
    z, own, _, y, _ = _downlink(precoders, covariances)
    white_y, white_z = (np.linalg.inv(np.linalg.cholesky(x)) for x in (y, z))
    u, rho, v_h = np.linalg.svd(white_y @ precoders @ own @ adjoint(white_z), full_matrices=False)
    return np.asarray(adjoint(u) @ white_y, complex), np.asarray(v_h @ white_z, complex), rho


def fixed_point_terms(precoders: C128, covariances: C128, weights: Any) -> tuple[C128, C128, Any]:
    """Return F_i (…, cell, MM_e, MM_e) and a_i (…, cell, MM_e) of paper C eqs. 19–21 (vec by columns), and Σ w R^ub.

    They contain the factor 1/ln 2 of bits, and so do the multipliers λ_i.
    """
    _, own, t, y, e = _downlink(precoders, covariances)
    cells = own.shape[-3]
    k = list(range(cells))
    w = np.asarray(weights)[..., :, None, None] / LN2
    bits = (np.asarray(weights) * (np.linalg.slogdet(y)[1] - np.linalg.slogdet(e)[1])).sum(axis=-1) / LN2
    y_inv, e_inv = w * np.linalg.inv(y), w * np.linalg.inv(e)
    n = covariances.copy()
    n[..., k, k, :, :] -= own @ t
    # Σ_k N_ik^T ⊗ E_k⁻¹: row (b, p) and column (a, q), antenna first
    f = np.einsum("...ikab,...kpq->...ibpaq", n, e_inv, optimize=True)
    size = n.shape[-1] * e.shape[-1]
    f = f.reshape(*f.shape[:-4], size, size)
    a = (y_inv[..., None, :, :, :] @ precoders[..., :, None, :, :] @ covariances).sum(axis=-3)
    return f, a.swapaxes(-1, -2).reshape(*a.shape[:-2], size), bits


def _downlink(p: Any, c: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return Z, C_kk, Z⁻¹C_kk, Y and E, each (…, cell, ·, ·)."""
    xp = namespace(c)
    k = list(range(c.shape[-3]))
    z = c.sum(-3) + eye_like(c)
    own = c[..., k, k, :, :]
    t = xp.linalg.solve(z, own)
    y = (p[..., :, None, :, :] @ c @ adjoint(p)[..., :, None, :, :]).sum(-4)
    y = y + eye_like(y)
    return z, own, t, y, y - p @ own @ t @ adjoint(p)


def namespace(x: Any) -> Any:
    """Return the module that works on x: numpy, or torch where x is a tensor."""
    if isinstance(x, np.ndarray | np.generic):
        return np
    import torch

    return torch


def adjoint(x: Any) -> Any:
    """Return x^H over the last two axes."""
    return x.conj().swapaxes(-1, -2)


def eye_like(x: Any) -> Any:
    """Return the identity of x's last axis, with its type and device."""
    if isinstance(x, np.ndarray):
        return np.eye(x.shape[-1], dtype=x.dtype)
    import torch

    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
