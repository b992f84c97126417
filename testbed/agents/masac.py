"""Multi-agent soft actor–critic (paper E, Section IV-B; Haarnoja et al. 2018), in one file.

Two actors, Alice's and Bob's, observe the common state and choose their beams; two critics rate the joint action; there
are target critics; the temperature follows the entropy. All sizes are options, because the paper's are not available.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch

from testbed.agents.learner import Learner, Replay
from testbed.agents.networks import Twins, adam, descend, follow


@dataclass(frozen=True)
class Config:
    hidden: int = 256
    batch: int = 256
    n_envs: int = 64
    """Copies in a run, which is also the number of transitions of a step."""
    capacity: int = 100_000
    warm_up: int = 20
    """Steps of random actions before the first update."""
    rate: float = 3e-4
    gamma: float = 0.0
    """Discount factor. Actions do not change the channels, so that the best policy is the same for any discount; with 0
    the critics need not learn the part of the return that no action changes."""
    tau: float = 0.005
    """Rate at which the target critics follow."""
    alpha: float = 0.2
    """Initial temperature."""


class Temperature(torch.nn.Module):
    """log α of every run."""

    def __init__(self, n_runs: int, first: float) -> None:
        super().__init__()
        self.log = torch.nn.Parameter(torch.full((n_runs, 1), math.log(first)))


class Masac(Learner):
    name = "sac"
    config_type = Config
    config: Config

    def _build(self) -> None:
        task, c, n_beam = self.task, self.config, self.n_action // 2
        self.actors = Twins(task.seeds, "actor", (self.n_state, c.hidden, c.hidden, 2 * n_beam), 0.1).to(task.device)
        sizes = (self.n_state + self.n_action, c.hidden, c.hidden, 1)
        self.critics = Twins(task.seeds, "critic", sizes).to(task.device)
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.temperature = Temperature(self.stack.n_runs, c.alpha).to(task.device)
        self.actor_optimiser = adam(self.actors, c.rate)
        self.critic_optimiser = adam(self.critics, c.rate)
        self.temperature_optimiser = adam(self.temperature, c.rate)
        self.replay = Replay(self.stack.n_runs, c.capacity, (self.n_state, self.n_action, 1, self.n_state), task.device)
        self._begin()

    def _begin(self) -> None:
        self._seen = self.look(self.env)

    def _step(self) -> torch.Tensor:
        seen = self._seen
        state = seen.state
        with torch.no_grad():
            action, _ = self._sample(state)
            if self.n_steps < self.config.warm_up:
                action = 2 * torch.rand(action.shape, generator=self.generator, device=action.device) - 1
            reward = self.env.step(*seen.beams(action)).reward
        self._seen = self.look(self.env)
        self.replay.add(state, action, reward[..., None], self._seen.state)
        if self.n_steps >= self.config.warm_up:
            self._update()
        return reward

    def _update(self) -> None:
        c = self.config
        state, action, reward, after = self.replay.sample(c.batch, self.generator)
        alpha = self.temperature.log.detach().exp()

        with torch.no_grad():
            target = reward[..., 0]
            if c.gamma > 0:
                action_2, log_p = self._sample(after)
                q_2 = self.targets(torch.cat([after, action_2], -1))[..., 0].min(0).values
                target = target + c.gamma * (q_2 - alpha * log_p)
        q = self.critics(torch.cat([state, action], -1))[..., 0]
        descend(self.critic_optimiser, ((q - target) ** 2).mean(-1).sum())

        action, log_p = self._sample(state)
        self.critics.requires_grad_(False)
        q = self.critics(torch.cat([state, action], -1))[..., 0].min(0).values
        descend(self.actor_optimiser, (alpha * log_p - q).mean(-1).sum())
        self.critics.requires_grad_(True)

        # target entropy: −1 a dimension of the joint action
        excess = (log_p.detach() - self.n_action).mean(-1, keepdim=True)
        descend(self.temperature_optimiser, -(self.temperature.log * excess).sum())
        follow(self.targets, self.critics, c.tau)

    def _sample(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a joint action (run, batch, 4·antenna) and its log-density (run, batch), both agents' together."""
        mean, log_std = self.actors(state).chunk(2, -1)
        log_std = -5 + 3.5 * (torch.tanh(log_std) + 1)  # −5 to 2
        noise = torch.randn(mean.shape, generator=self.generator, device=mean.device)
        x = mean + log_std.exp() * noise
        log_p = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
        log_p = log_p - 2 * (math.log(2) - x - torch.nn.functional.softplus(-2 * x))  # correction for the tanh
        return torch.cat(list(torch.tanh(x)), -1), log_p.sum((0, -1))

    def act(self, state: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(torch.tanh(self.actors(state).chunk(2, -1)[0])), -1)

    def _parts(self) -> dict[str, Any]:
        return {
            "actors": self.actors, "critics": self.critics, "targets": self.targets, "replay": self.replay,
            "temperature": self.temperature, "actor_optimiser": self.actor_optimiser,
            "critic_optimiser": self.critic_optimiser, "temperature_optimiser": self.temperature_optimiser,
        }  # fmt: skip
