"""Paper A, figures 3–6: key rate over antennas, elements, power and correlation; exact, PKG-Net, baseline, random."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.core import seeds
from testbed.studies._study import Study
from testbed.surface.designers import pkg_exact, pkg_net, pkg_random, pkg_water_filling
from testbed.surface.models.single_cell import SingleCell

PAPER = "A"
CURVES = ("exact", "PKG-Net", "baseline", "random")
BOB_M = (10.0, 10.0, 0.0)
# M, L, P in dBm → bits; computed independently of this project
OPTIMA = {(4, 25, 10): 9.5896, (4, 25, 20): 22.0122, (4, 25, 30): 35.2071, (8, 25, 20): 43.8927, (4, 100, 20): 24.0574}


@dataclass(frozen=True)
class Point:
    """One setting: the net is trained for the scene, all are compared at `bob_m` and at unseen positions."""

    scene: pkg_net.Scene
    bob_m: tuple[tuple[float, float, float], ...]
    epochs: int
    n_seeds: int
    n_random: int


def run(study: Study) -> None:
    quick = study.quick
    epochs, n_seeds, n_random = (40, 1, 400) if quick else (100, 5, 4000)
    sweeps: dict[str, tuple[str, str, list[Any]]] = {
        "fig3": ("antennas M", "n_antennas", [2, 4, 8] if quick else [2, 4, 6, 8, 10]),
        "fig4": ("surface elements L", "n_elements", [9, 25, 64] if quick else [9, 16, 25, 36, 49, 64, 81, 100]),
        "fig5": ("power P in dBm", "power_dbm", [0, 10, 20, 30] if quick else [0, 5, 10, 15, 20, 25, 30]),
    }
    etas = [0.0, 0.3, 0.6, 0.9] if quick else [0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9]
    places = ((6.0, 6.0, 0.0), BOB_M, (15.0, 15.0, 0.0))
    settings: list[tuple[str, Any, Point]] = [
        (name, value, Point(pkg_net.Scene(**{field: value}), (BOB_M,), epochs, n_seeds, n_random))
        for name, (_, field, values) in sweeps.items()
        for value in values
    ]
    settings += [("fig6", eta, Point(pkg_net.Scene(eta=eta), places, epochs, n_seeds, n_random)) for eta in etas]
    study.parameters.update(epochs=epochs, seeds=n_seeds, random_draws=n_random, bob_m=BOB_M, unseen_positions=1000)
    found = study.map(_compare, [point for _, _, point in settings])
    results = {(name, value): result for (name, value, _), result in zip(settings, found, strict=True)}

    for name, (label, _, values) in sweeps.items():
        at = [results[name, v] for v in values]
        study.figure(
            name, f"Key rate over {label}", values, label, "key rate, bits",
            {c: [r[c][0] for r in at] for c in CURVES}, {"PKG-Net": [r["PKG-Net error"][0] for r in at]},
        )  # fmt: skip
    curves = {
        f"{c}, Bob at ({place[0]:g}, {place[1]:g})": [results["fig6", eta][c][i] for eta in etas]
        for i, place in enumerate(places)
        for c in CURVES
    }
    study.figure("fig6", "Key rate over correlation at Alice", etas, "correlation η", "key rate, bits", curves)
    _claims(study, sweeps, results, etas)


def _compare(point: Point) -> dict[str, Any]:
    """Return rates in bits by curve (place,), and PKG-Net's share of the optimum at unseen positions (seed,)."""
    scene, bob = point.scene, np.asarray(point.bob_m)
    model = scene.model(bob)
    rng = seeds.generator(1, "pkgnet", repr(scene))
    water = pkg_water_filling.design(model)
    out: dict[str, Any] = {"exact": pkg_exact.rate(model), "baseline": model.rate(water.precoders, water.phases_rad)}
    many = scene.model(np.repeat(bob, point.n_random, axis=0))
    drawn = pkg_random.design(many, rng)
    out["random"] = many.rate(drawn.precoders, drawn.phases_rad).reshape(len(bob), -1).mean(axis=1)
    unseen = scene.positions(1000, rng)
    rates, shares, train_s, infer_s = [], [], [], []
    for seed in range(point.n_seeds):
        began_s = time.perf_counter()
        net = pkg_net.PkgNet(scene, seed).train(point.epochs)
        trained_s = time.perf_counter()
        answer = pkg_net.design(net, unseen)
        infer_s.append((time.perf_counter() - trained_s) / len(unseen))
        train_s.append(trained_s - began_s)
        there = scene.model(unseen)
        shares.append(float((there.rate(answer.precoders, answer.phases_rad) / pkg_exact.rate(there)).mean()))
        here = pkg_net.design(net, bob)
        rates.append(model.rate(here.precoders, here.phases_rad))
    out |= {"PKG-Net": np.mean(rates, axis=0), "PKG-Net error": np.std(rates, axis=0) / np.sqrt(point.n_seeds)}
    return out | {"share": shares, "train_s": float(np.median(train_s)), "infer_s": float(np.median(infer_s))}


def _claims(
    study: Study, sweeps: dict[str, Any], results: dict[tuple[str, Any], dict[str, Any]], etas: list[float]
) -> None:
    optima = [
        {"M": m, "L": n, "P dBm": p, "expected": bits, "found": float(pkg_exact.rate(SingleCell.paper(m, n, p)))}
        for (m, n, p), bits in OPTIMA.items()
    ]
    study.table("exact optimum", optima)
    worst = max(abs(row["found"] - row["expected"]) for row in optima)
    study.claim("the exact optimum is the one computed independently, to 4 digits", None, worst, worst < 5e-5, True)

    every = list(results.values())
    net, best, base, rand = (np.concatenate([r[c] for r in every]) for c in ("PKG-Net", "exact", "baseline", "random"))
    share = float(np.mean([s for r in every for s in r["share"]]))
    lowest = float(min(s for r in every for s in r["share"]))
    study.claim("PKG-Net reaches 99.5 % of the optimum at unseen positions (mean)", None, share, share >= 0.995, True)
    study.claim("… in every setting and seed", None, lowest, lowest >= 0.995)
    over = float((net - best).max())
    study.claim("PKG-Net never exceeds the optimum (it cannot)", None, over, over < 1e-3, True)
    gap = net - base
    study.claim(
        "PKG-Net > baseline everywhere (smallest difference in bits)", "yes", float(gap.min()), bool((gap > 0).all())
    )
    loss = {k: float(((r["exact"] - r["baseline"]) / r["exact"]).max()) for k, r in results.items()}
    at_20_dbm = max(v for (name, _), v in loss.items() if name != "fig5")
    study.claim(
        "at 20 dBm the baseline is within 0.1 % of the optimum: nothing is left to learn", None, at_20_dbm,
        at_20_dbm < 1e-3,
    )  # fmt: skip
    study.claim(
        "the baseline loses most at low power (share lost)", None, max(loss.values()), max(loss.values()) > 1e-3
    )
    study.claim("baseline > random everywhere", "yes", float((base - rand).min()), bool((base > rand).all()))
    m = sweeps["fig3"][2]
    rates = np.array([results["fig3", v]["PKG-Net"][0] for v in m])
    fit = np.polyval(np.polyfit(m, rates, 1), m)
    r2 = 1 - ((rates - fit) ** 2).sum() / ((rates - rates.mean()) ** 2).sum()
    study.claim("key rate is linear in M (R² of a line)", "linear", float(r2), bool(r2 > 0.999))
    for name, over_what, values in (("fig3", "M", m), ("fig6", "η", etas)):
        low, high = results[name, values[0]], results[name, values[-1]]
        for peer in ("baseline", "random"):
            change = [float(np.mean(r["PKG-Net"] - r[peer])) for r in (low, high)]
            study.claim(f"PKG-Net's gap to {peer} grows with {over_what}", "grows", change, change[1] > change[0])
    curve = np.array([results["fig6", eta]["exact"] for eta in etas])
    falls = bool((np.diff(curve, axis=0) < 0).all())
    study.claim("key rate falls with η", "falls", falls, falls)
    study.table("training", [
        {"setting": f"{name} {value}", "train_s": r["train_s"], "inference_s per position": r["infer_s"],
         "share of optimum, mean over seeds": float(np.mean(r["share"]))}
        for (name, value), r in results.items()
    ])  # fmt: skip
