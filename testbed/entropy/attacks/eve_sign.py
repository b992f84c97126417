"""All of Eve's signals of a round have one unknown sign, which she learns from any label of the round."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts, zero_filled
from testbed.entropy.phases import mean_of_known
from testbed.entropy.read_off import own_target, read_off, scores
from testbed.entropy.references import alike_in_size
from testbed.entropy.series import at_rounds, joined_of
from testbed.entropy.strings import label_scores

_LEAST_ROWS = 16


class EveSign(Attack):
    """Uses the channel whose magnitudes are most similar to Alice's; other labels of the round give its sign.

    Only public labels and those before the symbol may be used for that. For the first label of a round the sign is
    unknown, and this attack predicts no better there than `eve_magnitude`.
    """

    knows = "her own signals except for one sign per round, and the earlier labels of the same round"
    needs = ("heard",)
    _freedom = 0.0

    def applies(self, facts: Facts) -> bool:
        return super().applies(facts) and facts.n_dimensions > 1

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        target = own_target(facts, z)
        every = [at_rounds(*joined_of(facts), facts.rounds), alike_in_size(facts, z)]
        x = _likest(z[:, facts.main_column], np.concatenate(every, axis=1))
        votes = _votes(facts, label_scores(facts, train, target), x)
        turned = (np.sign(votes) * x)[facts.probe, facts.dimension]
        known = np.isfinite(target) & np.isfinite(turned) & (turned != 0.0)
        product = np.bincount(facts.dimension[known], (target * turned)[known], facts.n_dimensions)
        power = np.bincount(facts.dimension[known], turned[known] ** 2, facts.n_dimensions)
        factor = product / np.maximum(power, 1e-9)
        mean = np.where(turned != 0.0, factor[facts.dimension] * turned, np.nan)
        error = np.bincount(facts.dimension[known], (target - mean)[known] ** 2, facts.n_dimensions)
        count = np.bincount(facts.dimension[known], minlength=facts.n_dimensions)
        spread = np.where(count >= _LEAST_ROWS, np.sqrt(error / np.maximum(count, 1)).clip(0.01), np.inf)
        self._freedom = 2.0 * facts.n_dimensions
        return read_off(facts, train, test, target, mean, spread[facts.dimension])

    @property
    def degrees_of_freedom(self) -> float:
        return self._freedom


def _likest(z: F64, x: F64) -> F64:
    """Return (probe, dimension) the channel whose magnitudes are most similar to Alice's in each dimension."""
    sizes = [np.where(np.isfinite(v), np.abs(v) - mean_of_known(np.abs(v)), 0.0) for v in (z, x)]
    norms = [np.sqrt((s**2).sum(axis=0)) for s in sizes]
    likeness = sizes[0].T @ sizes[1] / np.maximum(np.outer(*norms), 1e-9)
    return np.asarray(x[:, likeness.argmax(axis=1)])


def _votes(facts: Facts, table: F64, x: F64) -> F64:
    """Return (probe, dimension) the sum of label times signal over the earlier and the public labels of the round."""
    told = np.zeros(table.shape, np.bool_)
    told[facts.probe[facts.published], facts.dimension[facts.published]] = True
    product = zero_filled(table * x)
    public = np.where(told, product, 0.0)
    before = np.cumsum(product, axis=1) - product
    after = public.sum(axis=1, keepdims=True) - np.cumsum(public, axis=1)
    return np.asarray(before + after)
