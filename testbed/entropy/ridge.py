"""Ridge regressions that say how far off they are: at rows that taught them without their own help, at others plainly.

The penalty is the best by generalised cross-validation (Golub, Heath and Wahba 1979) for each target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.core.types import F64

_PENALTIES = 10.0 ** np.arange(-7.0, 2.5, 0.75)
"""As shares of the number of rows times the mean variance of the inputs."""
_LEAST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Fit:
    """Estimates of several targets."""

    mean: F64
    """(row, target)."""
    spread: F64
    """(target,) root mean square of what is left at rows that taught, each without its own help; inf: not learnt."""
    freedom: float
    """Effective number of parameters, all targets together."""


def ridge(x: F64, y: F64, fill: bool = False) -> Fit:
    """Regress y (row, target), NaN where not known, on x (row, input), NaN taken for the input's mean.

    fill: unknown targets of a row that has others count as their mean, and estimates are scaled up for it: one
    regression serves targets that are known in different rows.
    """
    if fill:
        known = np.isfinite(y)
        rows = known.any(axis=1)
        filled = np.where(rows[:, None], np.where(known, y, 0.0), np.nan)
        share = np.maximum(known.sum(axis=0), 1) / max(int(rows.sum()), 1)
        fit = ridge(x, filled)
        left = np.where(known, y - fit.mean / share, 0.0)
        spread = np.sqrt((left**2).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
        return Fit(fit.mean / share, spread, fit.freedom)
    mean, spread, freedom = np.full(y.shape, np.nan), np.full(y.shape[1], np.inf), 0.0
    known = np.isfinite(y)
    codes = {}
    for d in range(y.shape[1]):
        codes.setdefault(known[:, d].tobytes(), []).append(d)
    for targets in codes.values():
        teach = known[:, targets[0]]
        if np.count_nonzero(teach) >= _LEAST_ROWS and x.shape[1]:
            m, s, f = _fit(x, y[:, targets], teach)
            mean[:, targets], spread[targets] = m, s
            freedom += f
    return Fit(mean, spread, freedom)


def _fit(x: F64, y: F64, teach: np.ndarray) -> tuple[F64, F64, float]:
    with np.errstate(invalid="ignore"):
        centre = np.nan_to_num(np.nansum(x[teach], axis=0) / np.maximum(np.isfinite(x[teach]).sum(axis=0), 1))
    x = np.nan_to_num(x - centre)
    power = np.sqrt((x[teach] ** 2).mean(axis=0))
    x = x / np.where(power > 1e-12 * max(power.max(initial=0.0), 1e-300), power, np.inf)
    offset = y[teach].mean(axis=0)
    xt, yt = x[teach], y[teach] - offset
    n = yt.shape[0]
    eigenvalues, vectors = np.linalg.eigh(xt.T @ xt)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    turned = x @ vectors
    onto = turned[teach].T @ yt
    penalty = n * _PENALTIES
    shrink = 1.0 / (eigenvalues[None, :] + penalty[:, None])
    # residual sums of squares from the eigenvalues alone: (penalty, target)
    residual = (yt**2).sum(axis=0) - 2.0 * shrink @ onto**2 + (shrink**2 * eigenvalues) @ onto**2
    freedom = (eigenvalues * shrink).sum(axis=1)
    gcv = np.maximum(residual, 0.0) / np.maximum(n - 1.0 - freedom, 1.0)[:, None] ** 2
    best = gcv.argmin(axis=0)
    mean = turned @ (shrink[best].T * onto)
    # at rows that taught: what the others say alone, y − (y − ŷ)/(1 − h)
    hat = 1.0 / n + turned[teach] ** 2 @ shrink[best].T
    own = (yt - mean[teach]) / np.maximum(1.0 - hat, 1e-3)
    mean[teach] = yt - own
    return mean + offset, np.sqrt((own**2).mean(axis=0)), float(freedom[best].sum())
