"""A table of granted bits, true secret bits and guessed labels, with a row for every case, seed and rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from testbed.core.seeds import generator
from testbed.entropy.judge import Rule, judge
from testbed.entropy.length import Budget, key_length
from testbed.papers.secrecy_of_keys.cases import CASES, Case

RULES: tuple[Rule, ...] = ("estimated", "modelled")


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    harmless: bool
    seed: int
    rule: Rule
    label_bits: int
    """M, the number of bits of the kept symbols."""
    granted: int
    true_bits: float
    """Shannon entropy of the kept labels given this Eve, or an upper bound of it."""
    guessed: float
    """Share of labels that the best attack guesses."""
    limiting: str
    failures: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether no more bits are granted than are secret, and every attack worked."""
        return self.granted <= self.true_bits and not self.failures

    @property
    def share(self) -> float:
        """Share of the true secret bits that is granted."""
        return self.granted / self.true_bits if self.true_bits else 0.0


def rows(
    seeds: Sequence[int],
    cases: Sequence[Case] = CASES,
    probes: int = 600,
    budget: Budget | None = None,
    rules: Sequence[Rule] = RULES,
) -> list[Row]:
    """Apply the rules to every case with every seed and return the rows. No bits are leaked in these cases."""
    return [row for case in cases for seed in seeds for row in of_case(case, seed, probes, budget or Budget(), rules)]


def of_case(case: Case, seed: int, probes: int, budget: Budget, rules: Sequence[Rule] = RULES) -> list[Row]:
    made = case.make(generator(seed, "case", case.name), probes)
    judgement = judge(made.facts, epsilon_log2=budget.epsilon_log2, blocks=budget.blocks, seed=seed)
    guessed = max((f.guess_probability for f in judgement.findings), default=0.0)
    failures = tuple(f"{f.attack}: {f.reason}" for f in judgement.failures)
    out = []
    for rule in rules:
        length = key_length(made.facts, judgement, 0, budget, rule)
        out.append(
            Row(
                case=case.name,
                harmless=case.harmless,
                seed=seed,
                rule=rule,
                label_bits=judgement.kept_bits,
                granted=length.bits,
                true_bits=made.true_bits,
                guessed=guessed,
                limiting=length.limiting or "",
                failures=failures,
            )
        )
    return out


def summary(found: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return for each case and rule the largest number of bits granted in excess of the true ones, and mean values of
    granted and true bits, their ratio, and the share of labels guessed."""
    out: dict[str, dict[str, float]] = {}
    for name, rule in sorted({(r.case, r.rule) for r in found}):
        own = [r for r in found if (r.case, r.rule) == (name, rule)]
        out[f"{name} / {rule}"] = {
            "seeds": len(own),
            "beyond_true_bits": max(r.granted - r.true_bits for r in own),
            "granted_bits": float(np.mean([r.granted for r in own])),
            "true_bits": float(np.mean([r.true_bits for r in own])),
            "share": float(np.mean([r.share for r in own])),
            "guessed": float(np.mean([r.guessed for r in own])),
        }
    return out
