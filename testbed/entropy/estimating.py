"""The base of most attacks: inputs by probe, a regression to Alice's scores, labels from the estimates."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack, Folds
from testbed.entropy.facts import Facts
from testbed.entropy.gaussian_labels import normal_scores
from testbed.entropy.read_off import frequencies, here_and_now, read_off_columns, scores
from testbed.entropy.ridge import by_pattern, spread_where_missing
from testbed.entropy.shifts import Match

MOST_INPUTS = 96
_PASSES = 3
_LEAST_CONTRAST = 0.7
"""How much errors must vary, as a natural logarithm, before a regression takes account of it."""


class EstimatingAttack(Attack):
    """Estimates every column of Alice's scores from inputs at the same probe."""

    folds: ClassVar[Folds] = "probes"
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
        mean, self._freedom = fit.mean, fit.freedom
        off = locally(facts, y - mean, spread)
        for _ in range(_PASSES):
            if np.ptp(off) < _LEAST_CONTRAST:
                break
            fit = by_pattern(x, y, most, np.exp(-off))
            other = spread_where_missing(x, y, fit)
            error = locally(facts, y - fit.mean, other)
            # where one estimate is off and the other is not, the other is used; where both are, neither is
            better = (error < off)[:, None]
            mean, spread, off = (
                np.where(better, fit.mean, mean),
                np.where(better, other, spread),
                np.minimum(error, off),
            )
            self._freedom = max(self._freedom, fit.freedom)
        return read_off_columns(facts, train, test, y, mean, spread)

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom


def locally(facts: Facts, error: F64, spread: F64) -> F64:
    """Return (probe,) the logarithm of the estimates' error around each probe; error, spread (probe, column)."""
    column = facts.main_column[facts.dimension]
    usual = spread[facts.probe, column]
    off = usual * here_and_now(facts, error[facts.probe, column], usual)
    off = np.log(np.where(np.isfinite(off) & (off > 0), off, 1.0))
    count = np.bincount(facts.probe, minlength=facts.rounds.size)
    return np.asarray(np.bincount(facts.probe, off, facts.rounds.size) / np.maximum(count, 1))


class DirectAttack(Attack):
    """Uses one channel for each of Alice's columns, unchanged except for its sign: only a few parameters.

    In a regression with hundreds of parameters, what it has not learnt would look like entropy.
    """

    folds: ClassVar[Folds] = "probes"
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
        mean, spread = direct(z, best.inputs)
        return read_off_columns(facts, train, test, z, mean, np.broadcast_to(spread, mean.shape))

    @property
    def degrees_of_freedom(self) -> float:
        """Shift, sign, channel, error, and doubt."""
        return 5.0 if self._fitted else 0.0


def direct(z: F64, inputs: F64) -> tuple[F64, F64]:
    """Return estimates (probe, column) of z and (column,) their errors, each from the one best channel."""
    x = normal_scores(inputs)
    a, b = np.nan_to_num(z), np.nan_to_num(x)
    both = np.isfinite(z).T.astype(float) @ np.isfinite(x).astype(float)
    power = np.sqrt((a**2).T @ np.isfinite(x) * (np.isfinite(z).T.astype(float) @ b**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.where(both >= 16, a.T @ b / power, 0.0)
    r = np.nan_to_num(r)
    best = np.abs(r).argmax(axis=1)
    rho = np.clip(r[np.arange(z.shape[1]), best], -0.99995, 0.99995)
    return np.asarray(x[:, best] * rho), np.sqrt(1.0 - rho**2)
