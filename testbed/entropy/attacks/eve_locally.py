"""The relation of Eve's channels to Alice's may change within a block: sign, gain, and which channel fits which."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attacks.eve_direct import EveDirect
from testbed.entropy.facts import Facts, zero_filled
from testbed.entropy.read_off import frequencies, read_off_columns, scores
from testbed.entropy.regimes import Estimate, best_of
from testbed.entropy.series import at_rounds, joined_of

_REACHES = (6, 24)
"""Number of probes to each side from which the relation is estimated."""
_MOST_CHANNELS = 40
_BORDERS = np.array([0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98])
"""Limits of the classes of local correlations. With so few probes, the largest of many correlations is large by chance;
each class therefore gets a factor of its own."""
_PRIOR = 1.0


class EveLocally(EveDirect):
    """Uses, for each of Alice's columns, the channel and the sign that agree best at the probes around."""

    knows = "her own signals, although their sign, gain and order change in the course of the block"
    needs = ("heard",)

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        x = self._channels(facts, z)
        self._fitted = bool(np.isfinite(x).any())
        if not self._fitted:
            return np.asarray(frequencies(facts, train)[test])
        found = best_of(z, [_around(z, x, reach) for reach in _REACHES])
        return read_off_columns(facts, train, test, z, found.mean, found.spread)

    @property
    def degrees_of_freedom(self) -> float:
        """Return the number of factors and spreads, one of each for every class of correlations."""
        return 2.0 * (_BORDERS.size + 1) if self._fitted else 0.0

    def _channels(self, facts: Facts, z: F64) -> F64:
        """Return (probe, channel) Eve's signals of the same round, and at the shift or sequence of shifts that fits
        best."""
        best = max(self.matches(facts, z), key=lambda m: m.agreement)
        now = at_rounds(*joined_of(facts), facts.rounds)
        x = now if best.inputs is now else np.concatenate([now, best.inputs], axis=1)
        if x.shape[1] <= _MOST_CHANNELS:
            return x
        a, b = zero_filled(z), zero_filled(x)
        sizes = np.abs(a) - np.abs(a).mean(axis=0), np.abs(b) - np.abs(b).mean(axis=0)
        strength = np.maximum(np.abs(a.T @ b), 1.6 * np.abs(sizes[0].T @ sizes[1])).max(axis=0)
        return np.asarray(x[:, np.sort(np.argsort(-strength, kind="stable")[:_MOST_CHANNELS])])


def _around(z: F64, x: F64, reach: int) -> Estimate:
    """Return estimates of z (probe, column) by the channels of x that agree best in a window around each probe, without
    the probe itself."""
    a, b = zero_filled(z), zero_filled(x)
    known, there = np.isfinite(z).astype(float), np.isfinite(x).astype(float)
    product = _others(a[:, :, None] * b[:, None, :], reach)
    power = _others(a**2, reach)[:, :, None] + _PRIOR, _others(b**2, reach)[:, None, :] + _PRIOR
    r = product / np.sqrt(power[0] * power[1])
    r = np.where(there[:, None, :] > 0, r, 0.0)
    best = np.abs(r).argmax(axis=2)
    r = np.take_along_axis(r, best[:, :, None], axis=2)[:, :, 0]
    turned = np.sign(r) * np.take_along_axis(b, best, axis=1)
    grade = np.searchsorted(_BORDERS, np.abs(r))
    mean, spread = np.zeros(z.shape), np.ones(z.shape)
    for g in np.unique(grade).tolist():
        own = grade == g
        teach = own & (known > 0)
        size = float((turned[teach] ** 2).sum())
        factor = float((a[teach] * turned[teach]).sum()) / (size + _PRIOR)
        mean[own] = factor * turned[own]
        left = float(((a - mean)[teach] ** 2).sum())
        spread[own] = np.sqrt((left + _PRIOR) / (np.count_nonzero(teach) + _PRIOR))
    return Estimate(mean, spread.clip(0.01, 1.5), 0.0)


def _others(values: F64, reach: int) -> F64:
    """Return the sums over a window of probes along the first axis, without the middle."""
    n = values.shape[0]
    total = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
    at = np.arange(n)
    return np.asarray(total[np.minimum(at + reach + 1, n)] - total[np.maximum(at - reach, 0)] - values)
