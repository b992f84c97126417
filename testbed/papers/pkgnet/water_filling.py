"""Paper A's baseline (Section IV): equal phases, and powers from a rate whose noise term was simplified.

With P = √P_a·P_e the paper sets P_e^T P_e* = I in the noise. A beam of eigenvalue ρ and power share q (Σ q = M) then
contributes log₂[(1 + P_b a)(1 + P_a a) / (1 + (P_a + P_b) a)], a = δ²ρq/σ² (eq. 26), although Alice's true SNR does not
depend on q.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize

from testbed.core.types import F64
from testbed.papers.pkgnet.model import SingleCell
from testbed.surface.design import Design


def design(model: SingleCell) -> Design:
    """Return the baseline's phases (zeros) and precoders."""
    rho, vectors = np.linalg.eigh(model.r_b)
    phases_rad = np.zeros((*np.shape(model.beta_h), model.n_elements))
    gain = np.atleast_1d(model.gain(phases_rad))
    shares = np.stack([_shares(model, rho, float(g)) for g in gain.ravel()]).reshape(*gain.shape, len(rho))
    shares = shares.reshape(*np.shape(model.beta_h), len(rho))
    return Design(phases_rad, vectors.conj() * np.sqrt(model.power_a_w * shares)[..., None, :])


def _shares(model: SingleCell, rho: F64, gain: float) -> F64:
    """Maximise the simplified rate over q ≥ 0, Σ q = M.

    The rate is not concave: near q = 0 it grows with the product of both ends' SNRs. Therefore the search starts
    several times, with equal shares of the strongest 1, 2, …, M beams, and the best result is returned.
    """
    m = len(rho)
    snr = gain * rho / model.noise_w
    p_a, p_b = model.power_a_w, model.power_b_w

    def loss(q: F64) -> tuple[float, F64]:
        a = snr * np.maximum(q, 0.0)  # the solver's line search may leave its bounds
        value = np.log1p(p_b * a) + np.log1p(p_a * a) - np.log1p((p_a + p_b) * a)
        slope = p_b / (1 + p_b * a) + p_a / (1 + p_a * a) - (p_a + p_b) / (1 + (p_a + p_b) * a)
        return -float(value.sum()), -slope * snr

    best: tuple[float, F64] | None = None
    for active in range(1, m + 1):
        start = np.zeros(m)
        start[m - active :] = m / active
        found: Any = minimize(  # type: ignore[call-overload]
            loss, start, jac=True, method="SLSQP", bounds=[(0, m)] * m, options={"maxiter": 200, "ftol": 1e-12},
            constraints={"type": "eq", "fun": lambda q: q.sum() - m, "jac": np.ones_like},
        )  # fmt: skip
        q = np.maximum(found.x, 0.0)
        q *= m / q.sum()
        if best is None or loss(q)[0] < best[0]:
            best = loss(q)[0], q
    assert best is not None
    return best[1]
