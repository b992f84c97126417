"""Paper B, figures 8–10 and 12: agreement of the two ends' CSI under each reciprocity scheme, over SNR.

All schemes give the same number of features to the same quantizer. Each is trained on one part of the walk and tested
on a later part, with a guard longer than the coherence distance between them. For comparison, schemes are also tested
with the random split that papers often use, whose test snapshots lie between training snapshots. There are two kinds of
radios. Locked radios have a common phase reference up to small errors, as in the paper's simulations. Free-running
radios, like those one can buy, have none, so that each end must align its frames (`chain/enhance/_features.aligned`).
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.core import registry, seeds
from testbed.core.types import F64, CsiSeries, Features
from testbed.papers.kit.mutual_information import gaussian_bits
from testbed.papers.kit.study import Study
from testbed.papers.reciprocity import uma_walk

PAPER = "B"
GROUP = 8
"""Subcarriers averaged into one complex feature: 64 of them give 16 real features, as many as PCA, CCA and AE have."""
N_FEATURES = 16
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("identity", {"step": GROUP, "scale": "complex"}),
    "PCA": ("pca", {"components": N_FEATURES}),
    "WAKG": ("wavelet", {"step": GROUP, "scale": "complex"}),
    "SGF": ("savgol", {"step": GROUP, "scale": "complex"}),
    "KGNet": ("kgnet", {"step": GROUP}),
    "AE": ("autoencoder", {"codes": N_FEATURES}),
    "CRCNet": ("crcnet", {"step": GROUP}),
    "linear MMSE": ("linear_mmse", {"step": GROUP}),
    "CCA": ("cca", {"pairs": N_FEATURES // 2}),
    "calibrated": ("calibrated", {"step": GROUP}),
}
"""Label → enhancer and options; the last three are ours and not the paper's."""
PAPERS = ("PCA", "WAKG", "SGF", "KGNet", "AE", "CRCNet")
KDR_AT_30_DB = {"PCA": 0.039, "WAKG": 0.048, "SGF": 0.028, "KGNet": 0.015, "AE": 0.0113, "CRCNet": 0.0089}
QUANTIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "scalar": ("scalar", {"bits": 2, "guard": 0.0}),
    "k-means": ("kmeans", {"guard": 0.0}),
    "balanced k-means": ("balanced_kmeans", {"guard": 0.0}),
    "BKQ-BM": ("bkq_bm", {"guard": 0.0}),
    "ILP-BVQ": ("ilp_bvq", {"guard": 0.0}),
}
EFFORT = {"CRCNet": 4.0}
"""Largest number of epochs, relative to the other networks; early stopping may end a training earlier."""
QUANTIZED = {True: 64, False: 96}
"""Number of test probes for figure 12, by whether the study is quick; the Hungarian algorithm takes cubic time."""


@dataclass(frozen=True)
class Point:
    """One scheme, trained and tested once."""

    walk: uma_walk.Walk
    cache: str
    plan: uma_walk.Impairments
    scheme: str
    n_train: int
    guard: int
    epochs: int
    random_split: bool = False
    quantized: int = 0
    """Test probes for figure 12's quantizers; 0: this point is not in the figure."""


def run(study: Study) -> None:
    quick = study.quick
    n_seeds, n_train, n_test, guard, epochs = (2, 400, 200, 40, 20) if quick else (5, 2000, 1000, 100, 100)
    snrs_db = [10.0, 30.0] if quick else [0.0, 10.0, 20.0, 30.0]
    walks = [
        uma_walk.Walk(seed=s, n_probes=n_train + guard + n_test, interval_s=0.05, bandwidth_hz=10e6)
        for s in range(1, n_seeds + 1)
    ]
    radios = {"locked": uma_walk.Impairments(), "free-running": uma_walk.Impairments(free_running=True)}
    study.parameters.update(
        seeds=n_seeds, train=n_train, test=n_test, guard=guard, epochs=epochs, interval_s=walks[0].interval_s,
        bandwidth_hz=walks[0].bandwidth_hz, carrier_hz=walks[0].carrier_hz, features=N_FEATURES,
        quantizer="scalar, 2 bits, no guard bands", schemes={k: {"enhance": e, **o} for k, (e, o) in SCHEMES.items()},
        impairments={k: {f: getattr(r, f) for f in r.__dataclass_fields__ if f != "snr_db"} for k, r in radios.items()},
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="uma-") as folder:
        cache = os.environ.get(uma_walk.CACHE_VARIABLE, folder)
        study.map(_prepare, [(w, cache) for w in walks])
        wanted = _wanted(snrs_db, quick)
        keys = [(*w, walk.seed) for w in wanted for walk in walks]
        points = [
            Point(
                walk, cache, radios[kind].at(snr_db), scheme, n_train, guard, epochs, random_split,
                QUANTIZED[quick] if _in_figure_12(kind, scheme, snr_db, random_split, snrs_db) else 0,
            )
            for kind, scheme, snr_db, random_split in wanted
            for walk in walks
        ]  # fmt: skip
        # the longest first, so that no core has a long one left at the end
        order = sorted(range(len(points)), key=lambda i: points[i].scheme not in ("KGNet", "CRCNet"))
        found = dict(zip([keys[i] for i in order], study.map(_judge, [points[i] for i in order]), strict=True))

    def at(kind: str, scheme: str, snr_db: float, random_split: bool = False) -> list[dict[str, Any]]:
        return [found[kind, scheme, snr_db, random_split, w.seed] for w in walks]

    _figures(study, snrs_db, at)
    _figure12(study, snrs_db[-3:], at)
    _claims(study, snrs_db, at)


def _in_figure_12(kind: str, scheme: str, snr_db: float, random_split: bool, snrs_db: list[float]) -> bool:
    return kind == "locked" and scheme in ("none", "CRCNet") and not random_split and snr_db in snrs_db[-3:]


def _wanted(snrs_db: list[float], quick: bool) -> list[tuple[str, str, float, bool]]:
    """Return the points to compare: (radios, scheme, SNR in dB, random split)."""
    few = _few(snrs_db, quick)
    out = [("locked", scheme, snr_db, False) for scheme in SCHEMES for snr_db in snrs_db]
    out += [("locked", scheme, snr_db, True) for scheme in ("none", "CRCNet") for snr_db in few]
    return out + [("free-running", scheme, snr_db, False) for scheme in SCHEMES for snr_db in few]


def _few(snrs_db: list[float], quick: bool) -> list[float]:
    """Return the SNRs for free-running radios and the random split, the highest SNR among them."""
    return snrs_db[-1:] if quick else snrs_db[1::2]


def _prepare(item: tuple[uma_walk.Walk, str]) -> None:
    uma_walk.snapshots(*item)


def _judge(point: Point) -> dict[str, Any]:
    """Train a scheme on the walk's first part and test it on the last; return ρ, MSE, KDR, bits, and KDRs of figure
    12."""
    a, b = uma_walk.pair(uma_walk.snapshots(point.walk, point.cache), point.walk, point.plan)
    rows = np.arange(len(a))
    if point.random_split:
        rows = seeds.permutation(len(a), point.walk.seed, "crcnet", "split")
    seen, test = rows[: point.n_train], np.sort(rows[point.n_train + point.guard :])
    name, options = SCHEMES[point.scheme]
    options = {**options, "align": point.plan.free_running}
    if "epochs" in registry.options_of("enhance", name):
        epochs = round(point.epochs * EFFORT.get(point.scheme, 1.0))
        options |= {"epochs": epochs, "patience": max(10, epochs // 8), "device": "auto"}
    stage = registry.make_stage("enhance", name, options)
    out: dict[str, Any] = {}
    if stage.trainable:
        stage.fit(_series(point.walk, a[seen]), _series(point.walk, b[seen]), seeds.generator(point.walk.seed, name))
        out["history"] = stage.card["history"]
    x, y = (stage.transform(_series(point.walk, h[test]), role).values for h, role in ((a, "alice"), (b, "bob")))
    out |= {"rho": _rho(x, y), "mse": _mse(x, y), "bits": _bits(x, y), "kdr": kdr("scalar", x, y)}
    if point.quantized:
        out["kdrs"] = {q: kdr(q, x[: point.quantized], y[: point.quantized]) for q in QUANTIZERS}
    return out


def _series(walk: uma_walk.Walk, h: np.ndarray) -> CsiSeries:
    return CsiSeries(h[:, None, None, :].astype(np.complex64), np.arange(len(h), dtype=np.int64), walk.subcarrier_hz)


def _rho(x: F64, y: F64) -> float:
    """Return Pearson's ρ, mean over features; a feature that never changes counts as 0."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(np.mean([np.nan_to_num(np.corrcoef(p, q)[0, 1]) for p, q in zip(x.T, y.T, strict=True)]))


def _mse(x: F64, y: F64) -> float:
    """Return the mean squared difference of the two ends' features, each without its mean, over Bob's variance."""
    return float((((x - x.mean(axis=0)) - (y - y.mean(axis=0))) ** 2 / y.var(axis=0)).mean())


def _bits(x: F64, y: F64) -> float:
    """Return the mutual information of both ends' features of a probe, in bits, as if all features were Gaussian."""
    try:
        return gaussian_bits(x, y)
    except (ValueError, np.linalg.LinAlgError):
        return float("nan")  # features that never change


def kdr(quantizer: str, x: F64, y: F64) -> float:
    """Return the share of bits that differ after a quantizer, or ½ if it gives no bits."""
    name, options = QUANTIZERS[quantizer]
    stage = registry.make_stage("quantize", name, options)
    rounds = np.arange(len(x), dtype=np.int64)
    draft, lead = stage.lead(Features(x, rounds), seeds.generator(1, "crcnet", name))
    theirs, follow = stage.follow(Features(y, rounds), lead)
    ours = stage.finish(draft, follow)
    return float(np.mean(ours.values != theirs.values)) if ours.values.size else 0.5


# ---------------------------------------------------------------- figures


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([r[key] for r in rows]))


def _error(rows: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.std([r[key] for r in rows], ddof=1) / np.sqrt(len(rows)))


def _figures(study: Study, snrs_db: list[float], at: Any) -> None:
    for name, key, label in (
        ("fig8", "rho", "correlation ρ"), ("fig9", "mse", "normalised MSE"), ("fig10", "kdr", "KDR"),
        ("shared", "bits", "shared information, bits a probe"),
    ):  # fmt: skip
        curves = {s: [_mean(at("locked", s, snr), key) for snr in snrs_db] for s in SCHEMES}
        errors = {s: [_error(at("locked", s, snr), key) for snr in snrs_db] for s in SCHEMES}
        study.figure(
            name, f"{label} over SNR, locked radios", snrs_db, "SNR, dB", label, curves, errors, log_y=name != "fig8"
        )
    free = _few(snrs_db, study.quick)
    study.figure(
        "fig10_free", "KDR over SNR, free-running radios", free, "SNR, dB", "KDR",
        {s: [_mean(at("free-running", s, snr), "kdr") for snr in free] for s in SCHEMES},
        {s: [_error(at("free-running", s, snr), "kdr") for snr in free] for s in SCHEMES}, log_y=True,
    )  # fmt: skip
    splits = {
        f"{s}, {how}": (s, at_random)
        for s in ("none", "CRCNet")
        for how, at_random in (("later stretch", False), ("random", True))
    }
    over = _few(snrs_db, study.quick)
    study.figure(
        "split", "KDR by how test snapshots are chosen", over, "SNR, dB", "KDR",
        {k: [_mean(at("locked", s, snr, r), "kdr") for snr in over] for k, (s, r) in splits.items()},
        {k: [_error(at("locked", s, snr, r), "kdr") for snr in over] for k, (s, r) in splits.items()}, log_y=True,
    )  # fmt: skip
    top = snrs_db[-1]
    study.table("at the highest SNR", [
        {"scheme": s, "radios": kind, **{f"{key}": _mean(rows, key) for key in ("rho", "mse", "kdr", "bits")},
         "kdr_error": _error(rows, "kdr"), "weights": rows[0].get("history", {}).get("weights"),
         "epochs": rows[0].get("history", {}).get("epochs"), "best epoch": rows[0].get("history", {}).get("best_epoch")}
        for kind in ("locked", "free-running") for s in SCHEMES for rows in (at(kind, s, top),)
    ])  # fmt: skip


def _figure12(study: Study, snrs_db: list[float], at: Any) -> None:
    curves, errors = {}, {}
    for scheme, label in (("none", "without"), ("CRCNet", "with CRCNet")):
        for q in QUANTIZERS:
            rows = [[{"kdr": r["kdrs"][q]} for r in at("locked", scheme, snr)] for snr in snrs_db]
            curves[f"{q}, {label}"] = [_mean(r, "kdr") for r in rows]
            errors[f"{q}, {label}"] = [_error(r, "kdr") for r in rows]
    study.figure(
        "fig12", "KDR of five quantizers with and without CRCNet", snrs_db, "SNR, dB", "KDR", curves, errors, log_y=True
    )
    for q in QUANTIZERS:
        gain = np.array(curves[f"{q}, without"]) - np.array(curves[f"{q}, with CRCNet"])
        study.claim(f"CRCNet lowers the KDR of {q} (smallest gain)", "yes", float(gain.min()), bool((gain > 0).all()))


# ---------------------------------------------------------------- claims


def _claims(study: Study, snrs_db: list[float], at: Any) -> None:
    top = snrs_db[-1]
    value = {
        (s, key, snr): _mean(at("locked", s, snr), key)
        for s in SCHEMES
        for key in ("rho", "mse", "kdr")
        for snr in snrs_db
    }
    for s in PAPERS:
        measured, paper = value[s, "kdr", top], KDR_AT_30_DB[s]
        study.claim(f"KDR of {s} at 30 dB (within a factor of 2)", paper, measured, paper / 2 < measured < 2 * paper)
    others = [s for s in PAPERS if s != "CRCNet"]
    ahead = min(value["CRCNet", "rho", snr] - max(value[s, "rho", snr] for s in others) for snr in snrs_db)
    study.claim("CRCNet has the highest ρ at every SNR (least lead)", 0.01, ahead, ahead >= 0.01)
    least = [value["CRCNet", "mse", snr] / min(value[s, "mse", snr] for s in others) for snr in snrs_db]
    study.claim("CRCNet has the lowest MSE at 30 dB (over the best other)", "below 1", least[-1], least[-1] < 1)
    study.claim("… and its lead grows with SNR", "grows", least, bool(np.all(np.diff(least) < 0)))
    best = min(PAPERS, key=lambda s: value[s, "kdr", top])
    study.claim("CRCNet has the lowest KDR of the paper's six at 30 dB", "CRCNet", best, best == "CRCNet")
    ranked = sorted(PAPERS, key=lambda s: -value[s, "kdr", top])
    expected = sorted(PAPERS, key=lambda s: -KDR_AT_30_DB[s])
    study.claim("order of KDR at 30 dB", ", ".join(expected), ", ".join(ranked), ranked == expected)
    for how, random_split in (("a later stretch", False), ("snapshots between its training snapshots", True)):
        pairs = zip(at("locked", "none", top, random_split), at("locked", "CRCNet", top, random_split), strict=True)
        gain, error = _paired([p["kdr"] - q["kdr"] for p, q in pairs])
        study.claim(
            f"CRCNet lowers the KDR at 30 dB, tested on {how} (gain ± standard error)", "yes", [gain, error],
            gain > 2 * error,
        )  # fmt: skip
    for kind in ("locked", "free-running"):
        pairs = zip(at(kind, "CRCNet", top), at(kind, "calibrated", top), strict=True)
        gain, error = _paired([p["kdr"] - q["kdr"] for p, q in pairs])
        study.claim(
            f"ours: 'calibrated' has a lower KDR than CRCNet at 30 dB, {kind} radios (gain ± standard error)", None,
            [gain, error], gain > 2 * error,
        )  # fmt: skip
        gain, error = _paired(
            [p["kdr"] - q["kdr"] for p, q in zip(at(kind, "none", top), at(kind, "calibrated", top), strict=True)]
        )
        study.claim(
            f"ours: 'calibrated' has a lower KDR than no scheme at 30 dB, {kind} radios (gain ± standard error)", None,
            [gain, error], gain > 2 * error,
        )  # fmt: skip
    worst = min(value[s, "mse", snr] / value["linear MMSE", "mse", snr] for s in ("CRCNet", "KGNet") for snr in snrs_db)
    study.claim("no network of the paper has a lower MSE than the linear MMSE map", None, worst, worst > 0.98)


def _paired(gains: list[float]) -> tuple[float, float]:
    return float(np.mean(gains)), float(np.std(gains, ddof=1) / np.sqrt(len(gains)))
