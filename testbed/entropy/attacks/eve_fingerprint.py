"""A map of the room: Alice's values from rounds in which Eve measured the same as now."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack, Folds
from testbed.entropy.facts import Facts
from testbed.entropy.gaussian_labels import normal_scores
from testbed.entropy.read_off import read_off_columns, scores
from testbed.entropy.series import at_rounds, joined_of, reduced

_NEIGHBOURS = 4
_DIRECTIONS = 24


class EveFingerprint(Attack):
    """Predicts the mean of Alice's values in those rounds, also of earlier blocks, in which Eve's signals were most
    similar to the present ones."""

    knows = "her own signals in training and earlier blocks, and what Alice measured there"
    needs = ("heard",)
    folds: ClassVar[Folds] = "probes"

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        before = [e for e in facts.earlier if e.same_run and e.rounds.size]
        known = np.concatenate([z, *(normal_scores(e.features) for e in before)])
        places, distance = self._nearest(facts, [e.rounds for e in before], np.asarray(np.isfinite(z).any(axis=1)))
        weight = 1.0 / np.maximum(distance, 1e-6)
        values = known[places]
        there = np.isfinite(values) & np.isfinite(distance)[:, :, None]
        total = np.where(there, weight[:, :, None], 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = (total * np.nan_to_num(values)).sum(axis=1) / total.sum(axis=1)
            # Where similar signals do not mean a similar place, the mean is too large; this gain corrects it.
            gain = np.nansum(mean * z, axis=0) / np.nansum(mean**2 * np.isfinite(z), axis=0)
        mean = mean * np.clip(np.nan_to_num(gain), -1.0, 1.0)
        left = np.where(np.isfinite(z), z - mean, np.nan)
        spread = np.sqrt(np.nanmean(left**2, axis=0))
        return read_off_columns(facts, train, test, z, mean, np.broadcast_to(spread, mean.shape))

    @property
    def degrees_of_freedom(self) -> float:
        """1, not the number of columns, because the gains of columns with unrelated neighbours are small."""
        return 1.0

    @staticmethod
    def _nearest(facts: Facts, before: list[I64], known: np.ndarray) -> tuple[I64, F64]:
        """Return (probe, neighbour) rows, from earlier in this block and from earlier blocks, and their distances."""
        key = "fingerprints"
        if key not in facts.scratch:
            x = np.nan_to_num(at_rounds(*joined_of(facts), np.concatenate([facts.rounds, *before])))
            x = reduced(x, _DIRECTIONS)
            n = facts.rounds.size
            far = (x[:n] ** 2).sum(axis=1)[:, None] - 2.0 * x[:n] @ x.T + (x**2).sum(axis=1)
            far[:, :n][np.triu_indices(n)] = np.inf  # in this block, only earlier rows
            # Rows in which Eve received nothing would all have distance 0.
            far[:, ~np.abs(x).any(axis=1)] = np.inf
            facts.scratch[key] = np.sqrt(np.maximum(far, 0.0))
        far = np.where(
            np.append(known, np.ones(facts.scratch[key].shape[1] - known.size, bool)), facts.scratch[key], np.inf
        )
        k = min(_NEIGHBOURS, far.shape[1] - 1)
        places = np.argpartition(far, k, axis=1)[:, :k]
        return places, np.take_along_axis(far, places, axis=1)
