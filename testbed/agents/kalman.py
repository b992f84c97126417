"""The optimal predictor of Eve's channel from Fred's: an LSTM can be as good and no better.

Fred's channel f and Eve's g are Gaussian AR(1) processes with the same ρ and a fixed correlation κ_F. Hence
g = κ_F f + √(1−κ_F²) f⊥, where f⊥ is independent of every estimate of f, past or present. A scalar Kalman filter for
each coefficient gives the posterior of f, with mean m and variance p; that of g has mean κ_F m and variance κ_F² p + 1
− κ_F².
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from testbed.agents.environment import Environment
from testbed.agents.setting import Stack


class Belief(NamedTuple):
    """Posterior distribution of Eve's channel: the coefficients are independent and CN(mean, variance)."""

    mean: torch.Tensor
    """(run, copy, antenna) complex64."""
    variance: torch.Tensor
    """(run, 1)."""


def predict(env: Environment) -> Belief:
    """Return the posterior of Eve's present channel given the environment's past estimates of Fred's channel."""
    return filtered(env.fred, env.stack)


def filtered(fred: torch.Tensor, stack: Stack) -> Belief:
    """Return the posterior of the present g given estimates of Fred's channel (time, run, copy, antenna)."""
    mean, variance = torch.zeros_like(fred[0]), torch.ones_like(stack.rho)
    for estimate in fred:
        prior = stack.rho**2 * variance + 1 - stack.rho**2
        gain = prior / (prior + stack.fred_noise)
        forecast = stack.rho[..., None] * mean
        mean = forecast + gain[..., None] * (estimate - forecast)
        variance = (1 - gain) * prior
    kappa = stack.kappa_fred
    return Belief(kappa[..., None] * mean, kappa**2 * variance + 1 - kappa**2)


def awake_probability(belief: Belief, stack: Stack) -> torch.Tensor:
    """Return (run, copy) the probability that Eve listens: ‖g‖² is noncentral χ² with 2·antennas degrees of freedom."""
    from scipy.stats import ncx2

    mean, n = belief.mean, stack.n_antennas
    half = belief.variance.double().cpu().numpy() / 2 + 1e-12
    centre = (mean.abs() ** 2).sum(-1).double().cpu().numpy()
    gate = (stack.threshold * n).double().cpu().numpy()
    tail = ncx2.sf(gate / half, 2 * n, centre / half)
    # scipy's series does not converge far from the threshold, where the probability is 0 or 1
    tail = np.where(np.isfinite(tail), tail, centre > gate)
    return torch.as_tensor(tail, dtype=torch.float32, device=mean.device)
