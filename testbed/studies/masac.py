"""Paper E, figures 2–5: multi-agent SAC, TD3 and PPO over training, views of Eve, weights, antennas and power.

Beside the paper's learners, which see channels antenna by antenna, stand the same learners in the turned frame
(`agents.frames`), the closed forms, and what a partial observer can reach at all (Bayes). Full size is made for one
GPU and 16 cores (six to seven minutes): all runs of an algorithm and frame are one stack on it. Without a GPU
the same work takes hours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.core import torch_device
from testbed.studies._masac_work import Bounds, Climb, Training, bounds, climb, train
from testbed.studies._study import Study

PAPER = "E"
# N_t, κ_E, µ → mean reward in bits of random beams, SVD beams, gradient ascent; 400 draws, computed independently
YARDSTICKS = {
    (4, 0.0, 1.0): (1.55, 3.10, 3.10), (4, 0.5, 1.0): (1.45, 2.97, 3.06), (4, 0.9, 1.0): (1.08, 2.38, 3.07),
    (4, 0.9, 0.5): (2.06, 4.46, 4.72), (8, 0.9, 1.0): (1.20, 2.55, 3.24),
}  # fmt: skip
FREDS = (0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 1.0)
LABELS = {"sac": "SAC", "td3": "TD3", "ppo": "PPO"}


def run(study: Study) -> None:
    device = torch_device.pick()
    quick = study.quick
    n_seeds, n_draws = (2, 300) if quick else (5, 2000)
    mus = [0.0, 0.5, 1.0] if quick else [0.0, 0.25, 0.5, 0.75, 1.0]
    antennas, powers = ([2, 4], [0.1, 10.0]) if quick else ([2, 4, 6, 8], [0.1, 1.0, 10.0])
    grid = [
        {"mu": mu, "kappa_eve": kappa, "power": power}
        for mu in ([0.0, 0.5, 1.0] if quick else mus)
        for kappa in ([0.0, 0.9] if quick else [0.0, 0.3, 0.6, 0.9, 1.0])
        for power in ([0.1, 10.0] if quick else [0.1, 1.0, 10.0, 100.0])
    ]
    freds = [{"kappa_fred": k} for k in (FREDS[2::3] if quick else FREDS)]
    trainings = _trainings(quick, device, n_seeds, n_draws, mus, antennas, powers)
    climbs = [
        Climb(s, 120 if quick else 600, 4 if quick else 12, ({}, *grid, *freds), n_draws, device,
              {"n_settings": 32, "decay_steps": 150} if quick else {})
        for s in range(n_seeds)
    ]  # fmt: skip
    table_draws = 1000 if quick else 4000
    limits = {
        "base": Bounds(({}, *grid, *freds), n_draws, device),
        "fig4": Bounds(tuple({"mu": mu} for mu in mus), n_draws, device),
        **{
            f"fig5 {n}": Bounds(tuple({"n_antennas": n, "power": p} for p in powers), n_draws, device)
            for n in antennas
        },
        **{
            f"table {n}": Bounds(
                tuple({"n_antennas": m, "kappa_eve": k, "mu": mu} for m, k, mu in YARDSTICKS if m == n),
                table_draws, device, ascent=True,
            )
            for n in (4, 8)
        },
    }  # fmt: skip
    study.parameters.update(
        device=device, seeds=n_seeds, held_out_draws=n_draws, setting="see agents.setting.Setting for the defaults",
        runs=sum(len(t.seeds) for t in trainings), trainings={t.label: [t.steps, t.config] for t in trainings},
    )  # fmt: skip
    work: list[Any] = [*trainings, *climbs, *limits.values()]
    results = study.map(_do, work)
    trained = {t.label: r for t, r in zip(trainings, results, strict=False)}
    climbed = results[len(trainings) : len(trainings) + len(climbs)]
    bound = dict(zip(limits, results[len(trainings) + len(climbs) :], strict=True))

    _over_training(study, trained, climbs[0], climbed, bound["base"])
    _over_weight(study, trained, bound["fig4"], mus, n_seeds)
    _over_antennas(study, trained, bound, antennas, powers, n_seeds)
    _partial(study, bound["base"], climbed, len(grid), [f["kappa_fred"] for f in freds])
    _yardsticks(study, bound, table_draws)
    _training_table(study, trained, climbs[0], climbed)


def _do(item: Any) -> Any:
    work: dict[Any, Callable[[Any], Any]] = {Training: train, Climb: climb, Bounds: bounds}
    return work[type(item)](item)


def _trainings(
    quick: bool, device: str, n_seeds: int, n_draws: int, mus: list[float], antennas: list[int], powers: list[float]
) -> list[Training]:
    """Return all stacks, the longest first."""
    # sixteen stacks share one GPU: those that would hold up the rest stop early, and the table says where
    limit_s = {"antenna": 240.0, "turned": 90.0}
    shape: dict[str, dict[str, Any]] = {
        "antenna": {"hidden": 128, "batch": 256, "n_envs": 256, "rate": 1e-3},
        "turned": {"hidden": 128, "batch": 256, "n_envs": 64, "rate": 1e-3},
    }
    steps, n_points = {"antenna": 20_000, "turned": 3_000}, 20
    if quick:
        shape = {f: {"hidden": 64, "batch": 128, "n_envs": 16, "rate": 2e-3} for f in shape}
        steps, n_points = {"antenna": 60, "turned": 160}, 4

    def stack(label: str, algorithm: str, settings: list[dict[str, Any]], view: str, frame: str) -> Training:
        config = dict(shape[frame])
        if algorithm == "ppo":
            del config["batch"]
            config |= {"rollout": 8} if quick else {"rate": 3e-4}
        return Training(
            label, algorithm, tuple(s for s in settings for _ in range(n_seeds)),
            tuple(range(n_seeds)) * len(settings), view, frame, steps[frame], n_points, n_draws, device,
            limit_s[frame] if device == "cuda" else 7200.0, config, 100 if quick else 3000,
        )  # fmt: skip

    weights = [{"mu": mu} for mu in mus]
    stacks = [stack(LABELS[a], a, [{}], "full", "antenna") for a in LABELS]
    stacks += [stack(f"SAC, {v}", "sac", [{}], v, "antenna") for v in (() if quick else ("lstm", "none"))]
    for n in antennas:
        settings = [{"n_antennas": n, "power": p} for p in powers]
        stacks += [stack(f"fig5 {f} {n}", "sac", settings, "full", f) for f in (("turned",) if quick else shape)]
    stacks += [stack(f"fig4 {f}", "sac", weights, "full", f) for f in (("turned",) if quick else shape)]
    stacks += [
        stack(f"{LABELS[a]} turned", a, [{}], "full", "turned") for a in (("sac",) if quick else ("sac", "td3", "ppo"))
    ]
    views = ("lstm", "none") if quick else ("lstm", "kalman", "none")
    return stacks + [stack(f"SAC turned, {v}", "sac", [{}], v, "turned") for v in views]


def _over_training(
    study: Study, trained: dict[str, Any], climb_item: Climb, climbed: list[dict[str, Any]], base: dict[str, Any]
) -> None:
    """Figures 2 and 3, and what the paper says about them."""
    level = {name: float(base[name]["reward"][0]) for name in ("svd", "bayes", "oracle")}
    for figure, title, names in (
        ("fig2", "Reward over training, channels antenna by antenna", ["SAC", "TD3", "PPO"]),
        ("fig2_turned", "Reward over training, turned frame", ["SAC turned", "TD3 turned", "PPO turned"]),
        ("fig3", "Views of Eve, turned frame",
         ["SAC turned", "SAC turned, lstm", "SAC turned, kalman", "SAC turned, none"]),
        ("fig3_antenna", "Views of Eve, channels antenna by antenna", ["SAC", "SAC, lstm", "SAC, none"]),
    ):  # fmt: skip
        shown = {n: trained[n] for n in names if n in trained}
        if len(shown) < 2 and figure != "fig2_turned":
            continue
        longest = max((r["steps"] * r["n_envs"] for r in shown.values()), key=len)
        curves = {n: _padded(r["reward"].mean(1), len(longest)) for n, r in shown.items()}
        errors = {n: _padded(r["reward"].std(1) / r["reward"].shape[1] ** 0.5, len(longest)) for n, r in shown.items()}
        curves |= {k: np.full(len(longest), v) for k, v in level.items()}
        study.figure(figure, title, longest, "transitions a run", "reward, bits", curves, errors)
    x = np.linspace(0, climb_item.updates, climb_item.n_points + 1)
    on_way = np.array([r["curve"] for r in climbed])
    study.figure(
        "direct", "The direct net over training (κ_E = 0.9, µ = 1, partial observation)", x, "updates",
        "reward, bits", {"direct": on_way.mean(0), **{k: np.full(len(x), v) for k, v in level.items()}},
        {"direct": on_way.std(0) / len(climbed) ** 0.5},
    )  # fmt: skip

    def end(name: str) -> Any:
        return trained[name]["reward"][-1]

    sac = end("SAC")
    for peer in ("TD3", "PPO"):
        study.claim(
            f"SAC earns more than {peer} after training (mean ± standard error, bits)", "yes",
            [_mean(sac), _mean(end(peer))], sac.mean() > end(peer).mean(),
        )  # fmt: skip
        study.claim(
            f"SAC is steadier than {peer} (standard deviation over seeds, bits)", "yes",
            [float(sac.std()), float(end(peer).std())], sac.std() < end(peer).std(),
        )  # fmt: skip
    lost = {n: float(end(n).mean() - level["svd"]) for n in trained if not n.startswith("fig")}
    study.claim(
        "every learner beats the SVD beams (bits over them)", None, lost, all(v > 0 for v in lost.values())
    )  # fmt: skip
    turned = end("SAC turned")
    study.claim(
        "the turned frame, not the algorithm, is what SAC lacks: turned SAC over SAC (bits)", None,
        float(turned.mean() - sac.mean()), turned.mean() > sac.mean(), must_hold=True,
    )  # fmt: skip
    study.claim(
        "turned SAC closes 90 % of the gap from SVD to the oracle, Eve's channel seen", None,
        _mean(trained["SAC turned"]["share"]), trained["SAC turned"]["share"].mean() >= 0.9,
    )  # fmt: skip
    for first, tag in (("SAC turned", " (turned frame)"), ("SAC", " (antenna frame)")):
        if f"{first}, lstm" not in trained:
            continue
        full, lstm, none = (end(n).mean() for n in (first, f"{first}, lstm", f"{first}, none"))
        study.claim(
            f"with the LSTM's prediction the reward is close to the full observation's: within 5 %{tag}", "close",
            float(lstm / full), lstm / full >= 0.95,
        )  # fmt: skip
        study.claim(
            f"without prediction it is clearly lower: by more than 5 %{tag}",
            "lower",
            float(none / full),
            none / full < 0.95,
        )
    r = trained["SAC turned, lstm"]
    study.table("prediction of Eve's channel", [
        {"predictor": n, "error per unit power, mean over seeds": float(np.mean(r[f"{n}_error"])),
         "wrong modes": float(np.mean(r[f"{n}_wrong"])) if f"{n}_wrong" in r else None}
        for n in ("lstm", "kalman", "expected", "last")
    ])  # fmt: skip
    ratio = float(np.mean(r["lstm_error"]) / np.mean(r["kalman_error"]))
    study.claim("the LSTM's error is at least the Kalman filter's (ratio)", None, ratio, ratio > 0.98, must_hold=True)
    fits = float(np.mean(r["kalman_error"]) / np.mean(r["expected_error"]))
    study.claim("the Kalman filter's error is what it says it is (ratio)", None, fits, abs(fits - 1) < 0.06, True)


def _over_weight(study: Study, trained: dict[str, Any], bound: dict[str, Any], mus: list[float], n_seeds: int) -> None:
    curves: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for frame in ("turned", "antenna"):
        if f"fig4 {frame}" not in trained:
            continue
        r = trained[f"fig4 {frame}"]
        for what in ("key", "data"):
            runs = r[what].reshape(len(mus), n_seeds)
            curves[f"SAC {frame}, {what} rate"] = runs.mean(1)
            errors[f"SAC {frame}, {what} rate"] = runs.std(1) / n_seeds**0.5
    for name in ("svd", "bayes"):
        curves |= {f"{name}, {what} rate": bound[name][what] for what in ("key", "data")}
    study.figure("fig4", "Both rates over the weight", mus, "weight µ of the key rate", "rate, bits", curves, errors)
    reward = trained["fig4 turned"]["reward"][-1].reshape(len(mus), n_seeds).mean(1)
    study.claim(
        "the reward falls with µ and then rises", "falls, then rises", reward,
        bool(reward.argmin() not in (0, len(mus) - 1)),
    )  # fmt: skip
    key, data = (curves[f"SAC turned, {w} rate"] for w in ("key", "data"))
    study.claim(
        "over some part of µ both rates rise together (steps that do)", "yes",
        [mus[i] for i in range(len(mus) - 1) if key[i + 1] > key[i] and data[i + 1] > data[i]],
        bool(((np.diff(key) > 0) & (np.diff(data) > 0)).any()),
    )  # fmt: skip


def _over_antennas(
    study: Study, trained: dict[str, Any], bound: dict[str, Any], antennas: list[int], powers: list[float], n_seeds: int
) -> None:
    curves: dict[str, Any] = {}
    errors: dict[str, Any] = {}
    for i, power in enumerate(powers):
        for frame in ("turned", "antenna"):
            if f"fig5 {frame} {antennas[0]}" not in trained:
                continue
            label = f"SAC {frame}, P = {10 * np.log10(power):.0f} dB"
            at = [trained[f"fig5 {frame} {n}"]["reward"][-1].reshape(len(powers), n_seeds)[i] for n in antennas]
            curves[label], errors[label] = [r.mean() for r in at], [r.std() / n_seeds**0.5 for r in at]
        curves[f"svd, P = {10 * np.log10(power):.0f} dB"] = [bound[f"fig5 {n}"]["svd"]["reward"][i] for n in antennas]
    study.figure("fig5", "Reward over antennas and power", antennas, "antennas", "reward, bits", curves, errors)
    for frame in ("turned", "antenna"):
        rows = [v for k, v in curves.items() if k.startswith(f"SAC {frame}")]
        if rows:
            table = np.array(rows)
            grows = bool((np.diff(table, axis=1) > 0).all())
            study.claim(f"reward grows with antennas at every power ({frame} frame)", "grows", table, grows)
            more = bool((np.diff(table, axis=0) > 0).all())
            study.claim(f"reward grows with power for every array ({frame} frame)", "grows", table.T, more)


def _partial(
    study: Study, base: dict[str, Any], climbed: list[dict[str, Any]], n_grid: int, freds: list[float]
) -> None:
    """What partial observation allows, and that nothing is lost to SVD anywhere."""
    first, last = 1 + n_grid, 1 + n_grid + len(freds)
    names = ("bayes", "bayes, Bob at SVD", "trade")
    curves = {n: base[n]["share"][first:last] for n in names}
    mine = np.array([r["share"] for r in climbed])
    curves["direct"] = mine[:, first:last].mean(0)
    study.figure(
        "fred", "Share of the gap from SVD to the oracle that partial observation can close", freds,
        "correlation κ_F of Fred's channel with Eve's", "share", curves,
        {"direct": mine[:, first:last].std(0) / len(climbed) ** 0.5,
         **{n: base[n]["share_error"][first:last] for n in names}},
    )  # fmt: skip
    share, error = float(base["bayes"]["share"][0]), float(base["bayes"]["share_error"][0])
    study.claim(
        "without any training, Bayes' beams close ≥ 90 % of the gap under partial observation (κ_E = 0.9, µ = 1; "
        "share, standard error)", None, [share, error], share >= 0.9, must_hold=not study.quick,
    )  # fmt: skip
    study.claim(
        "the direct net does (share, standard error over seeds)", None, _mean(mine[:, 0]), mine[:, 0].mean() >= 0.9
    )
    study.claim(
        "… and 97 % of what is attainable at all, at every correlation of Fred (worst)", None,
        float((curves["direct"] / curves["bayes"]).min()), bool((curves["direct"] / curves["bayes"]).min() >= 0.97),
    )  # fmt: skip
    enough = [k for k, s in zip(freds, curves["bayes"], strict=True) if s >= 0.9]
    study.claim("90 % is attainable from this κ_F on, for any policy", None, min(enough, default=None), bool(enough))
    everything = {"bayes": base["bayes"], **{f"direct, seed {i}": r for i, r in enumerate(climbed)}}
    for name in ("bayes", "direct"):
        rows = [
            (r["over_svd"][1:first], r["over_svd_error"][1:first]) for n, r in everything.items() if n.startswith(name)
        ]
        least = float(min(over.min() for over, _ in rows))
        sure = all(bool((over >= -3 * error - 1e-4).all()) for over, error in rows)
        study.claim(
            f"{name} is nowhere below SVD on the (µ, κ_E, power) grid (least difference, bits)", None, least, sure,
            must_hold=True,
        )  # fmt: skip


def _yardsticks(study: Study, bound: dict[str, Any], n_draws: int) -> None:
    rows, far = [], []
    count: dict[int, int] = {}
    for (n, kappa, mu), expected in YARDSTICKS.items():
        i = count.get(n, 0)
        count[n] = i + 1
        found = bound[f"table {n}"]
        row: dict[str, Any] = {"N_t": n, "κ_E": kappa, "µ": mu}
        for name, value in zip(("random", "svd", "ascent"), expected, strict=True):
            mean, spread = float(found[name]["reward"][i]), float(found[name]["spread"][i])
            # printed to two digits
            sigma = (spread**2 * (1 / 400 + 1 / n_draws) + 0.003**2) ** 0.5
            row |= {name: mean, f"{name}, independent": value}
            far.append(abs(mean - value) / sigma)
        row |= {"oracle": float(found["oracle"]["reward"][i]), "bayes": float(found["bayes"]["reward"][i])}
        rows.append(row)
    study.table("yardsticks", rows)
    study.claim(
        "random, SVD and gradient ascent are what was computed independently (largest deviation, standard errors)",
        None, max(far), max(far) < 3.5, must_hold=True,
    )  # fmt: skip
    above = float(min(r["oracle"] - r["ascent"] for r in rows))
    study.claim("the frontier's oracle is not below gradient ascent (least, bits)", None, above, above > -2e-3, True)
    gap = abs(rows[0]["oracle"] - rows[0]["svd"])
    study.claim("SVD beams are optimal where Eve is uncorrelated (gap, bits)", None, gap, gap < 1e-3, True)
    orders = all(r["random"] < r["svd"] <= r["bayes"] + 1e-4 and r["bayes"] <= r["oracle"] + 1e-4 for r in rows)
    study.claim("random < SVD ≤ Bayes ≤ oracle", None, orders, orders, must_hold=True)


def _training_table(study: Study, trained: dict[str, Any], climb_item: Climb, climbed: list[dict[str, Any]]) -> None:
    rows = [
        {"stack": name, "runs": r["reward"].shape[1], "updates": int(r["steps"][-1]),
         "transitions a run": int(r["steps"][-1] * r["n_envs"]), "train_s": round(r["train_s"], 1),
         "share of the gap": float(np.nanmean(r["share"])) if np.isfinite(r["share"]).any() else None,
         "updates to 95 % of what was learned": _to_95(r)}
        for name, r in trained.items()
    ]  # fmt: skip
    for i, r in enumerate(climbed):
        rows.append(
            {"stack": f"direct, seed {i}", "runs": 1, "updates": climb_item.updates,
             "transitions a run": climb_item.updates * r["transitions"], "train_s": round(r["train_s"], 1),
             "share of the gap": float(r["share"][0]), "updates to 95 % of what was learned": None}
        )  # fmt: skip
    study.table("training", rows)
    study.claim(
        "the direct net takes fewer updates than SAC", None, [climb_item.updates, int(trained["SAC"]["steps"][-1])],
        climb_item.updates < trained["SAC"]["steps"][-1],
    )  # fmt: skip


def _to_95(r: dict[str, Any]) -> int | None:
    """Return the updates after which the mean curve stays above 95 % of the way from its first to its last point."""
    curve = r["reward"].mean(1)
    if curve[-1] <= curve[0]:
        return None
    below = np.flatnonzero(curve < curve[0] + 0.95 * (curve[-1] - curve[0]))
    return int(r["steps"][below[-1] + 1])


def _padded(values: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([values, np.full(n - len(values), np.nan)])


def _mean(runs: Any) -> list[float]:
    return [float(np.mean(runs)), float(np.std(runs) / np.sqrt(np.size(runs)))]
