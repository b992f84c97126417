"""Proximal policy optimisation (PPO, Schulman et al. 2017) for the environment of paper E.

Two Gaussian actors, one shared value net. A step is one step of every copy, as in the other learners; after every
`rollout` steps the nets learn from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from testbed.agents.learner import Learner
from testbed.agents.networks import Nets, Twins, adam, descend
from testbed.core import seeds


@dataclass(frozen=True)
class Config:
    hidden: int = 256
    n_envs: int = 64
    rollout: int = 32
    epochs: int = 4
    minibatches: int = 8
    rate: float = 3e-4
    gamma: float = 0.0
    """Discount factor, 0 as in `masac`."""
    trace: float = 0.95
    """λ of the generalised advantage."""
    clip: float = 0.2
    entropy: float = 1e-3
    """Weight of the entropy bonus."""
    log_std: float = -0.5
    """Initial log standard deviation, which does not depend on the state."""


class Ppo(Learner):
    name = "ppo"
    config_type = Config
    config: Config

    def _build(self) -> None:
        task, c, n_beam = self.task, self.config, self.n_action // 2
        self.actors = Twins(task.seeds, "actor", (self.n_state, c.hidden, c.hidden, n_beam), 0.1).to(task.device)
        value_seeds = [seeds.derive(s, "value") for s in task.seeds]
        self.value = Nets(value_seeds, (self.n_state, c.hidden, c.hidden, 1)).to(task.device)
        self.spread = _Spread(self.stack.n_runs, self.n_action, c.log_std).to(task.device)
        self.optimiser = adam(torch.nn.ModuleList([self.actors, self.value, self.spread]), c.rate, eps=1e-5)
        self._rollout = _Rollout()

    def _step(self) -> torch.Tensor:
        seen = self.look(self.env)
        state = seen.state
        with torch.no_grad():
            mean = self.act(state)
            noise = torch.randn(mean.shape, generator=self.generator, device=mean.device)
            action = mean + self.spread.log_std.exp() * noise
            log_p = self._log_density(mean, action)
            reward = self.env.step(*seen.beams(action)).reward
            self._rollout.rows.append((state, action, log_p, reward))
        if len(self._rollout.rows) == self.config.rollout:
            self._learn()
            self._rollout.rows.clear()
        return reward

    def _learn(self) -> None:
        c = self.config
        # (time, run, copy, …)
        state, action, log_p, reward = (torch.stack(x) for x in zip(*self._rollout.rows, strict=True))
        with torch.no_grad():
            after = self.value(self.look(self.env).state)[..., 0]
            value = torch.stack([self.value(s)[..., 0] for s in state])
            advantage = torch.zeros_like(reward)
            carried = torch.zeros_like(after)
            for t in range(c.rollout - 1, -1, -1):
                surprise = reward[t] + c.gamma * after - value[t]
                carried = surprise + c.gamma * c.trace * carried
                advantage[t], after = carried, value[t]
            returns = advantage + value
        flat = [x.transpose(0, 1).flatten(1, 2) for x in (state, action, log_p, advantage, returns)]
        for _ in range(c.epochs):
            order = torch.randperm(flat[0].shape[1], generator=self.generator, device=self.task.device)
            for index in order.chunk(c.minibatches):
                self._update(*(x[:, index] for x in flat))

    def _update(
        self,
        state: torch.Tensor,
        action: torch.Tensor,
        log_p: torch.Tensor,
        advantage: torch.Tensor,
        returns: torch.Tensor,
    ) -> None:
        c = self.config
        advantage = (advantage - advantage.mean(-1, keepdim=True)) / (advantage.std(-1, keepdim=True) + 1e-8)
        ratio = (self._log_density(self.act(state), action) - log_p).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - c.clip, 1 + c.clip) * advantage).mean(-1)
        error = 0.5 * ((self.value(state)[..., 0] - returns) ** 2).mean(-1)
        entropy = self.spread.log_std.sum((-1, -2))
        descend(self.optimiser, (0.5 * error - gain - c.entropy * entropy).sum())

    def _log_density(self, mean: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        log_std = self.spread.log_std
        return (-0.5 * ((action - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def act(self, state: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(torch.tanh(self.actors(state))), -1)

    def _parts(self) -> dict[str, Any]:
        return {
            "actors": self.actors, "value": self.value, "spread": self.spread,
            "optimiser": self.optimiser, "rollout": self._rollout,
        }  # fmt: skip


class _Spread(torch.nn.Module):
    def __init__(self, n_runs: int, n_action: int, log_std: float) -> None:
        super().__init__()
        self.log_std = torch.nn.Parameter(torch.full((n_runs, 1, n_action), log_std))


class _Rollout:
    """Steps since the last learning phase: state, action, log-density, reward of each."""

    def __init__(self) -> None:
        self.rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows[:] = [(row[0], row[1], row[2], row[3]) for row in state["rows"]]
