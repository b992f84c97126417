"""The sizes of study `masac`: quick, full on the CPU, full on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from testbed.papers.masac.jobs import Bounds, Climb, Prediction, Training

LABELS = {"sac": "SAC", "td3": "TD3", "ppo": "PPO"}
# N_t, κ_E, µ → mean reward in bits of random beams, SVD beams, gradient ascent; 400 draws, computed independently
YARDSTICKS = {
    (4, 0.0, 1.0): (1.55, 3.10, 3.10), (4, 0.5, 1.0): (1.45, 2.97, 3.06), (4, 0.9, 1.0): (1.08, 2.38, 3.07),
    (4, 0.9, 0.5): (2.06, 4.46, 4.72), (8, 0.9, 1.0): (1.20, 2.55, 3.24),
}  # fmt: skip
Shape = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """The numbers of one size; dictionaries have one entry per frame. `limit_s` is the time limit of training, by frame
    and for the sweeps of figures 4 and 5.

    Training ends after a number of steps, so that reruns on one machine agree. The time limit is reached earlier only
    if sixteen stacks share one GPU, or if the machine has other work.
    """

    steps: dict[str, int]
    shape: Shape
    ppo: Shape
    """Changes of PPO's configuration."""
    limit_s: dict[str, float]
    predictor_updates: int
    climb_updates: int
    climb: dict[str, Any] = field(default_factory=dict)
    n_points: int = 20
    n_seeds: int = 5
    n_draws: int = 1000
    table_draws: int = 4000
    mus: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    kappas: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9, 1.0)
    grid_powers: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)
    antennas: tuple[int, ...] = (2, 4, 6, 8)
    powers: tuple[float, ...] = (0.1, 1.0, 10.0)
    freds: tuple[float, ...] = (0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 1.0)
    antenna_views: tuple[str, ...] = ("lstm", "none")
    turned_views: tuple[str, ...] = ("lstm", "kalman", "none")
    turned_algorithms: tuple[str, ...] = ("sac", "td3", "ppo")
    noises: tuple[float, ...] = (1e-3, 0.03, 0.1, 0.3, 1.0)
    """Error variances of Fred's channel at which predictors are compared: the default, and values at which a prediction
    matters."""
    noisy: float = 0.3
    noisy_views: tuple[str, ...] = ("last", "lstm", "kalman")
    """Views with which SAC in the turned frame is trained at that error, too."""
    sweep_frames: tuple[str, ...] = ("turned",)
    """Frames in which figures 4 and 5 are drawn."""

    @property
    def grid(self) -> tuple[dict[str, Any], ...]:
        """Return the settings at which no policy should be worse than SVD."""
        return tuple(
            {"mu": mu, "kappa_eve": kappa, "power": power}
            for mu in self.mus for kappa in self.kappas for power in self.grid_powers
        )  # fmt: skip

    @property
    def evaluated(self) -> tuple[dict[str, Any], ...]:
        """Return the default setting, the grid, and the default over Fred's correlation."""
        return ({}, *self.grid, *({"kappa_fred": k} for k in self.freds))


_SMALL = {"hidden": 64, "batch": 128, "n_envs": 16, "rate": 2e-3}
QUICK = Size(
    steps={"antenna": 60, "turned": 160}, shape={"antenna": _SMALL, "turned": _SMALL},
    ppo={"antenna": {"rollout": 8}}, limit_s={"antenna": 600.0}, predictor_updates=100,
    climb_updates=120, climb={"n_settings": 32, "decay_steps": 150}, n_points=4, n_seeds=2, n_draws=300,
    table_draws=1000, mus=(0.0, 0.5, 1.0), kappas=(0.0, 0.9), grid_powers=(0.1, 10.0), antennas=(2, 4),
    powers=(0.1, 10.0), freds=(0.95, 0.995), antenna_views=(), turned_views=("lstm", "none"),
    turned_algorithms=("sac",), noises=(1e-3, 0.3), noisy_views=(),
)  # fmt: skip
# about twenty minutes on two free cores; the time limits are three times the time that the steps take there
CPU = Size(
    steps={"antenna": 21_000, "turned": 3000},
    shape={"antenna": {**_SMALL, "n_envs": 64, "rate": 1e-3}, "turned": _SMALL},
    ppo={"antenna": {}, "turned": {"rollout": 16, "rate": 1e-3}},
    limit_s={"antenna": 900.0, "turned": 150.0, "fig4": 400.0, "fig5": 300.0}, predictor_updates=1000,
    climb_updates=600, climb={"n_settings": 64}, n_points=15,
)  # fmt: skip
# sixteen stacks share one GPU; a stack that would delay the others stops early, and the table notes this
CUDA = Size(
    steps={"antenna": 20_000, "turned": 3000},
    shape={
        # of eight antennas, three powers and five seeds, 50 000 transitions a run are 1 GiB
        "antenna": {"hidden": 128, "batch": 256, "n_envs": 256, "rate": 1e-3, "capacity": 50_000},
        "turned": {"hidden": 128, "batch": 256, "n_envs": 64, "rate": 1e-3},
    },
    ppo={"antenna": {"rate": 3e-4}, "turned": {"rate": 3e-4}}, limit_s={"antenna": 240.0, "turned": 90.0},
    predictor_updates=3000, climb_updates=600, n_draws=2000, sweep_frames=("turned", "antenna"),
)  # fmt: skip


def size(quick: bool, device: str) -> Size:
    """Return the size for a device."""
    return QUICK if quick else CUDA if device == "cuda" else CPU


def trainings(size: Size, device: str) -> list[Training]:
    """Return all stacks, the longest first."""

    def stack(label: str, algorithm: str, settings: list[dict[str, Any]], view: str, frame: str) -> Training:
        config = dict(size.shape[frame])
        if algorithm == "ppo":
            config = {k: v for k, v in config.items() if k not in ("batch", "capacity")} | size.ppo[frame]
        seeds = tuple(range(size.n_seeds)) * len(settings)
        limit_s = size.limit_s.get(label.split()[0], size.limit_s.get(frame, size.limit_s["antenna"]))
        return Training(
            label, algorithm, tuple(s for s in settings for _ in range(size.n_seeds)), seeds, view, frame,
            size.steps[frame], size.n_points, size.n_draws, device, limit_s, config, size.predictor_updates,
        )  # fmt: skip

    found = [stack(LABELS[a], a, [{}], "full", "antenna") for a in LABELS]
    found += [stack(f"SAC, {v}", "sac", [{}], v, "antenna") for v in size.antenna_views]
    for frame in size.sweep_frames:
        for n in size.antennas:
            settings = [{"n_antennas": n, "power": p} for p in size.powers]
            found.append(stack(f"fig5 {frame} {n}", "sac", settings, "full", frame))
        found.append(stack(f"fig4 {frame}", "sac", [{"mu": mu} for mu in size.mus], "full", frame))
    found += [stack(f"{LABELS[a]} turned", a, [{}], "full", "turned") for a in size.turned_algorithms]
    found += [stack(f"SAC turned, {v}", "sac", [{}], v, "turned") for v in size.turned_views]
    noisy = [{"fred_noise": size.noisy}]
    return found + [stack(f"SAC turned, {v}, noisy", "sac", noisy, v, "turned") for v in size.noisy_views]


def prediction(size: Size, device: str) -> Prediction:
    """Return the comparison of predictors over Fred's error."""
    settings = tuple({"fred_noise": x} for x in size.noises)
    return Prediction(settings, size.n_seeds, size.predictor_updates, max(size.n_draws, 2000), device)


def climbs(size: Size, device: str) -> list[Climb]:
    """Return the trainings of the direct net, one for each seed."""
    n_points = 4 if size is QUICK else 12
    return [
        Climb(s, size.climb_updates, n_points, size.evaluated, size.n_draws, device, size.climb)
        for s in range(size.n_seeds)
    ]


def limits(size: Size, device: str) -> dict[str, Bounds]:
    """Return the reference policies that the figures and tables need, by name."""
    found = {
        "base": Bounds(size.evaluated, size.n_draws, device),
        "fig4": Bounds(tuple({"mu": mu} for mu in size.mus), size.n_draws, device),
    }
    for n in size.antennas:
        settings = tuple({"n_antennas": n, "power": p} for p in size.powers)
        found[f"fig5 {n}"] = Bounds(settings, size.n_draws, device)
    for n in (4, 8):
        settings = tuple({"n_antennas": m, "kappa_eve": k, "mu": mu} for m, k, mu in YARDSTICKS if m == n)
        found[f"table {n}"] = Bounds(settings, size.table_draws, device, ascent=True)
    return found
