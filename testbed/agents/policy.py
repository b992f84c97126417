"""A trained policy for nodes: it reads a checkpoint and returns the beams of one end.

Both actors were trained on one common state, as in the paper: an end needs the legitimate channel and, unless the view
is `none`, information on Eve's channel from Alice. Bob's node does not measure that channel; `beams.bayes_alone` is the
optimum of two ends that exchange no information.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from testbed.agents import direct, kalman, masac, ppo, td3
from testbed.agents.beams import Frontier, expected_reward
from testbed.agents.environment import Environment
from testbed.agents.learner import Learner, Task, read, task_of
from testbed.agents.predictor import Config as PredictorConfig
from testbed.agents.predictor import Predictor
from testbed.agents.setting import Setting, Stack
from testbed.core.errors import InputError

Acting = Learner | direct.Direct
LEARNERS: dict[str, type[Learner]] = {kind.name: kind for kind in (masac.Masac, td3.Td3, ppo.Ppo)}
ROLES = ("alice", "bob")
PREDICTING = ("lstm", "kalman", "last")
"""Views that predict Eve's channel from Fred's history."""


@dataclass
class LearnedBeams:
    """The trained policy of one run of a checkpoint."""

    learner: Acting
    run: int
    path: Path

    @property
    def n_antennas(self) -> int:
        return self.learner.stack.n_antennas

    @property
    def view(self) -> str:
        return self.learner.task.view

    def act(
        self,
        role: str,
        h: NDArray[Any],
        fred: NDArray[Any] | None = None,
        g: NDArray[Any] | None = None,
        awake: bool | None = None,
    ) -> NDArray[np.complex64]:
        """Return the unit-norm beam (antenna,) of `role`, alice or bob.

        `h` (Bob's antenna, Alice's antenna) of coefficients of variance 1; `fred` (time, Alice's antenna), the last
        `history` estimates of Fred's channel in the same scale, for the views `PREDICTING`; `g` (Alice's
        antenna) and `awake`, Eve's channel and mode, for the view `full`. Raises InputError for a wrong array.
        """
        env = self._looked_at(role, h, fred, g, awake)
        alice, bob = self.learner.policy(env)
        beam = (alice if role == "alice" else bob)[self.run, 0]
        return np.asarray(beam.numpy(), dtype=np.complex64)

    def _looked_at(self, role: str, h: Any, fred: Any, g: Any, awake: Any) -> Environment:
        n, length = self.n_antennas, self.learner.stack.history
        if role not in ROLES:
            raise InputError(f"{self.path}: no role {role!r} has a beam; accepted: {', '.join(ROLES)}")
        wanted: dict[str, tuple[Any, tuple[int, ...]]] = {"h": (h, (n, n))}
        if self.view == "full":
            wanted["g"] = (g, (n,))
        if self.view in PREDICTING:
            wanted["fred"] = (fred, (length, n))
        for name, (x, shape) in wanted.items():
            if x is None or np.shape(x) != shape or not np.isfinite(x).all():
                got = "nothing" if x is None else f"{np.shape(x)}" + ("" if np.isfinite(x).all() else ", not finite")
                raise InputError(f"{self.path}: {name} is {got}; accepted for the view {self.view!r}: {shape}, finite")
        if self.view == "full" and awake is None:
            raise InputError(f"{self.path}: the view 'full' needs Eve's mode; accepted: awake = true or false")
        return _Moment(self.learner, h, fred, g, awake)


class _Moment(Environment):
    """An environment with fixed channels, the same in every run."""

    def __init__(self, learner: Acting, h: Any, fred: Any, g: Any, awake: Any) -> None:
        self.stack, self.n_envs = learner.stack, 1
        n = self.stack.n_antennas

        def tensor(x: Any, *shape: int) -> torch.Tensor:
            x = np.zeros(shape) if x is None else np.array(x)
            return torch.as_tensor(x.astype(np.complex64)).reshape(*shape)

        self._h = tensor(h, 1, 1, n, n).expand(self.stack.n_runs, 1, n, n)
        self._g = tensor(g, 1, 1, n).expand(self.stack.n_runs, 1, n)
        length = self.stack.history
        self._fred = tensor(fred, length, 1, 1, n).expand(length, self.stack.n_runs, 1, n)
        self._awake = torch.full((self.stack.n_runs, 1), float(bool(awake)))

    @property
    def h(self) -> torch.Tensor:
        return self._h

    @property
    def g(self) -> torch.Tensor:
        return self._g

    @property
    def awake(self) -> torch.Tensor:
        return self._awake

    @property
    def fred(self) -> torch.Tensor:
        return self._fred


def bayes_alone(h: NDArray[Any], fred: NDArray[Any], numbers: dict[str, float]) -> NDArray[np.complex64]:
    """Return Alice's beam (antenna,) of `beams.bayes_alone` for h (Bob's, Alice's antenna) and Fred's (antenna,).

    `fred` is one estimate of Fred's channel, of variance 1 as h. `numbers`: the fields of `Setting`.
    """
    n = h.shape[1]
    stack = Stack.of([Setting(n_antennas=n, history=1, **numbers)])
    belief = kalman.filtered(torch.as_tensor(fred.astype(np.complex64))[None, None, None], stack)
    frontier = Frontier(torch.as_tensor(h.astype(np.complex64))[None, None], belief.mean, bob_follows=False)
    alice, _ = frontier.best(lambda at: expected_reward(at, belief, stack))
    return np.asarray(alice[0, 0].numpy(), dtype=np.complex64)


def load_policy(path: Path, run: int = 0) -> LearnedBeams:
    """Return a run of a checkpoint as a policy; raises InputError for anything else. No code in the file is run."""
    _, card = read(path)
    accepted = (*LEARNERS, direct.Direct.name)
    if card["algorithm"] not in accepted:
        raise InputError(f"{path}: a checkpoint of {card['algorithm']!r}; accepted: {', '.join(accepted)}")
    task = task_of(card)
    if not 0 <= run < len(task.seeds):
        raise InputError(f"{path}: holds no run {run}; accepted: 0 to {len(task.seeds) - 1}")
    try:
        learner = _made(task, card)
    except (TypeError, KeyError, ValueError, AttributeError) as exc:
        raise InputError(f"{path}: its card does not fit this version: {exc}") from exc
    learner.load(path, to_act=True)
    # The first use loads libraries, which takes seconds; a node has time for that now, but not between two rounds.
    learner.policy(_Moment(learner, np.eye(learner.stack.n_antennas), None, None, None))
    return LearnedBeams(learner, run, path)


def _made(task: Task, card: dict[str, Any]) -> Acting:
    if card["algorithm"] == direct.Direct.name:
        return direct.Direct(task.settings[0], task.seeds[0], direct.Config(**card["config"]))
    kind = LEARNERS[card["algorithm"]]
    return kind(task, kind.config_type(**card["config"]), _predictor(task, card))


def _predictor(task: Task, card: dict[str, Any]) -> Predictor | None:
    if task.view != "lstm":
        return None
    return Predictor(task.settings, task.seeds, PredictorConfig(**card["predictor"]))
