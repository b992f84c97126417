"""A net trained by differentiating the known reward, under partial observation: no critic, no exploration.

The best beam lies on the frontier between the SVD beam and the null towards Eve's predicted channel (`beams`), so the
net has to find one number only. One net serves every weight, correlation, power and quality of Fred's estimates. Its
inputs are the modes' SNRs, Eve's predicted SNR along each mode, the variance of the prediction, and the setting's
numbers; its output is a point of the frontier. Its loss is minus the reward at Eve's true channel, which the simulator
knows in training. Where the expected reward of the net's beams is below that of the SVD beams, the SVD beams are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from testbed.agents import kalman
from testbed.agents.beams import Beams, Frontier, Points, expected_reward, svd
from testbed.agents.environment import Environment
from testbed.agents.learner import Task, one_line, packed, read, write_card
from testbed.agents.networks import Nets, adam, descend
from testbed.agents.rates import rates
from testbed.agents.setting import Setting, Stack
from testbed.agents.sources import Series
from testbed.core import seeds
from testbed.core.errors import InputError, TestbedError
from testbed.core.whole import write_whole


@dataclass(frozen=True)
class Config:
    hidden: int = 64
    n_settings: int = 128
    """Number of random settings that are trained at once."""
    n_envs: int = 8
    rate: float = 3e-3
    decay_steps: int = 600
    """Updates after which the rate has fallen to a tenth."""
    power_db: tuple[float, float] = (-10.0, 20.0)
    """Range of P in the settings trained for; µ and κ_E are uniform over 0 to 1."""
    least_fred: float = 0.8
    """Training draws κ_F between this value and 1, mostly near 1; given channels with a Fred have their own κ_F."""
    bob_follows: bool = True
    """Whether Bob knows Alice's beam and uses the matched one; otherwise he uses his SVD beam, as nodes do that
    exchange no information."""


class Direct:
    """The net and its training."""

    name = "direct"

    def __init__(
        self,
        setting: Setting,
        seed: int,
        config: Config | None = None,
        device: str = "cpu",
        channels: Series | None = None,
    ) -> None:
        """`setting`: antennas, noise and statistics; its µ, κ_E, κ_F and power do not limit the training, but apply
        where the environment gives none. `channels` to train on; by default those of the AR(1) model.
        """
        self.setting, self.seed, self.config, self.device = setting, seed, config or Config(), device
        self.task = Task((setting,), (seed,), "kalman", "turned", device)
        self.stack = Stack.of([setting], device)
        self._has_fred = channels is not None and channels.fred is not None
        n, c = setting.n_antennas, self.config
        sizes = (2 * n + 6, c.hidden, c.hidden, 1)
        self.net = Nets([seeds.derive(seed, "direct")], sizes, last_scale=0.0).to(device)
        self._env = Environment(self._settings(), c.n_envs, seeds.derive(4, "direct", seed), device, channels)
        self._optimiser = adam(self.net, c.rate)
        self._schedule = torch.optim.lr_scheduler.ExponentialLR(self._optimiser, 0.1 ** (1 / c.decay_steps))
        self.n_updates = 0

    def _settings(self) -> list[Setting]:
        rng = seeds.generator(self.seed, "direct", "settings")
        c = self.config
        low, high = c.power_db
        return [
            Setting(
                **{
                    **asdict(self.setting),
                    "mu": mu,
                    "kappa_eve": kappa,
                    "power": 10 ** (db / 10),
                    "kappa_fred": self.setting.kappa_fred if self._has_fred else 1 - (1 - c.least_fred) * u**2,
                }
            )
            for mu, kappa, db, u in zip(
                rng.uniform(0, 1, c.n_settings).tolist(),
                rng.uniform(0, 1, c.n_settings).tolist(),
                rng.uniform(low, high, c.n_settings).tolist(),
                rng.uniform(0, 1, c.n_settings).tolist(),
                strict=True,
            )
        ]

    def train(self, n_updates: int, tell: Callable[[float], None] = lambda share: None) -> Direct:
        """Take `n_updates` steps of gradient ascent on the reward; returns itself."""
        for done in range(n_updates):
            tell(done / n_updates)
            env = self._env
            _, frontier, points = self._answer(env)
            alice = frontier.alice(points.coefficients[..., 0, :])
            heard = (env.g * alice).sum(-1)
            reward = rates(points.gain[..., 0], heard.real**2 + heard.imag**2, env.awake, env.stack).reward
            loss = -reward.mean()
            if not bool(torch.isfinite(loss)):
                raise TestbedError(f"agents: the direct net's reward is not finite after {self.n_updates} updates")
            descend(self._optimiser, loss)
            self._schedule.step()
            env.advance()
            self.n_updates += 1
        return self

    def policy(self, env: Environment) -> Beams:
        """Return the beams for an environment's present channels, with Eve's predicted from Fred's."""
        if env.stack.n_antennas != self.setting.n_antennas:
            raise InputError(
                f"agents: the direct net is for {self.setting.n_antennas} antennas, the environment has "
                f"{env.stack.n_antennas}; accepted: the same"
            )
        with torch.no_grad():
            belief, frontier, answer = self._answer(env)
            of_svd = frontier.at(torch.zeros_like(frontier.null)[..., None])
            both = Points(*(torch.cat([a, b], 2) for a, b in zip(of_svd, answer, strict=True)))
            worth = expected_reward(both, belief, env.stack)
            better = (worth[..., 1] > worth[..., 0])[..., None]
            chosen = torch.where(better, both.coefficients[..., 1, :], both.coefficients[..., 0, :])
            return frontier.beams(chosen) if self.config.bob_follows else (frontier.alice(chosen), svd(env)[1])

    def _answer(self, env: Environment) -> tuple[kalman.Belief, Frontier, Points]:
        """Return the posterior of Eve's channel, the frontier, and the point on it that the net chooses."""
        stack = env.stack
        with torch.no_grad():
            belief = kalman.predict(env)
            frontier = Frontier(env.h, belief.mean, self.config.bob_follows)
            snr = (stack.power / stack.noise_power)[..., None]
            gain = (frontier.towards**2).sum(-1, keepdim=True) / stack.n_antennas
            spread = belief.variance[..., None]
            of_setting = [stack.mu, stack.kappa_eve, stack.rho**stack.lag]
            at = torch.cat(
                [torch.log1p(snr * frontier.modes), torch.log1p(snr * frontier.towards**2),
                 gain - stack.threshold[..., None], torch.log1p(snr * spread).expand(*gain.shape),
                 spread.expand(*gain.shape), *(x[..., None].expand(*gain.shape) for x in of_setting)], -1,
            )  # fmt: skip
        t = torch.sigmoid(self.net(at.flatten(0, 1)[None])[0]).unflatten(0, at.shape[:2])
        return belief, frontier, frontier.along(t)

    def save(self, path: Path) -> None:
        """Write a checkpoint from which training continues exactly, and its card beside it (`path` with .json)."""
        state = {"parts": {k: v.state_dict() for k, v in self._parts().items()}, "n_updates": self.n_updates}
        write_whole(path, packed(state), private=False)
        write_card(path, {"algorithm": self.name, "task": asdict(self.task), "config": asdict(self.config)})

    def load(self, path: Path, to_act: bool = False) -> None:
        """Continue from a checkpoint; raises InputError where it is none, or of another algorithm, shape or channels.

        `to_act`: load the net only, without the state of its training.
        """
        state, card = read(path)
        if card["algorithm"] != self.name:
            raise InputError(f"{path}: a checkpoint of {card['algorithm']!r}; accepted: {self.name!r}")
        if (follows := card["config"].get("bob_follows")) is not self.config.bob_follows:
            raise InputError(f"{path}: bob_follows = {follows}; accepted: {self.config.bob_follows}")
        try:
            for name, part in {"net": self.net}.items() if to_act else self._parts().items():
                part.load_state_dict(state["parts"][name])
            self.n_updates = int(state["n_updates"])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as exc:
            raise InputError(
                f"{path}: does not fit: {one_line(exc)}; accepted: what this net is: {self.setting.n_antennas} "
                f"antennas, {self.config}"
            ) from exc

    def _parts(self) -> dict[str, Any]:
        return {"net": self.net, "optimiser": self._optimiser, "schedule": self._schedule, "env": self._env}
