"""Paper D: an AP of M antennas, single-antenna Bob and Eve, a surface of N elements; all channels known.

Bob receives (h_iu Φ G + h_au) f, Eve (h_ie Φ G + h_ae) f; the secrecy rate is log₂(1 + Bob's SNR) − log₂(1 + Eve's).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.surface.geometry import path_gain, points

C128 = NDArray[np.complex128]

AP_M, EVE_M, BOB_M, SURFACE_M = (0.0, 0.0, 0.0), (145.0, 0.0, 0.0), (150.0, 0.0, 0.0), (145.0, 5.0, 0.0)
"""AP, Eve and Bob on one line, the surface 5 m beside Eve: d_ae = 145, d_au = 150, d_ie = 5, d_iu = √50 m."""
MAX_POWER_DBM = 100.0


@dataclass(frozen=True)
class Secrecy:
    """One channel, or a batch of them (…), with the AP's power limit."""

    h_au: C128
    """(…, antenna) AP to Bob."""
    h_ae: C128
    """(…, antenna) AP to Eve."""
    g: C128
    """(…, element, antenna) AP to surface."""
    h_iu: C128
    """(…, element) surface to Bob."""
    h_ie: C128
    """(…, element) surface to Eve."""
    power_w: F64
    """(…) or one for all: P_t in watts, ‖f‖² ≤ P_t."""
    noise_w: float = 1e-11
    """σ² at Bob and at Eve; −80 dBm."""

    def __post_init__(self) -> None:
        shapes = {}
        for name in ("h_au", "h_ae", "g", "h_iu", "h_ie"):
            values = np.asarray(getattr(self, name), dtype=np.complex128)
            if not np.isfinite(values).all():
                raise InputError(
                    f"{name} holds {_count_bad(values)} values that are not finite; accepted: numbers only"
                )
            object.__setattr__(self, name, values)
            shapes[name] = values.shape
        if self.g.ndim < 2 or self.h_au.ndim < 1 or 0 in self.g.shape[-2:]:
            raise InputError(f"g of shape {self.g.shape}, accepted: (…, element, antenna), one or more of each")
        batch, (n, m) = self.g.shape[:-2], self.g.shape[-2:]
        for name, last in (("h_au", m), ("h_ae", m), ("h_iu", n), ("h_ie", n)):
            if shapes[name] != (*batch, last):
                raise InputError(
                    f"{name} of shape {shapes[name]} beside g of {self.g.shape}, accepted: {(*batch, last)}"
                )
        power = np.asarray(self.power_w, dtype=float)
        if power.shape not in ((), batch):
            raise InputError(f"power_w of shape {power.shape}, accepted: one number or {batch}")
        if not (np.isfinite(power).all() and (power > 0).all()):
            raise InputError(f"power P_t = {power.min():g} W, accepted: finite and above 0")
        if not (np.isfinite(self.noise_w) and self.noise_w > 0):
            raise InputError(f"noise {self.noise_w:g} W, accepted: finite and above 0")
        object.__setattr__(self, "power_w", np.broadcast_to(power, batch))

    @classmethod
    def paper(
        cls,
        n_channels: int,
        rng: np.random.Generator,
        power_dbm: Any = 20.0,
        n_antennas: int = 4,
        n_elements: int = 25,
        correlation: float = 0.95,
        rician: float = 1.0,
        ap_m: Any = AP_M,
        bob_m: Any = BOB_M,
        eve_m: Any = EVE_M,
        surface_m: Any = SURFACE_M,
    ) -> Secrecy:
        """Draw channels of the paper's scene (exponents 3, to the surface 2.2); power_dbm one or (channel,).

        Our assumptions, where the paper says nothing: every link has the Rician factor; the AP's antennas are λ/2 apart
        along y and the surface's elements on a square grid of λ/2 in x and z, which gives the lines of sight (plane
        waves); the scattered parts of h_au and h_ae are correlated by r antenna by antenna, all others are independent.
        """
        side = round(max(n_elements, 0) ** 0.5)
        if n_elements < 1 or side * side != n_elements:
            raise InputError(f"{n_elements} elements, accepted: a square number (the surface is a square grid)")
        if n_channels < 1 or n_antennas < 1:
            raise InputError(f"{n_channels} channels of {n_antennas} antennas, accepted: 1 or more")
        if not 0 <= correlation <= 1:
            raise InputError(f"correlation r = {correlation:g} of Bob's and Eve's channels, accepted: 0 to 1")
        if not (np.isfinite(rician) and rician >= 0):
            raise InputError(f"Rician factor {rician:g}, accepted: finite and 0 or more")
        ap, bob, eve, surface = (
            points(name, place, ()) for name, place in
            (("ap_m", ap_m), ("bob_m", bob_m), ("eve_m", eve_m), ("surface_m", surface_m))
        )  # fmt: skip
        beta_u, beta_e, beta_g, beta_iu, beta_ie = (
            path_gain(a, b, exponent) for a, b, exponent in
            ((ap, bob, 3.0), (ap, eve, 3.0), (ap, surface, 2.2), (surface, bob, 3.0), (surface, eve, 3.0))
        )  # fmt: skip
        row, column = np.divmod(np.arange(n_elements), side)
        antennas = np.arange(n_antennas)[:, None] * np.array([0.0, 0.5, 0.0])
        elements = np.stack([column * 0.5, 0.0 * row, row * 0.5], axis=1)

        def cn(*shape: int) -> C128:
            parts = rng.standard_normal((2, n_channels, *shape))
            return np.asarray((parts[0] + 1j * parts[1]) / 2**0.5)

        def link(beta: F64, sight: C128, scattered: C128) -> C128:
            mixed = (rician**0.5 * sight + scattered) / (1 + rician) ** 0.5
            return np.asarray(np.sqrt(beta) * mixed, dtype=np.complex128)

        w_u = cn(n_antennas)
        w_e = correlation * w_u + (1 - correlation**2) ** 0.5 * cn(n_antennas)
        incoming = _wave(elements, ap - surface)[:, None] * _wave(antennas, surface - ap)
        return cls(
            h_au=link(beta_u, _wave(antennas, bob - ap), w_u),
            h_ae=link(beta_e, _wave(antennas, eve - ap), w_e),
            g=link(beta_g, incoming, cn(n_elements, n_antennas)),
            h_iu=link(beta_iu, _wave(elements, bob - surface), cn(n_elements)),
            h_ie=link(beta_ie, _wave(elements, eve - surface), cn(n_elements)),
            power_w=dbm_to_w(power_dbm),
        )

    @property
    def n_antennas(self) -> int:
        return int(self.g.shape[-1])

    @property
    def n_elements(self) -> int:
        return int(self.g.shape[-2])

    @property
    def batch(self) -> tuple[int, ...]:
        return self.g.shape[:-2]

    def take(self, index: Any) -> Secrecy:
        """Return the channels that an index of the batch's axes selects."""
        fields = {name: getattr(self, name)[index] for name in ("h_au", "h_ae", "g", "h_iu", "h_ie", "power_w")}
        return replace(self, **fields)

    def without_surface(self) -> Secrecy:
        """Return the same channels with the surface's links at zero (No RIS)."""
        return replace(self, h_iu=np.zeros_like(self.h_iu), h_ie=np.zeros_like(self.h_ie))

    def at_power(self, power_dbm: Any) -> Secrecy:
        """Return the same channels with another P_t, one or (…)."""
        return replace(self, power_w=dbm_to_w(power_dbm))

    def cascades(self) -> tuple[C128, C128, C128, C128]:
        """Return a_u, a_e (…, antenna) and K_u, K_e (…, element, antenna), in noise amplitudes at full power.

        √P_t/σ·(h_iu Φ G + h_au) = φ^T K_u + a_u: with a unit beam this gives the SNR (paper D eqs. 16–19).
        """
        scale = np.sqrt(self.power_w / self.noise_w)[..., None]
        g = scale[..., None] * self.g
        return scale * self.h_au, scale * self.h_ae, self.h_iu[..., None] * g, self.h_ie[..., None] * g

    def heard(self, phases_rad: F64) -> tuple[C128, C128]:
        """Return Bob's and Eve's combined channels (…, antenna), in noise amplitudes at full power."""
        a_u, a_e, k_u, k_e = self.cascades()
        phi = np.exp(1j * self.checked_phases(phases_rad))
        return a_u + np.einsum("...n,...nm->...m", phi, k_u), a_e + np.einsum("...n,...nm->...m", phi, k_e)

    def best_precoder(self, phases_rad: F64) -> C128:
        """Return the best precoder (…, antenna, 1) for these phases, at full power (paper D eq. 14).

        Zeros where nothing can be kept secret from Eve (Bob's channel is a weaker copy of hers).
        """
        beam = best_beam(*self.heard(phases_rad))
        return np.asarray((np.sqrt(self.power_w)[..., None] * beam)[..., None])

    def flat(self) -> Secrecy:
        """Return the same channels with one batch axis."""
        shapes = {"h_au": (-1, self.n_antennas), "h_ae": (-1, self.n_antennas), "g": (-1, *self.g.shape[-2:])}
        shapes |= {"h_iu": (-1, self.n_elements), "h_ie": (-1, self.n_elements), "power_w": (-1,)}
        return replace(self, **{name: getattr(self, name).reshape(shape) for name, shape in shapes.items()})

    def rate_bits(self, precoder: Any, phases_rad: Any) -> Any:
        """Return the secrecy rate in bits (…), paper D eq. 7a, of torch tensors; below 0 where Eve's SNR exceeds Bob's.

        precoder (…, antenna, 1) complex, in √W; phases_rad (…, element) real. Differentiable in both, in the precision
        that they have, on their device.
        """
        import torch

        f = precoder[..., 0] / _tensor(np.sqrt(self.power_w), phases_rad)[..., None]
        u, e = self._heard(phases_rad)
        nats = torch.log1p((u * f).sum(-1).abs().square()) - torch.log1p((e * f).sum(-1).abs().square())
        return nats / np.log(2)

    def best_rate_bits(self, phases_rad: Any) -> Any:
        """Return the rate in bits (…) with the best precoder, in closed form: log₂ of the largest root of the pencil.

        phases_rad (…, element) torch tensor; differentiable, in its precision and on its device. Never below 0.
        """
        return pencil_bits(*self._heard(phases_rad))

    def rate(self, precoders: NDArray[Any], phases_rad: F64) -> F64:
        """Return `rate_bits` of numpy arrays, in double precision; raises InputError on a precoder above P_t."""
        import torch

        f = np.asarray(precoders, dtype=np.complex128)
        if f.shape != (*self.batch, self.n_antennas, 1):
            raise InputError(f"precoders of shape {f.shape}, accepted: {(*self.batch, self.n_antennas, 1)}")
        spent = _square(f[..., 0])
        if not (spent <= self.power_w * (1 + 1e-6)).all():
            worst = float(np.max(np.nan_to_num(spent / self.power_w, nan=np.inf)))
            raise InputError(f"a precoder of {worst:.4g} times P_t, accepted: ‖f‖² ≤ P_t")
        phases = torch.as_tensor(self.checked_phases(phases_rad))
        return np.asarray(self.rate_bits(torch.as_tensor(f), phases).numpy())

    def probe(self, precoders: NDArray[Any], phases_rad: F64, n: int, rng: np.random.Generator) -> tuple[C128, ...]:
        """Send n Gaussian symbols over one channel (no batch); return (symbol, 1) each: sent, at Bob, at Eve."""
        if self.batch:
            raise InputError(f"probing takes one channel, not a batch {self.batch}")

        def cn() -> C128:
            parts = rng.standard_normal((2, n, 1))
            return np.asarray((parts[0] + 1j * parts[1]) / 2**0.5)

        f = np.asarray(precoders)[:, 0] / np.sqrt(self.power_w)
        u, e = self.heard(phases_rad)
        sent = cn()
        return sent, (u @ f) * sent + cn(), (e @ f) * sent + cn()

    def _heard(self, phases_rad: Any) -> tuple[Any, Any]:
        """`heard` of a torch tensor."""
        import torch

        a_u, a_e, k_u, k_e = (_tensor(x, phases_rad) for x in self.cascades())
        phi = torch.polar(torch.ones_like(phases_rad), phases_rad)
        return a_u + torch.einsum("...n,...nm->...m", phi, k_u), a_e + torch.einsum("...n,...nm->...m", phi, k_e)

    def checked_phases(self, phases_rad: Any) -> F64:
        """Return phases (…, element) unchanged; raises InputError for another shape or values that are not finite."""
        phases = np.asarray(phases_rad, dtype=float)
        if phases.shape != (*self.batch, self.n_elements):
            raise InputError(f"phases of shape {phases.shape}, accepted: {(*self.batch, self.n_elements)}")
        if not np.isfinite(phases).all():
            raise InputError(f"{_count_bad(phases)} phases are not finite; accepted: radians")
        return phases


def dbm_to_w(power_dbm: Any) -> F64:
    """Return watts; raises InputError for an impossible transmit power."""
    dbm = np.asarray(power_dbm, dtype=float)
    if not np.isfinite(dbm).all() or (np.abs(dbm) > MAX_POWER_DBM).any():
        raise InputError(f"power P_t = {power_dbm} dBm, accepted: −{MAX_POWER_DBM:g} to {MAX_POWER_DBM:g}")
    return np.asarray(1e-3 * 10 ** (dbm / 10))


def best_beam(u: C128, e: C128) -> C128:
    """Return the unit beam f (…, antenna) that maximises (1 + |u·f|²)/(1 + |e·f|²), or zeros where no beam exceeds 1.

    The largest generalised eigenvector of two matrices of rank one plus the identity: it lies in the span of both rows
    (…, antenna) and needs no solver.
    """
    u, e = u.conj(), e.conj()
    alpha, beta, inner = _square(u), _square(e), (e.conj() * u).sum(axis=-1)
    gain = _largest(alpha, beta, np.maximum(alpha * beta - np.abs(inner) ** 2, 0.0))
    f = u - (gain * inner / np.maximum(gain * (1 + beta) - 1, 1e-300))[..., None] * e
    length = np.sqrt(_square(f))
    usable = length > 1e-9 * np.sqrt(alpha)
    return np.asarray(f * (usable / np.where(usable, length, 1.0))[..., None])


def best_beam_torch(u: Any, e: Any) -> Any:
    """`best_beam` of torch tensors, differentiable; of unit length except where nothing can be kept secret from Eve."""
    u, e = u.conj(), e.conj()
    alpha, beta, delta, inner = _pencil(u, e)
    gain = _largest(alpha, beta, delta)
    f = u - (gain * inner / (gain * (1 + beta) - 1).clamp_min(1e-20))[..., None] * e
    return f / f.abs().square().sum(-1, keepdim=True).clamp_min(1e-20).sqrt()


def pencil_bits(u: Any, e: Any) -> Any:
    """Return the best rate in bits (…) for rows (…, antenna), torch tensors in noise amplitudes at full power."""
    import torch

    alpha, beta, delta, _ = _pencil(u.conj(), e.conj())
    return torch.log2(_largest(alpha, beta, delta))


def _pencil(u: Any, e: Any) -> tuple[Any, Any, Any, Any]:
    """Return |u|², |e|², δ of `_largest` without cancellation, and e^H u."""
    alpha, beta = u.abs().square().sum(-1), e.abs().square().sum(-1)
    inner = (e.conj() * u).sum(-1)
    apart = u - (inner / beta.clamp_min(1e-30))[..., None] * e
    return alpha, beta, beta * apart.abs().square().sum(-1), inner


def _largest(alpha: Any, beta: Any, delta: Any) -> Any:
    """Return the largest λ of det(I + u u^H − λ(I + e e^H)) = 0, α = |u|², β = |e|², δ = αβ − |e^H u|² ≥ 0.

    (1+β)λ² − (2+α+β+δ)λ + 1+α = 0; its discriminant is written as a sum of terms that are not negative.
    """
    discriminant = (alpha - beta) ** 2 + delta * (2 * (2 + alpha + beta) + delta)
    return (2 + alpha + beta + delta + discriminant**0.5) / (2 * (1 + beta))


def _square(values: NDArray[Any]) -> F64:
    return np.asarray((values.real**2 + values.imag**2).sum(axis=-1))


def _wave(places: F64, towards: F64) -> C128:
    """Return the plane wave's phases at places (…, 3) in wavelengths, from or to a far point in direction `towards`."""
    return np.asarray(np.exp(2j * np.pi * places @ (towards / np.linalg.norm(towards))), dtype=np.complex128)


def _tensor(values: NDArray[Any], like: Any) -> Any:
    """Return a tensor, real or complex as the values are, with the precision and device of a real tensor."""
    import torch

    values = np.asarray(values)
    double = like.dtype == torch.float64
    kinds = (torch.complex64, torch.complex128) if np.iscomplexobj(values) else (torch.float32, torch.float64)
    return torch.as_tensor(values, dtype=kinds[double], device=like.device)


def _count_bad(values: NDArray[Any]) -> int:
    return int((~np.isfinite(values)).sum())
