"""Are granted keys secret? Compares granted with true secret bits in cases where the true number is known.

This study belongs to no paper: it tests our own length rule. Its cases are those in which an Eve could know a key that
an earlier rule granted, further ones that were not used when the rule was written, and harmless ones, which must still
give a key. The true number of secret bits is the Shannon entropy of the kept labels given everything that the case's
Eve has, computed or bounded from above: no method can distil more. No bits are leaked by a discussion, so that only the
rule is tested.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from testbed.entropy.length import Budget
from testbed.papers.kit.study import Study
from testbed.papers.secrecy_of_keys.cases import CASES
from testbed.papers.secrecy_of_keys.table import RULES, Row, of_case, summary

PAPER = "length rule"
SEEDS, PROBES = 20, 300
QUICK_SEEDS, QUICK_PROBES = 1, 300


def run(study: Study) -> None:
    seeds, probes = (QUICK_SEEDS, QUICK_PROBES) if study.quick else (SEEDS, PROBES)
    cases = [c for c in CASES if not study.quick or c.name in _QUICK]
    study.parameters.update(seeds=seeds, probes=probes, epsilon_log2=Budget().epsilon_log2, cases=len(cases))
    jobs = [(c.name, seed, probes) for c in cases for seed in range(1, seeds + 1)]
    found = [row for rows in study.map(judged, jobs) for row in rows]
    table = summary(found)
    study.table("cases", [{"case": name, **values} for name, values in table.items()])
    study.table("blocks", [asdict(r) for r in found])
    for rule in RULES:
        _figure(study, [r for r in found if r.rule == rule], rule)
    _claims(study, found)


_QUICK = (
    "Eve walks 40 rounds behind",
    "one packet missing",
    "codebook swept again in the next block",
    "half rate",
    "AR(1) 0.5, Eve unrelated",
    "Eve with correlation 0.6",
)


def judged(job: tuple[str, int, int]) -> list[Row]:
    """Return the rows of one case and seed, one for each rule."""
    name, seed, probes = job
    case = next(c for c in CASES if c.name == name)
    return of_case(case, seed, probes, Budget())


def _figure(study: Study, found: list[Row], rule: str) -> None:
    names = list(dict.fromkeys(r.case for r in found))

    def of(name: str, field: str) -> np.ndarray:
        return np.array([getattr(r, field) for r in found if r.case == name], float)

    means = {what: [float(of(n, field).mean()) for n in names] for what, field in _CURVES.items()}
    errors = {
        what: [
            float(of(n, field).std(ddof=1) / np.sqrt(of(n, field).size)) if of(n, field).size > 1 else 0.0
            for n in names
        ]
        for what, field in _CURVES.items()
    }
    study.figure(
        f"granted_{rule}", f"Granted against true secret bits, {rule}", list(range(len(names))),
        "case (see the table)", "bits a block", means, errors,
    )  # fmt: skip


_CURVES = {"label bits": "label_bits", "true": "true_bits", "granted": "granted"}


def _claims(study: Study, found: list[Row]) -> None:
    beyond: list[Any] = [[r.case, r.rule, r.seed, r.granted - r.true_bits] for r in found if r.granted > r.true_bits]
    study.claim(
        f"no block of {len(found)} is granted more bits than its Eve leaves",
        None,
        beyond or 0,
        not beyond,
        must_hold=True,
    )
    failed = sorted({f for r in found for f in r.failures})
    study.claim("no attack fails or returns an invalid result", None, failed or 0, not failed, must_hold=True)
    for rule in RULES:
        harmless = [r for r in found if r.harmless and r.rule == rule]
        for name in dict.fromkeys(r.case for r in harmless):
            share = float(np.mean([r.share for r in harmless if r.case == name]))
            study.claim(f"{rule}: {name}: share of the true secret bits that is granted", None, share, share > 0.0)
