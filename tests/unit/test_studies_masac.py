"""Study masac: what its processes do, and what it runs at which size."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from testbed.agents import beams, evaluation
from testbed.studies import _masac_plan, _masac_work

SETTINGS = tuple({"n_antennas": 3, "mu": mu, "kappa_eve": k} for mu in (0.3, 1.0) for k in (0.0, 0.7, 0.95))


def test_evaluating_a_few_settings_at_a_time_changes_nothing() -> None:
    policies = {**evaluation.YARDSTICKS, "alone": beams.bayes_alone}
    item = _masac_work.Bounds(SETTINGS, 20, "cpu")
    together = _masac_work.over(item, policies, 10_000)
    for at_once in (1, 50):
        apart = _masac_work.over(item, policies, at_once)
        assert apart.keys() == together.keys()
        for name, summary in together.items():
            for what, values in summary.items():
                assert values.shape == (len(SETTINGS),)
                np.testing.assert_allclose(apart[name][what], values, atol=2e-5, err_msg=f"{name}, {what}")
    # the settings do differ, so that a mixed-up order would be seen
    assert np.diff(together["svd"]["reward"]).min() < -1e-2


@pytest.mark.parametrize(("quick", "device"), [(True, "cpu"), (False, "cpu"), (False, "cuda")])
def test_every_size_trains_learners_alike(quick: bool, device: str) -> None:
    size = _masac_plan.size(quick, device)
    stacks = {t.label: t for t in _masac_plan.trainings(size, device)}
    assert {"SAC", "TD3", "PPO", "SAC turned", "SAC turned, lstm", "fig4 turned"} <= stacks.keys()
    for peer in ("TD3", "PPO"):
        assert stacks[peer].steps == stacks["SAC"].steps
        assert stacks[peer].limit_s == stacks["SAC"].limit_s
        assert stacks[peer].config["n_envs"] == stacks["SAC"].config["n_envs"]
        assert stacks[peer].n_points == stacks["SAC"].n_points
    if not quick:
        assert size.n_seeds >= 5
