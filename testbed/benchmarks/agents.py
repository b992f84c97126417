"""Reinforcement learning: environment steps, learner steps compared with stable-baselines3's SAC, seconds to 95 %.

The environment's peer is the same system written and vectorised in the usual way: copies in NumPy, stepped one after
the other (`OneCopy`), as gymnasium's SyncVectorEnv and stable-baselines3's DummyVecEnv do. Both SACs have nets of two
hidden layers of 64, use batches of 64, and take one transition per update from the same environment; ours is
multi-agent (two actors) and normalises its layers, the peer has one actor and does not normalise. All run on one CPU
thread.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from testbed.benchmarks import BenchRow, interleaved
from testbed.core.errors import InputError

N_ENVS = 8192


def run(n_pairs: int = 5, n_updates: int = 150) -> list[BenchRow]:
    """Time environment, learner and learning curve; needs `ris-skg-testbed[agents]` and stable-baselines3."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # nets of this size are slower on several threads
    try:
        return [_environment(n_pairs), _learner(n_pairs, n_updates), _to_95()]
    finally:
        torch.set_num_threads(threads)


class OneCopy:
    """One copy of paper E's environment in NumPy, by the equations of `agents.environment` and `agents.rates`."""

    def __init__(self, setting: Any, seed: int) -> None:
        self._setting, self._rng = setting, np.random.default_rng(seed)
        n = setting.n_antennas
        self._x = self._drawn(n * n + 2 * n)
        self._past = [self._fred() for _ in range(setting.history)]

    def step(self, alice: Any, bob: Any) -> float:
        """Return the reward of unit-norm beams (antenna,), and go to the next step."""
        s = self._setting
        n = s.n_antennas
        h, g = self._x[: n * n].reshape(n, n), self._x[n * n : n * n + n]
        snr = abs(bob @ h @ alice) ** 2 * s.power / s.noise_power
        eve_snr = abs(g @ alice) ** 2 * s.power / s.noise_power
        between = s.rho**s.lag
        a = between * snr / (snr + 1)
        awake = np.vdot(g, g).real > s.threshold * n
        b = s.kappa_eve**2 * between * snr / (snr + 1) * eve_snr / (eve_snr + 1) if awake else 0.0
        reward = s.mu * -np.log2(1 - ((a - b) / (1 - b)) ** 2) + (1 - s.mu) * np.log2(1 + snr)
        self._x = s.rho * self._x + np.sqrt(1 - s.rho**2) * self._drawn(len(self._x))
        self._past = [*self._past[1:], self._fred()]
        return float(reward)

    def _fred(self) -> Any:
        s = self._setting
        g, apart = self._x[-2 * s.n_antennas :].reshape(2, -1)
        return s.kappa_fred * g + np.sqrt(1 - s.kappa_fred**2) * apart + s.fred_noise**0.5 * self._drawn(len(g))

    def _drawn(self, n: int) -> Any:
        re, im = self._rng.standard_normal((2, n)) * 0.5**0.5
        return re + 1j * im


def _environment(n_pairs: int, n_steps: int = 20) -> BenchRow:
    from testbed.agents import beams
    from testbed.agents.environment import Environment
    from testbed.agents.setting import Setting

    many, copies = Environment(Setting(), N_ENVS, 1), [OneCopy(Setting(), seed) for seed in range(64)]
    wide = beams.random(many)
    narrow = [x[0, : len(copies)].numpy() for x in wide]
    used_s = []

    def ours() -> None:
        began_s = time.process_time()
        for _ in range(n_steps):
            many.step(*wide)
        used_s.append(time.process_time() - began_s)

    def peer() -> None:
        for _ in range(n_steps):
            for copy, alice, bob in zip(copies, *narrow, strict=True):
                copy.step(alice, bob)

    ours_s, peer_s, ratio = interleaved(ours, peer, n_pairs)
    steps, peer_steps = n_steps * N_ENVS, n_steps * len(copies)
    return BenchRow(
        name="agents_environment",
        ours_s=ours_s / steps,
        peer="the same environment in NumPy, one copy after the other",
        peer_s=peer_s / peer_steps,
        ratio=ratio * steps / peer_steps,
        note=f"{steps / ours_s / 1e6:.2f} M steps/s on one thread, {steps / float(np.median(used_s)) / 1e6:.2f} M a "
        f"second of CPU; {N_ENVS} copies, 4 antennas; seven tenths of the time go to random numbers",
    )


def _learner(n_pairs: int, n_updates: int) -> BenchRow:
    from testbed.agents import masac
    from testbed.agents.learner import Task
    from testbed.agents.setting import Setting

    config = masac.Config(hidden=64, batch=64, n_envs=1, warm_up=100, gamma=0.9)
    mine = masac.Masac(Task((Setting(),), (1,)), config)
    mine.train(101)
    theirs = _peer()
    ours_s, peer_s, ratio = interleaved(
        lambda: mine.train(n_updates), lambda: theirs.learn(n_updates, reset_num_timesteps=False), n_pairs
    )
    return BenchRow(
        name="agents_learner",
        ours_s=ours_s / n_updates,
        peer="stable-baselines3 SAC, 64×64, batch 64, on the same environment",
        peer_s=peer_s / n_updates,
        ratio=ratio,
        note=f"{n_updates / ours_s:.0f} steps with an update per second, the peer {n_updates / peer_s:.0f}",
    )


def _peer() -> Any:
    try:
        import gymnasium
        from stable_baselines3 import SAC
    except ImportError as exc:
        raise InputError(
            "bench agents needs its peer: pip install 'ris-skg-testbed[agents]' stable-baselines3"
        ) from exc
    from testbed.agents.parallel import BeamEnv

    class Joint(gymnasium.Env[Any, Any]):
        """Both agents as one agent."""

        def __init__(self) -> None:
            self._env = BeamEnv(seed=1)
            self.observation_space = self._env.observation_space("alice")
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4 * self._env.setting.n_antennas,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            observed, _ = self._env.reset(seed)
            return observed["alice"], {}

        def step(self, action: Any) -> Any:
            a, b = np.split(action, 2)
            observed, reward, _, cut, _ = self._env.step({"alice": a, "bob": b})
            return observed.get("alice"), reward["alice"], False, cut["alice"], {}

    model = SAC(
        "MlpPolicy", Joint(), policy_kwargs={"net_arch": [64, 64]}, batch_size=64, learning_starts=100, gamma=0.9,
        seed=1, device="cpu",
    )  # fmt: skip
    model.learn(101)
    return model


def _to_95(n_points: int = 20, n_steps: int = 30) -> BenchRow:
    """Time turned SAC and the direct net until 95 % of the way from their first to their best reward."""
    from testbed.agents import evaluation, masac
    from testbed.agents.direct import Config, Direct
    from testbed.agents.learner import Task
    from testbed.agents.setting import Setting

    env = evaluation.held_out(Setting(), 500)
    small = masac.Config(hidden=64, batch=128, n_envs=16, rate=2e-3)
    sac = masac.Masac(Task((Setting(),), (1,), frame="turned"), small)
    net = Direct(Setting(), 1, Config(n_settings=32, decay_steps=300))
    found = {}
    for name, learner in (("sac", sac), ("direct", net)):
        seconds, rewards = [0.0], [float(evaluation.outcome(learner.policy, env).reward.mean())]
        for _ in range(n_points):
            began_s = time.perf_counter()
            learner.train(n_steps)
            seconds.append(seconds[-1] + time.perf_counter() - began_s)
            rewards.append(float(evaluation.outcome(learner.policy, env).reward.mean()))
        goal = rewards[0] + 0.95 * (max(rewards) - rewards[0])
        at = int(np.flatnonzero(np.array(rewards) >= goal)[0])
        found[name] = (seconds[at], at * n_steps, max(rewards))
    (ours_s, updates, best), (peer_s, peer_updates, peer_best) = found["direct"], found["sac"]
    return BenchRow(
        name="agents_time_to_95",
        ours_s=ours_s,
        peer="turned SAC that sees Eve (ours)",
        peer_s=peer_s,
        ratio=peer_s / max(ours_s, 1e-9),
        note=f"direct net under partial observation: {updates} updates to 95 % of the result of {n_points * n_steps}, "
        f"{best:.2f} bits at best; SAC: {peer_updates} updates, {peer_best:.2f} bits",
    )
