"""Puts the series of several recordings on one axis of round numbers, and pairs them with Alice's rounds."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.facts import Facts, Heard, zero_filled
from testbed.entropy.gaussian_labels import normal_scores


def at_rounds(rounds: I64, values: F64, wanted: I64) -> F64:
    """Return (wanted, column) the values at these rounds, of any shape; NaN where the series has none."""
    place = np.searchsorted(rounds, wanted)
    place = np.minimum(place, max(rounds.size - 1, 0))
    out = np.full((*wanted.shape, values.shape[1]), np.nan)
    if rounds.size:
        there = rounds[place] == wanted
        out[there] = values[place[there]]
    return out


def joined(heard: tuple[Heard, ...], scores: bool = True) -> tuple[I64, F64]:
    """Return all of Eve's series side by side: rounds of any of them, and (round, channel) values, NaN where missing.

    `scores`: each channel's normal scores over the whole recording; else its values in standard deviations.
    """
    rounds = np.unique(np.concatenate([h.rounds for h in heard])) if heard else np.zeros(0, np.int64)
    columns = [at_rounds(h.rounds, normal_scores(h.values) if scores else standard(h.values), rounds) for h in heard]
    return rounds, np.concatenate(columns, axis=1) if columns else np.zeros((rounds.size, 0))


def joined_of(facts: Facts, scores: bool = True, whole: bool = False) -> tuple[I64, F64]:
    """As `joined` for a block, computed once for all attacks and folds. Unless `whole`, channels that never vary are
    left out."""
    key = ("joined", scores, whole)
    if key not in facts.scratch:
        if whole:
            facts.scratch[key] = joined(facts.heard, scores)
        else:
            rounds, values = joined_of(facts, scores, whole=True)
            facts.scratch[key] = rounds, values[:, np.isfinite(values).any(axis=0)]
    found: tuple[I64, F64] = facts.scratch[key]
    return found


def standard(values: F64) -> F64:
    """Return each column in standard deviations from its mean; NaN where missing or without variation."""
    there = np.isfinite(values)
    n = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, values, 0.0).sum(axis=0) / n
    spread = np.sqrt(np.where(there, (values - mean) ** 2, 0.0).sum(axis=0) / n)
    with np.errstate(invalid="ignore", divide="ignore"):
        out = (values - mean) / spread
    out[:, ~(spread > 1e-12 * np.maximum(np.abs(mean), 1e-300))] = np.nan
    return np.asarray(out)


def aligned(facts: Facts) -> F64:
    """Return (probe, channel) Eve's channels in Alice's rounds, in standard deviations; NaN where she lacks them."""
    if "aligned" not in facts.scratch:
        rounds, values = joined_of(facts, scores=False)
        facts.scratch["aligned"] = at_rounds(rounds, values, facts.rounds)
    found: F64 = facts.scratch["aligned"]
    return found


def reduced(x: F64, most: int) -> F64:
    """Return at most `most` columns with the largest part of x; unchanged where x has no more."""
    most = min(most, max(8, x.shape[0] // 4))
    if x.shape[1] <= most:
        return x
    filled = zero_filled(x)
    vectors = np.linalg.eigh(filled.T @ filled)[1][:, -most:]
    return np.asarray(filled @ vectors)
