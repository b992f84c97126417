"""Paper B, figures 16 and 17: what Eve's key reveals about Bob's and Alice's keys, over the correlation of her channel.

Eve's channel is simulated in two ways. "Synthetic" means Gaussian coefficients of a given correlation, with many
samples and no errors of hardware. "In place" means that Eve stands at a distance from Bob, or from Alice, in the walks
of `uma_walk`, and that her measurements follow from the geometry. She uses the same quantizer and all public messages.
In place she also knows the common phase between her channel and that of Bob or Alice, which a real Eve would have to
find: this is in her favour.

The leak is mutual information as a share of the label's 4 bits. There are three kinds: between whole labels; between
single bits, as a bitwise comparison of keys shows it; and between labels and Eve's analogue values. None can exceed the
Gaussian −log₂(1 − ρ²) between the channels.

For an Eve near Alice, the paper corrects Alice's CSI by its network. Here one complex factor for each subcarrier
replaces the network; it is estimated on a part of the walk that gives no key, and removes the constant differences
between the devices. Bob's CSI of that part is public, so an Eve near Alice can estimate such factors for her own CSI.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0

from testbed.chain.quantize._vector import squared_distances
from testbed.core.seeds import generator
from testbed.core.types import F64, I64, U8
from testbed.papers.kit.study import Study
from testbed.papers.reciprocity import quantized, uma_walk
from testbed.papers.reciprocity.quantized import BITS, ILP, KMEANS, SCALAR, Case

PAPER = "B"
C128 = NDArray[np.complex128]
CASES = (SCALAR, KMEANS, ILP)
"""The quantizers of the paper's figures. The balanced ones differ only in their time, or (BKQ-BM) in their quality."""
SUBCARRIERS = 8
"""Subcarriers used: every eighth of 64, which are 2.5 MHz apart."""
SNR_DB = 20.0
REGIONS = 1 << BITS
NEAR: dict[str, tuple[float, ...]] = {"bob": (0.05, 0.1, 0.2, 0.3, 0.5, 1.0), "alice": (0.05, 0.5, 1.0, 2.0, 4.0, 8.0)}
"""Eve's distances in wavelengths. They are larger around Alice: she is high above all scatterers, so that the channel
changes slowly with distance there."""
QUICK_NEAR: dict[str, tuple[float, ...]] = {"bob": (0.1, 0.5), "alice": (0.5, 4.0)}
TRAINING = 1 / 3
"""Share of a walk from which the compensation is estimated and which gives no key."""
GAP = 4
"""Number of probes between that part and the part that gives the key."""


@dataclass(frozen=True)
class Sweep:
    """One draw of correlated Gaussian coefficients."""

    seed: int
    rho: float
    n: int


def run(study: Study) -> None:
    quick = study.quick
    rhos = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97] if quick else [*np.linspace(0, 0.9, 10).round(1), 0.95, 0.98]
    n_seeds, n_samples, n_probes = (5, 4096, 104) if quick else (10, 16384, 320)
    distances = QUICK_NEAR if quick else NEAR
    study.parameters.update(
        seeds=n_seeds, samples=n_samples, probes=n_probes, snr_db=SNR_DB, regions=REGIONS,
        distances_wavelengths=distances, training_share=TRAINING, impairments=vars(uma_walk.Impairments(SNR_DB)),
    )  # fmt: skip
    sweeps = [Sweep(seed, float(rho), n_samples) for seed in range(1, n_seeds + 1) for rho in rhos]
    walks = [
        uma_walk.Walk(seed=seed, n_probes=n_probes, n_subcarriers=SUBCARRIERS, eve_near=end, eve_wavelengths=d)
        for end, ds in distances.items()
        for d in ds
        for seed in range(1, n_seeds + 1)
    ]
    swept = study.map(_swept, sweeps)
    placed = study.map(_in_place, walks)
    _over_correlation(study, rhos, [swept[i :: len(rhos)] for i in range(len(rhos))])
    _over_distance(study, distances, walks, placed)


def leaks(eve: U8, victim: U8) -> dict[str, float]:
    """Return what Eve's (coefficient, bit) labels reveal of the victim's, as shares: whole labels, and bit by bit."""
    k = 1 << BITS
    whole = quantized.shared_bits(quantized.symbols(eve), quantized.symbols(victim), k) / BITS
    pairs = zip(eve.T, victim.T, strict=True)
    each = [quantized.shared_bits(e.astype(np.int64), v.astype(np.int64), 2) for e, v in pairs]
    return {"labels": whole, "bits": float(np.mean(each))}


# ---------------------------------------------------------------- synthetic


def _swept(sweep: Sweep) -> dict[str, Any]:
    """Return the leaks by quantizer at one correlation, and the Gaussian bound as a share."""
    rng = generator(sweep.seed, "leakage", "sweep", str(sweep.rho))
    h, other, *noises = (_gaussian(rng, sweep.n) for _ in range(5))
    heard = sweep.rho * h + np.sqrt(1 - sweep.rho**2) * other
    alice, bob, eve = (x + 10 ** (-SNR_DB / 20) * n for x, n in zip((h, h, heard), noises, strict=True))
    out: dict[str, Any] = {}
    for case in CASES:
        block = quantized.quantized(case, alice, bob, sweep.seed)
        shared = quantized.shared_bits(quantized.symbols(block.alice), quantized.symbols(block.bob), REGIONS)
        out[case.label] = {**leaks(quantized.guessed(case, block, eve), block.bob), "alice": shared / BITS}
    # correlation of the measured coefficients, which noise lowers
    rho = sweep.rho / (1 + 10 ** (-SNR_DB / 10))
    out["bound"] = float(-np.log2(1 - rho**2)) / BITS
    for case in CASES:
        out[case.label]["analogue"] = analogue_bits(_labeller(case, bob[:2048, 0], rng), rho, rng) / BITS
    return out


def _gaussian(rng: np.random.Generator, n: int) -> C128:
    """Return (probe, 1) circular Gaussian coefficients of power 1."""
    return np.asarray(rng.standard_normal((n, 1, 2)) @ np.array([1.0, 1.0j]) * np.sqrt(0.5))


def _labeller(case: Case, x: C128, rng: np.random.Generator) -> Callable[[C128], I64]:
    """Return the rule by which a quantizer labels coefficients of the distribution that (sample,) `x` are drawn from.

    Takes coefficients of power 1. The scalar one is cut at the Rayleigh distribution's quantiles.
    """
    if case is SCALAR:
        return lambda h: np.minimum((REGIONS * -np.expm1(-(np.abs(h) ** 2))).astype(np.int64), REGIONS - 1)
    q: Any = case.make()
    points = _plane(x / np.sqrt((np.abs(x) ** 2).mean()))
    centroids = q.cluster(points, rng)
    prices = q.assign(squared_distances(points, centroids))[1]
    return lambda h: np.asarray(np.argmin(squared_distances(_plane(h), centroids) + prices[:, None], axis=0))


def _plane(h: C128) -> F64:
    return np.stack([h.real, h.imag], axis=1) * np.sqrt(2)


def analogue_bits(label: Callable[[C128], I64], rho: float, rng: np.random.Generator) -> float:
    """Return I(label of x; y) in bits, for circular Gaussians x, y of correlation `rho`, where y is Eve's analogue
    value.

    For each of 200 values of y the label's distribution is estimated from 1000 draws of x; entropies by Miller and
    Madow.
    """
    n_outer, n_inner = 200, 1000
    y = _gaussian(rng, n_outer)[:, 0]
    given = [
        quantized.entropy_bits(label(rho * v + np.sqrt(1 - rho**2) * _gaussian(rng, n_inner)[:, 0]), REGIONS) for v in y
    ]
    return quantized.entropy_bits(label(_gaussian(rng, 20_000)[:, 0]), REGIONS) - float(np.mean(given))


def _over_correlation(study: Study, rhos: list[float], found: list[list[dict[str, Any]]]) -> None:
    """Draw figure 16 and check the claims on it. `found` is (correlation, seed)."""
    n_seeds = len(found[0])

    def curve(label: str, what: str) -> tuple[F64, F64]:
        values = np.array([[f[label][what] for f in at] for at in found])
        return values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(n_seeds)

    bound = np.array([at[0]["bound"] for at in found])
    curves, errors = {"Gaussian bound": np.minimum(bound, 1.0)}, {}
    rows = []
    for case in CASES:
        for what, name in (("labels", ""), ("bits", ", bit by bit"), ("analogue", ", analogue Eve")):
            mean, error = curve(case.label, what)
            curves[case.label + name], errors[case.label + name] = mean, error
            rows += [
                {"quantizer": case.label, "measure": what, "correlation": r, "share": m, "ci95": 1.96 * e,
                 "bits a label": BITS * m} for r, m, e in zip(rhos, mean, error, strict=True)
            ]  # fmt: skip
    study.figure(
        "fig16", "Leak to an Eve whose channel is correlated with Bob's (synthetic)", rhos,
        "correlation of the channels", "share of the label", curves, errors,
    )  # fmt: skip
    study.table("leak over correlation", rows)

    at = rhos.index(0.8)
    share = {c.label: {w: float(curve(c.label, w)[0][at]) for w in ("labels", "bits", "analogue")} for c in CASES}
    for what, name in (("labels", "whole labels"), ("bits", "bit by bit"), ("analogue", "an Eve with analogue values")):
        values = {label: s[what] for label, s in share.items()}
        holds = all(0.05 <= v <= 0.15 for v in values.values())
        study.claim(f"leak ≈ 10 % at correlation 0.8, {name} (shares, 5 to 15 % accepted)", 0.1, values, holds)
    middle = [i for i, r in enumerate(rhos) if 0.4 <= r <= 0.95]
    for low, high, said in (
        (ILP, SCALAR, "vector leaks less than scalar"),
        (ILP, KMEANS, "balanced less than k-means"),
    ):
        over = curve(low.label, "labels")[0][middle] / curve(high.label, "labels")[0][middle]
        study.claim(f"{said} (ratio of {low.label} to {high.label}, correlations 0.4 to 0.95)", "less", over,
                    bool((over < 1).all()))  # fmt: skip
    left = {
        c: BITS * np.array([f[c.label]["alice"] - f[c.label]["analogue"] for f in found[at]]) for c in (ILP, SCALAR)
    }
    more = left[ILP] - left[SCALAR]
    study.claim(
        "… but at 0.8 it leaves more secret bits: what Alice's label tells about Bob's less what Eve's analogue value "
        "does, bits per coefficient (ILP-BVQ, scalar, standard error of the difference)", None,
        [left[ILP].mean(), left[SCALAR].mean(), more.std(ddof=1) / np.sqrt(n_seeds)],
        bool(more.mean() > 2 * more.std(ddof=1) / np.sqrt(n_seeds)),
    )  # fmt: skip
    excess = max(float((curve(c.label, w)[0] - bound).max()) for c in CASES for w in ("labels", "analogue"))
    study.claim("no leak exceeds the Gaussian bound (largest excess as a share)", None, excess, excess < 0.01, True)
    blind = max(abs(float(curve(c.label, w)[0][0])) for c in CASES for w in ("labels", "bits", "analogue"))
    study.claim("at correlation 0 the estimates are 0 (largest share)", None, blind, blind < 0.01, True)


# ---------------------------------------------------------------- in place


def _in_place(walk: uma_walk.Walk) -> dict[str, Any]:
    """Return the correlation of Eve's channel with Alice–Bob, and the leaks by quantizer and kind of compensation."""
    plan = uma_walk.Impairments(SNR_DB)
    found = uma_walk.snapshots(walk)
    alice, bob = uma_walk.pair(found, walk, plan)
    eve = uma_walk.overheard(found, walk, plan)
    h, heard = found.ab, found.eve(walk)
    turn = np.vdot(heard, h)
    coherence = complex(turn / np.linalg.norm(heard) / np.linalg.norm(h))
    out: dict[str, Any] = {"correlation": abs(coherence), "coherence": coherence}
    eve = eve * np.exp(1j * np.angle(turn))
    n_train = int(TRAINING * walk.n_probes)
    key = slice(n_train + GAP, None)

    def compensated(x: C128) -> C128:
        """Return x (probe, subcarrier) times one factor for each subcarrier, estimated from Bob's public training
        CSI."""
        seen, wanted = x[:n_train], bob[:n_train]
        factor = (wanted * seen.conj()).sum(axis=0) / (np.abs(seen) ** 2).sum(axis=0)
        return np.asarray(x * factor)

    for case in CASES:
        plain = quantized.quantized(case, alice[key], bob[key], walk.seed)
        raw = quantized.guessed(case, plain, eve[key])
        better = quantized.quantized(case, compensated(alice)[key], bob[key], walk.seed)
        # next to Alice, Eve's labels are compared with Alice's; next to Bob, with Bob's
        side = "alice" if walk.eve_near == "alice" else "bob"
        out[case.label] = {
            "kdr": plain.kdr,
            "kdr compensated": better.kdr,
            "plain": leaks(raw, getattr(plain, side)),
            "compensated": leaks(quantized.guessed(case, better, eve[key]), getattr(better, side)),
            "compensated, Eve too": leaks(
                quantized.guessed(case, better, compensated(eve)[key]), getattr(better, side)
            ),
        }
    return out


def _over_distance(
    study: Study, distances: dict[str, tuple[float, ...]], walks: list[uma_walk.Walk], placed: list[dict[str, Any]]
) -> None:
    """Draw Eve's correlation and leak over her distance, and figure 17."""
    stories = ("plain", "compensated", "compensated, Eve too")
    means: dict[tuple[str, str, str], F64] = {}
    rows = []
    for end, ds in distances.items():
        at = [
            [p for w, p in zip(walks, placed, strict=True) if w.eve_near == end and w.eve_wavelengths == d] for d in ds
        ]
        correlation = np.array([[p["correlation"] for p in here] for here in at])
        n = correlation.shape[1]
        curves, errors = (
            {"correlation": correlation.mean(axis=1)},
            {"correlation": correlation.std(axis=1, ddof=1) / np.sqrt(n)},
        )
        together = np.abs([np.mean([p["coherence"] for p in here]) for here in at])
        if end == "bob":
            curves["correlation over all drops"] = together
            curves["|J₀| (isotropic)"] = np.abs(j0(2 * np.pi * np.array(ds)))
        for case in CASES:
            for story in stories:
                values = np.array([[p[case.label][story]["bits"] for p in here] for here in at])
                means[end, case.label, story] = values.mean(axis=1)
                rows += [
                    {"Eve near": end, "wavelengths": d, "quantizer": case.label, "CSI": story,
                     "correlation": c, "share, bit by bit": m, "ci95": 1.96 * e}
                    for d, c, m, e in zip(
                        ds, correlation.mean(axis=1), values.mean(axis=1), values.std(axis=1, ddof=1) / np.sqrt(n),
                        strict=True,
                    )
                ]  # fmt: skip
                if story == "plain":
                    curves[case.label] = values.mean(axis=1)
                    errors[case.label] = values.std(axis=1, ddof=1) / np.sqrt(n)
        study.figure(
            f"eve_near_{end}", f"Eve near {end.capitalize()}: correlation of her channel, leak bit by bit", ds,
            "distance in wavelengths", "correlation; share", curves, errors, log_x=True,
        )  # fmt: skip
        if end == "alice":
            order = np.argsort(correlation.mean(axis=1))
            study.figure(
                "fig17", "Leak to an Eve near Alice, Alice's CSI as measured or compensated",
                correlation.mean(axis=1)[order], "correlation of the channels", "share, bit by bit",
                {f"{c.label}, {s}": means[end, c.label, s][order] for c in CASES for s in stories},
            )  # fmt: skip
        if 0.5 in ds:
            half = ds.index(0.5)
            value = float(correlation.mean(axis=1)[half])
            study.claim(
                f"an Eve half a wavelength from {end.capitalize()} is uncorrelated (mean over drops, below 0.3)",
                "uncorrelated", value, value < 0.3,
            )  # fmt: skip
    study.table("leak in place", rows)
    for story, said in (("compensated", "does not compensate"), ("compensated, Eve too", "compensates her own CSI")):
        over = float(np.mean([means["alice", c.label, story].sum() / means["alice", c.label, "plain"].sum()
                              for c in CASES if c is not SCALAR]))  # fmt: skip
        study.claim(
            f"near Alice, if she compensates her CSI, less leaks to an Eve who {said} (ratio, vector quantizers)",
            "lower", over, over < 1.0,
        )  # fmt: skip
    gain = [
        float(np.mean([p[c.label]["kdr compensated"] for p in placed]) / np.mean([p[c.label]["kdr"] for p in placed]))
        for c in CASES
    ]
    study.claim("compensating lowers KDR (ratio by quantizer: scalar, k-means, ILP-BVQ)", "lower", gain,
                all(g < 1 for g in gain[1:]))  # fmt: skip
