"""Min-entropy of a raw string from its own statistics: what anybody could predict without measuring anything.

Each predictor guesses every bit from a context of bits that come before it in one fixed order (probe, dimension,
level bit) and of what is public anyway (which entries were kept). It learns on one half of the block and is judged
on the other, both ways, so that large contexts gain nothing from memorising. As in NIST SP 800-90B the estimate is
−log2 of the best predictor's success probability, taken at the upper end of a 99 % confidence interval (6.3.1); the
predictors are ours, made for strings that come from probes, dimensions and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import log2, sqrt

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import I64, U8, Bits

_Z_99 = 2.5758293035489008  # as SP 800-90B 6.3.1
_MAX_LAG = 256
_MISSING = 2
"""Third value of a context digit: there is no such bit."""


def source_min_entropy(bits: Bits) -> float:
    """Return the min-entropy per bit, 0 to 1, of one side's string; 0 for fewer than 2 bits.

    Near 0 for bits that repeat from probe to probe, from dimension to dimension or with a period of up to 256 probes.
    The confidence bound and the choice of the best predictor cost about 0.1 at 4000 ideal bits, 0.3 at 400.
    """
    if bits.values.size < 2:
        return 0.0
    return max(0.0, -log2(max(guess_probabilities(bits).values())))


def guess_probabilities(bits: Bits) -> dict[str, float]:
    """Return each predictor's probability of guessing a bit, upper 99 % bound, by name ("most common" is MCV).

    Raises ValueError for fewer than 2 bits.
    """
    n = bits.values.size
    if n < 2:
        raise ValueError(f"{n} bits, accepted: 2 or more")
    ones = int(np.count_nonzero(bits.values))
    out = {"most common": _upper_bound(max(ones, n - ones), n)}
    odd = _odd_segments(bits)
    for name, context in _contexts(bits, odd).items():
        hits = _hits(context, bits.values, ~odd, odd) + _hits(context, bits.values, odd, ~odd)
        out[name] = _upper_bound(hits, n)
    return out


def _upper_bound(hits: int, n: int) -> float:
    """Upper 99 % bound on a probability, SP 800-90B 6.3.1."""
    p = hits / n
    return min(1.0, p + _Z_99 * sqrt(p * (1.0 - p) / (n - 1)))


def _odd_segments(bits: Bits) -> NDArray[np.bool_]:
    """Mark every other of up to 64 segments of probes: the two halves of the data.

    Segments, not the first and the second half: a channel that drifts from one level to another shows one level in
    each half, and what is learnt on the one says nothing about the other, although each bit repeats the last.
    """
    probe = bits.probe - bits.probe.min()
    n_probes = int(probe.max()) + 1
    segment = probe * min(64, n_probes) // n_probes
    if n_probes == 1:
        segment = np.arange(bits.values.size) * 2 // bits.values.size
    odd: NDArray[np.bool_] = segment % 2 == 1
    return odd


def _hits(context: I64, values: U8, train: NDArray[np.bool_], test: NDArray[np.bool_]) -> int:
    """Count right guesses on `test` of the majority that `train` shows for each context."""
    n_contexts = int(context.max()) + 1
    weight = np.bincount(context[train], weights=2.0 * values[train] - 1.0, minlength=n_contexts)
    guess = weight > 0  # unseen or undecided: 0
    return int(np.count_nonzero(guess[context[test]] == values[test]))


class _Lookup:
    """Finds the bit of any origin (probe, dimension, level bit), or _MISSING."""

    def __init__(self, bits: Bits) -> None:
        self._bits = bits
        self._probe = bits.probe - bits.probe.min()
        self.n_probes = int(self._probe.max()) + 1
        self.n_dimensions = int(bits.dimension.max()) + 1
        self.n_level_bits = int(bits.level_bit.max()) + 1
        self._table = np.full((self.n_probes, self.n_dimensions, self.n_level_bits), _MISSING, dtype=np.uint8)
        self._table[self._probe, bits.dimension, bits.level_bit] = bits.values

    def back(self, probes: int = 0, dimensions: int = 0, level_bits: int = 0) -> U8:
        """Return (bit,) the bit so many probes, dimensions and level bits before each bit."""
        p, d, b = self._probe - probes, self._bits.dimension - dimensions, self._bits.level_bit - level_bits
        found = self._table[np.maximum(p, 0), np.maximum(d, 0), np.maximum(b, 0)]
        found[(p < 0) | (d < 0) | (b < 0)] = _MISSING
        return found


def _previous_kept(bits: Bits) -> tuple[I64, NDArray[np.bool_]]:
    """Return the index of the previous kept bit of the same dimension and level bit, and where there is one."""
    order = np.lexsort((bits.probe, bits.level_bit, bits.dimension))
    same = np.zeros(order.size, dtype=np.bool_)
    same[1:] = (bits.dimension[order[1:]] == bits.dimension[order[:-1]]) & (
        bits.level_bit[order[1:]] == bits.level_bit[order[:-1]]
    )
    previous = np.zeros(order.size, dtype=np.int64)
    exists = np.zeros(order.size, dtype=np.bool_)
    previous[order[1:]] = order[:-1]
    exists[order] = same
    return previous, exists


def _contexts(bits: Bits, odd: NDArray[np.bool_]) -> dict[str, I64]:
    """Return the predictors' contexts, each (bit,) of small integers."""
    look = _Lookup(bits)
    previous, exists = _previous_kept(bits)

    def earlier(of: U8) -> U8:
        """The same quantity at the previous kept probe of this dimension and level bit."""
        return np.where(exists, of[previous], _MISSING).astype(np.uint8)

    last1 = earlier(bits.values)
    last2 = earlier(last1)
    last3 = earlier(last2)
    # Public: a dropped entry before or after this one means a threshold nearby, if probes depend on one another.
    gap_before = np.where(exists, bits.probe - bits.probe[previous] > 1, False).astype(np.uint8)
    gap_after = np.zeros_like(gap_before)
    gap_after[previous[exists]] = gap_before[exists]
    beside1, beside2 = look.back(dimensions=1), look.back(dimensions=2)
    upper1, upper2 = look.back(level_bits=1), look.back(level_bits=2)
    last_upper = earlier(upper1)
    none = np.zeros_like(last1)

    level = bits.level_bit

    def join(*digits: U8) -> I64:
        code = level.copy()
        for digit in digits:
            code = code * 3 + digit
        return code

    out = {
        "label place": join(none),
        "dimension": level + look.n_level_bits * bits.dimension,
        "gaps": join(gap_before, gap_after),
        "last": join(last1),
        "second last": join(last2),
        "last two": join(last1, last2),
        "last three": join(last1, last2, last3),
        "last, gaps": join(last1, gap_before, gap_after),
        "dimension beside": join(beside1),
        "two dimensions beside": join(beside1, beside2),
        "last, dimension beside": join(last1, beside1),
        "last, dimension beside then and now": join(last1, beside1, earlier(beside1)),
        "label so far": join(upper1, upper2),
        "label so far, gaps": join(upper1, gap_before, gap_after),
        "label so far, last": join(upper1, last1),
        "label so far, last label": join(upper1, last1, last_upper),
        "label so far, dimension beside": join(upper1, beside1),
        "label so far, label beside": join(upper1, beside1, look.back(dimensions=1, level_bits=1)),
    }
    lags = range(2, min(_MAX_LAG, look.n_probes // 2) + 1)
    far = _searched(bits, odd, [partial(look.back, probes=k) for k in lags])
    wide = _searched(bits, odd, [partial(look.back, dimensions=k) for k in range(2, look.n_dimensions)])
    if far is not None:
        out["best lag"] = join(far)
        out["best lag, last"] = join(far, last1)
        out["best lag, label so far"] = join(far, upper1)
    if wide is not None:
        out["best dimension"] = join(wide)
    return out


def _searched(bits: Bits, odd: NDArray[np.bool_], candidates: Sequence[Callable[[], U8]]) -> U8 | None:
    """Return for each half the candidate that predicts best in the other half.

    The search must not see what it is judged on: the best of 256 lags of ideal bits would look like a pattern.
    """
    if not candidates:
        return None
    scores = np.zeros((2, len(candidates)), dtype=np.int64)
    for i, candidate in enumerate(candidates):
        found = candidate()
        vote = np.where(found == _MISSING, 0, np.where(found == bits.values, 1, -1))
        in_odd = int(vote[odd].sum())
        scores[:, i] = abs(int(vote.sum()) - in_odd), abs(in_odd)
    from_even, from_odd = (candidates[int(k)]() for k in scores.argmax(axis=1))
    out: U8 = np.where(odd, from_even, from_odd)
    return out
