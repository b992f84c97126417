"""What the processes of study `masac` do: bounds, trainings, the direct net. Plain items in, plain numbers out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

AT_ONCE = 8000
"""Draws of channels, over all settings, that are evaluated together."""


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
    """At which the policy is evaluated on held-out draws."""
    n_draws: int
    device: str
    limit_s: float
    """Training ends at the next point after this long; what was reached then counts."""
    config: dict[str, Any] = field(default_factory=dict)
    predictor_updates: int = 0


def train(item: Training) -> dict[str, Any]:
    """Train and evaluate: `steps` (point,), `reward` (point, run), at the end `key`, `data`, `share` (run,)."""
    from testbed.agents import beams, evaluation, masac, ppo, td3
    from testbed.agents.learner import Task
    from testbed.agents.predictor import Config, Predictor
    from testbed.agents.setting import Setting

    settings = tuple(Setting(**s) for s in item.settings)
    predictor, told = None, {}
    if item.view == "lstm":
        predictor = Predictor(settings, item.seeds, Config(decay_steps=item.predictor_updates), item.device)
        predictor.train(item.predictor_updates)
        told = _prediction(predictor, settings, item)
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
        "train_s": trained_s, "n_envs": learner.config.n_envs, "svd": found["svd"].reward.mean(-1), **told,
    }  # fmt: skip


def _prediction(predictor: Any, settings: Any, item: Training) -> dict[str, Any]:
    """Return errors of LSTM and Kalman filter on held-out draws, by run: of the channel per unit power, the mode."""
    from testbed.agents import evaluation, kalman

    env = evaluation.held_out(settings, max(item.n_draws, 2000), item.device)
    belief = kalman.predict(env)
    mean, awake = predictor.predict(env)
    likely = kalman.awake_probability(belief, env.stack)

    def wrong(probability: Any) -> Any:
        return ((probability > 0.5).float() != env.awake).float().mean(-1).cpu().numpy()

    def error(estimate: Any) -> Any:
        return ((estimate - env.g).abs() ** 2).mean((-1, -2)).cpu().numpy()

    return {
        "lstm_error": error(mean), "kalman_error": error(belief.mean),
        "expected_error": belief.variance[:, 0].cpu().numpy(),
        "last_error": error(env.fred[-1]), "lstm_wrong": wrong(awake), "kalman_wrong": wrong(likely),
    }  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """Yardsticks over settings of the same antennas."""

    settings: tuple[dict[str, Any], ...]
    n_draws: int
    device: str
    ascent: bool = False


def bounds(item: Bounds) -> dict[str, dict[str, Any]]:
    """Return by yardstick: `reward`, `key`, `data`, their `error`, `spread` of a draw, `share`, `over_svd` (run,)."""
    from testbed.agents import beams, evaluation

    policies = dict(evaluation.YARDSTICKS)
    policies["bayes, Bob at SVD"] = beams.bayes_alone
    if item.ascent:
        policies["ascent"] = beams.ascent
    return over(item, policies)


def over(item: Bounds | Climb, policies: Any, n_at_once: int = AT_ONCE) -> dict[str, dict[str, Any]]:
    """Return policies' summaries over an item's settings, a few at a time: memory, not results, depends on it."""
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
    """Train it; return its summary over settings (as `bounds`), and the first setting's reward (point,) on the way."""
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
