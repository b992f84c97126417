"""The jobs that study `masac` gives to its processes: bounds, trainings, the direct net; arguments and results are
plain data."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

AT_ONCE = 8000
"""Number of draws of channels, over all settings, that are evaluated together."""


@dataclass(frozen=True)
class Training:
    """One stack of runs of one algorithm: settings as keyword arguments of `Setting`, one seed each."""

    label: str
    algorithm: str
    settings: tuple[dict[str, Any], ...]
    seeds: tuple[int, ...]
    view: str
    frame: str
    steps: int
    n_points: int
    """Number of points at which the policy is evaluated on held-out draws."""
    n_draws: int
    device: str
    limit_s: float
    """Time after which training ends at the next point; the results are then of that point's policy, and the study
    notes this."""
    config: dict[str, Any] = field(default_factory=dict)
    predictor_updates: int = 0


def train(item: Training) -> dict[str, Any]:
    """Train and evaluate; return `steps` (point,), `reward` (point, run), and of the last policy `key`, `data`, `share`
    (run,)."""
    from testbed.agents import beams, evaluation, masac, ppo, td3
    from testbed.agents.learner import Task
    from testbed.agents.predictor import Config, Predictor
    from testbed.agents.setting import Setting

    settings = tuple(Setting(**s) for s in item.settings)
    predictor = None
    if item.view == "lstm":
        predictor = Predictor(settings, item.seeds, Config(decay_steps=item.predictor_updates), item.device)
        predictor.train(item.predictor_updates)
    task = Task(settings, item.seeds, item.view, item.frame, item.device)
    made: Any = {"sac": (masac.Masac, masac.Config), "td3": (td3.Td3, td3.Config), "ppo": (ppo.Ppo, ppo.Config)}
    learner = made[item.algorithm][0](task, made[item.algorithm][1](**item.config), predictor)
    env = evaluation.held_out(settings, item.n_draws, item.device)
    steps, rewards = [0], [evaluation.outcome(learner.policy, env).reward.mean(-1)]
    trained_s = time.perf_counter()
    for _ in range(item.n_points):
        learner.train(item.steps // item.n_points)
        steps.append(learner.n_steps)
        rewards.append(evaluation.outcome(learner.policy, env).reward.mean(-1))
        if time.perf_counter() - trained_s > item.limit_s:
            break
    trained_s = time.perf_counter() - trained_s
    found = evaluation.outcomes({"mine": learner.policy, "svd": beams.svd, "oracle": beams.oracle}, env)
    share, error = evaluation.share(found["mine"], found["svd"], found["oracle"])
    return {
        "label": item.label, "steps": np.array(steps), "reward": np.array(rewards), "share": share,
        "share_error": error, "key": found["mine"].key.mean(-1), "data": found["mine"].data.mean(-1),
        "train_s": trained_s, "n_envs": learner.config.n_envs, "svd": found["svd"].reward.mean(-1),
    }  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """LSTMs trained over settings, `n_seeds` each, and the predictors that they are compared with."""

    settings: tuple[dict[str, Any], ...]
    n_seeds: int
    updates: int
    n_draws: int
    device: str


def predict(item: Prediction) -> dict[str, Any]:
    """Return by predictor `error` of Eve's channel per unit power, `wrong` modes, `reward` (setting, seed) held out.

    The reward is that of the beams that would be best if the predicted channel and mode were true, where Bob knows
    Alice's beam. `expected` is the Kalman filter's own error estimate, `svd` and `oracle` are the rewards (setting,)
    for comparison.
    """
    from testbed.agents import beams, evaluation, kalman
    from testbed.agents.predictor import Config, Predictor
    from testbed.agents.setting import Setting

    settings = [Setting(**s) for s in item.settings for _ in range(item.n_seeds)]
    run_seeds = list(range(item.n_seeds)) * len(item.settings)
    lstm = Predictor(settings, run_seeds, Config(decay_steps=item.updates), item.device).train(item.updates)
    env = evaluation.held_out(settings, item.n_draws, item.device)
    belief, last = kalman.predict(env), env.fred[-1]
    gate = env.stack.threshold * env.stack.n_antennas
    predicted = {
        "last": (last, ((last.abs() ** 2).sum(-1) > gate).float()),
        "lstm": lstm.predict(env),
        "kalman": (belief.mean, kalman.awake_probability(belief, env.stack)),
    }

    def by_seed(x: Any) -> Any:
        return x.double().cpu().numpy().reshape(len(item.settings), item.n_seeds)

    found: dict[str, Any] = {"expected": by_seed(belief.variance)[:, 0]}
    for name, (mean, awake) in predicted.items():
        certain = (awake > 0.5).float()
        found[name] = {
            "error": by_seed(((mean - env.g).abs() ** 2).mean((-1, -2))),
            "wrong": by_seed((certain != env.awake).float().mean(-1)),
            "reward": by_seed(env.rates(*beams.best_if_certain(env, mean, certain)).reward.mean(-1)),
        }
    for name in ("svd", "oracle"):
        found[name] = by_seed(env.rates(*evaluation.YARDSTICKS[name](env)).reward.mean(-1))[:, 0]
    return found


@dataclass(frozen=True)
class Bounds:
    """Reference policies over settings of the same antennas."""

    settings: tuple[dict[str, Any], ...]
    n_draws: int
    device: str
    ascent: bool = False


def bounds(item: Bounds) -> dict[str, dict[str, Any]]:
    """Return by policy: `reward`, `key`, `data`, their `error`, `spread` of a draw, `share`, `over_svd` (run,)."""
    from testbed.agents import beams, evaluation

    policies = dict(evaluation.YARDSTICKS)
    policies["bayes, Bob at SVD"] = beams.bayes_alone
    if item.ascent:
        policies["ascent"] = beams.ascent
    return over(item, policies)


def over(item: Bounds | Climb, policies: Any, n_at_once: int = AT_ONCE) -> dict[str, dict[str, Any]]:
    """Return policies' summaries over an item's settings. A few settings are computed at a time, which saves memory and
    does not change the results."""
    from testbed.agents import evaluation
    from testbed.agents.setting import Setting

    settings, few = [Setting(**s) for s in item.settings], max(1, n_at_once // item.n_draws)
    parts = [
        _summed(evaluation.outcomes(policies, evaluation.held_out(settings[i : i + few], item.n_draws, item.device)))
        for i in range(0, len(settings), few)
    ]
    return {
        name: {what: np.concatenate([p[name][what] for p in parts]) for what in parts[0][name]} for name in parts[0]
    }


def _summed(found: Any) -> dict[str, dict[str, Any]]:
    from testbed.agents import evaluation

    out = {}
    for name, o in found.items():
        share, share_error = evaluation.share(o, found["svd"], found["oracle"])
        over = o.reward - found["svd"].reward
        root = np.sqrt(o.reward.shape[-1])
        out[name] = {
            "reward": o.reward.mean(-1), "key": o.key.mean(-1), "data": o.data.mean(-1),
            "spread": o.reward.std(-1), "share": share, "share_error": share_error,
            "over_svd": over.mean(-1), "over_svd_error": over.std(-1) / root,
        }  # fmt: skip
    return out


@dataclass(frozen=True)
class Climb:
    """One seed of the direct net, evaluated over settings after `updates`."""

    seed: int
    updates: int
    n_points: int
    settings: tuple[dict[str, Any], ...]
    n_draws: int
    device: str
    config: dict[str, Any] = field(default_factory=dict)


def climb(item: Climb) -> dict[str, Any]:
    """Train it; return its summary over settings (as `bounds`), and the first setting's reward (point,) in training."""
    from testbed.agents import beams, evaluation
    from testbed.agents.direct import Config, Direct
    from testbed.agents.setting import Setting

    setting = Setting(**item.settings[0])
    net = Direct(setting, item.seed, Config(**item.config), item.device)
    first = evaluation.held_out(setting, item.n_draws, item.device)
    began_s = time.perf_counter()
    curve = [float(evaluation.outcome(net.policy, first).reward.mean())]
    for _ in range(item.n_points):
        net.train(item.updates // item.n_points)
        curve.append(float(evaluation.outcome(net.policy, first).reward.mean()))
    train_s = time.perf_counter() - began_s
    found = over(item, {"direct": net.policy, "svd": beams.svd, "oracle": beams.oracle})
    per_update = net.config.n_settings * net.config.n_envs
    return {**found["direct"], "curve": curve, "train_s": train_s, "transitions": per_update}
