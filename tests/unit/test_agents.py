"""Paper E: rates, environment, yardsticks, Kalman filter, learners, checkpoints, policies."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.agents import beams, evaluation, kalman, masac, ppo, sources, td3, train
from testbed.agents.direct import Config as DirectConfig
from testbed.agents.direct import Direct
from testbed.agents.environment import Environment
from testbed.agents.frames import look, state_size
from testbed.agents.learner import Learner, Task
from testbed.agents.policy import load_policy
from testbed.agents.predictor import Config as PredictorConfig
from testbed.agents.predictor import Predictor
from testbed.agents.rates import rates
from testbed.agents.setting import Setting, Stack
from testbed.core.errors import InputError, TestbedError
from testbed.core.types import CsiSeries
from testbed.papers.kit.mutual_information import gaussian_bits_with_error

# N_t, κ_E, µ → random, SVD, gradient ascent in bits, 400 draws; computed independently of this code
YARDSTICKS = [
    (4, 0.0, 1.0, 1.55, 3.10, 3.10),
    (4, 0.5, 1.0, 1.45, 2.97, 3.06),
    (4, 0.9, 1.0, 1.08, 2.38, 3.07),
    (4, 0.9, 0.5, 2.06, 4.46, 4.72),
    (8, 0.9, 1.0, 1.20, 2.55, 3.24),
]
SMALL: dict[str, Any] = {"hidden": 16, "n_envs": 4}
KINDS: dict[str, Any] = {
    "sac": (masac.Masac, masac.Config(**SMALL, batch=16, capacity=64, warm_up=4, gamma=0.5)),
    "td3": (td3.Td3, td3.Config(**SMALL, batch=16, capacity=64, warm_up=4, gamma=0.5)),
    "ppo": (ppo.Ppo, ppo.Config(**SMALL, rollout=8, minibatches=2, gamma=0.5)),
}


def _covariance(stack: Stack, gain: float, eve_gain: float) -> np.ndarray:
    """Of Alice's, Bob's and Eve's estimates, written out as the model description has it."""
    s = stack.settings[0]
    k_l, k_e = s.power * gain, s.power * eve_gain
    ab = s.rho**s.lag * k_l
    ae = s.kappa_eve * s.rho ** (s.lag / 2) * np.sqrt(k_l * k_e)
    return np.array([[k_l, ab, ae], [ab, k_l, ae], [ae, ae, k_e]]) + s.noise_power * np.eye(3)


@given(
    st.floats(0.01, 20), st.floats(0, 20), st.floats(0, 1), st.floats(0, 0.999), st.floats(0.1, 3), st.floats(0.1, 10)
)
@settings(max_examples=60, deadline=None)
def test_the_key_rate_is_the_ratio_of_determinants(
    gain: float, eve: float, kappa: float, rho: float, lag: float, power: float
) -> None:
    stack = Stack.of([Setting(kappa_eve=kappa, rho=rho, lag=lag, power=power)])
    one = torch.ones(1, 1)
    r = _covariance(stack, gain, eve)
    a, b, e = [0, 2], [1, 2], [2]
    det = [np.linalg.det(r[np.ix_(i, i)]) for i in (a, b, e, [0, 1, 2])]
    expected = np.log2(det[0] * det[1] / (det[2] * det[3]))
    assert float(rates(gain * one, eve * one, one, stack).key) == pytest.approx(expected, rel=2e-3, abs=2e-4)
    asleep = np.log2(r[0, 0] ** 2 / (r[0, 0] ** 2 - r[0, 1] ** 2))
    assert float(rates(gain * one, eve * one, 0 * one, stack).key) == pytest.approx(asleep, rel=2e-3, abs=2e-4)
    assert float(rates(gain * one, eve * one, one, stack).data) == pytest.approx(
        np.log2(1 + power * gain / 0.1), rel=1e-4
    )


@pytest.mark.parametrize("power", [1e2, 1e6, 1e9])
def test_the_key_rate_keeps_its_digits_at_any_power(power: float) -> None:
    """At ρ = κ_E = 1 all that Eve does not know is noise: with her gain that of the other two, log2(4/3) bits."""
    stack = Stack.of([Setting(power=power, rho=1.0, kappa_eve=1.0)])
    one = torch.ones(1, 1)
    assert float(rates(one, one, one, stack).key) == pytest.approx(np.log2(4 / 3), rel=3e-3)


def test_the_key_rate_is_what_samples_give() -> None:
    """Given Eve's estimate: the mutual information of what is left of Alice's and Bob's after predicting from hers."""
    stack = Stack.of([Setting(kappa_eve=0.9)])
    rng = np.random.default_rng(1)
    root = np.linalg.cholesky(_covariance(stack, 4.0, 1.5))
    draws = (rng.standard_normal((3, 40_000)) + 1j * rng.standard_normal((3, 40_000))) * 0.5**0.5
    alice, bob, eve = root @ draws
    left = [x - eve * (np.vdot(eve, x) / np.vdot(eve, eve)) for x in (alice, bob)]
    bits, error = gaussian_bits_with_error(left[0][:, None], left[1][:, None])
    one = torch.ones(1, 1)
    assert abs(bits - float(rates(4.0 * one, 1.5 * one, one, stack).key)) < 4 * error
    assert error < 0.05


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_more_gain_never_hurts_and_a_better_heard_eve_never_helps(mu: float, kappa: float, seed: int) -> None:
    stack = Stack.of([Setting(mu=mu, kappa_eve=kappa)])
    drawn = torch.rand(2, 1, 50, generator=torch.Generator().manual_seed(seed)) * 8
    for awake in (torch.zeros(1, 50), torch.ones(1, 50)):
        here = rates(drawn[0], drawn[1], awake, stack).reward
        assert bool((rates(drawn[0] * 1.1, drawn[1], awake, stack).reward >= here - 1e-5).all())
        assert bool((rates(drawn[0], drawn[1] * 1.1, awake, stack).reward <= here + 1e-5).all())


def test_channels_have_the_statistics_they_are_said_to_have() -> None:
    s = Setting(rho=0.9, kappa_fred=0.8, fred_noise=0.2)
    env = Environment([s, Setting(rho=0.5)], 20_000, seed=1)
    before = env.h.clone()
    env.advance()
    assert (env.h.abs() ** 2).mean().item() == pytest.approx(1, abs=0.01)
    kept = (env.h * before.conj()).mean((1, 2, 3))
    np.testing.assert_allclose(kept.numpy(), [0.9, 0.5], atol=0.01)
    assert (env.fred[-1][0] * env.g[0].conj()).mean().real.item() == pytest.approx(0.8, abs=0.01)
    assert (env.fred[-1][0].abs() ** 2).mean().item() == pytest.approx(1.2, abs=0.02)
    np.testing.assert_allclose((env.fred[-1] * env.fred[-2].conj()).mean((1, 2)).real[0], 0.9, atol=0.02)
    # ‖g‖² > 4 of four unit exponentials
    assert env.awake.mean().item() == pytest.approx(0.4335, abs=0.01)


def test_the_same_seed_gives_the_same_channels_and_runs_of_an_evaluation_the_same_draws() -> None:
    one, other = (Environment(Setting(), 3, seed=5) for _ in range(2))
    assert torch.equal(one.h, other.h)
    assert not torch.equal(one.h, Environment(Setting(), 3, seed=6).h)
    held = evaluation.held_out([Setting(mu=0.0), Setting(mu=1.0)], 10)
    assert torch.equal(held.h[0], held.h[1])
    assert torch.equal(held.h[:1], evaluation.held_out(Setting(), 10).h)


@pytest.mark.parametrize(("n", "kappa", "mu", "of_random", "of_svd", "of_ascent"), YARDSTICKS)
def test_the_yardsticks_are_those_computed_independently(
    n: int, kappa: float, mu: float, of_random: float, of_svd: float, of_ascent: float
) -> None:
    env = evaluation.held_out(Setting(n_antennas=n, kappa_eve=kappa, mu=mu), 1000)
    for policy, expected in ((beams.random, of_random), (beams.svd, of_svd), (beams.ascent, of_ascent)):
        found = evaluation.outcome(policy, env).reward
        error = found.std() * np.sqrt(1 / 400 + 1 / found.size) + 0.005  # theirs of 400 draws, printed to two digits
        assert abs(found.mean() - expected) < 3 * error


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("mu", [0.0, 0.6, 1.0])
def test_the_frontier_holds_the_optimum(n: int, mu: float) -> None:
    env = evaluation.held_out([Setting(n_antennas=n, kappa_eve=k, mu=mu, power=p) for k, p in ((0.9, 1), (1, 10))], 200)
    best, climbed = evaluation.outcome(beams.oracle, env).reward, evaluation.outcome(beams.ascent, env).reward
    assert (climbed - best).max() < 0.01
    assert (climbed - best).mean() < 1e-3
    assert (evaluation.outcome(beams.svd, env).reward - best).max() < 1e-3


def test_no_beam_beats_bayes_on_the_posterior_it_was_chosen_for() -> None:
    """Gradient ascent over both beams on the mean reward of fresh posterior samples, from where Bayes ended."""
    stack_of = Setting(kappa_fred=0.95)
    env = evaluation.held_out(stack_of, 12)
    belief = kalman.predict(env)
    generator = torch.Generator().manual_seed(3)
    noise = torch.view_as_complex(torch.randn(1, 12, 4000, 4, 2, generator=generator) * 0.5**0.5)
    g = belief.mean.unsqueeze(-2) + belief.variance.sqrt()[..., None, None] * noise
    awake = ((g.abs() ** 2).sum(-1) > 4).float()

    def mean_reward(alice: torch.Tensor, bob: torch.Tensor) -> torch.Tensor:
        h = ((env.h @ alice.unsqueeze(-1)).squeeze(-1) * bob).sum(-1).abs() ** 2
        heard = (g * alice.unsqueeze(-2)).sum(-1).abs() ** 2
        return rates(h.unsqueeze(-1).expand_as(heard), heard, awake, env.stack).reward.mean(-1)

    chosen = beams.bayes(env)
    start = mean_reward(*chosen)
    x = torch.stack(chosen).clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.02)
    for _ in range(100):
        optimiser.zero_grad()
        (-mean_reward(*(x / torch.linalg.vector_norm(x, dim=-1, keepdim=True))).sum()).backward()
        optimiser.step()
    end = mean_reward(*(x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)).detach())
    assert float((end - start).mean()) < 0.01
    assert float((start - mean_reward(*beams.svd(env))).mean()) > 0.1


def test_bayes_closes_nine_tenths_of_the_gap_and_never_loses_to_svd() -> None:
    env = evaluation.held_out(Setting(), 1500)
    found = evaluation.outcomes({**evaluation.YARDSTICKS, "alone": beams.bayes_alone}, env)
    share, error = evaluation.share(found["bayes"], found["svd"], found["oracle"])
    assert share[0] > 0.9
    assert error[0] < 0.01
    assert evaluation.share(found["alone"], found["svd"], found["oracle"])[0][0] > 0.7
    grid = [Setting(mu=m, kappa_eve=k, power=p) for m in (0.0, 0.5, 1.0) for k in (0.0, 0.5, 1.0) for p in (0.1, 10.0)]
    env = evaluation.held_out(grid, 300)
    over = evaluation.outcome(beams.bayes, env).reward - evaluation.outcome(beams.svd, env).reward
    assert (over.mean(-1) >= -3 * over.std(-1) / np.sqrt(300) - 1e-4).all()


def test_the_share_is_undefined_where_nothing_can_be_won() -> None:
    env = evaluation.held_out(Setting(kappa_eve=0.0), 50)
    found = evaluation.outcomes(evaluation.YARDSTICKS, env)
    assert np.isnan(evaluation.share(found["bayes"], found["svd"], found["oracle"])[0][0])


def test_the_kalman_filter_errs_as_it_says_and_less_than_the_last_estimate() -> None:
    env = evaluation.held_out([Setting(fred_noise=0.3), Setting(kappa_fred=0.9, fred_noise=0.1)], 4000)
    belief = kalman.predict(env)
    error = (belief.mean - env.g).abs().pow(2).mean((1, 2))
    np.testing.assert_allclose(error, belief.variance[:, 0], rtol=0.05)
    assert bool((error < 0.9 * (env.fred[-1] - env.g).abs().pow(2).mean((1, 2))).all())
    likely = kalman.awake_probability(belief, env.stack)
    for low in (0.1, 0.4, 0.7):
        inside = (likely > low) & (likely < low + 0.2)
        assert float(env.awake[inside].mean()) == pytest.approx(float(likely[inside].mean()), abs=0.06)


def test_the_lstm_learns_to_predict_and_does_not_pass_the_kalman_filter() -> None:
    s = Setting(n_antennas=2, fred_noise=0.3)
    predictor = Predictor([s], [1], PredictorConfig(hidden=24, batch=64, decay_steps=600)).train(600)
    env = evaluation.held_out(s, 2000)
    mean, awake = predictor.predict(env)
    error = float((mean - env.g).abs().pow(2).mean())
    optimal = float((kalman.predict(env).mean - env.g).abs().pow(2).mean())
    assert 0.97 * optimal < error < 1.6 * optimal
    assert error < 0.8 * float((env.fred[-1] - env.g).abs().pow(2).mean())
    likely = kalman.awake_probability(kalman.predict(env), env.stack)
    right, of_kalman = (float(((x > 0.5) == (env.awake > 0.5)).float().mean()) for x in (awake, likely))
    assert of_kalman - 0.04 < right < of_kalman + 0.01


def test_a_predictor_goes_on_from_its_checkpoint_exactly(tmp_path: Path) -> None:
    s, config = (Setting(n_antennas=2, history=3),), PredictorConfig(hidden=8, batch=32, capacity=20)
    whole, first, rest = (Predictor(s, (1,), config) for _ in range(3))
    whole.train(130)
    torch.save(first.train(45).state_dict(), tmp_path / "half.pt")
    state = torch.load(tmp_path / "half.pt", weights_only=True)
    rest.load_state_dict(state)
    rest.train(85)
    for a, b in zip(whole.nets.parameters(), rest.nets.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.losses == rest.losses
    assert len(rest.losses) == 2
    assert whole.n_updates == rest.n_updates == 130
    with pytest.raises(RuntimeError, match="size mismatch"):
        Predictor((Setting(n_antennas=3, history=3),), (1,), config).load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("view", "frame"), [("full", "antenna"), ("kalman", "turned"), ("none", "antenna")])
def test_training_in_two_parts_is_training_at_once(kind: str, view: str, frame: str, tmp_path: Path) -> None:
    task = Task((Setting(n_antennas=2), Setting(n_antennas=2, mu=0.3)), (1, 2), view, frame)
    make, config = KINDS[kind]
    whole, first, rest = (make(task, config) for _ in range(3))
    whole.train(44, log_every=10)
    first.train(19, log_every=10)
    first.save(tmp_path / "half.pt")
    rest.load(tmp_path / "half.pt")
    rest.train(25, log_every=10)
    for a, b in zip(whole.actors.parameters(), rest.actors.parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole.curve == rest.curve
    assert whole.n_steps == 44
    assert torch.equal(whole.env.h, rest.env.h)


def test_runs_of_a_stack_do_not_disturb_one_another() -> None:
    """The gradient of one run is the same whatever the other runs' settings."""
    config = KINDS["sac"][1]
    stacks = [masac.Masac(Task((Setting(n_antennas=2), Setting(n_antennas=2, mu=m)), (1, 2)), config) for m in (1, 0.0)]
    for learner in stacks:
        learner.train(12)
    one, other = (list(x.critics.parameters()) for x in stacks)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a[0], b[0])  # first critic of the first run
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def test_in_the_turned_frame_sac_soon_beats_the_svd_beams() -> None:
    config = masac.Config(hidden=32, batch=128, n_envs=32, rate=3e-3, warm_up=5)
    learner = masac.Masac(Task((Setting(),), (1,), frame="turned"), config)
    learner.train(250)
    env = evaluation.held_out(Setting(), 500)
    assert (
        evaluation.outcome(learner.policy, env).reward.mean() > evaluation.outcome(beams.svd, env).reward.mean() + 0.1
    )


def test_the_turned_frame_is_blind_to_rotations_of_the_arrays() -> None:
    env = evaluation.held_out(Setting(n_antennas=3), 20)
    before = look(env, "full", "turned").state.clone()
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.complex64, generator=torch.Generator().manual_seed(1)))
    env.source.h.copy_(q @ env.h @ q)
    env.source.g.copy_((env.g.unsqueeze(-2) @ q).squeeze(-2))
    np.testing.assert_allclose(look(env, "full", "turned").state, before, atol=2e-5)


@pytest.mark.parametrize(("bob_follows", "n_updates", "least"), [(True, 120, 0.8), (False, 200, 0.75)])
def test_the_direct_net_climbs_and_is_nowhere_below_svd(bob_follows: bool, n_updates: int, least: float) -> None:
    config = DirectConfig(n_settings=32, decay_steps=300, bob_follows=bob_follows)
    net = Direct(Setting(), 1, config).train(n_updates)
    grid = [Setting(), Setting(kappa_eve=0.0), Setting(mu=0.0), Setting(power=0.1), Setting(kappa_fred=0.8)]
    env = evaluation.held_out(grid, 400)
    found = evaluation.outcomes({"net": net.policy, "svd": beams.svd, "oracle": beams.oracle}, env)
    assert evaluation.share(found["net"], found["svd"], found["oracle"])[0][0] > least
    over = found["net"].reward - found["svd"].reward
    assert (over.mean(-1) > -3 * over.std(-1) / 20 - 1e-4).all()
    with pytest.raises(InputError, match="for 4 antennas, the environment has 2"):
        net.policy(evaluation.held_out(Setting(n_antennas=2), 5))


@pytest.mark.parametrize("bob_follows", [True, False])
def test_the_direct_net_goes_on_from_its_checkpoint_and_becomes_a_beam_policy(
    bob_follows: bool, tmp_path: Path
) -> None:
    s, config = Setting(history=3), DirectConfig(n_settings=16, decay_steps=60, bob_follows=bob_follows)
    whole, first, rest = (Direct(s, 1, config) for _ in range(3))
    whole.train(30)
    first.train(12).save(tmp_path / "d.pt")
    rest.load(tmp_path / "d.pt")
    rest.train(18).save(tmp_path / "d.pt")
    for a, b in zip(whole.net.parameters(), rest.net.parameters(), strict=True):
        assert torch.equal(a, b)
    policy = load_policy(tmp_path / "d.pt")
    assert (policy.view, policy.n_antennas) == ("kalman", 4)
    env = evaluation.held_out(s, 20)
    chosen, svd = whole.policy(env), beams.svd(env)
    for role, expected in zip(("alice", "bob"), chosen, strict=True):
        found = np.stack([policy.act(role, env.h[0, k].numpy(), fred=env.fred[:, 0, k].numpy()) for k in range(20)])
        # the phase of a beam does not matter
        np.testing.assert_allclose(np.abs((found.conj() * expected[0].numpy()).sum(-1)), 1, atol=1e-4)
    assert torch.allclose(chosen[1], svd[1]) is not bob_follows
    assert not torch.allclose(chosen[0], svd[0])
    with pytest.raises(InputError, match=r"fred is nothing; accepted for the view 'kalman': \(3, 4\)"):
        policy.act("alice", np.eye(4))
    with pytest.raises(InputError, match=f"bob_follows = {bob_follows}; accepted: {not bob_follows}"):
        Direct(s, 1, replace(config, bob_follows=not bob_follows)).load(tmp_path / "d.pt")
    with pytest.raises(InputError, match=r"does not fit: .*size mismatch"):
        Direct(Setting(n_antennas=2), 1, config).load(tmp_path / "d.pt")
    masac.Masac(Task((s,), (1,)), KINDS["sac"][1]).save(tmp_path / "sac.pt")
    with pytest.raises(InputError, match="a checkpoint of 'sac'; accepted: 'direct'"):
        Direct(s, 1, config).load(tmp_path / "sac.pt")


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_becomes_a_beam_policy(kind: str, tmp_path: Path) -> None:
    make, config = KINDS[kind]
    task = Task((Setting(n_antennas=2, history=3),), (1,), "full", "turned")
    learner: Learner = make(task, config)
    learner.train(10)
    learner.save(tmp_path / "p.pt")
    policy = load_policy(tmp_path / "p.pt")
    env = learner.env
    h, g, awake = env.h[0, 0].numpy(), env.g[0, 0].numpy(), bool(env.awake[0, 0])
    for role, expected in zip(("alice", "bob"), learner.policy(env), strict=True):
        beam = policy.act(role, h, g=g, awake=awake)
        assert beam.dtype == np.complex64
        assert np.linalg.norm(beam) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(beam, expected[0, 0], atol=1e-5)
    with pytest.raises(InputError, match="no role 'eve' has a beam"):
        policy.act("eve", h)
    with pytest.raises(InputError, match=r"h is \(3, 3\); accepted"):
        policy.act("alice", np.ones((3, 3)), g=g, awake=awake)
    with pytest.raises(InputError, match="g is nothing; accepted for the view 'full'"):
        policy.act("alice", h)
    with pytest.raises(InputError, match="not finite"):
        policy.act("alice", h * np.nan, g=g, awake=awake)
    with pytest.raises(InputError, match="holds no run 3"):
        load_policy(tmp_path / "p.pt", 3)


def test_a_policy_with_an_lstm_acts_on_freds_history(tmp_path: Path) -> None:
    s = Setting(n_antennas=2, history=3)
    predictor = Predictor([s], [1], PredictorConfig(hidden=8, batch=32)).train(5)
    learner = masac.Masac(Task((s,), (1,), "lstm"), KINDS["sac"][1], predictor)
    learner.train(8)
    learner.save(tmp_path / "p.pt")
    policy = load_policy(tmp_path / "p.pt")
    env = learner.env
    beam = policy.act("bob", env.h[0, 0].numpy(), fred=env.fred[:, 0, 0].numpy())
    np.testing.assert_allclose(beam, learner.policy(env)[1][0, 0], atol=1e-5)
    with pytest.raises(InputError, match="needs a predictor"):
        masac.Masac(Task((s,), (1,), "lstm"), KINDS["sac"][1])


def test_the_bayes_policy_of_a_node_nulls_eve_and_needs_fred() -> None:
    from testbed.core import registry

    env = evaluation.held_out(Setting(history=1), 40)
    alice, bob = (registry.make_stage("beams", "bayes", {}) for _ in range(2))
    alice.begin(4, 4, "bob", 1)
    bob.begin(4, 4, "alice", 1)
    rng = np.random.default_rng(1)
    chosen: list[Any] = [[], []]
    for k in range(40):
        h, f = (x * np.exp(2j * np.pi * rng.random()) for x in (env.h[0, k].numpy(), env.fred[-1, 0, k].numpy()))
        alice.hear(k, {"bob": 0.01 * h.T[..., None], "eve": 0.2 * f[:, None, None]})
        bob.hear(k, {"alice": 0.03 * h[..., None]})
        chosen[0].append(alice.beam(k))
        chosen[1].append(bob.beam(k))
    found = env.rates(*(torch.as_tensor(np.stack(x))[None] for x in chosen))
    svd, together = (env.rates(*policy(env)).reward.mean() for policy in (beams.svd, beams.bayes_alone))
    assert float(found.reward.mean()) > float(svd) + 0.6 * float(together - svd) > float(svd)
    alice.hear(40, {"bob": h.T[..., None]})
    np.testing.assert_allclose(np.linalg.norm(alice.beam(40)), 1, atol=1e-5)
    with pytest.raises(InputError, match=r"'kappa_eve': 1\.5 .*accepted: numbers from 0 to 1"):
        registry.make_stage("beams", "bayes", {"kappa_eve": 1.5})


def test_checkpoints_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    make, config = KINDS["sac"]
    path = tmp_path / "a.pt"
    make(Task((Setting(n_antennas=2),), (1,)), config).save(path)
    with pytest.raises(InputError, match=r"does not fit: .*size mismatch.*accepted: .* 1 runs, 4 antennas"):
        make(Task((Setting(n_antennas=4),), (1,)), config).load(path)
    with pytest.raises(InputError, match="a checkpoint of 'sac'; accepted: 'td3'"):
        td3.Td3(Task((Setting(n_antennas=2),), (1,)), KINDS["td3"][1]).load(path)
    with pytest.raises(InputError, match="a checkpoint of view 'full', frame 'antenna'; accepted: 'kalman', 'antenna'"):
        make(Task((Setting(n_antennas=2),), (1,), "kalman"), config).load(path)
    with pytest.raises(InputError, match="no checkpoint of a learner"):
        load_policy(tmp_path / "nothing.pt")
    card = path.with_suffix(".json").read_text()
    for wrong in (
        "[]",
        card.replace('"hidden": 16', '"hidden": "wide"'),
        card.replace('"settings": [', '"settings": [1,'),
    ):
        path.with_suffix(".json").write_text(wrong)
        with pytest.raises(InputError, match=r"no checkpoint of a learner|card does not fit|card is damaged"):
            load_policy(path)
    path.with_suffix(".json").write_text(card)
    state = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "curve"}, path)
    with pytest.raises(InputError, match="does not fit: 'curve'"):
        load_policy(path)
    torch.save(state, path)
    whole = path.read_bytes()
    for content in (b"not a checkpoint", b"junk", b"", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="no checkpoint of a learner"):
            load_policy(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("rho", 1.1), ("rho", -0.1), ("kappa_eve", 1.5), ("kappa_eve", float("nan")), ("kappa_fred", -1), ("mu", 2),
     ("power", 0), ("noise_power", -1), ("lag", -1), ("n_antennas", 1), ("history", 0), ("n_antennas", 2.5)],
)  # fmt: skip
def test_values_out_of_range_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{key} = .* is out of range; accepted"):
        Setting(**{key: value})


def test_other_bad_input_is_one_line() -> None:
    with pytest.raises(InputError, match="different n_antennas do not stack"):
        Stack.of([Setting(), Setting(n_antennas=2)])
    with pytest.raises(InputError, match="no view 'half'; accepted"):
        Task((Setting(),), (1,), "half")
    with pytest.raises(InputError, match="no frame"):
        Task((Setting(),), (1,), frame="bent")
    with pytest.raises(InputError, match="1 settings for 2 seeds"):
        Task((Setting(),), (1, 2))
    with pytest.raises(InputError, match="accepted: 1 or more"):
        Environment(Setting(), 0, 1)


def test_rewards_that_are_not_finite_stop_everything() -> None:
    env = Environment([Setting(), Setting()], 3, 1)
    alice, bob = (w.clone() for w in beams.random(env))  # one memory for all runs otherwise
    alice[1, 2, 0] = float("nan")
    with pytest.raises(TestbedError, match="reward of run 1, copy 2 is not finite"):
        env.step(alice, bob)
    learner = masac.Masac(Task((Setting(n_antennas=2),), (1,)), KINDS["sac"][1])
    learner.train(5)
    with torch.no_grad():
        next(iter(learner.actors.parameters())).fill_(float("nan"))
    with pytest.raises(TestbedError, match="not finite"):
        learner.train(2)


def test_logs_are_those_of_tensorboard(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="the extra `agents` is not installed")
    learner = masac.Masac(Task((Setting(n_antennas=2),), (1,)), KINDS["sac"][1])
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        learner.train(20, writer, log_every=5)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload().Scalars("sac/reward/run0")
    assert [e.step for e in events] == [n for n, _ in learner.curve] == [20, 40, 60, 80]
    np.testing.assert_allclose([e.value for e in events], [means[0] for _, means in learner.curve], rtol=1e-5)


def test_the_standard_interface_passes_its_own_test() -> None:
    pytest.importorskip("pettingzoo", reason="the extra `agents` is not installed")
    from pettingzoo.test import parallel_api_test

    from testbed.agents.parallel import BeamEnv

    env = BeamEnv(Setting(n_antennas=2), episode=10)
    parallel_api_test(env, num_cycles=50)
    assert env.observation_space("bob").shape == (state_size(2, "full", "antenna"),)
    (one, _), (other, _) = env.reset(seed=3), env.reset(seed=3)
    np.testing.assert_array_equal(one["alice"], other["bob"])
    actions = {a: env.action_space(a).sample() for a in env.agents}
    _, reward, _, _, info = env.step(actions)
    assert reward["alice"] == reward["bob"] == pytest.approx(info["bob"]["key_rate"])
    bad: list[tuple[dict[str, Any], str]] = [
        (actions | {"bob": np.ones(5, np.float32)}, r"bob's action is \(5,\); accepted: \(4,\)"),
        (actions | {"bob": np.full(4, np.nan, np.float32)}, "bob's action is not finite"),
        (actions | {"alice": "left"}, "accepted: 4 numbers each"),
        ({"alice": actions["alice"]}, "KeyError.*accepted: 4 numbers each by alice and bob"),
    ]
    for wrong, message in bad:
        with pytest.raises(InputError, match=message):
            env.step(wrong)


def _series(steps: int = 400, seed: int = 1) -> sources.Series:
    env = Environment(Setting(n_antennas=2, rho=0.9, kappa_fred=0.9), 1, seed)
    rows = []
    for _ in range(steps):
        rows.append((env.h[0, 0].clone(), env.g[0, 0].clone(), env.source.fred[0, 0].clone()))
        env.advance()
    h, g, fred = (torch.stack(x).numpy() for x in zip(*rows, strict=True))
    return sources.Series(3.0 * h, 0.1 * g, 7.0 * fred)


def test_recorded_channels_play_with_statistics_of_their_own() -> None:
    series = _series()
    found = series.setting(Setting())
    assert found.n_antennas == 2
    assert found.rho == pytest.approx(0.9, abs=0.03)
    assert found.kappa_fred == pytest.approx(0.9, abs=0.05)
    assert 0 < found.kappa_eve < 0.4  # independent: chance coherence of a short, slow series
    env = Environment(found, 64, 1, channels=series)
    assert float((env.h.abs() ** 2).mean()) == pytest.approx(1, abs=0.25)
    before = env.h.clone()
    reward = env.step(*beams.bayes(env)).reward
    assert reward.shape == (1, 64)
    assert not torch.equal(before, env.h)
    alike = np.abs(env.h.numpy()[0, :, None] - (series.h / np.sqrt((np.abs(series.h) ** 2).mean()))[None]).max((-1, -2))
    assert (alike.min(1) < 1e-5).all()  # every copy is at a recorded moment


def test_a_series_is_played_to_its_end_and_back_without_a_jump() -> None:
    t = np.arange(20.0)
    series = sources.Series(np.exp(0.1j * t)[:, None, None] * np.ones((1, 2, 2)), np.exp(0.1j * t)[:, None] * [1, 1])
    env = Environment([Setting(n_antennas=2, history=2), Setting(n_antennas=2, history=2)], 5, 1, channels=series)
    assert not torch.equal(env.h[0], env.h[1])
    seen = []
    for _ in range(60):
        seen.append(env.h[0, :, 0, 0].angle().numpy() / 0.1)
        env.advance()
    steps = np.abs(np.diff(np.unwrap(np.array(seen), axis=0, period=20 * np.pi), axis=0))
    np.testing.assert_allclose(steps, 1, atol=1e-3)
    assert np.min(seen) == pytest.approx(0, abs=1e-3)
    assert np.max(seen) == pytest.approx(19, abs=1e-3)


def test_a_fred_who_was_not_recorded_is_each_runs_own() -> None:
    whole = _series(3000)
    base = Setting(n_antennas=2, rho=0.9, history=1)
    runs = [replace(base, kappa_fred=0.6, fred_noise=0.0), replace(base, kappa_fred=0.99, fred_noise=0.3)]
    env = Environment(runs, 3000, 1, channels=sources.Series(whole.h, whole.g), alike=True)
    assert torch.equal(env.h[0], env.h[1])
    shared = (env.source.fred * env.g.conj()).mean((1, 2)).real / (env.g.abs() ** 2).mean((1, 2))
    np.testing.assert_allclose(shared, [0.6, 0.99], atol=0.06)
    np.testing.assert_allclose((env.source.fred.abs() ** 2).mean((1, 2)), [1, 1.3], atol=0.15)


def test_soundings_of_a_run_become_channels_whatever_their_phases() -> None:
    series = _series(60)
    rng = np.random.default_rng(1)

    def csi(x: np.ndarray, lacking: list[int]) -> CsiSeries:
        x = x * np.exp(2j * np.pi * rng.random(len(x))).reshape(-1, *[1] * (x.ndim - 1))
        x[lacking] = np.nan
        return CsiSeries(x[..., None].astype(np.complex64), np.arange(len(x)), np.zeros(1))

    found = sources.from_csi(csi(series.h, [3]), csi(series.g[:, None], [5, 6]))
    assert found.h.shape == (57, 2, 2)
    assert found.setting(Setting()).rho == pytest.approx(series.setting(Setting()).rho, abs=0.1)
    with pytest.raises(InputError, match="no round has CSI of every link"):
        sources.from_csi(csi(series.h, list(range(60))), csi(series.g[:, None], []))


def _scene() -> Any:
    from testbed.core.config import PlacedNode, Scene

    return Scene(
        alice=PlacedNode(position_m=[2.0, 3.0, 1.5]),
        bob=PlacedNode(position_m=[9.0, 4.0, 1.2], velocity_m_s=[0.4, 0.1, 0.0]),
        eve=PlacedNode(position_m=[6.0, 7.0, 1.4], velocity_m_s=[-0.3, 0.2, 0.0]),
    )


def test_channels_come_from_the_simulated_world() -> None:
    scene = _scene()
    series = sources.from_world(scene, 5.8e9, 1, np.arange(40) * 2e-3, n_antennas=2)
    assert series.h.shape == (40, 2, 2)
    assert abs(np.vdot(series.h[:, 0, 0], series.h[:, 1, 1])) < 0.99 * np.linalg.norm(
        series.h[:, 0, 0]
    ) * np.linalg.norm(series.h[:, 1, 1])
    found = series.setting(Setting(history=4))
    assert 0.9 < found.rho < 1
    assert found.kappa_fred > 0.9  # a millimetre away
    near = msgspec.structs.replace(scene, eve=type(scene.eve)(near="bob", offset_wavelengths=0.5))
    beside = sources.from_world(near, 5.8e9, 1, np.arange(40) * 2e-3, n_antennas=2)
    assert beside.setting(Setting(history=4)).kappa_fred > 0.9
    with pytest.raises(InputError, match=r"no \[scene.eve\]"):
        sources.from_world(type(scene)(alice=scene.alice, bob=scene.bob), 5.8e9, 1, np.arange(3.0))
    at_alice = msgspec.structs.replace(scene, eve=type(scene.eve)(near="alice", offset_wavelengths=0.5))
    with pytest.raises(InputError, match="or Eve near Bob"):
        sources.from_world(at_alice, 5.8e9, 1, np.arange(3.0))


def test_what_was_trained_on_one_stretch_of_a_world_serves_on_another(tmp_path: Path) -> None:
    series = sources.from_world(_scene(), 5.8e9, 1, np.arange(600) * 4e-3, n_antennas=2)
    heard, test = series.split(0.6, gap=60)
    assert len(heard.h) == 360
    assert len(test.h) == 180
    np.testing.assert_array_equal(test.h[0], series.h[420])
    # Eve as the paper has her, in place of the World's, whose channel tells little of the legitimate one
    s = replace(heard.setting(Setting(history=4)), kappa_eve=0.9)
    env = evaluation.held_out(s, 600, channels=test)
    net = Direct(s, 1, DirectConfig(n_settings=16, decay_steps=60), channels=heard).train(60)
    small = masac.Config(hidden=32, batch=128, n_envs=32, rate=3e-3, warm_up=5)
    sac = masac.Masac(Task((s,), (1,), "kalman", "turned"), small, channels=heard)
    sac.train(150)
    found = evaluation.outcomes({**evaluation.YARDSTICKS, "direct": net.policy, "sac": sac.policy}, env)
    reward = {name: float(o.reward.mean()) for name, o in found.items()}
    assert reward["random"] + 0.1 < reward["svd"] < reward["direct"] <= reward["oracle"]
    assert reward["sac"] > reward["random"] + 0.5 * (reward["svd"] - reward["random"])
    # a checkpoint can be trained further on the same channels only, but used without them
    sac.save(path := tmp_path / "world.pt")
    again = masac.Masac(Task((s,), (1,), "kalman", "turned"), small, channels=heard)
    again.load(path)
    for learner in (sac, again):
        learner.train(5)
    assert torch.equal(sac.env.h, again.env.h)
    assert torch.equal(next(sac.actors.parameters()), next(again.actors.parameters()))
    with pytest.raises(InputError, match="trained on recorded channels and this environment draws its own"):
        masac.Masac(Task((s,), (1,), "kalman", "turned"), small).load(path)
    with pytest.raises(InputError, match="played other channels"):
        masac.Masac(Task((s,), (1,), "kalman", "turned"), small, channels=series).load(path)
    assert load_policy(path).act("alice", np.eye(2), fred=np.ones((4, 2))).shape == (2,)


@pytest.mark.parametrize(
    ("algorithm", "view"), [("sac", "lstm"), ("sac", "last"), ("td3", "none"), ("ppo", "full"), ("direct", "kalman")]
)
def test_training_writes_a_checkpoint_that_acts_and_reports_its_reward(
    algorithm: str, view: str, tmp_path: Path
) -> None:
    changes = {"n_antennas": 2, "history": 2, "kappa_eve": 0.9}
    plan = train.Plan(algorithm, 3, view=view, channels=_series(200), changes=changes)
    found = train.run(plan, tmp_path / "p.pt", n_draws=50)
    assert found["setting"]["kappa_eve"] == 0.9
    assert found["setting"]["rho"] == pytest.approx(0.9, abs=0.05)  # of the channels
    assert found["reward"]["svd"] <= found["reward"]["oracle"]
    assert found["share"]["svd"] == 0
    assert found["share"]["oracle"] == 1
    assert load_policy(tmp_path / "p.pt").view == view


def test_the_command_line_trains(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from testbed import cli

    series = _series(100)
    np.savez(tmp_path / "c.npz", h=series.h, g=series.g)
    told = ["train", "direct", "--out", str(tmp_path / "d.pt"), "--updates", "2", "--set", "history=2"]
    told += ["--set", "kappa_fred=0.99", "--set", "n_antennas=2", "--json"]
    done = CliRunner().invoke(cli.app, [*told, "--channels", str(tmp_path / "c.npz")], catch_exceptions=False)
    found = json.loads(done.stdout)
    assert found["setting"]["kappa_fred"] == 0.99
    assert found["setting"]["rho"] == pytest.approx(0.9, abs=0.1)
    assert load_policy(tmp_path / "d.pt").n_antennas == 2
    done = CliRunner().invoke(cli.app, [*told, "--channels", "mimo_walk", "--step-s", "0.001"], catch_exceptions=False)
    assert json.loads(done.stdout)["setting"]["rho"] > 0.95
    for wrong, message in (("mu", "NAME=NUMBER"), ("n_antennas=two", "NAME=NUMBER")):
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(cli.app, [*told, "--set", wrong], catch_exceptions=False)
    for more, message in (
        (["--out", str(tmp_path)], "accepted: a file"),
        (["--out", str(tmp_path / "d.json")], "a folder, or the card's suffix .json"),
        (["--out", "/proc/beams.pt"], "accepted: a file that can be written"),
        (["--step-s", "0.1"], "accepted only with --channels EXPERIMENT"),
    ):
        with pytest.raises(InputError, match=message):
            CliRunner().invoke(cli.app, [*told, *more], catch_exceptions=False)


def test_a_replay_that_has_wrapped_does_not_go_into_a_larger_one(tmp_path: Path) -> None:
    task = Task((Setting(n_antennas=2, history=3),), (1,), "lstm")
    of_lstm = PredictorConfig(hidden=8, batch=8, n_envs=2, capacity=16)

    def made(capacity: int, steps: int) -> Learner:
        predictor = Predictor(task.settings, task.seeds, replace(of_lstm, capacity=steps))
        return masac.Masac(task, replace(KINDS["sac"][1], capacity=capacity), predictor.train(20))

    learner, path = made(64, 16), tmp_path / "a.pt"
    learner.train(12)
    learner.save(path)
    made(100, 16).load(path)  # not full yet, and nothing is where it would not be
    learner.train(10)
    learner.save(path)
    made(64, 16).load(path)
    with pytest.raises(InputError, match=r"full at 64 transitions .* accepted: a capacity of 64 here too, not 100"):
        made(100, 16).load(path)
    with pytest.raises(InputError, match=r"full at 16 steps .* accepted: a capacity of 16 here too, not 20"):
        made(64, 20).load(path)


def test_invalid_training_options_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no algorithm 'dqn'; accepted: direct, sac, td3, ppo"):
        train.Plan("dqn")
    with pytest.raises(InputError, match="'direct' has the view 'kalman'"):
        train.Plan("direct", view="none")
    with pytest.raises(InputError, match="no 'kappa'; accepted: n_antennas, power"):
        train.Plan("sac", changes={"kappa": 1})
    with pytest.raises(InputError, match="the channels have 2 antennas, the setting 4"):
        train.run(train.Plan("sac", channels=_series(200), changes={"n_antennas": 4}), tmp_path / "p.pt")


def test_the_standard_interface_plays_recorded_channels() -> None:
    pytest.importorskip("pettingzoo", reason="the extra `agents` is not installed")
    from testbed.agents.parallel import BeamEnv

    series = _series(60)
    env = BeamEnv(channels=series)
    assert env.setting.n_antennas == 2
    assert env.setting.rho == pytest.approx(0.9, abs=0.1)
    observed, _ = env.reset(seed=3)
    h = observed["alice"][:8].view(np.complex64)
    recorded = (series.h / np.sqrt((np.abs(series.h) ** 2).mean())).reshape(60, 4)
    assert np.abs(recorded - h).max(1).min() < 1e-5
    with pytest.raises(InputError, match="the channels have 2 antennas, the setting 4"):
        BeamEnv(Setting(), channels=series)


def test_series_that_do_not_fit_are_one_line() -> None:
    good = np.ones((20, 2, 2)), np.ones((20, 2))
    with pytest.raises(InputError, match=r"h is \(20, 2, 3\)"):
        sources.Series(np.ones((20, 2, 3)), good[1])
    with pytest.raises(InputError, match=r"g is \(19, 2\)"):
        sources.Series(good[0], np.ones((19, 2)))
    with pytest.raises(InputError, match="not finite"):
        sources.Series(good[0] * np.nan, good[1])
    for gap in (slice(7, 8), slice(None)):  # one step of zeros makes beams that are not numbers
        h = good[0].copy()
        h[gap] = 0
        with pytest.raises(InputError, match=r"h has values .* steps of zeros: drop those rounds"):
            sources.Series(h, good[1])
    with pytest.raises(InputError, match="g holds <U3; accepted: complex numbers"):
        sources.Series(good[0], good[1].astype("U3"))
    with pytest.raises(InputError, match="accepted: two stretches"):
        sources.Series(good[0][:0], good[1][:0]).split()
    with pytest.raises(InputError, match="accepted: at least 16"):
        sources.Series(good[0][:9], good[1][:9]).setting(Setting())
    with pytest.raises(InputError, match="accepted: two stretches"):
        sources.Series(*good).split(0.9, gap=2)
    two = Setting(n_antennas=2)
    with pytest.raises(InputError, match="9 steps of channels; accepted: at least 16"):
        Environment(two, 1, 1, channels=sources.Series(good[0][:9], good[1][:9]))
    with pytest.raises(InputError, match="the channels have 2 antennas, the setting 4"):
        masac.Masac(Task((Setting(),), (1,)), KINDS["sac"][1], channels=sources.Series(*good))
    with pytest.raises(InputError, match=r"channels are ndarray; accepted: a sources\.Series"):
        Environment(two, 1, 1, channels=good[0])  # type: ignore[arg-type]


def test_channels_are_read_from_an_archive(tmp_path: Path) -> None:
    series = _series(30)
    np.savez(tmp_path / "c.npz", h=series.h, g=series.g)
    found = sources.load(tmp_path / "c.npz")
    np.testing.assert_array_equal(found.h, series.h)
    assert found.fred is None
    np.savez(tmp_path / "half.npz", h=series.h)
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / "headed.npz").write_bytes(b"PK\x03\x04junk")
    whole = (tmp_path / "c.npz").read_bytes()
    (tmp_path / "flipped.npz").write_bytes(whole[:200] + bytes(b ^ 255 for b in whole[200:260]) + whole[260:])
    for name in ("half.npz", "junk.npz", "headed.npz", "flipped.npz", "nowhere.npz"):
        with pytest.raises(InputError, match=r"accepted: \.npz with h, g and maybe fred"):
            sources.load(tmp_path / name)


def test_the_benchs_peer_is_the_same_environment() -> None:
    from testbed.benchmarks.agents import OneCopy

    s = Setting(mu=0.7, fred_noise=0.1, rho=0.5)  # decorrelates quickly, so that steps are nearly independent
    beam = np.array([1, 0, 0, 0], np.complex64)
    one = OneCopy(s, 1)
    theirs = np.array([one.step(beam, beam) for _ in range(6000)])
    env = Environment(s, 20_000, 1)
    w = torch.as_tensor(beam).expand(1, 20_000, 4)
    ours = env.step(w, w).reward.numpy()
    error = theirs.std() * np.sqrt(3 / theirs.size + 1 / ours.size)
    assert abs(theirs.mean() - ours.mean()) < 4 * error < 0.15
    fred, g = one._past[-1], one._x[16:20]
    assert len(one._past) == s.history
    assert np.linalg.norm(fred - g) < 1.5


def test_a_disk_that_fills_up_while_a_policy_is_written_is_told_as_such(tmp_path: Path) -> None:
    """The library's own writing ends in a RuntimeError of several lines."""
    learner = masac.Masac(Task((Setting(n_antennas=2),), (1,)), KINDS["sac"][1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            learner.save(tmp_path / "p.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
