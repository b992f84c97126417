"""Paper A solved exactly: equal phases, and one bisection for the powers of the eigenbeams.

δ² depends on the phases alone and is largest where they are equal (R_I∘R_I ≥ 0 entrywise). With P = U* diag(√p), U the
eigenvectors of R_B with eigenvalues ρ, P drops out of Alice's side and

    I = Σ log₂[(1+b)(1+x)/(1+b+x)],  b = P_b ρ δ²/σ²,  x = p ρ δ²/σ²,  Σ p = P_a M,

which is concave in p: dI/dp = μ has one root for each p, Σ p falls with μ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64
from testbed.papers.pkgnet.model import SingleCell
from testbed.surface.design import Design

C128 = NDArray[np.complex128]


def design(model: SingleCell) -> Design:
    """Return the optimum. The phases are zeros: all equal phases are optimal, so every quantized surface reaches it."""
    phases_rad = _equal(model)
    return Design(phases_rad, precoders(model, phases_rad))


def precoders(model: SingleCell, phases_rad: F64) -> C128:
    """Return the best precoder (…, antenna, stream) for phases (…, element)."""
    rho, vectors = np.linalg.eigh(model.r_b)
    powers = _powers(model, np.maximum(rho, 0.0), model.gain(phases_rad))
    return np.asarray(vectors.conj() * np.sqrt(powers)[..., None, :], complex)


def rate(model: SingleCell, phases_rad: F64 | None = None) -> F64:
    """Return the rate in bits (…) of the best precoder for phases (…, element), the optimum's by default.

    Computed without matrices.
    """
    rho = np.maximum(np.linalg.eigvalsh(model.r_b), 0.0)
    gain = model.gain(_equal(model) if phases_rad is None else phases_rad)
    snr = gain[..., None] * rho / model.noise_w
    b, x = model.power_b_w * snr, _powers(model, rho, gain) * snr
    return np.asarray(np.log2((1 + b) * (1 + x) / (1 + b + x)).sum(axis=-1))


def _equal(model: SingleCell) -> F64:
    return np.zeros((*model.batch, model.n_elements))


def _powers(model: SingleCell, rho: F64, gain: F64) -> F64:
    """Return p (…, beam) for δ² (…): bisection over log μ, to the last bit."""
    snr = np.maximum(np.asarray(gain)[..., None] * rho / model.noise_w, 1e-300)
    b = model.power_b_w * snr
    budget = model.power_a_w * len(rho)

    def at(log_mu: F64) -> F64:
        # snr·b / ((1+x)(1+b+x)) = μ, a quadratic in x, with its root in the form without cancellation
        excess = np.exp(np.log(snr) + np.log(b) - log_mu[..., None]) - (1 + b)
        x = 2 * excess / (2 + b + np.sqrt(b**2 + 4 * (excess + 1 + b)))
        return np.asarray(np.maximum(x, 0.0) / snr)

    high = np.log(snr * b / (1 + b)).max(axis=-1)  # at this μ every beam has power 0
    low = high - 200.0
    for _ in range(80):
        middle = (low + high) / 2
        spends = at(middle).sum(axis=-1) > budget
        low, high = np.where(spends, middle, low), np.where(spends, high, middle)
    powers = at(high)
    return np.asarray(powers * (budget / np.maximum(powers.sum(axis=-1, keepdims=True), 1e-300)))
