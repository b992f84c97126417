"""Both rates of paper E in closed form (our interpretation of its equations 7–16), for any batch, differentiable.

With s = K_L/(K_L + σ²), e = K_E/(K_E + σ²), K_L = P|h|², K_E = P|g|²: the three estimates that matter, Alice's, Bob's
and Eve's, are jointly Gaussian with correlations a = ρ^τ s between Alice and Bob and κ_E ρ^{τ/2} √(s e) between Eve,
who listens half-way between the two probes, and either. Then

    R_k = log2 |R_AE||R_BE| / (|R_E||R_ABE|) = −log2(1 − p²),   p = (a − b)/(1 − b),   b = κ_E² ρ^τ s e,

p being the correlation of Alice and Bob given Eve; b = 0 where she does not listen. As b ≤ a, p rises with K_L and
falls with K_E: the best beams lie on the frontier between the two (`beams.Frontier`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from testbed.agents.setting import Stack


class Rates(NamedTuple):
    """Rates in bits, each (run, …)."""

    reward: torch.Tensor
    key: torch.Tensor
    data: torch.Tensor


def rates(gain: torch.Tensor, eve_gain: torch.Tensor, awake: torch.Tensor, stack: Stack) -> Rates:
    """Return µR_k + (1 − µ)R_d and both rates for |h|², |g|² and Eve's mode (1: she listens, 0: not), all (run, …)."""
    shape = (-1, *[1] * (gain.ndim - 1))
    snr = gain * (stack.power / stack.noise_power).reshape(shape)
    eve_snr = eve_gain * (stack.power / stack.noise_power).reshape(shape)
    between = (stack.rho**stack.lag).reshape(shape)
    shared = (stack.kappa_eve**2).reshape(shape) * between
    # 1 − a and 1 − b, without cancellation where ρ and κ_E are 1 and the SNR is high
    not_a = (snr * (1 - between) + 1) / (snr + 1)
    not_b = 1 - shared + shared * (snr / (snr + 1) / (eve_snr + 1) + 1 / (snr + 1))
    not_b = awake * not_b + (1 - awake)
    # 1 − p² = (1 − p)(1 + p)
    key = 2 * torch.log2(not_b) - torch.log2(not_a) - torch.log2(2 * not_b - not_a)
    data = torch.log2(1 + snr)
    mu = stack.mu.reshape(shape)
    return Rates(mu * key + (1 - mu) * data, key, data)
