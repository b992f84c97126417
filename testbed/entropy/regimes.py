"""Regressions that change during a block, because Eve receives well only at times or her signals' relation changes.

There are three regimes: two regressions, and one in which nothing is known. The regime of a probe is a hidden state
(`entropy.gating`); states and regressions are estimated in turn (expectation maximisation, Hamilton 1989).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from testbed.core.types import F64
from testbed.entropy.gating import Gate, gate, normalised

_TURNS = 2
_GAIN_NATS, _GAIN_SHARE = 12.0, 0.02
"""Least gain in log-likelihood for which regimes replace a single regression, where each probe is predicted by all
others: a total, and an amount for each value."""
_WORST_NATS = 8.0
"""Limit of the log-likelihood of a single value, in nats, so that one outlier does not decide the regime of a probe."""
_LEAST_SPREAD, _LEAST_WEIGHT, _LEAST_POWER = 0.01, 1e-3, 0.02
_CORRELATIONS = (0.6, 0.9, 0.99)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Estimates of Alice's scores; at training probes, those of a fit without the probe itself."""

    mean: F64
    """(probe, column)."""
    spread: F64
    """(probe, column)."""
    freedom: float


def changes(y: F64, first: Estimate) -> F64 | None:
    """Return (probe,) the probability that Eve knows more there than `first` says; None where nothing changes.

    y (probe, column) are Alice's scores, NaN where hidden. A single regression over probes at which Eve knows much and
    others at which she knows little gives too small estimates for the former and too large ones for the latter.
    """
    power = np.where(np.isfinite(first.spread), 1.0 - np.minimum(first.spread, 1.0) ** 2, 0.0)
    usual = np.sqrt(np.maximum(power.max(axis=0), _LEAST_POWER))
    tried = [Estimate(first.mean / usual * r, np.full(y.shape, np.sqrt(1.0 - r**2)), 0.0) for r in _CORRELATIONS]
    likely = _likely(y, [first, *tried])
    # Few turns: before the weights are learnt, needless experts would cost more than the needed one gains.
    alone, how = gate(likely[:, [0, -1]], turns=1), gate(likely, turns=1)
    if how.total < alone.total + _least_gain(y):
        return None
    return np.asarray(normalised(how.without + likely)[:, 2:-1].sum(axis=1))


def switching(y: F64, first: Estimate, known: F64, again: Callable[[F64], Estimate]) -> Estimate:
    """Return estimates by regimes, or the first one where one regression explains as much.

    known: as `changes` returns it. again(trust (probe,)): the regression with weights.
    """
    trust = [known, 1.0 - known]
    alone = gate(_likely(y, [first]), turns=1).total
    best: tuple[float, list[Estimate]] = (-np.inf, [first])
    for _ in range(_TURNS):
        found = [_own_spread(y, again(np.sqrt(np.maximum(w, _LEAST_WEIGHT))), w) for w in trust]
        likely = _likely(y, found)
        how = gate(likely, turns=1)
        if how.total > best[0]:
            best = how.total, found
        weights = normalised(how.without + likely)
        trust = [weights[:, 0], weights[:, 1]]
    return best_of(y, best[1], turns=3) if best[0] > alone + _least_gain(y) else first


def _least_gain(y: F64) -> float:
    return _GAIN_NATS + _GAIN_SHARE * float(np.count_nonzero(np.isfinite(y)))


def _own_spread(y: F64, found: Estimate, weight: F64) -> Estimate:
    """Return the estimate with the spread that its errors have in this regime."""
    error = y - found.mean
    known = np.isfinite(error)
    w = np.where(known, weight[:, None], 0.0)
    power = (w * np.where(known, error, 0.0) ** 2).sum(axis=0) + 0.5
    spread = np.sqrt(power / (w.sum(axis=0) + 0.5))
    spread = np.where(np.isfinite(found.mean), spread.clip(_LEAST_SPREAD, 1.5), np.inf)
    return Estimate(found.mean, spread, found.freedom)


def _likely(y: F64, found: list[Estimate]) -> F64:
    """Return (probe, regime) log-likelihoods relative to knowing nothing, which is the last regime."""
    out = []
    for f in found:
        error = y - f.mean
        known = np.isfinite(error) & np.isfinite(f.spread)
        s = np.where(known, f.spread, 1.0)
        gain = (np.where(known, y, 0.0) ** 2 - (np.where(known, error, 0.0) / s) ** 2) / 2.0 - np.log(s)
        out.append(np.maximum(gain, -_WORST_NATS).sum(axis=1))
    return np.stack([*out, np.zeros(y.shape[0])], axis=1)


def _together(found: list[Estimate], how: Gate) -> Estimate:
    """Return mean and spread of the mixture of regimes at each probe; the weights follow from all other probes."""
    w = normalised(how.without)[:, :, None]
    means = [np.where(np.isfinite(f.mean), f.mean, 0.0) for f in found] + [np.zeros(found[0].mean.shape)]
    spreads = [np.where(np.isfinite(f.spread), f.spread, 1.0) for f in found] + [np.ones(found[0].mean.shape)]
    mean = sum(w[:, i] * m for i, m in enumerate(means))
    power = sum(w[:, i] * (s**2 + m**2) for i, (m, s) in enumerate(zip(means, spreads, strict=True)))
    there = np.any([np.isfinite(f.mean) for f in found], axis=0)
    spread = np.sqrt(np.maximum(power - mean**2, _LEAST_SPREAD**2))
    return Estimate(
        np.where(there, mean, np.nan), np.where(there, spread, np.inf), sum(f.freedom for f in found)
    )  # fmt: skip


def best_of(y: F64, found: list[Estimate], turns: int = 1) -> Estimate:
    """Return the mixture of several estimates and of no knowledge, weighed at each probe by which is right there."""
    return _together(found, gate(_likely(y, found), turns))
