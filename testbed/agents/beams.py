"""Reference beams for the learners: random, SVD, the best compromise between gain and null, Bayes, per-step oracle.

Each takes an environment and returns unit-norm beams (run, copy, antenna) of Alice and Bob for its present channels.
`oracle` and `ascent` use Eve's true channel, `svd` uses none, `trade` and `bayes` use the prediction from Fred's
channel.

**The frontier.** Bob's best beam for w_a is the matched one, so K_L ∝ ‖Hw_a‖². The reward rises with ‖Hw_a‖² and falls
with |gᵀw_a|. The same holds for its mean over a posterior of g with mean m and independent, equal errors, with |mᵀw_a|
in place of |gᵀw_a|, because such a posterior is symmetric around m. The two quadratic forms have a convex joint range
(Toeplitz–Hausdorff), so the best beam is among the principal vectors of HᴴH − λ m*mᵀ, λ ≥ 0. With HᴴH = V diag(d) Vᴴ
and phases such that Vᵀm is real, these are

    w = V c,   c_1 ∝ m_1,   c_i ∝ −m_i x/(δ_i − x),   δ_i = d_1 − d_i,   0 ≤ x ≤ x_null < δ_2.

x = 0 gives the SVD beams, x_null a perfect null towards m. Only x has to be found, for any number of antennas.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from testbed.agents import kalman
from testbed.agents.environment import Environment
from testbed.agents.rates import rates
from testbed.agents.setting import Stack

Beams = tuple[torch.Tensor, torch.Tensor]
Policy = Callable[[Environment], Beams]


def random(env: Environment) -> Beams:
    """Return beams of uniform direction, the same in every run."""
    shape = (1, env.n_envs, env.stack.n_antennas, 2, 2)
    drawn = torch.randn(shape, generator=env.generator, device=env.stack.device)
    both = torch.view_as_complex(drawn / (drawn**2).sum((2, 4), keepdim=True).sqrt())
    both = both.repeat(env.stack.n_runs, 1, 1, 1)
    return both[..., 0], both[..., 1]


def svd(env: Environment) -> Beams:
    """Return the principal singular vectors, which are optimal where Eve is inactive or uncorrelated."""
    alice = _eigh(env.h)[1][..., -1]
    return alice, matched(env.h, alice)


def matched(h: torch.Tensor, alice: torch.Tensor) -> torch.Tensor:
    """Return Bob's best beam for Alice's: (Hw_a)* at unit norm."""
    heard = (h * alice.unsqueeze(-2)).sum(-1).conj()
    return heard / torch.linalg.vector_norm(heard, dim=-1, keepdim=True).clamp_min(1e-12)


def trade(env: Environment) -> Beams:
    """Return the best compromise between gain and null, assuming that Eve's predicted channel and mode are true."""
    mean = kalman.predict(env).mean
    awake = (_power(mean).sum(-1) > env.stack.threshold * env.stack.n_antennas).float()
    return best_if_certain(env, mean, awake)


def oracle(env: Environment) -> Beams:
    """Return the optimum given Eve's true channel and mode: the best of the frontier."""
    return best_if_certain(env, env.g, env.awake)


def best_if_certain(env: Environment, g: torch.Tensor, awake: torch.Tensor) -> Beams:
    """Return the best of the frontier, assuming that Eve has channel g (run, copy, antenna) and mode (run, copy)."""

    def worth(at: Points) -> torch.Tensor:
        return rates(at.gain, at.heard**2, awake[..., None], env.stack).reward

    return Frontier(env.h, g).best(worth)


def bayes(env: Environment, belief: kalman.Belief | None = None) -> Beams:
    """Return the beams of highest expected reward given Fred's history: no policy with that knowledge can do better.

    `belief`: posterior of Eve's channel, by default that of the Kalman filter. SVD beams are among those compared.
    """
    known = belief or kalman.predict(env)
    return Frontier(env.h, known.mean).best(lambda at: expected_reward(at, known, env.stack))


def bayes_alone(env: Environment) -> Beams:
    """As `bayes`, for a Bob who does not know Alice's choice and keeps to his SVD beam, as two real nodes must."""
    belief = kalman.predict(env)
    frontier = Frontier(env.h, belief.mean, bob_follows=False)
    alice, _ = frontier.best(lambda at: expected_reward(at, belief, env.stack))
    return alice, svd(env)[1]


def expected_reward(at: Points, belief: kalman.Belief, stack: Stack, n_samples: int = 64) -> torch.Tensor:
    """Return (run, copy, point) the mean reward over Eve's posterior channels, by quasi-random points.

    A point draws three parts of g: that along the beam, that across it towards m, and the power of the rest (Gamma).
    """
    spread = belief.variance[..., None].sqrt()
    aside = (_power(belief.mean).sum(-1)[..., None] - at.heard**2).clamp_min(0).sqrt()
    gate = (stack.threshold * stack.n_antennas)[..., None]
    total = torch.zeros_like(at.gain)
    for along_re, along_im, across_re, across_im, rest in _draws(n_samples, stack.n_antennas):
        eve = (at.heard + spread * along_re) ** 2 + (spread * along_im) ** 2
        norm = eve + (aside + spread * across_re) ** 2 + spread**2 * (across_im**2 + rest)
        total += rates(at.gain, eve, (norm > gate).float(), stack).reward
    return total / n_samples


@cache
def _draws(n: int, n_antennas: int) -> list[list[float]]:
    """Return n points: real and imaginary part of a CN(0, 1), of another, and a Gamma(antennas − 2) variate."""
    from scipy.stats import gamma, norm, qmc

    u = np.clip(qmc.Sobol(5, seed=1).random(n), 1e-6, 1 - 1e-6)
    rest = gamma.ppf(u[:, 4:], n_antennas - 2) if n_antennas > 2 else np.zeros((n, 1))
    points: list[list[float]] = np.hstack([norm.ppf(u[:, :4]) * 0.5**0.5, rest]).tolist()
    return points


def ascent(env: Environment, n_steps: int = 150, rate: float = 0.05) -> Beams:
    """Return the result of gradient ascent on the true reward (Eve's channel and mode known) from the SVD beams.

    This is the reference of the model description. The reward is not concave, so the ascent may end below `oracle`.
    Where it ends below its start, the start is returned.
    """
    start = torch.cat([torch.view_as_real(w).flatten(-2) for w in svd(env)], -1)
    x = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
    for _ in range(n_steps):
        optimiser.zero_grad()
        with torch.enable_grad():
            (-env.rates(*_split(x)).reward.sum()).backward()
        optimiser.step()
        schedule.step()
    found, before = _split(x.detach()), _split(start)
    better = (env.rates(*found).reward > env.rates(*before).reward)[..., None]
    return torch.where(better, found[0], before[0]), torch.where(better, found[1], before[1])


def _split(x: torch.Tensor) -> Beams:
    alice, bob = (torch.view_as_complex(half.unflatten(-1, (-1, 2)).contiguous()) for half in x.chunk(2, -1))
    return (
        alice / torch.linalg.vector_norm(alice, dim=-1, keepdim=True),
        bob / torch.linalg.vector_norm(bob, dim=-1, keepdim=True),
    )


class Points(NamedTuple):
    """Some points of the frontier."""

    coefficients: torch.Tensor
    """(run, copy, point, mode) real c at unit norm."""
    gain: torch.Tensor
    """(run, copy, point) ‖Hw‖² = |h|² with Bob matched."""
    heard: torch.Tensor
    """(run, copy, point) |mᵀw|."""


class Frontier:
    """The beams from the SVD's to the null towards m for channels h (run, copy, b, a) and m (run, copy, a)."""

    def __init__(self, h: torch.Tensor, mean: torch.Tensor, bob_follows: bool = True) -> None:
        """`bob_follows`: Bob uses the beam that matches Alice's; otherwise that of the strongest mode."""
        self._h = h
        self.basis, d, m = turned(h, mean)
        if not bob_follows:
            d = torch.cat([d[..., :1], torch.zeros_like(d[..., 1:])], -1)
        self.modes, self.towards = d, m
        """(run, copy, mode) d, and |Vᵀm|, the strongest mode first."""
        self._delta = d[..., :1] - d[..., 1:]
        low, high = torch.zeros_like(d[..., 0]), self._delta[..., 0] * (1 - 1e-5)
        for _ in range(30):
            x = (low + high) / 2
            over = (m[..., 1:] ** 2 * (x[..., None] / (self._delta - x[..., None]))).sum(-1) > m[..., 0] ** 2
            low, high = torch.where(over, low, x), torch.where(over, x, high)
        self.null = low
        """(run, copy) x of the null."""

    def at(self, x: torch.Tensor) -> Points:
        """Return the points of x (run, copy, point), each between 0 and `null`."""
        d, m = self.modes[..., None, :], self.towards[..., None, :]
        others = -m[..., 1:] * (x[..., None] / (self._delta[..., None, :] - x[..., None]))
        c = torch.cat([m[..., :1].expand(*others.shape[:-1], 1).clamp_min(1e-9), others], -1)
        c = c / torch.linalg.vector_norm(c, dim=-1, keepdim=True)
        return Points(c, (d * c**2).sum(-1), (m * c).sum(-1).abs())

    def along(self, t: torch.Tensor) -> Points:
        """Return the points at t (run, copy, point), 0 (SVD) to 1 (null), denser where the reward changes fastest."""
        return self.at(self.null[..., None] * (1 - (1 - t) ** 2))

    def best(self, worth: Callable[[Points], torch.Tensor], n_points: int = 24, n_finer: int = 7) -> Beams:
        """Return the beams of the largest `worth`, by a grid over the frontier and finer grids around its best
        point."""
        t = torch.linspace(0, 1, n_points, device=self.null.device).expand(*self.null.shape, n_points)
        step, offsets = 1 / (n_points - 1), torch.linspace(-1, 1, n_finer, device=t.device)
        for _ in range(3):
            points = self.along(t)
            index = worth(points).argmax(-1, keepdim=True)
            t = (t.gather(-1, index) + step * offsets).clamp(0, 1)
            step *= 2 / (n_finer - 1)
        chosen = index[..., None].expand(*index.shape, points.coefficients.shape[-1])
        return self.beams(points.coefficients.gather(-2, chosen)[..., 0, :])

    def beams(self, coefficients: torch.Tensor) -> Beams:
        """Return the beams of real coefficients (run, copy, mode)."""
        alice = self.alice(coefficients)
        return alice, matched(self._h, alice)

    def alice(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return Alice's beams alone."""
        alice = (self.basis * coefficients.unsqueeze(-2)).sum(-1)
        return alice / torch.linalg.vector_norm(alice, dim=-1, keepdim=True)


def turned(h: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return V (…, antenna, mode), the strongest mode first, with Vᵀm real and positive; its gains d; and Vᵀm."""
    d, v = _eigh(h)
    d, v = d.flip(-1).clamp_min(0), v.flip(-1)
    m = (v * mean.unsqueeze(-1)).sum(-2)
    size = m.abs()
    phase = torch.where(size > 0, m.conj() / size.clamp_min(1e-20), torch.ones_like(m))
    return v * phase.unsqueeze(-2), d, size


def _eigh(h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues, ascending, and vectors of HᴴH."""
    gram = h.mH @ h
    if not h.is_cuda:
        return torch.linalg.eigh(gram)
    # cuSOLVER's batched routine refuses batches over about 32 000 and needs workspace in proportion (about 10 GiB for
    # 16 000, too much for sixteen processes on one card). In single precision it has returned wrong results.
    parts = [torch.linalg.eigh(part) for part in gram.to(torch.complex128).flatten(0, -3).split(1024)]
    d, v = (torch.cat(x) for x in zip(*parts, strict=True))
    return d.float().reshape(gram.shape[:-1]), v.to(gram.dtype).reshape(gram.shape)


def _power(x: torch.Tensor) -> torch.Tensor:
    return x.real**2 + x.imag**2
