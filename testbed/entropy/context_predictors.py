"""Predictors of a raw string that look up what followed the same context before: any relation, of a few bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64, U8
from testbed.entropy.bit_grid import MISSING, BitGrid, alternate_segments

_MAX_LAG = 256
_SEGMENTS = 64


def context_hits(grid: BitGrid) -> dict[str, int]:
    """Return how many bits each predictor guesses right, by name.

    It guesses the majority that the other half of the block shows for a bit's context.
    """
    odd = alternate_segments(grid.table.shape[0], _SEGMENTS)
    in_odd = odd[grid.probe]
    return {
        name: _hits(context, grid.values, ~in_odd, in_odd) + _hits(context, grid.values, in_odd, ~in_odd)
        for name, context in _contexts(grid, odd).items()
    }


def _hits(context: I64, values: U8, train: NDArray[np.bool_], test: NDArray[np.bool_]) -> int:
    """Count right guesses on `test` of the majority that `train` shows for each context."""
    n_contexts = int(context.max()) + 1
    weight = np.bincount(context[train], weights=2.0 * values[train] - 1.0, minlength=n_contexts)
    guess = weight > 0  # unseen or undecided: 0
    return int(np.count_nonzero(guess[context[test]] == values[test]))


def _previous_kept(grid: BitGrid) -> tuple[I64, NDArray[np.bool_]]:
    """Return the index of the previous kept bit of the same dimension and level bit, and where there is one."""
    order = np.lexsort((grid.probe, grid.level_bit, grid.dimension))
    same = np.zeros(order.size, dtype=np.bool_)
    same[1:] = (grid.dimension[order[1:]] == grid.dimension[order[:-1]]) & (
        grid.level_bit[order[1:]] == grid.level_bit[order[:-1]]
    )
    previous = np.zeros(order.size, dtype=np.int64)
    exists = np.zeros(order.size, dtype=np.bool_)
    previous[order[1:]] = order[:-1]
    exists[order] = same
    return previous, exists


def _contexts(grid: BitGrid, odd: NDArray[np.bool_]) -> dict[str, I64]:
    """Return the predictors' contexts, each (bit,) of small integers; `odd` (probe,) tells the halves apart."""
    previous, exists = _previous_kept(grid)

    def earlier(of: U8) -> U8:
        """The same quantity at the previous kept probe of this dimension and level bit."""
        return np.where(exists, of[previous], MISSING).astype(np.uint8)

    last1 = earlier(grid.values)
    last2 = earlier(last1)
    last3 = earlier(last2)
    # Public: a dropped entry before or after this one means a threshold nearby, if probes depend on one another.
    gap_before = np.where(exists, grid.probe - grid.probe[previous] > 1, False).astype(np.uint8)
    gap_after = np.zeros_like(gap_before)
    gap_after[previous[exists]] = gap_before[exists]
    beside1, beside2 = grid.back(dimensions=1), grid.back(dimensions=2)
    upper1, upper2 = grid.back(level_bits=1), grid.back(level_bits=2)
    last_upper = earlier(upper1)
    level = grid.level_bit

    def join(*digits: U8) -> I64:
        code = level.copy()
        for digit in digits:
            code = code * 3 + digit
        return code

    out = {
        "label place": join(),
        "dimension": level + grid.table.shape[2] * grid.dimension,
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
        "label so far, label beside": join(upper1, beside1, grid.back(dimensions=1, level_bits=1)),
    }
    signs = grid.signs()
    n_probes, n_dimensions, _ = signs.shape
    # The search must not see what it is judged on: the best of 256 lags of ideal bits would look like a pattern.
    halves = [np.where(half[:, None, None], signs, 0.0) for half in (~odd, odd)]
    in_odd = odd[grid.probe]
    if n_probes >= 4:
        lags = [2 + _largest(_lag_votes(half, signs)[2 : min(_MAX_LAG, n_probes // 2) + 1]) for half in halves]
        far = np.where(in_odd, grid.back(probes=lags[0]), grid.back(probes=lags[1]))
        out["best lag"] = join(far)
        out["best lag, last"] = join(far, last1)
        out["best lag, label so far"] = join(far, upper1)
    if n_dimensions > 2:
        steps = [2 + _largest(_dimension_votes(half, signs)[2:]) for half in halves]
        wide = np.where(in_odd, grid.back(dimensions=steps[0]), grid.back(dimensions=steps[1]))
        out["best dimension"] = join(wide)
    return out


def _lag_votes(targets: F64, sources: F64) -> F64:
    """Return by lag how many more bits equal than differ from the bit so many probes before."""
    n = targets.shape[0]
    size = 1 << (2 * n - 1).bit_length()
    flat = [np.fft.rfft(signs.reshape(n, -1), size, axis=0) for signs in (targets, sources)]
    votes: F64 = np.rint(np.fft.irfft((flat[0] * flat[1].conj()).sum(axis=1), size)[:n])
    return votes


def _dimension_votes(targets: F64, sources: F64) -> F64:
    """Return by step how many more bits equal than differ from the bit so many dimensions before."""
    n = targets.shape[1]
    agree = np.einsum("pdl,pel->de", targets, sources, optimize=True)
    return np.array([np.trace(agree, offset=-step) for step in range(n)])


def _largest(votes: F64) -> int:
    return int(np.abs(votes).argmax())
