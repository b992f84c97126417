"""Paper B, figures 11, 13, 14 and Table 2: disagreement, time and randomness of the five quantizers.

All quantizers get the same complex least-squares CSI of the same probes, and have 16 regions and no guard bands: 4 bits
per coefficient. Samples are coefficients (Re, Im) of subcarriers that are a coherence bandwidth apart. The paper's
scalar quantizer uses magnitudes only. A second scalar quantizer uses the same features and the same number of bits as
the vector quantizers: the comparison with it shows the gain of vector quantization alone, without the gain of using the
phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.assess import randomness
from testbed.chain.quantize._labels import confusion, expected_errors, label_regions
from testbed.chain.quantize._vector import squared_distances
from testbed.core.seeds import generator
from testbed.core.types import F64, U8
from testbed.papers.kit.study import Study
from testbed.papers.reciprocity import quantized, uma_walk
from testbed.papers.reciprocity.quantized import (
    CASES,
    GREEDY,
    HUNGARIAN,
    ILP,
    KMEANS,
    SCALAR,
    SCALAR_PARTS,
    VECTOR,
    Case,
)

PAPER = "B"
SUBCARRIERS = 8
"""Subcarriers used: every eighth of 64, which are 2.5 MHz apart."""
REGIONS = 1 << quantized.BITS
CONDITIONS = {
    "noise": uma_walk.Impairments(0.0, 0.0, 0.0, 0.0, 0.0, ripple_db=0.0),
    "impairments": uma_walk.Impairments(),
}
LESS = tuple(case for case in CASES if case is not HUNGARIAN)
"""All quantizers except balanced k-means, which gives the same result as ILP-BVQ in more time."""
WORTH_SNRS_DB = (10.0, 20.0, 30.0)
GAINS_DB = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Differences in dB by which Bob's receiver is weaker than Alice's, in the comparison without normalised levels."""
SEQUENCES, SEQUENCE_BITS, DROPS = 100, 256, 20
"""Number of sequences of Table 2, their length, and the number of drops from which a set of sequences comes."""
KEY_SUBCARRIERS = 2
"""Subcarriers for the keys of Table 2, 10 MHz apart; with a probe every 0.4 s (1.6 wavelengths) the samples are nearly
independent."""
WORTH_SAMPLES = {True: 4096, False: 16384}
"""Number of samples, by whether the study is a quick one."""


@dataclass(frozen=True)
class Point:
    """One drop under one condition at one signal-to-noise ratio."""

    walk: uma_walk.Walk
    condition: str
    snr_db: float


def run(study: Study) -> None:
    quick = study.quick
    snrs_db = [0.0, 10.0, 20.0, 30.0] if quick else [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    n_seeds, n_probes, n_timed, times = (5, 64, 512, 3) if quick else (8, 128, 1024, 5)
    n_sets, regions = (1, [4, 8, 16, 32]) if quick else (5, [4, 8, 16, 32, 64])
    timed_snrs_db = snrs_db[::3] if quick else snrs_db
    walks = [uma_walk.Walk(seed=seed, n_probes=n_probes, n_subcarriers=SUBCARRIERS) for seed in range(1, n_seeds + 1)]
    key_walks = [
        uma_walk.Walk(
            seed=100 + i,
            n_probes=SEQUENCES * SEQUENCE_BITS // (KEY_SUBCARRIERS * quantized.BITS * DROPS),
            interval_s=0.4,
            n_subcarriers=KEY_SUBCARRIERS,
        )
        for i in range(n_sets * DROPS)
    ]
    study.parameters.update(
        regions=REGIONS, bits_per_coefficient=quantized.BITS, seeds=n_seeds, probes=n_probes,
        samples_per_block=n_probes * SUBCARRIERS, walk=vars(walks[0]) | {"seed": None}, key_walk=vars(key_walks[0]),
        impairments=vars(CONDITIONS["impairments"]) | {"snr_db": None}, timed_samples=n_timed,
    )  # fmt: skip

    points = [Point(w, c, s) for w in walks for c in CONDITIONS for s in snrs_db]
    found = study.map(_compare, points)
    kdr = {
        c: {x.label: _over_seeds(points, found, c, snrs_db, x.label) for x in (CASES if c == "noise" else LESS)}
        for c in CONDITIONS
    }
    for name, condition, title in (
        ("fig11", "noise", "Key disagreement of synchronised radios"),
        ("fig11_impairments", "impairments", "Key disagreement with synchronisation offsets and hardware mismatch"),
    ):
        means = {label: rows.mean(axis=0) for label, rows in kdr[condition].items()}
        errors = {label: rows.std(axis=0, ddof=1) / np.sqrt(n_seeds) for label, rows in kdr[condition].items()}
        study.figure(name, title, snrs_db, "SNR in dB", "share of bits that differ", means, errors, log_y=True)
    _worth(study, n_seeds)
    _disagreement_claims(study, kdr, found, snrs_db)
    _mismatch(study, walks)
    _labelling(study)
    _times(study, timed_snrs_db, regions, n_timed, times)
    _randomness(study, key_walks)


def _over_seeds(
    points: list[Point], found: list[dict[str, Any]], condition: str, snrs_db: list[float], label: str
) -> F64:
    """Return (seed, SNR) disagreement of one quantizer."""
    values = [f[label]["kdr"] for p, f in zip(points, found, strict=True) if p.condition == condition]
    return np.array(values).reshape(-1, len(snrs_db))


def _compare(point: Point) -> dict[str, Any]:
    """Return the disagreement of one block by quantizer, and digests of the keys that must be equal."""
    alice, bob = uma_walk.pair(uma_walk.snapshots(point.walk), point.walk, CONDITIONS[point.condition].at(point.snr_db))
    out = {}
    for case in CASES if point.condition == "noise" else LESS:
        block = quantized.quantized(case, alice, bob, point.walk.seed)
        keys = block.alice.tobytes() + block.bob.tobytes() if case in (HUNGARIAN, ILP) else b""
        out[case.label] = {"kdr": block.kdr, "keys": keys}
    return out


def _worth(study: Study, n_seeds: int) -> None:
    """Add tables of each coefficient's entropy and of the two sides' mutual information, which the KDR does not
    show."""
    n = WORTH_SAMPLES[study.quick]
    items = [(snr_db, seed, n) for snr_db in WORTH_SNRS_DB for seed in range(1, n_seeds + 1)]
    found = {item[:2]: f for item, f in zip(items, study.map(_worth_at, items), strict=True)}
    rows = []
    for snr_db in WORTH_SNRS_DB:
        for case in LESS:
            at = [found[snr_db, seed][case.label] for seed in range(1, n_seeds + 1)]
            row = {what: float(np.mean([f[what] for f in at])) for what in at[0]}
            error = float(np.std([f["shared, bits"] for f in at], ddof=1) / np.sqrt(n_seeds))
            rows.append({"SNR dB": snr_db, "quantizer": case.label, **row, "standard error": error})
    study.table("a coefficient, independent Gaussian ones", rows)
    for peer, said in ((KMEANS, "k-means"), (GREEDY, "BKQ-BM"), (SCALAR_PARTS, "scalar on Re and Im")):
        ratio, least = [], []
        for snr_db in WORTH_SNRS_DB:
            more = [
                found[snr_db, seed][ILP.label]["shared, bits"] / found[snr_db, seed][peer.label]["shared, bits"]
                for seed in range(1, n_seeds + 1)
            ]
            ratio.append(float(np.mean(more)))
            least.append(ratio[-1] - 2 * float(np.std(more, ddof=1)) / np.sqrt(n_seeds))
        study.claim(
            f"information shared a coefficient: ILP-BVQ > {said} by more than two standard errors (mean ratios at "
            f"{WORTH_SNRS_DB} dB)", None, ratio, min(least) > 1.0,
        )  # fmt: skip


def _worth_at(item: tuple[float, int, int]) -> dict[str, dict[str, float]]:
    """Return figures by quantizer at one signal-to-noise ratio; estimates of information need many samples."""
    snr_db, seed, n = item
    rng = generator(seed, "quantizers", "worth", str(snr_db))
    h, *noises = (rng.standard_normal((n, 1, 2)) @ np.array([1.0, 1.0j]) * np.sqrt(0.5) for _ in range(3))
    noise = 10 ** (-snr_db / 20)
    bound = -np.log2(1 - 1 / (1 + noise**2) ** 2)
    out = {}
    for case in LESS:
        block = quantized.quantized(case, h + noise * noises[0], h + noise * noises[1], seed)
        mine, theirs = quantized.symbols(block.alice), quantized.symbols(block.bob)
        shared = quantized.shared_bits(mine, theirs, REGIONS)
        out[case.label] = {
            "bits that differ": block.kdr,
            "labels that differ": block.label_errors,
            "bits that differ a wrong label": block.kdr * quantized.BITS / block.label_errors,
            "entropy, bits": quantized.entropy_bits(mine, REGIONS),
            "min-entropy, bits": float(-np.log2(np.bincount(mine, minlength=REGIONS).max() / mine.size)),
            "shared, bits": shared,
            "shared / Gaussian I(A;B)": shared / bound,
        }
    return out


def _disagreement_claims(
    study: Study, kdr: dict[str, dict[str, F64]], found: list[dict[str, Any]], snrs_db: list[float]
) -> None:
    at = [i for i, s in enumerate(snrs_db) if s >= 10.0]

    def worst_of(low: list[Case], high: Case, condition: str) -> tuple[float, bool]:
        """Return the largest ratio of mean disagreements low/high from 10 dB on, and whether low is always lower."""
        mean = {label: rows.mean(axis=0)[at] for label, rows in kdr[condition].items()}
        ratios = np.concatenate([mean[c.label] / mean[high.label] for c in low if c.label in mean])
        return float(ratios.max()), bool((ratios < 1.0).all())

    vectors = list(VECTOR)
    for condition, where in (("noise", ""), ("impairments", " with synchronisation offsets and hardware mismatch")):
        ratio, holds = worst_of(vectors, SCALAR, condition)
        study.claim(
            f"KDR: vector < scalar on magnitudes, both 4 bits a coefficient, from 10 dB on{where} (largest ratio)",
            "lower", ratio, holds,
        )  # fmt: skip
    ratio, holds = worst_of(vectors, SCALAR_PARTS, "noise")
    study.claim(
        "KDR: vector < scalar on Re and Im, i.e. with the same features and bits (largest ratio)", "lower", ratio, holds
    )
    ratio, holds = worst_of([ILP, HUNGARIAN, GREEDY], KMEANS, "noise")
    study.claim("KDR: balanced < k-means, each side's levels taken out (largest ratio)", "lower", ratio, holds)
    both = [f for f in found if HUNGARIAN.label in f]
    differ = float(np.mean([f[ILP.label]["keys"] != f[HUNGARIAN.label]["keys"] for f in both]))
    study.claim(
        "ILP-BVQ = balanced k-means: the same keys from the same start (share of blocks where not)", "same",
        differ, differ == 0.0, True,
    )  # fmt: skip
    ratio, holds = worst_of([ILP, HUNGARIAN], GREEDY, "noise")
    study.claim("KDR: BKQ-BM worst of the balanced (largest ratio of the others to it)", "highest", ratio, holds)


def _mismatch(study: Study, walks: list[uma_walk.Walk]) -> None:
    """Compare k-means and balanced quantizers if Bob's level differs from Alice's and levels are not removed."""
    cases = (KMEANS, GREEDY, ILP)
    found = np.array(study.map(_mismatched, walks))  # (seed, gain, case)
    mean, error = found.mean(axis=0), found.std(axis=0, ddof=1) / np.sqrt(len(walks))
    study.figure(
        "gain_mismatch", "Levels left in: Bob's receiver is weaker than Alice's (25 dB, noise only)", GAINS_DB,
        "gain mismatch in dB", "share of bits that differ", {c.label: mean[:, i] for i, c in enumerate(cases)},
        {c.label: error[:, i] for i, c in enumerate(cases)},
    )  # fmt: skip
    over = mean[:, 2] / mean[:, 0]
    study.claim(
        "… ILP-BVQ < k-means where levels are left in and Bob's is 1 dB or more below Alice's: balance at Bob undoes "
        f"that (ratios over {GAINS_DB} dB)", None, over, bool((over[2:] < 1.0).all()),
    )  # fmt: skip
    over = mean[:, 1] / mean[:, 0]
    study.claim(f"… BKQ-BM < k-means there (ratios over {GAINS_DB} dB)", "lower", over, bool((over[2:] < 1.0).all()))


def _mismatched(walk: uma_walk.Walk) -> F64:
    """Return the disagreement (gain, quantizer) of the paper's steps on CSI as measured, with its levels."""
    alice, bob = uma_walk.pair(uma_walk.snapshots(walk), walk, CONDITIONS["noise"].at(25.0))
    mine, theirs = (quantized.features(h, True).values.reshape(-1, 2) for h in (alice, bob))
    out = np.empty((len(GAINS_DB), 3))
    for i, case in enumerate((KMEANS, GREEDY, ILP)):
        q: Any = case.make()
        rng = generator(walk.seed, "quantizers")
        centroids = q.cluster(mine, rng)
        table = label_regions(centroids, rng)
        key = table[q.assign(squared_distances(mine, centroids))[0]]
        for j, gain_db in enumerate(GAINS_DB):
            weaker = theirs * 10 ** (-gain_db / 20)
            out[j, i] = (key != table[q.assign(squared_distances(weaker, centroids))[0]]).mean()
    return out


def _labelling(study: Study) -> None:
    """Compute by how many bits neighbouring regions in the plane differ under the best bit labels."""
    rows = []
    for n_regions in (4, 8, 16, 32, 64):
        rng = generator(1, "quantizers", "labels", n_regions)
        points = rng.normal(size=(64 * n_regions, 2))
        q: Any = ILP.make(n_regions)
        centroids = q.cluster(points, rng)
        table, w = label_regions(centroids, rng), confusion(centroids, rng)
        shuffled = np.mean([expected_errors(rng.permutation(table), w) for _ in range(20)])
        rows.append({
            "regions": n_regions, "optimised": expected_errors(table, w), "at random": float(shuffled),
            "lattice and Gray": 1.0,
        })  # fmt: skip
    study.table("bits that differ between neighbouring regions", rows)
    of_16 = rows[2]
    study.claim(
        "a wrong label of 16 regions in the plane costs more than one bit (three regions meet at a corner: 4/3 at best "
        "along hexagons), that of a scalar quantizer one", None, of_16["optimised"], of_16["optimised"] > 1.05,
    )  # fmt: skip


# ---------------------------------------------------------------- time


def _times(study: Study, snrs_db: list[float], regions: list[int], n: int, times: int) -> None:
    """Measure the times of Alice's clustering and of Bob's assignment, of all quantizers in turn in this process."""
    noise = [10 ** (-snr_db / 20) for snr_db in snrs_db]
    over_snr = np.array([_timed(n, REGIONS, level, times) for level in noise])
    over_k = np.array([_timed(n, k, 0.1, times) for k in regions])
    names = [case.label for case in VECTOR]
    for name, x, label, rows in (
        ("fig13", snrs_db, "SNR in dB", over_snr),
        ("fig14", regions, "number of regions", over_k),
    ):
        study.figure(
            name, f"Time of Alice and Bob, {n} samples (medians of {times}, shared machine)", x, label, "seconds",
            dict(zip(names, rows.T, strict=True)), log_y=True, log_x=name == "fig14",
        )  # fmt: skip
    kmeans, hungarian, greedy, ilp = np.median(over_snr, axis=0)
    study.claim("time: k-means < all balanced (seconds: k-means, least of the balanced)", "lowest",
                [kmeans, min(hungarian, greedy, ilp)], bool(kmeans < min(hungarian, greedy, ilp)))  # fmt: skip
    study.claim(
        f"time: ILP-BVQ far below balanced k-means at {n} samples (ratio of the two)", "significantly lower",
        hungarian / ilp, bool(hungarian / ilp > 2.0),
    )  # fmt: skip
    study.claim(
        f"time: ILP-BVQ and BKQ-BM similar at {n} samples, i.e. within a factor of 2 (ratio of the two)", "similar",
        ilp / greedy, bool(0.5 < ilp / greedy < 2.0),
    )  # fmt: skip


def _timed(n: int, n_regions: int, noise: float, times: int) -> list[float]:
    """Return the median seconds of each vector quantizer; repetitions alternate, so that all see the same machine
    load."""
    import time

    took = np.empty((times, len(VECTOR)))
    for i in range(times):
        rng = generator(i, "quantizers", "times", n)
        common = rng.normal(size=(n, 2))
        mine, theirs = (common + noise * rng.normal(size=common.shape) for _ in range(2))
        for j, case in enumerate(VECTOR):
            q: Any = case.make(n_regions)
            start = generator(i, "quantizers", "start")
            began_s = time.perf_counter()
            centroids = q.cluster(mine, start)
            q.assign(squared_distances(theirs, centroids))
            took[i, j] = time.perf_counter() - began_s
    return [float(t) for t in np.median(took, axis=0)]


# ---------------------------------------------------------------- randomness


def _randomness(study: Study, walks: list[uma_walk.Walk]) -> None:
    """Table 2: Alice's raw keys, 100 sequences of 256 bits per quantizer, by SP 800-22."""
    parts = study.map(_raw_key, walks)
    n_sets = len(walks) // DROPS
    rows, shares = [], []
    passed: dict[str, F64] = {}
    for i, case in enumerate(CASES):
        by_ratio, by_both = [], []
        for j in range(n_sets):
            bits = np.concatenate([part[i].reshape(-1) for part in parts[j * DROPS : (j + 1) * DROPS]])
            tests = randomness.assess(bits.reshape(SEQUENCES, SEQUENCE_BITS))["tests"]
            run = [t for t in tests if t["reason"] is None]
            # the paper counts sequences only; the standard requires uniform p-values, too
            by_ratio.append(np.mean([t["pass_ratio"] >= randomness.least_pass_ratio(SEQUENCES) for t in run]))
            by_both.append(np.mean([t["ok"] for t in run]))
            if j == 0:
                rows += [
                    {"quantizer": case.label, "test": t["statistic"], "pass ratio": t["pass_ratio"],
                     "p-value": t["p_value"], "ok": t["ok"], "reason": t["reason"]} for t in tests
                ]  # fmt: skip
        passed[case.label] = np.array(by_ratio)
        shares.append({
            "quantizer": case.label, "sets": n_sets, "tests passed by pass ratio": np.mean(by_ratio),
            "standard error": np.std(by_ratio, ddof=1) / np.sqrt(n_sets) if n_sets > 1 else None,
            "tests passed by pass ratio and uniform p-values": np.mean(by_both),
        })  # fmt: skip
    study.table("table2", rows)
    study.table("table2, share of tests passed", shares)
    for case in (ILP, GREEDY):
        share = float(passed[case.label].mean())
        study.claim(f"NIST: {case.label} passes most tests (share of those that 256 bits allow)", "most", share,
                    share > 0.5)  # fmt: skip
    share = float(passed[KMEANS.label].mean())
    study.claim("NIST: k-means passes a minority (share passed)", "a minority", share, share < 0.5)


def _raw_key(walk: uma_walk.Walk) -> list[U8]:
    """Return Alice's bits (coefficient, bit) by quantizer at 20 dB."""
    alice, bob = uma_walk.pair(uma_walk.snapshots(walk), walk, CONDITIONS["noise"].at(20.0))
    return [quantized.quantized(case, alice, bob, walk.seed).alice for case in CASES]
