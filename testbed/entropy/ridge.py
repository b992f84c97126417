"""Ridge regressions with error estimates: at training rows without the row's own influence, at other rows directly.

Each target has the penalty that is best by generalised cross-validation (Golub, Heath and Wahba 1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64
from testbed.entropy.facts import zero_filled

_PENALTIES = 10.0 ** np.arange(-7.0, 2.5, 0.75)
"""Penalties as shares of the number of rows times the mean variance of the inputs."""
_LEAST_ROWS = 8
_MOST_PATTERNS, _LEAST_ROWS_A_PATTERN = 4, 60


@dataclass(frozen=True, slots=True)
class Fit:
    """Estimates of several targets."""

    mean: F64
    """(row, target)."""
    spread: F64
    """(target,) root mean square error at training rows, each without its own influence; inf: not learnt."""
    freedom: float
    """Effective number of parameters, all targets together."""


def ridge(x: F64, y: F64, fill: bool = False, trust: F64 | None = None) -> Fit:
    """Regress y (row, target), NaN where not known, on x (row, input); a NaN in x counts as the input's mean.

    fill: unknown targets of a row with known ones count as their mean, and the estimates are scaled up to correct for
    that; targets that are known in different rows can then share one regression. trust: (row,) weights of the rows in
    proportion to the inverse of their errors; None: all equal.
    """
    if fill:
        known = np.isfinite(y)
        rows = np.asarray(known.any(axis=1))
        filled = np.where(rows[:, None], np.where(known, y, 0.0), np.nan)
        share = np.maximum(known.sum(axis=0), 1) / max(int(rows.sum()), 1)
        fit = ridge(x, filled)
        left = np.where(known, y - fit.mean / share, 0.0)
        spread = np.sqrt((left**2).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
        return Fit(fit.mean / share, spread, fit.freedom)
    mean, spread, freedom = np.full(y.shape, np.nan), np.full(y.shape[1], np.inf), 0.0
    known = np.isfinite(y)
    codes: dict[bytes, list[int]] = {}
    for d in range(y.shape[1]):
        codes.setdefault(known[:, d].tobytes(), []).append(d)
    for targets in codes.values():
        teach = known[:, targets[0]]
        if np.count_nonzero(teach) >= _LEAST_ROWS and x.shape[1]:
            m, s, f = _fit(x, y[:, targets], teach, trust)
            mean[:, targets], spread[targets] = m, s
            freedom += f
    return Fit(mean, spread, freedom)


def by_pattern(x: F64, y: F64, most: int, trust: F64 | None = None) -> Fit:
    """Regress as `screened`, and do it again for each large group of rows that lack the same inputs.

    How useful an input is depends on which others are there. Rows that lack inputs therefore get a regression of their
    own, fitted to all rows that have at least the inputs they have.
    """
    fit = screened(x, y, most, trust)
    there = np.isfinite(x)
    if there.all():
        return fit
    packed = np.ascontiguousarray(np.packbits(there, axis=1))
    row = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, which, count = np.unique(row, return_index=True, return_inverse=True, return_counts=True)
    mean, freedom = fit.mean.copy(), fit.freedom
    for i in np.argsort(-count, kind="stable")[:_MOST_PATTERNS].tolist():
        have = there[first[i]]
        if count[i] < _LEAST_ROWS_A_PATTERN or not have.any():
            continue
        rows = np.asarray(there[:, have].all(axis=1))
        part = screened(x[rows][:, have], y[rows], most, None if trust is None else trust[rows])
        own = which[rows] == i
        mean[np.flatnonzero(rows)[own]] = part.mean[own]
        freedom = max(freedom, part.freedom)
    left = y - mean
    known = np.isfinite(left)
    power = (np.where(known, left, 0.0) ** 2).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return Fit(mean, np.where(np.isfinite(fit.spread), np.sqrt(power), np.inf), freedom)


def screened(x: F64, y: F64, most: int, trust: F64 | None = None) -> Fit:
    """Regress as `ridge`, but with at most `most` inputs for each target: those that are most correlated with it."""
    if x.shape[1] <= most:
        return ridge(x, y, trust=trust)
    a, b = zero_filled(x), zero_filled(y)
    power = np.sqrt((a**2).sum(axis=0))
    strength = np.abs(b.T @ a) / np.where(power > 0, power, np.inf)
    parts = [ridge(a[:, np.argsort(-s, kind="stable")[:most]], y[:, [d]], trust=trust) for d, s in enumerate(strength)]
    return Fit(
        np.concatenate([f.mean for f in parts], axis=1),
        np.concatenate([f.spread for f in parts]),
        sum(f.freedom for f in parts),
    )


def _fit(x: F64, y: F64, teach: NDArray[np.bool_], trust: F64 | None) -> tuple[F64, F64, float]:
    taught = x[teach]
    centre = zero_filled(taught).sum(axis=0) / np.maximum(np.count_nonzero(~np.isnan(taught), axis=0), 1)
    x = zero_filled(x - centre)
    power = np.sqrt((x[teach] ** 2).mean(axis=0))
    x /= np.where(power > 1e-12 * max(power.max(initial=0.0), 1e-300), power, np.inf)
    taught = x[teach]
    w = np.ones((int(np.count_nonzero(teach)), 1)) if trust is None else trust[teach][:, None]
    w = w / np.sqrt((w**2).mean())
    offset = (w**2 * y[teach]).mean(axis=0)
    xt, yt = w * taught, w * (y[teach] - offset)
    n = yt.shape[0]
    eigenvalues, vectors = np.linalg.eigh(xt.T @ xt)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    turned = x @ vectors
    onto = (w * turned[teach]).T @ yt
    penalty = n * _PENALTIES
    shrink = 1.0 / (eigenvalues[None, :] + penalty[:, None])
    # residual sums of squares from the eigenvalues alone: (penalty, target)
    residual = (yt**2).sum(axis=0) - 2.0 * shrink @ onto**2 + (shrink**2 * eigenvalues) @ onto**2
    freedom = (eigenvalues * shrink).sum(axis=1)
    gcv = np.maximum(residual, 0.0) / np.maximum(n - 1.0 - freedom, 1.0)[:, None] ** 2
    best = gcv.argmin(axis=0)
    mean = turned @ (shrink[best].T * onto)
    # At training rows, the prediction by the other rows alone is y − (y − ŷ)/(1 − h).
    hat = w**2 * (1.0 / n + turned[teach] ** 2 @ shrink[best].T)
    known = y[teach] - offset
    own = (known - mean[teach]) / np.maximum(1.0 - hat, 1e-3)
    mean[teach] = known - own
    return mean + offset, np.sqrt((own**2).mean(axis=0)), float(freedom[best].sum())


_SHARES = np.array([0.02, 0.3, 0.7])
_LEAST_GROUP = 12


def spread_where_missing(x: F64, y: F64, fit: Fit) -> F64:
    """Return (row, target) errors of the estimates, separately for rows that lack little or much of the relevant
    inputs.

    Relevant inputs are those correlated with the targets. A training row next to hidden rows lacks inputs that hidden
    rows have; the larger errors of such training rows must not be assumed of the hidden rows.
    """
    there, error = np.isfinite(x), y - fit.mean
    out = np.broadcast_to(fit.spread, y.shape).copy()
    if there.all():
        return out
    a, b = zero_filled(x), zero_filled(y)
    weight = ((b.T @ a) ** 2 / np.maximum((a**2).sum(axis=0), 1e-12)).sum(axis=0)
    lack = (~there) @ weight / max(float(weight.sum()), 1e-12)
    group = np.searchsorted(_SHARES, lack)
    for g in np.unique(group).tolist():
        rows = group == g
        known = np.isfinite(error[rows])
        enough = known.sum(axis=0) >= _LEAST_GROUP
        power = (np.where(known, error[rows], 0.0) ** 2).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        out[rows] = np.where(enough, np.sqrt(power), fit.spread)
    return out
