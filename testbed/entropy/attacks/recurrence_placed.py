"""A track walked again: the labels of a probe that come first show where exactly it is."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Folds
from testbed.entropy.attacks.recurrence_warped import RecurrenceWarped
from testbed.entropy.facts import Facts, zero_filled
from testbed.entropy.read_off import frequencies, read_off_columns, scores
from testbed.entropy.walks import at_places, course_of, place_of

_OFFSETS = np.arange(-6.0, 6.5, 0.5)
_AWAY_NATS = 0.15
"""Decrease of the likelihood of a place with its distance from that of the neighbours."""


class RecurrencePlaced(RecurrenceWarped):
    """Weighs the places near that of the neighbouring probes by how well the probe's earlier dimensions fit them."""

    knows = (
        "that the track of earlier blocks, training or runs is walked again, and the earlier labels of the same round"
    )
    folds: ClassVar[Folds] = "symbols"

    def applies(self, facts: Facts) -> bool:
        return facts.is_scalar and facts.features.shape[1] > 1 and super().applies(facts)

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        walk = self._walk(facts, z)
        self._freedom = 0.0 if walk is None else 2.0
        if walk is None:
            return np.asarray(frequencies(facts, train)[test])
        course = course_of(z, walk)[0]
        place = place_of(course, np.asarray(np.isfinite(z).any(axis=1)), (-2, 2))
        mean, spread = _weighed(z, at_places(walk, place[:, None] + _OFFSETS))
        return read_off_columns(facts, train, test, z, mean, spread)


def _weighed(z: F64, near: F64) -> tuple[F64, F64]:
    """Return (probe, column) means and spreads of the walk at near places (probe, place, column).

    The weight of a place in a column is its likelihood by the columns before.
    """
    square = np.where(np.isfinite(z)[:, None], zero_filled(z)[:, None] - near, 0.0) ** 2
    usual = float(np.clip(square.sum(axis=2).min(axis=1).mean() / z.shape[1], 0.01, 0.9))
    likely = -square / (2.0 * usual)
    logs = np.cumsum(likely, axis=2) - likely - _AWAY_NATS * np.abs(_OFFSETS)[:, None]
    weight = np.exp(logs - logs.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    mean = (weight * near).sum(axis=1)
    return mean, np.sqrt((weight * (near - mean[:, None]) ** 2).sum(axis=1) + usual)
