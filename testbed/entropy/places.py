"""Where a probe is, by its columns before the one in question: the places that fit them guess it."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.entropy.facts import Facts, Mask, zero_filled

_NEW = 0.5
"""Prior probability that a probe is at none of the places."""
_GAIN_NATS = 12.0
_AT_ONCE = 1 << 16
"""Largest number of values, probes times places, that are computed together: more do not stay in the processor's
cache."""


def by_columns_before(z: F64, near: F64, allowed: Mask, error: float) -> tuple[F64, F64]:
    """Return (probe, column) means and spreads of the values at the places that fit the columns before.

    z (probe, column) Alice's scores, NaN where hidden. near: the values at each place, (probe, place, column), or
    (place, column) if all probes have the same places; NaN where unknown. allowed: (probe, place). error: standard
    deviation of a value about that of its place. A place is weighed by the likelihood of the columns before, against a
    new place, of which nothing is known (a mixture model; the chain rule conditions on the symbols before).
    """
    near = near if near.ndim == 3 else np.broadcast_to(near, (len(z), *near.shape))
    at_once = max(1, _AT_ONCE // allowed.shape[1])
    rows = [slice(i, i + at_once) for i in range(0, len(z), at_once)]
    parts = [_of_some(z[some], near[some], allowed[some], error) for some in rows]
    means, spreads = zip(*parts, strict=True)
    return np.concatenate(means), np.concatenate(spreads)


def _of_some(z: F64, near: F64, allowed: Mask, error: float) -> tuple[F64, F64]:
    """Return the result of `by_columns_before` for a few probes; near (probe, place, column).

    Places beyond the last that any of them may be at are left out of everything but the sums, whose terms are added in
    an order that depends on their number.
    """
    mean, spread = np.zeros(z.shape), np.ones(z.shape)
    n = int(np.flatnonzero(allowed.any(axis=0))[-1]) + 1 if allowed.any() else 0
    whole = np.zeros(allowed.shape)
    terms = whole[:, :n]
    allowed, near = allowed[:, :n], near[:, :n]
    with np.errstate(divide="ignore"):
        logs = np.where(allowed, np.log(1.0 - _NEW) - np.log(np.maximum(allowed.sum(axis=1), 1))[:, None], -np.inf)
    new = np.full(z.shape[0], np.log(_NEW))
    for c in range(z.shape[1]):
        there, filled = np.isfinite(near[..., c]), zero_filled(near[..., c])
        most = np.maximum(logs.max(axis=1, initial=-np.inf), new)
        w = np.exp(np.subtract(logs, most[:, None], out=terms), out=terms)
        total = whole.sum(axis=1) + np.exp(new - most)
        w = np.where(there, w, 0.0) / total[:, None]
        mean[:, c] = _added(w * filled, whole)
        power = _added(w * (filled**2 + error**2), whole) + (1.0 - _added(w, whole))
        spread[:, c] = np.sqrt(np.maximum(power - mean[:, c] ** 2, error**2))
        own = z[:, c]
        known = np.isfinite(own)
        alone = np.where(known, -(zero_filled(own) ** 2) / 2.0, 0.0)
        fit = -(((zero_filled(own)[:, None] - filled) / error) ** 2) / 2.0 - np.log(error)
        logs = logs + np.where(known[:, None], np.where(there, fit, alone[:, None]), 0.0)
        new = new + alone
    return mean, spread


def _added(terms: F64, whole: F64) -> F64:
    """Return (probe,) the sums of (probe, place) terms; `whole` is of the full width, and is overwritten."""
    whole[:, : terms.shape[1]] = terms
    return np.asarray(whole.sum(axis=1))


def by_places(facts: Facts, key: object, z: F64, near: F64, allowed: Mask, error: float) -> tuple[F64, F64] | None:
    """Return the result of `by_columns_before`; None in all folds if it explained nothing in the first one.

    It costs time, and the first fold shows whether it is worth it. key: under which that is kept.
    """
    if not facts.scratch.get(key, True):
        return None
    mean, spread = by_columns_before(z, near, allowed, error)
    if key not in facts.scratch:
        facts.scratch[key] = tells(z, mean, spread)
    return (mean, spread) if facts.scratch[key] else None


def tells(z: F64, mean: F64, spread: F64) -> bool:
    """Return whether the estimates explain Alice's scores better than nothing does."""
    known = np.isfinite(z)
    a = np.where(known, z, 0.0)
    gain = (a**2 - ((a - mean) / spread) ** 2) / 2.0 - np.log(spread)
    return float(np.maximum(gain, -8.0)[known].sum()) > _GAIN_NATS
