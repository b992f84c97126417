"""Paper A: an M-antenna Alice, a single-antenna Bob, a surface of L elements; all links Rayleigh and correlated.

h ~ CN(0, β_h R_B), G = R_B^½ G̃ R_I^½, f = R_I^½ f̃. Both ends measure P^T(h + GΘf): Alice with noise P^T n, Bob with n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.surface.geometry import (
    check_batch,
    check_covariance,
    exponential_correlation,
    isotropic_correlation,
    path_gain,
    points,
)

BS_M, SURFACE_M = (5.0, -35.0, 0.0), (0.0, 0.0, 0.0)
"""Positions of the paper's base station and surface."""


@dataclass(frozen=True)
class SingleCell:
    """Statistics for one position of Bob, or a batch of them (…)."""

    r_b: NDArray[Any]
    """(antenna, antenna) covariance at Alice over `beta_h`, real or complex; the paper's has a unit diagonal."""
    r_i: NDArray[Any]
    """(element, element) covariance at the surface, likewise."""
    beta_h: F64
    """(…) gain of the direct link."""
    beta_gf: F64
    """(…) product of the gains of both links over the surface."""
    power_a_w: float
    power_b_w: float
    noise_w: float = 1e-12
    """σ², −90 dBm."""
    bob_m: F64 | None = None
    """(…, 3) position of Bob, for designers that use it; None where only statistics are known."""

    def __post_init__(self) -> None:
        for name in ("r_b", "r_i"):
            check_covariance(name, np.asarray(getattr(self, name)))
        for name in ("beta_h", "beta_gf"):
            gains = np.asarray(getattr(self, name), dtype=float)
            if not (np.isfinite(gains).all() and (gains >= 0).all()):
                raise InputError(f"{name}: gains must be finite and at least 0")
            object.__setattr__(self, name, gains)
        if self.beta_h.shape != self.beta_gf.shape:
            raise InputError(f"beta_gf of shape {self.beta_gf.shape}, accepted: {self.beta_h.shape}, beta_h's")
        if self.bob_m is not None and points("bob_m", self.bob_m).shape[:-1] != self.beta_h.shape:
            raise InputError(f"bob_m of shape {np.shape(self.bob_m)}, accepted: {(*self.beta_h.shape, 3)}")
        powers = self.power_a_w, self.power_b_w, self.noise_w
        if not (np.isfinite(powers).all() and min(powers) > 0):
            raise InputError(
                f"powers {powers[0]:g} W, {powers[1]:g} W, noise {powers[2]:g} W; accepted: finite, all above 0"
            )

    @classmethod
    def paper(
        cls,
        n_antennas: int = 4,
        n_elements: int = 25,
        power_dbm: float = 20.0,
        eta: float = 0.3,
        bob_m: Any = (10.0, 10.0, 0.0),
        bs_m: Any = BS_M,
        surface_m: Any = SURFACE_M,
    ) -> SingleCell:
        """Return the paper's scene with Bob at `bob_m` (…, 3); path-loss exponents 3.67 (direct) and 2 (surface)."""
        side = round(max(n_elements, 0) ** 0.5)
        if n_elements < 1 or side * side != n_elements:
            raise InputError(f"{n_elements} elements, accepted: a square number (the surface is a square grid)")
        bob, bs, surface = points("bob_m", bob_m), points("bs_m", bs_m), points("surface_m", surface_m)
        power_w = 1e-3 * 10 ** (power_dbm / 10)
        return cls(
            r_b=exponential_correlation(n_antennas, eta),
            r_i=isotropic_correlation(side, side),
            beta_h=path_gain(bs, bob, 3.67),
            beta_gf=path_gain(bs, surface, 2.0) * path_gain(surface, bob, 2.0),
            power_a_w=power_w,
            power_b_w=power_w,
            bob_m=bob,
        )

    @property
    def n_antennas(self) -> int:
        return len(self.r_b)

    @property
    def n_elements(self) -> int:
        return len(self.r_i)

    @property
    def batch(self) -> tuple[int, ...]:
        return self.beta_h.shape

    @property
    def coupling(self) -> F64:
        """R_I∘R_I^T (element, element), ≥ 0: contribution to δ² of a pair of elements in phase; the paper's R_I is
        real.
        """
        return np.asarray(np.abs(self.r_i) ** 2)

    def gain(self, phases_rad: F64) -> F64:
        """Return δ² (…) = β_h + β_Gβ_f·θ^H(R_I∘R_I)θ of the combined channel for phases (…, element)."""
        v = np.exp(1j * self.checked_phases(phases_rad))
        return np.asarray(self.beta_h + self.beta_gf * np.einsum("...i,ij,...j->...", v.conj(), self.coupling, v).real)

    def checked_phases(self, phases_rad: Any) -> F64:
        """Return phases (…, element) unchanged; raises InputError for another board or values that are not finite."""
        phases = np.asarray(phases_rad, dtype=float)
        if phases.shape[-1:] != (self.n_elements,):
            raise InputError(f"phases of shape {phases.shape}, accepted: (…, {self.n_elements})")
        if not np.isfinite(phases).all():
            raise InputError("phases are not finite; accepted: radians")
        check_batch("phases", phases.shape[:-1], self.batch)
        return phases

    def checked_precoders(self, precoders: Any) -> NDArray[np.complex128]:
        """Return precoders (…, antenna, stream); raises InputError for another shape and for more than ‖P‖² = P_a·M."""
        p, m = np.asarray(precoders, dtype=np.complex128), self.n_antennas
        if p.shape[-2:] != (m, m):
            raise InputError(f"precoders of shape {p.shape}, accepted: (…, {m}, {m})")
        check_batch("precoders", p.shape[:-2], self.batch)
        most = float((np.abs(p) ** 2).sum(axis=(-2, -1)).max())
        if not most <= self.power_a_w * m * (1 + 1e-6):
            raise InputError(f"a precoder of {most:.6g} W, accepted: up to P_a·M = {self.power_a_w * m:.6g} W")
        return p

    def rate_bits(self, precoder: Any, phases_rad: Any) -> Any:
        """Return I(ŷ_a; ŷ_b) in bits (…), paper A eq. 17, of torch tensors.

        precoder (…, antenna, stream) complex and square, phases_rad (…, element) real; differentiable in both, in the
        precision that they have.
        """
        import torch

        real, device = phases_rad.dtype, phases_rad.device

        def constant(values: Any, dtype: Any) -> Any:
            return torch.as_tensor(np.asarray(values), dtype=dtype, device=device)

        v = torch.polar(torch.ones_like(phases_rad), phases_rad)
        squared = constant(self.coupling, precoder.dtype)
        by_surface = torch.einsum("...i,ij,...j->...", v.conj(), squared, v).real
        # δ²/σ²: all terms below are then of the size of an SNR, which single precision represents
        snr = constant(self.beta_h / self.noise_w, real) + constant(self.beta_gf / self.noise_w, real) * by_surface
        r = snr[..., None, None] * constant(self.r_b, precoder.dtype)
        p_t, p_c = precoder.transpose(-1, -2), precoder.conj()
        eye = torch.eye(self.n_antennas, dtype=precoder.dtype, device=device)
        # |P^T P*| is in numerator and denominator of eq. 17; it is cancelled, so that beams may have power 0
        nats = (
            torch.linalg.slogdet(self.power_b_w * r + eye).logabsdet
            + torch.linalg.slogdet(p_t @ r @ p_c + eye).logabsdet
            - torch.linalg.slogdet(self.power_b_w * r + p_c @ p_t @ r + eye).logabsdet
        )
        return nats / np.log(2)

    def rate(self, precoder: NDArray[Any], phases_rad: F64) -> F64:
        """Return `rate_bits` of numpy arrays, in double precision; raises InputError for impossible precoders or
        phases.
        """
        import torch

        p, phases = self.checked_precoders(precoder), self.checked_phases(phases_rad)
        return np.asarray(self.rate_bits(torch.as_tensor(p), torch.as_tensor(phases)).numpy())

    def probe(
        self, precoder: NDArray[Any], phases_rad: F64, n_probes: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
        """Draw channels and return Alice's and Bob's estimates (probe, stream), paper A eqs. 8 and 11 (no batch)."""
        if self.batch:
            raise InputError(f"probing takes one position, not a batch {self.batch}")
        precoder, phases_rad = self.checked_precoders(precoder), self.checked_phases(phases_rad)
        m, n = self.n_antennas, self.n_elements
        half_b, half_i = _root(self.r_b), _root(self.r_i)

        def cn(*shape: int) -> NDArray[np.complex128]:
            return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * np.sqrt(0.5)

        h = np.sqrt(float(self.beta_h)) * cn(n_probes, m) @ half_b.T
        g = half_b @ cn(n_probes, m, n) @ half_i
        f = cn(n_probes, n) @ half_i.T
        combined = h + np.sqrt(float(self.beta_gf)) * np.einsum("pmn,pn->pm", g, np.exp(1j * phases_rad) * f)
        noise = np.sqrt(self.noise_w)
        alice = (np.sqrt(self.power_b_w) * combined + noise * cn(n_probes, m)) @ precoder
        bob = combined @ precoder + noise * cn(n_probes, m)
        return alice, bob


def _root(matrix: NDArray[Any]) -> NDArray[Any]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.conj().T)
