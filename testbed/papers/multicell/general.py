"""Paper C with arbitrary covariances: R^d_ij of the direct channels and R^r_ij of all paths over the surfaces.

h_ij = h^d_ij + H_ij v, R^r_ij = E{vec(H_ij) vec(H_ij)^H} (vec by columns: element after element, antennas within), so
C_ij = R^d_ij + (v^T ⊗ I) R^r_ij (v* ⊗ I), paper C eq. 12. Memory grows with (MNL)²; `MultiCell` needs far less where
links are Rician with independent scatter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.papers.multicell.model import MultiCell, check_common, check_precoders
from testbed.papers.multicell.rates import C128, LN2, KeyRates, adjoint
from testbed.surface.geometry import check_covariance


@dataclass(frozen=True)
class GeneralMultiCell(KeyRates):
    """One scene (no batch), with the interface of `MultiCell` that the designers use."""

    direct: C128
    """R^d (i, j, antenna, antenna) over the noise power."""
    through: C128
    """R^r (i, j, element·antenna, element·antenna) over the noise power."""
    n_chains: int
    power_w: float
    weights: F64

    batch = ()

    def __post_init__(self) -> None:
        m = self.n_antennas
        check_common(self.weights, self.power_w, self.n_chains, m)
        k = len(self.direct)
        for name, matrices in (("direct", self.direct), ("through", self.through)):
            size = matrices.shape[-1]
            if matrices.shape != (k, k, size, size) or size % m:
                raise InputError(f"{name} has the shape {matrices.shape}, accepted: ({k}, {k}, n·{m}, n·{m})")
            for i in range(k):
                for j in range(k):
                    check_covariance(f"{name} of base station {i} and terminal {j}", matrices[i, j])
        if np.shape(self.weights) != (k,):
            raise InputError(f"weights for {np.size(self.weights)} cells, accepted: {k}")

    @classmethod
    def of(cls, model: MultiCell) -> GeneralMultiCell:
        """Return the statistics of a `MultiCell` (one scene) as full matrices."""
        if model.batch:
            raise InputError(f"one scene, not a batch {model.batch}")
        kappa = 0.0 if model.rician == 0 else model.rician / (model.rician + 1)
        k, n_surfaces, n, m = model.n_cells, model.through.shape[-1], model.surface_bs.shape[-1], model.n_antennas
        through = np.zeros((k, k, n_surfaces, n, m, n_surfaces, n, m), complex)
        for i in range(k):
            for j in range(k):
                b, f, a = model.surface_bs[:, i], model.surface_ut[:, j], model.bs[i]
                x = np.einsum("l,ln,ln,lm->lnm", np.sqrt(model.through[i, j]), b, f, a)
                sight = 0.0 if model.los_known else kappa**2
                if model.coherent:
                    through[i, j] = sight * np.einsum("lnm,pqr->lnmpqr", x, x.conj())
                for surface in range(n_surfaces):
                    gain, aa = model.through[i, j, surface], np.outer(a[surface], a[surface].conj())
                    own = through[i, j, surface, :, :, surface]
                    if not model.coherent:
                        own += sight * np.einsum("nm,qr->nmqr", x[surface], x[surface].conj())
                    e = np.arange(n)
                    own[e, :, e, :] += gain * (1 - kappa) * (kappa * aa + np.eye(m))
        size = n_surfaces * n * m
        direct = np.asarray(model.direct[..., None, None] * np.eye(m), complex)
        return cls(direct, through.reshape(k, k, size, size), model.n_chains, model.power_w, model.weights)

    @property
    def n_cells(self) -> int:
        return len(self.direct)

    @property
    def n_antennas(self) -> int:
        return int(self.direct.shape[-1])

    @property
    def n_phases(self) -> int:
        return int(self.through.shape[-1]) // self.n_antennas

    def covariances(self, phases_rad: F64) -> C128:
        """Return C (i, j, antenna, antenna) for phases (element,)."""
        return np.asarray(self.direct + np.einsum("n,ijnab->ijab", self._unit(phases_rad), self._folded(phases_rad)))

    def phase_slopes(self, d: C128, phases_rad: F64) -> C128:
        """Return ∂R/∂v* (element,) from D (i, j, antenna, antenna): Theorem 4 contracted, O((KMNL)²)."""
        return np.asarray(np.einsum("ijba,ijnab->n", d, self._folded(phases_rad)).conj())

    def theorem_4(self, precoders: C128, phases_rad: F64) -> C128:
        """Return ∂R/∂v̄* (element,) with v̄ = v*, term by term as printed (paper C eqs. 30, 31): O((MNL)³).

        It is the conjugate of `phase_slopes`, in bits, and serves as a reference for the two other computations.
        """
        self.check_precoders(precoders)
        n, m, m_e = self.n_phases, self.n_antennas, self.n_chains
        vbar = self._unit(phases_rad).conj()[:, None]
        c = self.covariances(phases_rad)
        eye_n = np.eye(n)
        v_m, v_e = np.kron(vbar, np.eye(m)), np.kron(vbar, np.eye(m_e))
        spread = [np.kron(eye_n, p) for p in precoders]  # I ⊗ P_i
        out = np.zeros(n, complex)
        for k, weight in enumerate(self.weights):
            p, r_kk, wide = precoders[k], self.through[k, k], spread[k]
            y = sum(precoders[i] @ c[i, k] @ adjoint(precoders[i]) for i in range(self.n_cells)) + np.eye(m_e)
            z_inv = np.linalg.inv(c[k].sum(axis=0) + np.eye(m))
            r_yz, r_zy = p @ c[k, k], c[k, k] @ adjoint(p)
            e_inv = np.linalg.inv(y - r_yz @ z_inv @ r_zy)
            heard = sum(spread[i] @ self.through[i, k] @ adjoint(spread[i]) for i in range(self.n_cells)) @ v_e
            q = heard @ np.linalg.inv(y) - heard @ e_inv + wide @ r_kk @ v_m @ z_inv @ r_zy @ e_inv
            g = -self.through[k].sum(axis=0) @ v_m @ z_inv @ r_zy @ e_inv @ r_yz @ z_inv
            g = g + r_kk @ adjoint(wide) @ v_e @ e_inv @ r_yz @ z_inv
            # with rows in the order (stream, element) by the commutation matrices, take column m of block m, and add
            out += weight * (np.einsum("nmm->n", q.reshape(n, m_e, m_e)) + np.einsum("nmm->n", g.reshape(n, m, m)))
        return np.asarray(out / LN2, complex)

    def _folded(self, phases_rad: F64) -> C128:
        """Return Σ_p R^r[(n, a), (p, b)] v_p* as (i, j, n, a, b)."""
        k, n, m = self.n_cells, self.n_phases, self.n_antennas
        v = self._unit(phases_rad).conj()
        columns = self.through.reshape(k, k, n * m, n, m)
        return np.asarray(np.einsum("ijxpb,p->ijxb", columns, v, optimize=True), complex).reshape(k, k, n, m, m)

    def _unit(self, phases_rad: F64) -> C128:
        if np.shape(phases_rad) != (self.n_phases,):
            raise InputError(f"phases of the shape {np.shape(phases_rad)}, accepted: ({self.n_phases},)")
        if not np.isfinite(phases_rad).all():
            raise InputError("phases are not finite; accepted: radians")
        return np.asarray(np.exp(1j * np.asarray(phases_rad)), complex)

    def check_precoders(self, precoders: Any) -> None:
        """Raise InputError if precoders have another shape or exceed the power."""
        check_precoders(precoders, (self.n_cells, self.n_chains, self.n_antennas), self.power_w)
