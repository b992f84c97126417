"""Compares policies on the same held-out draws of channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from testbed.agents import beams
from testbed.agents.beams import Policy
from testbed.agents.environment import Environment
from testbed.agents.setting import Setting
from testbed.agents.sources import Series
from testbed.core.types import F64

HELD_OUT_SEED = 9_001
"""Seed of all evaluations; learners train with other seeds."""

YARDSTICKS: dict[str, Policy] = {
    "random": beams.random, "svd": beams.svd, "trade": beams.trade, "bayes": beams.bayes, "oracle": beams.oracle,
}  # fmt: skip


def held_out(
    settings: Setting | Sequence[Setting], n_draws: int, device: str = "cpu", channels: Series | None = None
) -> Environment:
    """Return independent draws of channels, (run, copy), the same in every call and in every run.

    `channels`: the series from which the draws are taken; none of it was used in training (`Series.split`).
    """
    return Environment(settings, n_draws, HELD_OUT_SEED, device, channels, alike=True)


@dataclass(frozen=True)
class Outcome:
    """What a policy earned in each draw, in bits, each (run, draw)."""

    reward: F64
    key: F64
    data: F64


def outcome(policy: Policy, env: Environment) -> Outcome:
    """Return what a policy earns on an environment's present channels."""
    with torch.no_grad():
        found = env.rates(*policy(env))
    return Outcome(*(np.asarray(x.detach().double().cpu().numpy()) for x in found))


def outcomes(policies: Mapping[str, Policy], env: Environment) -> dict[str, Outcome]:
    """Return every policy's outcome on the same draws."""
    return {name: outcome(policy, env) for name, policy in policies.items()}


def share(policy: Outcome, svd: Outcome, best: Outcome) -> tuple[F64, F64]:
    """Return the share of the gap from SVD to `best` that a policy closes, and its standard error, each (run,).

    NaN where there is no gap, because SVD is optimal there.
    """
    gained, gap = policy.reward - svd.reward, best.reward - svd.reward
    mean_gap = gap.mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(mean_gap > 1e-3, gained.mean(-1) / mean_gap, np.nan)
        error = (gained - found[:, None] * gap).std(-1) / np.sqrt(gap.shape[-1]) / mean_gap  # of a ratio of means
    return found, error
