"""Nearest neighbours in all inputs at once: the attack that assumes nothing about the form of the dependence."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64, I64
from testbed.entropy.attack import Attack
from testbed.entropy.facts import Facts, Mask, zero_filled
from testbed.entropy.read_off import frequencies, own_target, scores
from testbed.entropy.references import eves, own
from testbed.entropy.series import at_rounds, joined_of
from testbed.entropy.shifts import combined, constant
from testbed.entropy.strings import around, label_scores, neighbours

_NEIGHBOURS = (1, 3, 9, 27)
_PRIORS = (0.02, 0.3, 3.0, 30.0)
_JUDGES = 120
_MOST_INPUTS = 48
_AHEAD = 60
"""Number of rounds just after the guessed label's round whose labels may not vote, unless they are public."""


class Nearest(Attack):
    """Predicts a label by those of the most similar training symbols of the same dimension.

    Similarity counts Eve's signals of the same round and at the best shift, the neighbouring labels, earlier
    repetitions of the channel, and the surface's patterns. Each input is weighted by its dependence on Alice's value or
    its magnitude (universally consistent for any weights that tend to a limit: Stone 1977; as a bound on leakage:
    Cherubin, Chatzikokolakis and Palamidessi, S&P 2019).
    """

    knows = "her own signals and the rest of the string at once, compared with the most similar other symbols"

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        z = scores(facts)
        target = own_target(facts, z)
        by_probe = self._of_probes(facts, z)
        labels = zero_filled(neighbours(facts, label_scores(facts, train, target), around(2, 1)))
        base = frequencies(facts, train)
        rng = np.random.default_rng(self.seed)
        p = base[test]
        asked, judged = [], []
        for d in np.unique(facts.dimension[test]).tolist():
            teach = train[facts.dimension[train] == d]
            ask = np.flatnonzero(facts.dimension[test] == d)
            if teach.size <= 2 * max(_NEIGHBOURS):
                continue
            judge = np.sort(rng.choice(teach.size, min(_JUDGES // 2 + 20, teach.size), replace=False))
            rows = np.concatenate([teach, test[ask]])
            x = _weighed(np.concatenate([by_probe[facts.probe[rows]], labels[rows]], axis=1), target[teach], teach.size)
            known = self._known(facts, teach, test[ask])
            asked.append((ask, facts.value[teach][_nearest(x[teach.size :], x[: teach.size], known)]))
            known = self._known(facts, teach, teach[judge])
            near = _nearest(x[judge], x[: teach.size], known)
            judged.append((teach[judge], facts.value[teach][near]))
        if not asked:
            return p
        k, weight = self._choice(judged, facts, base)
        for ask, value in asked:
            p[ask] = _vote(value[:, :k], weight, base[test[ask]])
        return p

    @staticmethod
    def _known(facts: Facts, teach: I64, ask: I64) -> Mask:
        """Return (question, training symbol) whether the training symbol may vote on the question.

        Symbols just after the question may not vote unless they are public. The channel's memory would reveal the
        label, but the chain rule conditions on earlier symbols only. Symbols far later may vote, because they only show
        how labels depend on Eve's signals.
        """
        ahead = facts.rounds[facts.probe[teach]][None, :] - facts.rounds[facts.probe[ask]][:, None]
        return ((ahead < 0) | (ahead > _AHEAD) | facts.published[teach]) & (teach != ask[:, None])

    def _of_probes(self, facts: Facts, z: F64) -> F64:
        """Return (probe, input), 0 where missing."""
        parts = [np.zeros((facts.rounds.size, 0))]
        if facts.heard:
            parts.append(at_rounds(*joined_of(facts), facts.rounds))
            parts += [m.inputs for r in eves(facts)[:1] for m in constant(facts, r, z, 1)]
        parts += [combined(z, [m.inputs for m in constant(facts, r, z, 4)]) for r in own(facts, z)[:1]]
        if facts.patterns is not None:
            parts += [facts.patterns.real, facts.patterns.imag]
        return zero_filled(np.concatenate(parts, axis=1))

    @staticmethod
    def _choice(judged: list[tuple[I64, I64]], facts: Facts, base: F64) -> tuple[int, float]:
        """Return the number of neighbours and the weight of the labels' frequencies that did best on training
        symbols."""

        def likely(choice: tuple[int, float]) -> float:
            k, weight = choice
            return sum(
                float(np.log(_vote(value[:, :k], weight, base[rows])[np.arange(rows.size), facts.value[rows]]).sum())
                for rows, value in judged
            )

        return max(((k, w) for k in _NEIGHBOURS for w in _PRIORS), key=likely)


def _weighed(x: F64, target: F64, n: int) -> F64:
    """Return the inputs that depend most on the target, each scaled by its dependence, estimated from n rows."""
    x = x - x[:n].mean(axis=0)
    power = np.sqrt((x[:n] ** 2).mean(axis=0))
    x = x / np.where(power > 1e-9, power, np.inf)
    known = np.isfinite(target)
    t = np.where(known, target, 0.0)
    m = np.where(known, np.abs(t) - np.abs(t[known]).mean() if known.any() else 0.0, 0.0)
    count = max(1, int(known.sum()))
    r = np.maximum(np.abs(x[:n].T @ t), np.abs(np.abs(x[:n]).T @ m) * 1.6) / count
    keep = np.argsort(-r, kind="stable")[:_MOST_INPUTS]
    return np.asarray(x[:, keep] * np.maximum(r[keep] - 2.0 / np.sqrt(count), 1e-3))


def _nearest(ask: F64, teach: F64, known: Mask) -> I64:
    """Return (question, neighbour) rows of `teach`, nearest first; only rows where `known` (question, row) is true."""
    distance = (teach**2).sum(axis=1) - 2.0 * ask @ teach.T
    distance = np.where(known, distance, np.inf)
    most = max(_NEIGHBOURS)
    part = np.argpartition(distance, most, axis=1)[:, :most]
    order = np.argsort(np.take_along_axis(distance, part, axis=1), axis=1, kind="stable")
    return np.take_along_axis(part, order, axis=1)


def _vote(value: I64, weight: float, base: F64) -> F64:
    count = np.zeros(base.shape)
    np.add.at(count, (np.arange(value.shape[0])[:, None], value), 1.0)
    count += weight * base
    return np.asarray(count / count.sum(axis=1, keepdims=True))
