"""A residual on the SVD beams under partial observation, trained by differentiating the known reward.

One net serves every weight, correlation and power: it sees what is left of the problem in the turned frame (`frames`) –
the modes' SNRs, Eve's predicted SNR along each, how sure the prediction is – and the setting's numbers, and answers with
what is to be added to the SVD beam; Bob's beam is matched. Its loss is minus the reward at Eve's true channel, which the
simulator knows in training; no critic, no exploration. The last layer starts at zero, so training starts at the SVD
beams. Where the posterior's expected reward of the answer is below that of the SVD beams, the SVD beams stand.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from testbed.agents import kalman
from testbed.agents.beams import Beams, Points, expected_reward, matched, turned
from testbed.agents.environment import Environment
from testbed.agents.networks import Nets, descend
from testbed.agents.rates import rates
from testbed.agents.setting import Setting, Stack
from testbed.core import seeds
from testbed.core.errors import InputError, TestbedError


@dataclass(frozen=True)
class Config:
    hidden: int = 64
    n_settings: int = 128
    """Random settings that are trained for."""
    n_envs: int = 8
    rate: float = 3e-3
    decay_steps: int = 1500
    """Updates after which the rate has fallen to a tenth."""
    power_db: tuple[float, float] = (-10.0, 20.0)
    """Range of P in the settings trained for; µ and κ_E are uniform over 0 to 1."""
    least_fred: float = 0.8
    """κ_F is trained for from here to 1, most of it near 1."""


class Residual:
    """The net and its training."""

    name = "residual"

    def __init__(self, setting: Setting, seed: int, config: Config | None = None, device: str = "cpu") -> None:
        """`setting`: antennas, noise and statistics; its µ, κ_E, κ_F and power are not looked at."""
        self.setting, self.seed, self.config, self.device = setting, seed, config or Config(), device
        n, c = setting.n_antennas, self.config
        sizes = (2 * n + 6, c.hidden, c.hidden, n)
        self.net = Nets([seeds.derive(seed, "residual")], sizes, last_scale=0.0).to(device)
        self._env = Environment(self._settings(), c.n_envs, seeds.derive(4, "residual", seed), device)
        self._optimiser = torch.optim.Adam(self.net.parameters(), lr=c.rate)
        self._schedule = torch.optim.lr_scheduler.ExponentialLR(self._optimiser, 0.1 ** (1 / c.decay_steps))
        self.n_updates = 0

    def _settings(self) -> list[Setting]:
        rng = seeds.generator(self.seed, "residual", "settings")
        low, high = self.config.power_db
        return [
            Setting(
                **{
                    **asdict(self.setting),
                    "mu": mu,
                    "kappa_eve": kappa,
                    "power": 10 ** (db / 10),
                    "kappa_fred": 1 - (1 - self.config.least_fred) * u**2,
                }
            )
            for mu, kappa, db, u in zip(
                rng.uniform(0, 1, self.config.n_settings).tolist(),
                rng.uniform(0, 1, self.config.n_settings).tolist(),
                rng.uniform(low, high, self.config.n_settings).tolist(),
                rng.uniform(0, 1, self.config.n_settings).tolist(),
                strict=True,
            )
        ]

    def train(self, n_updates: int) -> Residual:
        """Climb the reward; returns itself."""
        for _ in range(n_updates):
            env = self._env
            coefficients, d, v = self._coefficients(env)
            alice = (v * coefficients.unsqueeze(-2)).sum(-1)
            heard = (env.g * alice).sum(-1)
            reward = rates((d * coefficients**2).sum(-1), heard.real**2 + heard.imag**2, env.awake, env.stack).reward
            loss = -reward.mean()
            if not bool(torch.isfinite(loss)):
                raise TestbedError(f"agents: the residual net's reward is not finite after {self.n_updates} updates")
            descend(self._optimiser, loss)
            self._schedule.step()
            env.advance()
            self.n_updates += 1
        return self

    def policy(self, env: Environment) -> Beams:
        """Return the beams for an environment's present channels, as far as Fred tells of Eve's."""
        self._fits(env.stack)
        with torch.no_grad():
            c, d, v = self._coefficients(env)
            belief = kalman.predict(env)
            m = (v * belief.mean.unsqueeze(-1)).sum(-2).abs()
            of_svd = torch.zeros_like(c)
            of_svd[..., 0] = 1
            both = torch.stack([of_svd, c], -2)
            points = Points(both, (d[..., None, :] * both**2).sum(-1), (m[..., None, :] * both).sum(-1).abs())
            worth = expected_reward(points, belief, env.stack)
            c = torch.where((worth[..., 1] > worth[..., 0])[..., None], c, of_svd)
            alice = (v * c.unsqueeze(-2)).sum(-1)
            return alice, matched(env.h, alice)

    def _coefficients(self, env: Environment) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the beam's unit-norm coefficients (run, copy, mode), d (run, copy, mode) and the basis V."""
        stack = env.stack
        with torch.no_grad():
            belief = kalman.predict(env)
            v, d, m = turned(env.h, belief.mean)
            snr = (stack.power / stack.noise_power)[..., None]
            gain = (m**2).sum(-1, keepdim=True) / stack.n_antennas
            spread = belief.variance[..., None]
            columns = [stack.mu, stack.kappa_eve, stack.rho**stack.lag]
            of_setting = [x[..., None].expand(*gain.shape) for x in columns]
            at = torch.cat(
                [torch.log1p(snr * d), torch.log1p(snr * m**2), gain - stack.threshold[..., None],
                 torch.log1p(snr * spread).expand(*gain.shape), spread.expand(*gain.shape), *of_setting], -1,
            )  # fmt: skip
        out = self.net(at.flatten(0, 1)[None])[0].unflatten(0, at.shape[:2])
        first = torch.zeros_like(out)
        first[..., 0] = 1.0
        c = first + out
        return c / torch.linalg.vector_norm(c, dim=-1, keepdim=True).clamp_min(1e-9), d, v

    def _fits(self, stack: Stack) -> None:
        if stack.n_antennas != self.setting.n_antennas:
            raise InputError(
                f"agents: the residual net is for {self.setting.n_antennas} antennas, the environment has "
                f"{stack.n_antennas}; accepted: the same"
            )

    def save(self, path: Path) -> None:
        """Write the net (`path`) and what it is for (`path` with .json)."""
        import json

        torch.save({"parts": {"net": self.net.state_dict()}}, path)
        card: dict[str, Any] = {"algorithm": self.name, "setting": asdict(self.setting), "seed": self.seed}
        card |= {"config": asdict(self.config), "n_updates": self.n_updates, "task": {"view": "kalman"}}
        path.with_suffix(".json").write_text(json.dumps(card, indent=1), encoding="utf-8")
