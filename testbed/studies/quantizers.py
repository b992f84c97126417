"""Paper B, figures 11, 13, 14 and Table 2: disagreement, time and randomness of the five quantizers.

All get the same complex least-squares CSI of the same probes, 16 regions, no guard bands: 4 bits a coefficient. Samples
are coefficients (Re, Im), of subcarriers a coherence bandwidth apart. The paper's scalar quantizer sees magnitudes
only; a second one that sees what the others see, at as many bits, tells quantizing in several dimensions apart from
having the phase.
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
from testbed.studies import _quantized, _uma
from testbed.studies._quantized import CASES, GREEDY, HUNGARIAN, ILP, KMEANS, SCALAR, SCALAR_PARTS, VECTOR, Case
from testbed.studies._study import Study

PAPER = "B"
STEP = 8
"""Subcarriers from one used to the next: 2.5 MHz."""
REGIONS = 1 << _quantized.BITS
CONDITIONS = {
    "noise": _uma.Impairments(0.0, 0.0, 0.0, 0.0, 0.0, ripple_db=0.0),
    "impairments": _uma.Impairments(),
}
GAINS_DB = (0.0, 0.5, 1.0, 2.0, 4.0)
"""How much weaker Bob's receiver is than Alice's, where nobody takes levels out."""
SEQUENCE_BITS = 256
KEY_STEP = 32
"""Subcarriers apart for the keys of Table 2: 10 MHz, nearly independent."""


@dataclass(frozen=True)
class Point:
    """One drop under one condition at one signal-to-noise ratio."""

    walk: _uma.Walk
    condition: str
    snr_db: float


def run(study: Study) -> None:
    quick = study.quick
    snrs_db = [0.0, 10.0, 20.0, 30.0] if quick else [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    n_seeds, n_probes, n_timed, times = (5, 64, 512, 3) if quick else (8, 128, 1024, 5)
    n_keys, regions = (20, [4, 8, 16, 32]) if quick else (20, [4, 8, 16, 32, 64])
    walks = [_uma.Walk(seed=seed, n_probes=n_probes) for seed in range(1, n_seeds + 1)]
    key_walks = [
        _uma.Walk(seed=100 + i, n_probes=SEQUENCE_BITS * 100 // (2 * _quantized.BITS * n_keys), interval_s=0.4)
        for i in range(n_keys)
    ]
    study.parameters.update(
        regions=REGIONS, bits_per_coefficient=_quantized.BITS, seeds=n_seeds, probes=n_probes, step=STEP,
        samples_per_block=n_probes * 64 // STEP, walk=vars(walks[0]) | {"seed": None}, key_walk=vars(key_walks[0]),
        impairments=vars(CONDITIONS["impairments"]) | {"snr_db": None}, timed_samples=n_timed,
    )  # fmt: skip

    points = [Point(w, c, s) for w in walks for c in CONDITIONS for s in snrs_db]
    found = study.map(_compare, points)
    kdr = {
        c: {case.label: _over_seeds(points, found, c, snrs_db, case.label, "kdr") for case in CASES}
        for c in CONDITIONS
    }
    for name, condition, title in (
        ("fig11", "noise", "Key disagreement of synchronised radios"),
        ("fig11_impairments", "impairments", "Key disagreement with synchronisation offsets and hardware mismatch"),
    ):
        means = {label: rows.mean(axis=0) for label, rows in kdr[condition].items()}
        errors = {label: rows.std(axis=0, ddof=1) / np.sqrt(n_seeds) for label, rows in kdr[condition].items()}
        study.figure(name, title, snrs_db, "SNR in dB", "share of bits that differ", means, errors, log_y=True)
    _worth(study, points, found, snrs_db)
    _disagreement_claims(study, kdr, snrs_db)
    _mismatch(study, walks)
    _labelling(study)
    _times(study, snrs_db, regions, n_timed, times)
    _randomness(study, key_walks)


def _over_seeds(
    points: list[Point], found: list[dict[str, Any]], condition: str, snrs_db: list[float], label: str, what: str
) -> F64:
    """Return (seed, SNR) of one figure of one quantizer."""
    values = [f[label][what] for p, f in zip(points, found, strict=True) if p.condition == condition]
    return np.array(values).reshape(-1, len(snrs_db))


def _compare(point: Point) -> dict[str, Any]:
    """Return what became of one block, by quantizer."""
    alice, bob = _uma.pair(_uma.snapshots(point.walk), point.walk, CONDITIONS[point.condition].at(point.snr_db))
    out = {}
    for case in CASES:
        block = _quantized.quantized(case, alice, bob, STEP, point.walk.seed)
        mine, theirs = _quantized.symbols(block.alice), _quantized.symbols(block.bob)
        out[case.label] = {
            "kdr": block.kdr,
            "label errors": block.label_errors,
            "entropy": _quantized.entropy_bits(mine, REGIONS),
            "least": float(-np.log2(np.bincount(mine, minlength=REGIONS).max() / mine.size)),
            "shared": _quantized.shared_bits(mine, theirs, REGIONS),
            "published": block.lead.leaked_bits / mine.size,
            "bits": block.alice.tobytes() if case in (HUNGARIAN, ILP) else b"",
        }
    x, y = (h[:, STEP // 2 :: STEP] for h in (alice, bob))
    rho2 = np.abs((x * y.conj()).mean(axis=0)) ** 2 / ((np.abs(x) ** 2).mean(axis=0) * (np.abs(y) ** 2).mean(axis=0))
    return {**out, "gaussian": float(-np.log2(1 - rho2).mean())}


def _worth(study: Study, points: list[Point], found: list[dict[str, Any]], snrs_db: list[float]) -> None:
    """Tabulate what disagreement alone does not say: entropy, and information both sides share a coefficient."""
    rows = []
    for snr_db in snrs_db:
        at = [f for p, f in zip(points, found, strict=True) if p.condition == "noise" and p.snr_db == snr_db]
        bound = float(np.mean([f["gaussian"] for f in at]))
        for case in CASES:
            mean = {what: float(np.mean([f[case.label][what] for f in at])) for what in at[0][case.label] if
                    what != "bits"}  # fmt: skip
            rows.append({
                "SNR dB": snr_db, "quantizer": case.label, "bits that differ": mean["kdr"],
                "labels that differ": mean["label errors"], "bits that differ / labels that differ":
                mean["kdr"] * _quantized.BITS / mean["label errors"] if mean["label errors"] else None,
                "entropy, bits": mean["entropy"], "min-entropy, bits": mean["least"],
                "shared, bits": mean["shared"], "shared / Gaussian I(A;B)": mean["shared"] / bound,
                "published, bits": mean["published"],
            })  # fmt: skip
    study.table("a coefficient, noise only", rows)


def _disagreement_claims(study: Study, kdr: dict[str, dict[str, F64]], snrs_db: list[float]) -> None:
    at = [i for i, s in enumerate(snrs_db) if s >= 10.0]

    def worst_of(low: list[Case], high: Case, condition: str) -> tuple[float, bool]:
        """Return the largest ratio of mean disagreements low/high from 10 dB on, and whether low is always lower."""
        ratios = [
            kdr[condition][c.label].mean(axis=0)[i] / kdr[condition][high.label].mean(axis=0)[i] for c in low for i in at
        ]
        return float(max(ratios)), max(ratios) < 1.0

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
    ratio, holds = worst_of([ILP, HUNGARIAN], GREEDY, "noise")
    study.claim("KDR: BKQ-BM worst of the balanced (largest ratio of the others to it)", "highest", ratio, holds)


def _mismatch(study: Study, walks: list[_uma.Walk]) -> None:
    """Compare k-means and balanced quantizers where Bob's level differs and nobody takes levels out."""
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
        "… ILP-BVQ < k-means where levels are left in and Bob's is 1 dB or more below Alice's: balance at Bob undoes it "
        f"(ratios over {GAINS_DB} dB)", None, over, bool((over[2:] < 1.0).all()),
    )  # fmt: skip
    over = mean[:, 1] / mean[:, 0]
    study.claim(f"… BKQ-BM < k-means there (ratios over {GAINS_DB} dB)", "lower", over, bool((over[2:] < 1.0).all()))


def _mismatched(walk: _uma.Walk) -> list[list[float]]:
    """Return the disagreement (gain, quantizer) of the paper's steps on CSI as measured, levels left in."""
    alice, bob = _uma.pair(_uma.snapshots(walk), walk, CONDITIONS["noise"].at(25.0))
    mine, theirs = (_quantized.features(h, STEP, True).values.reshape(-1, 2) for h in (alice, bob))
    out = []
    for gain_db in GAINS_DB:
        row = []
        for case in (KMEANS, GREEDY, ILP):
            q: Any = case.make()
            rng = generator(walk.seed, "quantizers", case.stage)
            centroids = q.cluster(mine, rng)
            table = label_regions(centroids, rng)
            weaker = theirs * 10 ** (-gain_db / 20)
            ends = [table[q.assign(squared_distances(x, centroids))[0]] for x in (mine, weaker)]
            row.append(float((ends[0] != ends[1]).mean()))
        out.append(row)
    return out


def _labelling(study: Study) -> None:
    """Say how good bit labels of regions in the plane can be."""
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
    """Measure Alice's clustering and Bob's one assignment, all quantizers in turn in this process."""
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
    """Return the median seconds of each vector quantizer; repetitions in turn, so that all meet the same machine."""
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


def _randomness(study: Study, walks: list[_uma.Walk]) -> None:
    """Table 2: Alice's raw keys, 100 sequences of 256 bits a quantizer, by SP 800-22."""
    parts = study.map(_raw_key, walks)
    rows, passed, ok = [], {}, {}
    for i, case in enumerate(CASES):
        bits = np.concatenate([part[i].reshape(-1) for part in parts])
        sequences = bits[: bits.size // SEQUENCE_BITS * SEQUENCE_BITS].reshape(-1, SEQUENCE_BITS)
        tests = randomness.assess(sequences)["tests"]
        run = [t for t in tests if t["reason"] is None]
        # the paper counts sequences only; the standard asks for uniform p-values too
        passed[case.label] = np.mean([t["pass_ratio"] >= randomness.least_pass_ratio(len(sequences)) for t in run])
        ok[case.label] = np.mean([t["ok"] for t in run])
        rows += [
            {"quantizer": case.label, "test": t["statistic"], "pass ratio": t["pass_ratio"], "p-value": t["p_value"],
             "sequences": t["sequences"], "ok": t["ok"], "reason": t["reason"]} for t in tests
        ]  # fmt: skip
    study.table("table2", rows)
    study.table("table2, share of tests passed", [
        {"quantizer": label, "by pass ratio": passed[label], "by pass ratio and uniform p-values": ok[label]}
        for label in passed
    ])  # fmt: skip
    balanced = min(passed[c.label] for c in (HUNGARIAN, GREEDY, ILP))
    study.claim("NIST: balanced quantizers pass most tests (least share passed)", "most", balanced, balanced > 0.5)
    share = passed[KMEANS.label]
    study.claim("NIST: k-means passes a minority (share passed)", "a minority", share, share < 0.5)


def _raw_key(walk: _uma.Walk) -> list[U8]:
    """Return Alice's bits (coefficient, bit) by quantizer at 20 dB."""
    alice, bob = _uma.pair(_uma.snapshots(walk), walk, CONDITIONS["noise"].at(20.0))
    return [_quantized.quantized(case, alice, bob, KEY_STEP, walk.seed).alice for case in CASES]
