"""Study masac: what its processes do, and what it runs at which size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from testbed.agents import beams, evaluation
from testbed.learning import torch_device
from testbed.papers.kit.study import Study
from testbed.papers.masac import jobs as masac_work
from testbed.papers.masac import sizes as masac_plan
from testbed.papers.masac import study as masac

SETTINGS = tuple({"n_antennas": 3, "mu": mu, "kappa_eve": k} for mu in (0.3, 1.0) for k in (0.0, 0.7, 0.95))


def test_evaluating_a_few_settings_at_a_time_changes_nothing() -> None:
    policies = {**evaluation.YARDSTICKS, "alone": beams.bayes_alone}
    item = masac_work.Bounds(SETTINGS, 20, "cpu")
    together = masac_work.over(item, policies, 10_000)
    for at_once in (1, 50):
        apart = masac_work.over(item, policies, at_once)
        assert apart.keys() == together.keys()
        for name, summary in together.items():
            for what, values in summary.items():
                assert values.shape == (len(SETTINGS),)
                np.testing.assert_allclose(apart[name][what], values, atol=2e-5, err_msg=f"{name}, {what}")
    # the settings do differ, so that a mixed-up order would be seen
    assert np.diff(together["svd"]["reward"]).min() < -1e-2


@pytest.mark.parametrize(("quick", "device"), [(True, "cpu"), (False, "cpu"), (False, "cuda")])
def test_every_size_trains_learners_alike(quick: bool, device: str) -> None:
    size = masac_plan.size(quick, device)
    stacks = {t.label: t for t in masac_plan.trainings(size, device)}
    assert {"SAC", "TD3", "PPO", "SAC turned", "SAC turned, lstm", "fig4 turned"} <= stacks.keys()
    for peer in ("TD3", "PPO"):
        assert stacks[peer].steps == stacks["SAC"].steps
        assert stacks[peer].limit_s == stacks["SAC"].limit_s
        assert stacks[peer].config["n_envs"] == stacks["SAC"].config["n_envs"]
        assert stacks[peer].n_points == stacks["SAC"].n_points
    # a training takes whole shares of its steps between two evaluations: fewer than planned is the clock's doing
    assert all(t.steps % t.n_points == 0 for t in stacks.values())
    if not quick:
        assert size.n_seeds >= 5
        assert {f"SAC turned, {v}, noisy" for v in ("last", "lstm", "kalman")} <= stacks.keys()
        assert all(t.settings[0] == {"fred_noise": size.noisy} for n, t in stacks.items() if "noisy" in n)
    assert {0.001, size.noisy} <= set(size.noises)


def test_prediction_matters_where_fred_is_heard_badly() -> None:
    settings = tuple({"n_antennas": 2, "history": 8, "fred_noise": x} for x in (1e-3, 0.3))
    found = masac_work.predict(masac_work.Prediction(settings, 2, 250, 1500, "cpu"))
    for name in ("last", "lstm", "kalman"):
        for what in ("error", "wrong", "reward"):
            assert found[name][what].shape == (2, 2)
        assert (found["svd"] < found["kalman"]["reward"].mean(1)).all()
        assert (found[name]["reward"].mean(1) < found["oracle"]).all()
    np.testing.assert_allclose(found["kalman"]["error"].mean(1), found["expected"], rtol=0.1)
    ratio = found["kalman"]["error"].mean(1) / found["last"]["error"].mean(1)
    assert ratio[0] > 0.97
    assert ratio[1] < 0.6
    assert (found["lstm"]["error"] > 0.98 * found["kalman"]["error"]).all()
    assert (found["lstm"]["error"][1] < found["last"]["error"][1]).all()
    assert found["kalman"]["reward"][1].mean() > found["last"]["reward"][1].mean() + 0.02
    assert np.ptp(found["lstm"]["error"][1]) > 0  # seeds differ
    assert np.ptp(found["kalman"]["error"][1]) < 1e-6  # of one set of draws


def test_the_full_plan_runs_to_its_last_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of work of the full size, next to no training, and stacks that the clock stops on the way."""
    shrunk = replace(
        masac_plan.CPU, steps={"antenna": 30, "turned": 30}, predictor_updates=3, climb_updates=12, n_draws=20,
        table_draws=50, n_seeds=2, n_points=3, kappas=(0.0, 0.9), grid_powers=(0.1, 1.0), noises=(1e-3, 0.3),
        limit_s={**masac_plan.CPU.limit_s, "SAC": 0.0, "fig5": 0.0},
    )  # fmt: skip
    monkeypatch.setattr(masac_plan, "CPU", shrunk)
    monkeypatch.setattr(torch_device, "pick", lambda: "cpu")
    monkeypatch.setattr(Study, "map", lambda _, function, items: [function(item) for item in items])
    study = Study("masac", "E", quick=False)
    masac.run(study)
    found = study.results(0.0)
    json.dumps(found, allow_nan=False)
    assert {"fig2", "fig2_turned", "fig3", "fig3_antenna", "fig4", "fig5", "fred", "direct"} < found["figures"].keys()
    for name, figure in found["figures"].items():
        for curve in (*figure["curves"].values(), *figure["errors"].values()):
            assert len(curve) == len(figure["x"]), name
    told = [
        c["measured"].keys() for c in found["claims"] if c["claim"].startswith("every learner that gets a view of Eve")
    ]
    assert len(told) == 2
    assert not any(name.endswith("none") for names in told for name in names)
    assert {"SAC turned, last, noisy", "TD3 turned"} <= told[0]
    (cut,) = (c for c in found["claims"] if c["claim"].startswith("every stack took the updates planned"))
    assert {"SAC", "SAC turned", "fig5 turned 2"} <= cut["measured"].keys()
    assert "TD3" not in cut["measured"]
    assert found["figures"]["fig2"]["curves"]["SAC"][1] is not None
    assert found["figures"]["fig2"]["curves"]["SAC"][2] is None


def test_the_error_over_seeds_is_that_of_their_mean() -> None:
    runs = np.random.default_rng(1).standard_normal((20_000, 3))
    assert np.mean(masac._error(runs) ** 2) == pytest.approx(1 / 3, rel=0.03)
    assert masac._mean([1.0, 2.0, 3.0]) == pytest.approx([2.0, 3**-0.5])
