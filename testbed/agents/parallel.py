"""PettingZoo's parallel interface around one copy of the environment, for learners of other projects."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box, Space
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from testbed.agents.environment import Environment, beams
from testbed.agents.frames import action_size, look, state_size
from testbed.agents.predictor import Predictor
from testbed.agents.setting import Setting
from testbed.agents.sources import Series
from testbed.core.errors import InputError


class BeamEnv(ParallelEnv):
    """Agents `alice` and `bob`: one observation for both, a half of the joint action each, one reward for both.

    Observation (state_size,) float32; action (2·antenna,) in −1 … 1, Re and Im of the agent's beam, of any length.
    Episodes are truncated after `episode` steps; they never terminate.
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "beams_v0", "render_modes": []}

    def __init__(
        self,
        setting: Setting | None = None,
        view: str = "full",
        episode: int = 100,
        seed: int = 0,
        predictor: Predictor | None = None,
        channels: Series | None = None,
    ) -> None:
        """`channels`: recorded ones, those of a simulated air, or by default the model's own; by default the setting is
        estimated from them.
        """
        given = Setting() if setting is None else setting
        self.setting = channels.setting(given) if channels is not None and setting is None else given
        self.view, self.episode = view, episode
        self.possible_agents = ["alice", "bob"]
        self.agents: list[str] = []
        self.render_mode = None
        self._predictor, self._channels = predictor, channels
        self._env = Environment(self.setting, 1, seed, channels=channels)
        n_state = state_size(self.setting.n_antennas, view, "antenna")
        n_beam = action_size(self.setting.n_antennas, "antenna") // 2
        self._observations = {a: Box(-np.inf, np.inf, (n_state,), np.float32) for a in self.possible_agents}
        self._actions = {a: Box(-1.0, 1.0, (n_beam,), np.float32) for a in self.possible_agents}
        self._left = 0

    def observation_space(self, agent: str) -> Space[Any]:
        return self._observations[agent]

    def action_space(self, agent: str) -> Space[Any]:
        return self._actions[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode; equal seeds give equal episodes."""
        if seed is not None:
            self._env = Environment(self.setting, 1, seed, channels=self._channels)
        else:
            self._env.reset()
        self.agents = list(self.possible_agents)
        self._left = self.episode
        return self._observe(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[Any, ...]:
        """Take both agents' actions; info holds the key and data rate in bits. Raises InputError for invalid ones."""
        joint = self._joint(actions)
        found = self._env.step(*beams(torch.as_tensor(joint)[None, None]))
        self._left -= 1
        over = self._left <= 0
        info = {"key_rate": float(found.key), "data_rate": float(found.data)}
        out = (
            self._observe(),
            {a: float(found.reward) for a in self.agents},
            {a: False for a in self.agents},
            {a: over for a in self.agents},
            {a: dict(info) for a in self.agents},
        )
        if over:
            self.agents = []
        return out

    def _joint(self, actions: dict[str, Any]) -> NDArray[np.float32]:
        (n,) = self._actions["alice"].shape
        try:
            halves = [np.asarray(actions[a], np.float32) for a in self.possible_agents]
        except (KeyError, TypeError, ValueError) as exc:
            raise InputError(
                f"agents: the actions cannot be read: {exc!r}; accepted: {n} numbers each by alice and bob"
            ) from exc
        for agent, x in zip(self.possible_agents, halves, strict=True):
            if x.shape != (n,):
                raise InputError(f"agents: {agent}'s action is {x.shape}; accepted: ({n},)")
        joint = np.concatenate(halves)
        if not np.isfinite(joint).all():
            agent = self.possible_agents[int((~np.isfinite(joint)).argmax()) // n]
            raise InputError(f"agents: {agent}'s action is not finite; accepted: {n} numbers from −1 to 1")
        return joint

    def _observe(self) -> dict[str, Any]:
        state = look(self._env, self.view, "antenna", self._predictor).state[0, 0].numpy()
        return {a: state.copy() for a in self.agents}

    def render(self) -> None:
        return None

    def close(self) -> None:
        return None
