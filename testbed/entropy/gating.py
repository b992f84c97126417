"""Estimates which of several experts is right at which probe: a hidden Markov chain, by forward and backward passes.

An expert is anything that states how likely a symbol or a probe is: a regression or an attack. The hidden state of a
probe is the expert that is right there. It stays the same from one probe to the next or, with a small probability, is
drawn anew in the proportions in which the experts are used (fixed share: Herbster and Warmuth 1998; Markov-switching
regressions: Hamilton 1989). The weights of the experts at a symbol never depend on the symbol itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.core.types import F64, I64

_CHANGES = np.array([0.3, 0.06, 0.01, 1e-3])
"""Probabilities of a change from one probe to the next, of which the best is used."""
_TURNS = 3
_LEAST_SHARE = 1e-4


@dataclass(frozen=True, slots=True)
class Gate:
    """The weight of each expert at each probe."""

    without: F64
    """(probe, expert) natural logarithms of the weights by all other probes, not normalised."""
    total: float
    """Log-likelihood of the probes' values, each with the weights by all other probes, summed over the probes."""


def gate(likely: F64, turns: int = _TURNS) -> Gate:
    """Return weights of the experts, from (probe, expert) log-likelihoods; 0 in a row where nothing is known.

    The probability of a change is the one with the largest log-likelihood, each probe being predicted by the others.
    """
    share = np.full(likely.shape[1], 1.0 / likely.shape[1])
    scaled = np.exp(np.maximum(likely - likely.max(axis=1, keepdims=True), -600.0))
    best, without = 0, np.empty((0, 0, 0))
    totals = np.zeros(_CHANGES.size)
    for _ in range(turns):
        without = _both_ways(scaled, share)
        posterior = without * scaled
        sums = posterior.sum(axis=2)
        totals = np.log(sums / without.sum(axis=2)).sum(axis=1)
        best = int(totals.argmax())
        used = (posterior[best] / sums[best][:, None]).mean(axis=0)
        share = np.maximum(used, _LEAST_SHARE) / np.maximum(used, _LEAST_SHARE).sum()
    with np.errstate(divide="ignore"):
        return Gate(np.log(without[best]), float(totals[best] + likely.max(axis=1).sum()))


def _both_ways(scaled: F64, share: F64) -> F64:
    """Return (change, probe, expert) the weights by the earlier probes times those by the later probes.

    The chain is reversible: after a change, experts are drawn in their stationary proportions. Relative to these
    proportions, the forward and the backward pass are therefore the same recursion.
    """
    n, k = scaled.shape
    change = _CHANGES[:, None]
    stay, ways = 1.0 - change, np.stack([scaled, scaled[::-1]], axis=1)[:, :, None]
    passed = np.empty((n, 2, _CHANGES.size, k))
    now, scale = np.ones((2, _CHANGES.size, k)), np.empty((2, _CHANGES.size, 1))
    for row, way in zip(passed, ways, strict=True):
        row[...] = now
        np.multiply(now, way, out=now)
        np.matmul(now, share, out=scale[:, :, 0])
        np.divide(stay, scale, out=scale)
        np.multiply(now, scale, out=now)
        np.add(now, change, out=now)
    return np.asarray(np.moveaxis(passed[:, 0] * passed[::-1, 1] * share, 0, 1))


def weights_of_symbols(loss: F64, probe: I64) -> F64:
    """Return (symbol, expert) weights that sum to 1, from log-likelihoods (symbol, expert) and each symbol's probe.

    Other symbols of the same probe count, and all other probes; the symbol itself does not.
    """
    place, where = np.unique(probe, return_inverse=True)
    sums = [np.bincount(where, column, place.size) for column in loss.T]
    together = np.asarray(np.stack(sums, axis=1), np.float64)
    return normalised(gate(together).without[where] + together[where] - loss)


def weights_in_groups(loss: F64, group: I64, probe: I64) -> F64:
    """As `weights_of_symbols`, if one expert is right in all of a group. The symbol's own probe does not count."""
    where = np.unique(group, return_inverse=True)[1]
    cell = np.unique(where * (int(probe.max(initial=0)) + 1) + probe, return_inverse=True)[1]
    out = np.empty(loss.shape)
    for i, column in enumerate(loss.T):
        out[:, i] = np.bincount(where, column)[where] - np.bincount(cell, column)[cell]
    return normalised(out)


def normalised(logs: F64) -> F64:
    """Return weights that sum to 1 in each row, from their natural logarithms."""
    w = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(w / w.sum(axis=1, keepdims=True))
