"""Pairs the probes of two ends: by their position in the file, by sequence number, or by time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64, CsiSeries


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rows of both ends that belong together, in the order in which they were measured."""

    alice: I64
    bob: I64
    left_over: dict[str, int]
    """Probes of either end that could not be paired, by reason."""


def unwrapped(index: I64, modulus: int) -> I64:
    """Return sequence numbers that start again at `modulus` as numbers that do not, with the least possible steps."""
    out: I64 = np.rint(np.unwrap(index.astype(np.float64), period=float(modulus))).astype(np.int64)
    return out


def by_index(alice: I64, bob: I64) -> Pairs:
    """Pair equal sequence numbers; where an end has a number twice, its first probe counts."""
    _, rows_a = np.unique(alice, return_index=True)
    _, rows_b = np.unique(bob, return_index=True)
    _, at_a, at_b = np.intersect1d(alice[rows_a], bob[rows_b], assume_unique=True, return_indices=True)
    twice = alice.size - rows_a.size + bob.size - rows_b.size
    return Pairs(rows_a[at_a], rows_b[at_b], _left(rows_a.size - at_a.size, rows_b.size - at_b.size, twice))


def by_time(alice_s: F64, bob_s: F64, tolerance_s: float) -> Pairs:
    """Pair probes that are each other's nearest in time and not further apart than the tolerance."""
    rows_a, rows_b = np.argsort(alice_s, kind="stable"), np.argsort(bob_s, kind="stable")
    a, b = alice_s[rows_a], bob_s[rows_b]
    if not a.size or not b.size:
        return Pairs(rows_a[:0], rows_b[:0], _left(a.size, b.size, 0))
    nearest_b, nearest_a = nearest(a, b), nearest(b, a)
    own = np.arange(a.size)
    mutual = (nearest_a[nearest_b] == own) & (np.abs(b[nearest_b] - a) <= tolerance_s)
    n = int(mutual.sum())
    return Pairs(rows_a[mutual], rows_b[nearest_b[mutual]], _left(a.size - n, b.size - n, 0))


def nearest(of: F64, among: F64) -> I64:
    """Return for each of `of` the row of the nearest of `among`, which ascends and is not empty."""
    right = np.clip(np.searchsorted(among, of), 1, max(1, among.size - 1))
    if among.size == 1:
        return np.zeros(of.size, dtype=np.int64)
    closer_left = of - among[right - 1] <= among[right] - of
    return np.asarray(right - closer_left, dtype=np.int64)


def rows_by_index(wanted: I64, index: I64) -> I64:
    """Return for each wanted number the row that has it, −1 where none has."""
    numbers, rows = np.unique(index, return_index=True)
    if not numbers.size:
        return np.full(wanted.size, -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(numbers, wanted), numbers.size - 1)
    return np.where(numbers[at] == wanted, rows[at], -1)


def rows_by_time(wanted_s: F64, time_s: F64, tolerance_s: float) -> I64:
    """Return for each wanted time the row nearest to it, −1 where none is within the tolerance."""
    rows = np.argsort(time_s, kind="stable")
    if not rows.size:
        return np.full(wanted_s.size, -1, dtype=np.int64)
    at = nearest(wanted_s, time_s[rows])
    near: NDArray[np.bool_] = np.abs(time_s[rows][at] - wanted_s) <= tolerance_s
    return np.where(near, rows[at], -1)


def at_rounds(series: CsiSeries, rounds: I64) -> CsiSeries:
    """Return the series on these rounds, NaN where it has none of them."""
    h = np.full((rounds.size, *series.h.shape[1:]), np.nan, dtype=np.complex64)
    _, into, of = np.intersect1d(rounds, series.rounds, return_indices=True)
    h[into] = series.h[of]
    return CsiSeries(h=h, rounds=rounds, subcarrier_hz=series.subcarrier_hz)


def _left(only_alice: int, only_bob: int, twice: int) -> dict[str, int]:
    counts = {"only_alice": only_alice, "only_bob": only_bob, "duplicate": twice}
    return {reason: int(n) for reason, n in counts.items() if n}
