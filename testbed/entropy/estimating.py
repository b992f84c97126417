"""The base of most attacks: a regression from inputs at each probe to Alice's scores, and from there to labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack, Folds
from testbed.entropy.facts import Facts, zero_filled
from testbed.entropy.gaussian_labels import normal_scores
from testbed.entropy.read_off import frequencies, read_off_columns, scores
from testbed.entropy.regimes import Estimate, changes, switching
from testbed.entropy.ridge import by_pattern, spread_where_missing
from testbed.entropy.shifts import Match

MOST_INPUTS = 96


class ByRegimes(Attack):
    """An attack whose estimates may be better in some parts of the block than in others."""

    folds: ClassVar[Folds] = "probes"
    _changes: bool | None = None
    """Whether such parts are told apart; the first fold decides this for all folds."""

    def _by_regimes(self, y: F64, found: Estimate, again: Callable[[F64], Estimate]) -> Estimate:
        known = None if self._changes is False else changes(y, found)
        if known is None:
            self._changes = self._changes or False
            return found
        by_regimes = switching(y, found, known, again)
        if self._changes is None:
            self._changes = by_regimes is not found
        return by_regimes


class EstimatingAttack(ByRegimes):
    """Estimates every column of Alice's scores from inputs at the same probe."""

    _freedom = 0.0

    @abstractmethod
    def inputs(self, facts: Facts, z: F64) -> F64 | None:
        """Return (probe, input), NaN where missing; None where there is no input. z: Alice's scores."""

    def targets(self, z: F64) -> F64:
        """Return (probe, column) the function of Alice's scores that is estimated; NaN where they are NaN."""
        return z

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        x = self.inputs(facts, z)
        if x is None or not np.isfinite(x).any():
            self._freedom = 0.0
            return np.asarray(frequencies(facts, train)[test])
        y = self.targets(z)
        most = min(MOST_INPUTS, max(8, x.shape[0] // 6))
        fit = by_pattern(x, y, most)
        spread = spread_where_missing(x, y, fit)
        found = Estimate(fit.mean, spread, fit.freedom)
        found = self._by_regimes(y, found, lambda trust: _with_trust(x, y, most, trust))
        self._freedom = found.freedom
        return read_off_columns(facts, train, test, y, found.mean, found.spread)

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom


def _with_trust(x: F64, y: F64, most: int, trust: F64) -> Estimate:
    fit = by_pattern(x, y, most, trust)
    return Estimate(fit.mean, np.broadcast_to(fit.spread, y.shape), fit.freedom)


class DirectAttack(ByRegimes):
    """Uses one channel for each of Alice's columns, unchanged except for its sign: only a few parameters.

    A regression with hundreds of parameters has a large error of its own, which would be mistaken for entropy.
    """

    _fitted = False

    @abstractmethod
    def matches(self, facts: Facts, z: F64) -> list[Match]:
        """Return the candidate channels; the one that agrees best is used."""

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        best = max(self.matches(facts, z), key=lambda m: m.agreement, default=None)
        self._fitted = best is not None
        if best is None:
            return np.asarray(frequencies(facts, train)[test])
        channels = chosen(z, best.inputs)
        found = scaled(z, channels, np.ones(z.shape[0]))
        found = self._by_regimes(z, found, lambda trust: scaled(z, channels, trust))
        return read_off_columns(facts, train, test, z, found.mean, found.spread)

    @property
    def degrees_of_freedom(self) -> float:
        """Return 5 (shift, sign, channel, error and doubt, see `read_off`), or 0 where nothing is fitted."""
        return 5.0 if self._fitted else 0.0


def chosen(z: F64, inputs: F64) -> F64:
    """Return (probe, column) the channel that agrees best with each column of z, as normal scores."""
    there, known = np.isfinite(inputs).astype(float), np.isfinite(z).astype(float)
    a, b = zero_filled(z), zero_filled(inputs)
    both = known.T @ there
    power = np.sqrt((a**2).T @ there * (known.T @ b**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = zero_filled(np.where(both >= 16, a.T @ b / power, 0.0))
    best = np.abs(r).argmax(axis=1)
    return np.where(np.abs(r).max(axis=1) > 0, normal_scores(inputs[:, best]), np.nan)


def scaled(z: F64, x: F64, trust: F64) -> Estimate:
    """Return estimates of z (probe, column): x, of the same shape, times one factor per column.

    trust: (probe,) weights.
    """
    known = np.isfinite(z) & np.isfinite(x)
    w = np.where(known, trust[:, None] ** 2, 0.0)
    a, b = np.where(known, z, 0.0), np.where(known, x, 0.0)
    power = (w * b**2).sum(axis=0)
    factor = (w * a * b).sum(axis=0) / np.where(power > 0, power, np.inf)
    error = (w * (a - factor * b) ** 2).sum(axis=0)
    spread = np.sqrt(np.maximum(error / np.maximum(w.sum(axis=0), 1e-9), 1e-4))
    mean = np.where(np.isfinite(x), factor * zero_filled(x), np.nan)
    return Estimate(mean, np.broadcast_to(spread, z.shape), 2.0 * z.shape[1])
