"""LSTM adversary prediction (paper E, Section IV-C): Eve's channel and mode from the history of Fred's.

It is trained on sequences from environments of its own, before the agents that use it, so that they see one fixed
predictor instead of a changing one. Training needs Eve's true channel, as in the paper: a simulated channel, or that of
a receiver at a position where an Eve may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from testbed.agents.environment import Environment
from testbed.agents.networks import Lstms, adam
from testbed.agents.setting import Setting, Stack
from testbed.agents.sources import Series
from testbed.core import seeds
from testbed.core.errors import InputError


@dataclass(frozen=True)
class Config:
    hidden: int = 64
    batch: int = 128
    """Sequences in an update."""
    n_envs: int = 16
    steps_per_update: int = 2
    capacity: int = 512
    """Steps of every copy that are kept as training sequences."""
    rate: float = 3e-3
    decay_steps: int = 3000
    """Updates after which the rate has fallen to a tenth."""


class Sequences:
    """The last steps of an environment, from which windows of consecutive steps are drawn."""

    def __init__(self, env: Environment, capacity: int) -> None:
        self._env, self._capacity = env, capacity
        shape = (capacity, env.stack.n_runs, env.n_envs)
        n, device = env.stack.n_antennas, env.stack.device
        self._fred = torch.zeros(*shape, n, dtype=torch.complex64, device=device)
        self._g = torch.zeros_like(self._fred)
        self._awake = torch.zeros(shape, device=device)
        self.n_written = 0

    def record(self) -> None:
        """Append the environment's present step, and move it on."""
        at = self.n_written % self._capacity
        self._fred[at], self._g[at], self._awake[at] = self._env.source.fred, self._env.g, self._env.awake
        self.n_written += 1
        self._env.advance()

    def sample(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return Fred's channel (time, run, n, antenna) over windows, and Eve's channel and mode at their ends."""
        length, device = self._env.stack.history, self._fred.device
        size = min(self.n_written, self._capacity)
        oldest = self.n_written - size
        end = torch.randint(oldest + length - 1, self.n_written, (n,), generator=generator, device=device)
        copy = torch.randint(self._env.n_envs, (n,), generator=generator, device=device)
        window = (end - torch.arange(length - 1, -1, -1, device=device)[:, None]) % self._capacity
        last = window[-1]
        fred = self._fred[window, :, copy].transpose(1, 2)
        return fred, self._g[last, :, copy].transpose(0, 1), self._awake[last, :, copy].transpose(0, 1)

    def state_dict(self) -> dict[str, Any]:
        kept = min(self.n_written, self._capacity)
        return {"n_written": self.n_written, **{k: x[:kept].clone() for k, x in self._columns().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, column in self._columns().items():
            saved = state[name]
            if saved.shape[1:] != column.shape[1:] or len(saved) > len(column):
                raise InputError(
                    f"agents: the checkpoint's sequences are {tuple(saved.shape)} (time, run, copy, …), these "
                    f"{tuple(column.shape)}; accepted: as many runs, copies and antennas, no more steps"
                )
            if len(saved) != len(column) and state["n_written"] > len(saved):
                raise InputError(
                    f"agents: the checkpoint's sequences are full at {len(saved)} steps and the oldest are not the "
                    f"first; accepted: a capacity of {len(saved)} here too, not {len(column)}"
                )
            column[: len(saved)] = saved
        self.n_written = state["n_written"]

    def _columns(self) -> dict[str, torch.Tensor]:
        return {"fred": self._fred, "g": self._g, "awake": self._awake}


class Predictor:
    """One LSTM a run."""

    def __init__(
        self,
        settings: Sequence[Setting],
        run_seeds: Sequence[int],
        config: Config | None = None,
        device: str = "cpu",
        channels: Series | None = None,
    ) -> None:
        """`channels`: those to train on, by default the model's own."""
        self.config = config = config or Config()
        self.stack = Stack.of(settings, device)
        n = self.stack.n_antennas
        self.nets = Lstms([seeds.derive(s, "predictor") for s in run_seeds], 2 * n, config.hidden, 2 * n + 2).to(device)
        name = "/".join(map(str, run_seeds))
        self._env = Environment(settings, config.n_envs, seeds.derive(2, "predictor", name), device, channels)
        self._generator = torch.Generator(device).manual_seed(seeds.derive(3, "predictor", name))
        self._sequences = Sequences(self._env, config.capacity)
        self._optimiser = adam(self.nets, config.rate)
        self._schedule = torch.optim.lr_scheduler.ExponentialLR(self._optimiser, 0.1 ** (1 / config.decay_steps))
        self.n_updates = 0
        self.losses: list[float] = []
        """Mean loss over runs, every hundredth update."""

    def train(self, n_updates: int) -> Predictor:
        """Train on fresh sequences; returns itself."""
        while self._sequences.n_written < self.stack.history + self.config.batch // self.config.n_envs:
            self._sequences.record()
        for _ in range(n_updates):
            for _ in range(self.config.steps_per_update):
                self._sequences.record()
            fred, g, awake = self._sequences.sample(self.config.batch, self._generator)
            mean, logit = self._forward(fred)
            error = (torch.view_as_real(mean - g) ** 2).sum((-1, -2)).mean(-1)
            mode = torch.nn.functional.binary_cross_entropy_with_logits(logit, awake, reduction="none").mean(-1)
            loss = (error + mode).sum()
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            self._schedule.step()
            if self.n_updates % 100 == 0:
                self.losses.append(float(loss.detach()) / self.stack.n_runs)
            self.n_updates += 1
        return self

    def predict(self, env: Environment) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Eve's channel (run, copy, antenna) and the probability (run, copy) that she listens."""
        with torch.no_grad():
            mean, logit = self._forward(env.fred)
            return mean, torch.sigmoid(logit)

    def _forward(self, fred: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.nets(torch.view_as_real(fred).flatten(-2))
        # the present estimate of Fred's channel is nearly the answer; the net adds the correction
        mean = fred[-1] + torch.view_as_complex(out[..., :-2].unflatten(-1, (-1, 2)).contiguous())
        # the predicted gain nearly determines her mode, and more surely the better her channel is known
        gain = (mean.detach().abs() ** 2).sum(-1)
        above = gain - self.stack.threshold * self.stack.n_antennas
        return mean, out[..., -2] + out[..., -1].exp() * above

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to continue the training exactly."""
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "generator": self._generator.get_state(), "n_updates": self.n_updates, "losses": list(self.losses),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any], to_act: bool = False) -> None:
        """Continue from a predictor's state; raises RuntimeError, KeyError or InputError where its shape was another.

        `to_act`: load the nets only; it can then predict, and its training begins anew.
        """
        if to_act:
            self.nets.load_state_dict(state["nets"])
            return
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self._generator.set_state(state["generator"].cpu())
        self.n_updates, self.losses = state["n_updates"], list(state["losses"])

    def _parts(self) -> dict[str, Any]:
        return {
            "nets": self.nets, "optimiser": self._optimiser, "schedule": self._schedule, "env": self._env,
            "sequences": self._sequences,
        }  # fmt: skip
