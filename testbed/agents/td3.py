"""Twin delayed deterministic policy gradient (TD3, Fujimoto et al. 2018) for the environment of paper E."""

from __future__ import annotations

import copy
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
    capacity: int = 100_000
    warm_up: int = 20
    """Steps of random actions before the first update."""
    rate: float = 3e-4
    gamma: float = 0.0
    """Discount factor, 0 as in `masac`."""
    tau: float = 0.005
    explore: float = 0.1
    """Standard deviation of the noise that exploration adds to an action."""
    smooth: float = 0.2
    """Standard deviation of the noise that is added to the target's action, clipped to ±0.5."""
    delay: int = 2
    """Number of critic updates for each actor update."""


class Td3(Learner):
    name = "td3"
    config_type = Config
    config: Config

    def _build(self) -> None:
        task, c = self.task, self.config
        actor_sizes = (self.n_state, c.hidden, c.hidden, self.n_action // 2)
        self.actors = Twins(task.seeds, "actor", actor_sizes, 0.1).to(task.device)
        sizes = (self.n_state + self.n_action, c.hidden, c.hidden, 1)
        self.critics = Twins(task.seeds, "critic", sizes).to(task.device)
        self.target_actors = copy.deepcopy(self.actors).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.actor_optimiser = adam(self.actors, c.rate)
        self.critic_optimiser = adam(self.critics, c.rate)
        self.replay = Replay(self.stack.n_runs, c.capacity, (self.n_state, self.n_action, 1, self.n_state), task.device)
        self._begin()

    def _begin(self) -> None:
        self._seen = self.look(self.env)

    def _step(self) -> torch.Tensor:
        seen = self._seen
        state = seen.state
        with torch.no_grad():
            action = self.act(state)
            if self.n_steps < self.config.warm_up:
                action = 2 * torch.rand(action.shape, generator=self.generator, device=action.device) - 1
            else:
                action = (action + self.config.explore * self._noise(action)).clamp(-1, 1)
            reward = self.env.step(*seen.beams(action)).reward
        self._seen = self.look(self.env)
        self.replay.add(state, action, reward[..., None], self._seen.state)
        if self.n_steps >= self.config.warm_up:
            self._update()
        return reward

    def _update(self) -> None:
        c = self.config
        state, action, reward, after = self.replay.sample(c.batch, self.generator)
        with torch.no_grad():
            target = reward[..., 0]
            if c.gamma > 0:
                action_2 = _joint(self.target_actors(after))
                action_2 = (action_2 + (c.smooth * self._noise(action_2)).clamp(-0.5, 0.5)).clamp(-1, 1)
                target = target + c.gamma * self.target_critics(torch.cat([after, action_2], -1))[..., 0].min(0).values
        q = self.critics(torch.cat([state, action], -1))[..., 0]
        descend(self.critic_optimiser, ((q - target) ** 2).mean(-1).sum())
        if self.n_steps % c.delay:
            return
        self.critics.requires_grad_(False)
        q = self.critics(torch.cat([state, self.act(state)], -1))[0, ..., 0]
        descend(self.actor_optimiser, -q.mean(-1).sum())
        self.critics.requires_grad_(True)
        follow(self.target_actors, self.actors, c.tau)
        follow(self.target_critics, self.critics, c.tau)

    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=self.generator, device=like.device)

    def act(self, state: torch.Tensor) -> torch.Tensor:
        return _joint(self.actors(state))

    def _parts(self) -> dict[str, Any]:
        return {
            "actors": self.actors, "critics": self.critics, "target_actors": self.target_actors,
            "target_critics": self.target_critics, "replay": self.replay,
            "actor_optimiser": self.actor_optimiser, "critic_optimiser": self.critic_optimiser,
        }  # fmt: skip


def _joint(actors: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(torch.tanh(actors)), -1)
