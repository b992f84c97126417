"""Paper E, figures 2–5: multi-agent SAC, TD3 and PPO over training, views of Eve, weights, antennas and power.

The paper's learners, whose input is the channel of each antenna, are compared with the same learners in the turned
frame (`agents.frames`), with closed forms, and with the optimum under partial observation (Bayes). All runs of an
algorithm and frame are trained together, as one stack on `learning.torch_device`. With the sizes of `sizes` the study
takes about seven minutes with a GPU and 16 cores; without a GPU it is smaller and takes about twenty minutes on two
free cores. Training ends after a number of steps. On a busy machine the time limit may end it earlier, and a row notes
this; learners are then compared after the number of transitions that all of them took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.learning import torch_device
from testbed.papers.kit.study import Study
from testbed.papers.masac import sizes as masac_plan
from testbed.papers.masac.jobs import Bounds, Climb, Prediction, Training, bounds, climb, predict, train
from testbed.papers.masac.sizes import YARDSTICKS

PAPER = "E"


def run(study: Study) -> None:
    device = torch_device.pick()
    size = masac_plan.size(study.quick, device)
    trainings, climbs = masac_plan.trainings(size, device), masac_plan.climbs(size, device)
    limits = masac_plan.limits(size, device)
    study.parameters.update(
        device=device, seeds=size.n_seeds, held_out_draws=size.n_draws,
        setting="see agents.setting.Setting for the defaults; κ_F = 0.995 where not said otherwise",
        discount="0 for all learners: actions do not move the channels",
        runs=sum(len(t.seeds) for t in trainings), trainings={t.label: [t.steps, t.config] for t in trainings},
    )  # fmt: skip
    predicting = masac_plan.prediction(size, device)
    work: list[Any] = [*trainings, predicting, *climbs, *limits.values()]
    results = iter(study.map(_do, work))
    trained = {t.label: next(results) for t in trainings}
    predicted = next(results)
    climbed = [next(results) for _ in climbs]
    bound = {name: next(results) for name in limits}

    _over_training(study, trained, climbs[0], climbed, bound["base"])
    _views(study, trained, bound["base"])
    _prediction(study, size, trained, predicted)
    _over_weight(study, trained, bound["fig4"], list(size.mus), size.n_seeds)
    _over_antennas(study, trained, bound, list(size.antennas), list(size.powers), size.n_seeds)
    _partial(study, bound["base"], climbed, len(size.grid), list(size.freds))
    _yardsticks(study, bound, size.table_draws)
    _training_table(study, trained, {t.label: t.steps for t in trainings}, climbs[0], climbed)


def _do(item: Any) -> Any:
    work: dict[Any, Callable[[Any], Any]] = {
        Training: train,
        Prediction: predict,
        Climb: climb,
        Bounds: bounds,
    }
    return work[type(item)](item)


def _end(trained: dict[str, Any], *names: str) -> list[np.ndarray]:
    """Return rewards (run,) of each stack, after the largest number of transitions that all of them took."""
    last = min(len(trained[n]["reward"]) for n in names) - 1
    return [trained[n]["reward"][last] for n in names]


def _how_far(trained: dict[str, Any], level: dict[str, float], *names: str) -> str:
    """Return the note of a row on how far the learners were trained in the antenna frame."""
    last = min(len(trained[n]["reward"]) for n in names) - 1
    taken = int(trained[names[0]]["steps"][last] * trained[names[0]]["n_envs"])
    way = (_end(trained, *names)[0].mean() - level["random"]) / (level["svd"] - level["random"])
    return f"antenna frame, short: {taken} transitions a run, {names[0]} {way:.0%} of the way from random to SVD beams"


def _over_training(
    study: Study, trained: dict[str, Any], climb_item: Climb, climbed: list[dict[str, Any]], base: dict[str, Any]
) -> None:
    """Add figures 2 and 3, and the paper's claims about them."""
    level = {name: float(base[name]["reward"][0]) for name in ("random", "svd", "bayes", "oracle")}
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
        errors = {n: _padded(_error(r["reward"]), len(longest)) for n, r in shown.items()}
        curves |= {k: np.full(len(longest), v) for k, v in level.items()}
        study.figure(figure, title, longest, "transitions a run", "reward, bits", curves, errors)
    x = np.linspace(0, climb_item.updates, climb_item.n_points + 1)
    on_way = np.array([r["curve"] for r in climbed])
    study.figure(
        "direct", "The direct net over training (κ_E = 0.9, µ = 1, partial observation)", x, "updates",
        "reward, bits", {"direct": on_way.mean(0), **{k: np.full(len(x), v) for k, v in level.items()}},
        {"direct": _error(on_way.T)},
    )  # fmt: skip

    left_random = 0.9 * level["random"] + 0.1 * level["svd"]
    for frame in ("", " turned"):
        for peer in ("TD3", "PPO"):
            pair = (f"SAC{frame}", f"{peer}{frame}")
            if pair[1] not in trained:
                continue
            sac, other = _end(trained, *pair)
            tag = "turned frame" if frame else _how_far(trained, level, *pair)
            study.claim(
                f"SAC has a higher reward than {peer} after as many transitions, and one above random beams ({tag}; "
                "mean and standard error in bits)", "yes",
                {"SAC": _mean(sac), peer: _mean(other)}, sac.mean() > other.mean() and sac.mean() > left_random,
            )  # fmt: skip
            study.claim(
                f"SAC varies less over seeds than {peer}, where both are above random beams ({tag}; standard deviation "
                "in bits)", "yes",
                {"SAC": float(sac.std(ddof=1)), peer: float(other.std(ddof=1))},
                # learners that stay at the level of random beams have a small deviation, too
                sac.std(ddof=1) < other.std(ddof=1) and min(sac.mean(), other.mean()) > left_random,
            )  # fmt: skip
    for frame, wanted in (("turned frame", True), ("antenna frame", False)):
        over = {
            n: float(_end(trained, n)[0].mean() - level["svd"])
            # without any view of Eve none can, because SVD is then optimal
            for n in trained if not n.startswith("fig") and ("turned" in n) is wanted and not n.endswith(", none")
        }  # fmt: skip
        told = frame if wanted else _how_far(trained, level, "SAC")
        study.claim(
            f"every learner that gets a view of Eve beats the SVD beams ({told}; bits over them)", None, over,
            all(v > 0 for v in over.values()),
        )  # fmt: skip
    antenna = [n for n in ("SAC", "TD3", "PPO") if n in trained]
    study.claim(
        "in the antenna frame, every learner's training covered 10 % of the way from random to SVD beams (share); if "
        "not, comparisons of this learner say nothing about the algorithms", None,
        {n: (float(_end(trained, n)[0].mean()) - level["random"]) / (level["svd"] - level["random"]) for n in antenna},
        all(_end(trained, n)[0].mean() > left_random for n in antenna),
    )  # fmt: skip
    turned, sac = (_end(trained, n)[0] for n in ("SAC turned", "SAC"))
    study.claim(
        "the paper's SAC lacks the turned frame, not another algorithm: reward of turned SAC minus that of SAC (bits)",
        None, float(turned.mean() - sac.mean()), turned.mean() > sac.mean(), must_hold=True,
    )  # fmt: skip
    study.claim(
        "turned SAC that knows Eve's channel closes 90 % of the gap from SVD to the oracle", None,
        _mean(trained["SAC turned"]["share"]), trained["SAC turned"]["share"].mean() >= 0.9,
    )  # fmt: skip


def _views(study: Study, trained: dict[str, Any], base: dict[str, Any]) -> None:
    """Add the paper's claims about the prediction, which belong to figure 3."""
    level = {name: float(base[name]["reward"][0]) for name in ("random", "svd")}
    for first in ("SAC turned", "SAC"):
        names = (first, f"{first}, lstm", f"{first}, none")
        if names[1] not in trained:
            continue
        tag = "turned frame" if first == "SAC turned" else _how_far(trained, level, *names)
        full, lstm, none = (float(r.mean()) for r in _end(trained, *names))
        bits = {"full": full, "lstm": lstm, "none": none, "svd": level["svd"]}
        # a learner that has learned nothing would lose nothing without Eve's channel either
        learned = full > level["svd"]
        study.claim(
            "with the LSTM's prediction the reward is within 5 % of the full observation's, which is above "
            f"SVD ({tag}; share recovered, and bits)", "close", {"share": lstm / full, **bits},
            learned and lstm / full >= 0.95,
        )  # fmt: skip
        gained = {n: (r - level["svd"]) / (full - level["svd"]) for n, r in (("lstm", lstm), ("none", none))}
        study.claim(
            f"… and its gain over SVD is 95 % of the full observation's gain ({tag}; share; none if there is no gain)",
            None, gained if learned else None, learned and gained["lstm"] >= 0.95,
        )  # fmt: skip
        study.claim(
            f"without prediction the reward is more than 5 % below the full observation's, which is above SVD ({tag}; "
            "share)", "lower",
            {"share": none / full}, learned and none / full < 0.95,
        )  # fmt: skip


def _prediction(study: Study, size: Any, trained: dict[str, Any], r: dict[str, Any]) -> None:
    """Add the comparison of predictors of Eve's channel over the error of Fred's channel: their errors and rewards."""
    noises, names = list(size.noises), ("last", "lstm", "kalman")
    gap = r["oracle"] - r["svd"]
    shares = {n: (r[n]["reward"] - r["svd"][:, None]) / gap[:, None] for n in names}
    for figure, what, label, of in (
        ("prediction", "Error of Eve's predicted channel", "mean square error per unit power",
         {n: r[n]["error"] for n in names}),
        ("prediction_reward", "Reward of beams that treat the prediction as true",
         "share of the gap from SVD to the oracle", shares),
    ):  # fmt: skip
        study.figure(
            figure, what, noises, "error variance of an estimate of Fred's channel", label,
            {n: x.mean(1) for n, x in of.items()}, {n: _error(x) for n, x in of.items()},
        )  # fmt: skip
    study.table("prediction of Eve's channel", [
        {"error of Fred's estimates": noise, "predictor": n, "error per unit power": float(r[n]["error"][i].mean()),
         "standard error": float(_error(r[n]["error"][i])), "wrong modes": float(r[n]["wrong"][i].mean()),
         "share of the gap": float(shares[n][i].mean())}
        for i, noise in enumerate(noises) for n in names
    ])  # fmt: skip
    error = {n: r[n]["error"].mean(1) for n in names}
    ratio = error["lstm"] / error["kalman"]
    study.claim(
        f"the LSTM's error is nowhere below the Kalman filter's, the optimum (ratio, at Fred's errors {noises})", None,
        ratio, bool((ratio > 0.98).all()), must_hold=True,
    )  # fmt: skip
    fits = error["kalman"] / r["expected"]
    study.claim(
        "the Kalman filter's error equals its own estimate of it (ratio)",
        None,
        fits,
        bool((abs(fits - 1) < 0.06).all()),
        True,
    )
    last = error["lstm"] / error["last"]
    study.claim(
        f"the LSTM predicts better than Fred's latest estimate does by itself at the default error {noises[0]:g} "
        "(ratio of errors; beside it the same of the Kalman filter, the least possible)", None,
        {"lstm": float(last[0]), "kalman": float(error["kalman"][0] / error["last"][0])}, bool(last[0] < 1),
    )  # fmt: skip
    i = noises.index(size.noisy)
    study.claim(
        f"… and at {size.noisy:g}, where prediction matters (ratio to the latest estimate; the Kalman filter's)", None,
        {"lstm": float(last[i]), "kalman": float(error["kalman"][i] / error["last"][i])}, bool(last[i] < 1),
    )  # fmt: skip
    study.claim(
        f"the LSTM's error at {size.noisy:g} is within 25 % of the Kalman filter's (errors)", None,
        {n: float(error[n][i]) for n in names}, bool(ratio[i] <= 1.25),
    )  # fmt: skip
    study.claim(
        f"at {size.noisy:g} beams that trust the LSTM earn more than those that trust the latest estimate (shares "
        "of the gap from SVD to the oracle)", None, {n: float(shares[n][i].mean()) for n in names},
        bool(shares["lstm"][i].mean() > shares["last"][i].mean()),
    )  # fmt: skip
    wrong = {n: r[n]["wrong"][0].mean() for n in ("lstm", "kalman")}
    study.claim(
        "the LSTM errs in Eve's mode at most twice as often as the Kalman filter (share of modes)", None, wrong,
        bool(wrong["lstm"] <= 2 * wrong["kalman"]),
    )  # fmt: skip
    if not size.noisy_views:
        return
    stacks = {v: f"SAC turned, {v}, noisy" for v in size.noisy_views}
    full, *rest = _end(trained, "SAC turned", *stacks.values())
    # for the draws on which the learners were evaluated; `r` has others
    svd, full_bits = float(trained["SAC turned"]["svd"].mean()), float(full.mean())
    kept = {v: (float(x.mean()) - svd) / (full_bits - svd) for v, x in zip(stacks, rest, strict=True)}
    recovered = {f"{v}, of the full reward": float(x.mean()) / full_bits for v, x in zip(stacks, rest, strict=True)}
    study.claim(
        f"at {size.noisy:g} turned SAC gains more over SVD with the LSTM than with the latest estimate (shares of the "
        "full observation's gain, and of its reward)", None, kept | recovered,
        full_bits > svd and kept["lstm"] > kept["last"],
    )  # fmt: skip


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
            errors[f"SAC {frame}, {what} rate"] = _error(runs)
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
        "in some range of µ both rates rise with µ (values of µ at which they do)", "yes",
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
            # with more antennas a learner needs more time, so the time limit may have stopped it earlier
            last = min(len(trained[f"fig5 {frame} {n}"]["reward"]) for n in antennas) - 1
            label = f"SAC {frame}, P = {10 * np.log10(power):.0f} dB"
            at = [trained[f"fig5 {frame} {n}"]["reward"][last].reshape(len(powers), n_seeds)[i] for n in antennas]
            curves[label], errors[label] = [r.mean() for r in at], [_error(r) for r in at]
        for name in ("svd", "oracle"):
            found = [bound[f"fig5 {n}"][name]["reward"][i] for n in antennas]
            curves[f"{name}, P = {10 * np.log10(power):.0f} dB"] = found
    study.figure("fig5", "Reward over antennas and power", antennas, "antennas", "reward, bits", curves, errors)
    # if a learner's reward falls where the oracle's rises, the learner is not trained enough
    for start, whose in (("SAC turned", "SAC, turned frame"), ("SAC antenna", "SAC, antenna frame"), ("oracle",) * 2):
        rows = [v for k, v in curves.items() if k.startswith(start)]
        if rows:
            table = np.array(rows)
            grows = bool((np.diff(table, axis=1) > 0).all())
            study.claim(f"reward grows with antennas at every power ({whose})", "grows", table, grows)
            more = bool((np.diff(table, axis=0) > 0).all())
            study.claim(f"reward grows with power for every array ({whose})", "grows", table.T, more)


def _partial(
    study: Study, base: dict[str, Any], climbed: list[dict[str, Any]], n_grid: int, freds: list[float]
) -> None:
    """Add the rewards under partial observation, and the claim that no policy is below SVD at any setting."""
    first, last = 1 + n_grid, 1 + n_grid + len(freds)
    names = ("bayes", "bayes, Bob at SVD", "trade")
    curves = {n: base[n]["share"][first:last] for n in names}
    mine = np.array([r["share"] for r in climbed])
    curves["direct"] = mine[:, first:last].mean(0)
    study.figure(
        "fred", "Share of the gap from SVD to the oracle, partial observation", freds,
        "correlation κ_F of Fred's channel with Eve's", "share", curves,
        {"direct": _error(mine[:, first:last].T),
         **{n: base[n]["share_error"][first:last] for n in names}},
    )  # fmt: skip
    share, error = float(base["bayes"]["share"][0]), float(base["bayes"]["share_error"][0])
    study.claim(
        "without any training, Bayes' beams close ≥ 90 % of the gap under partial observation (κ_E = 0.9, µ = 1, "
        "κ_F = 0.995; share, standard error)", None, [share, error], share >= 0.9, must_hold=not study.quick,
    )  # fmt: skip
    alone = [float(base["bayes, Bob at SVD"][k][0]) for k in ("share", "share_error")]
    study.claim(
        "… and with a Bob who does not know Alice's choice, as two nodes deploy it, they do too (share, standard "
        "error)", None, alone, alone[0] >= 0.9,
    )  # fmt: skip
    study.claim(
        "the direct net closes ≥ 90 % of it too (share, standard error over seeds)",
        None,
        _mean(mine[:, 0]),
        mine[:, 0].mean() >= 0.9,
    )
    study.claim(
        "… and 97 % of the optimum under partial observation, at every correlation of Fred (least)", None,
        float((curves["direct"] / curves["bayes"]).min()), bool((curves["direct"] / curves["bayes"]).min() >= 0.97),
    )  # fmt: skip
    enough = [k for k, s in zip(freds, curves["bayes"], strict=True) if s >= 0.9]
    study.claim("some policy can close 90 % of the gap from this κ_F on", None, min(enough, default=None), bool(enough))
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
            # the independent values have two digits
            sigma = (spread**2 * (1 / 400 + 1 / n_draws) + 0.003**2) ** 0.5
            row |= {name: mean, f"{name}, independent": value}
            far.append(abs(mean - value) / sigma)
        row |= {"oracle": float(found["oracle"]["reward"][i]), "bayes": float(found["bayes"]["reward"][i])}
        rows.append(row)
    study.table("yardsticks", rows)
    study.claim(
        "random, SVD and gradient ascent agree with values computed independently (largest deviation, standard errors)",
        None, max(far), max(far) < 3.5, must_hold=True,
    )  # fmt: skip
    above = float(min(r["oracle"] - r["ascent"] for r in rows))
    study.claim("the oracle is not below gradient ascent (least difference, bits)", None, above, above > -2e-3, True)
    gap = abs(rows[0]["oracle"] - rows[0]["svd"])
    study.claim("SVD beams are optimal where Eve is uncorrelated (gap, bits)", None, gap, gap < 1e-3, True)
    orders = all(r["random"] < r["svd"] <= r["bayes"] + 1e-4 and r["bayes"] <= r["oracle"] + 1e-4 for r in rows)
    study.claim("random < SVD ≤ Bayes ≤ oracle", None, orders, orders, must_hold=True)


def _training_table(
    study: Study, trained: dict[str, Any], planned: dict[str, int], climb_item: Climb, climbed: list[dict[str, Any]]
) -> None:
    rows = [
        {"stack": name, "runs": r["reward"].shape[1], "updates": int(r["steps"][-1]), "planned": planned[name],
         "transitions a run": int(r["steps"][-1] * r["n_envs"]), "train_s": round(r["train_s"], 1),
         "share of the gap": float(np.nanmean(r["share"])) if np.isfinite(r["share"]).any() else None,
         "updates to 95 % of what was learned": _to_95(r)}
        for name, r in trained.items()
    ]  # fmt: skip
    for i, r in enumerate(climbed):
        rows.append(
            {"stack": f"direct, seed {i}", "runs": 1, "updates": climb_item.updates, "planned": climb_item.updates,
             "transitions a run": climb_item.updates * r["transitions"], "train_s": round(r["train_s"], 1),
             "share of the gap": float(r["share"][0]), "updates to 95 % of what was learned": None}
        )  # fmt: skip
    study.table("training", rows)
    cut = {r["stack"]: r["updates"] / r["planned"] for r in rows if r["updates"] < r["planned"]}
    study.claim("every stack took the updates planned, none was stopped by the time limit (shares)", None, cut, not cut)
    updates = [climb_item.updates, *(int(trained[n]["steps"][-1]) for n in ("SAC", "SAC turned"))]
    study.claim(
        "the direct net takes fewer updates than SAC in either frame (direct, SAC, SAC turned)", None,
        updates, updates[0] < min(updates[1:]),
    )  # fmt: skip
    seen = [climb_item.updates * climbed[0]["transitions"]]
    seen += [int(trained[n]["steps"][-1] * trained[n]["n_envs"]) for n in ("SAC", "SAC turned")]
    study.claim(
        "… and fewer transitions (direct: for all settings; SAC and SAC turned: of one run)", None, seen,
        seen[0] < min(seen[1:]),
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


def _error(runs: Any) -> Any:
    """Return the standard error over the last axis, which is the runs."""
    return np.std(runs, axis=-1, ddof=1) / np.sqrt(np.shape(runs)[-1])


def _mean(runs: Any) -> list[float]:
    return [float(np.mean(runs)), float(_error(runs))]
