"""Carries out `testbed train`: trains one policy, writes its checkpoint, and compares it with the closed forms."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from testbed.agents import beams, direct, evaluation
from testbed.agents.beams import Beams
from testbed.agents.environment import Environment
from testbed.agents.learner import Task
from testbed.agents.policy import LEARNERS, Acting
from testbed.agents.predictor import Config as PredictorConfig
from testbed.agents.predictor import Predictor
from testbed.agents.setting import Setting
from testbed.agents.sources import Series
from testbed.core.errors import InputError

ALGORITHMS = (direct.Direct.name, *LEARNERS)
_UPDATES = {"direct": 600, "sac": 1200, "td3": 1200, "ppo": 1200}
_SMALL = {"hidden": 64, "n_envs": 16}
_TURNED = {
    "sac": {**_SMALL, "batch": 128, "rate": 2e-3},
    "td3": {**_SMALL, "batch": 128, "rate": 2e-3},
    "ppo": {**_SMALL, "rollout": 16, "rate": 1e-3},
}
"""Options with which training in the turned frame takes minutes on one core; the antenna frame uses the defaults."""


@dataclass(frozen=True)
class Plan:
    """One training."""

    algorithm: str
    updates: int | None = None
    """Number of updates; by default 600 for the direct net and 1200 for the others, enough in the turned frame."""
    seed: int = 1
    view: str = "kalman"
    frame: str = "turned"
    channels: Series | None = None
    """Channels: the first 70 % train and the last 25 % test; by default the model's own channels."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Setting` that differ from their defaults, or from the estimates from the channels."""

    def __post_init__(self) -> None:
        known = [f.name for f in fields(Setting)]
        if self.algorithm not in ALGORITHMS:
            raise InputError(f"train: no algorithm {self.algorithm!r}; accepted: {', '.join(ALGORITHMS)}")
        if self.algorithm == "direct" and (self.view, self.frame) != ("kalman", "turned"):
            raise InputError("train: 'direct' has the view 'kalman' and the frame 'turned'; accepted: those")
        if unknown := [k for k in self.changes if k not in known]:
            raise InputError(f"train: a setting has no {unknown[0]!r}; accepted: {', '.join(known)}")


def run(
    plan: Plan, path: Path, n_draws: int = 2000, tell: Callable[[float], None] = lambda share: None
) -> dict[str, Any]:
    """Train, save to `path`; return the setting, held-out mean rewards in bits, and shares of the gap to the oracle.

    `tell` is called with the finished share of the updates. The direct net is trained for a Bob who uses his SVD beam,
    as nodes do. `deployed` is the policy as two nodes use it that exchange no information: Alice's beam by the policy,
    Bob's by SVD.
    """
    heard, test = (None, None) if plan.channels is None else plan.channels.split(0.7, len(plan.channels.h) // 20)
    n_antennas = plan.changes.get("n_antennas", Setting.n_antennas)
    base = Setting(**{**plan.changes, "n_antennas": n_antennas})
    setting = base if heard is None else replace(heard.setting(base), **plan.changes)
    updates = plan.updates or _UPDATES[plan.algorithm]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks of this size are slower with more threads
    try:
        began_s = time.perf_counter()
        learner = _trained(plan, setting, updates, heard, tell)
        seconds = time.perf_counter() - began_s
        learner.save(path)

        def deployed(env: Environment) -> Beams:
            return learner.policy(env)[0], beams.svd(env)[1]

        policies = {"random": beams.random, "svd": beams.svd, "bayes, Bob at SVD": beams.bayes_alone}
        policies |= {"bayes": beams.bayes, "oracle": beams.oracle, "trained": learner.policy, "deployed": deployed}
        found = evaluation.outcomes(policies, evaluation.held_out(setting, n_draws, channels=test))
    finally:
        torch.set_num_threads(threads)
    shares = {name: evaluation.share(o, found["svd"], found["oracle"]) for name, o in found.items()}
    return {
        "algorithm": plan.algorithm, "checkpoint": str(path), "updates": updates, "seconds": seconds,
        "setting": asdict(setting), "draws": n_draws,
        "reward": {name: float(o.reward.mean()) for name, o in found.items()},
        "over_svd_error": {
            name: float((o.reward - found["svd"].reward).std() / n_draws**0.5) for name, o in found.items()
        },
        # null where SVD is optimal: there is no gap to close
        "share": {name: float(share[0]) if share[0] == share[0] else None for name, (share, _) in shares.items()},
    }  # fmt: skip


def _trained(
    plan: Plan, setting: Setting, updates: int, channels: Series | None, tell: Callable[[float], None]
) -> Acting:
    if plan.algorithm == direct.Direct.name:
        config = direct.Config(n_settings=64, decay_steps=updates, bob_follows=False)
        return direct.Direct(setting, plan.seed, config, channels=channels).train(updates, tell)
    predictor = None
    if plan.view == "lstm":
        predictor = Predictor((setting,), (plan.seed,), PredictorConfig(decay_steps=500), channels=channels).train(500)
    kind = LEARNERS[plan.algorithm]
    numbers = _TURNED[plan.algorithm] if plan.frame == "turned" else {}
    task = Task((setting,), (plan.seed,), plan.view, plan.frame)
    learner = kind(task, kind.config_type(**numbers), predictor, channels)
    learner.train(updates, tell=tell)
    return learner
