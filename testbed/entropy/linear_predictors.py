"""Linear predictors of a raw string: what a channel's correlation in time and between dimensions gives away.

Each symbol (probe, dimension) is taken for a cell of a standard normal variable, as a quantizer makes it that cuts by
rank and labels by Gray's code. A predictor guesses that variable as a linear function of the symbols before it
(earlier probes, and lower dimensions of the same probe), then reads every bit off the normal distribution that
remains, given the more significant bits of the same symbol. Symbols that are not in the string (guard bands, sacrificed
bits) are left out of the sums ("gaussian") or count as 0 beside the public flags that say so ("ridge").

What is learnt on one half of the block is judged on the other: alternate segments of probes, 8 windows long or more.
Learning uses no pair of symbols from different halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64
from testbed.entropy.bit_grid import BitGrid, alternate_segments

Mask = NDArray[np.bool_]
Source = tuple[int, int]
"""(k, j): the symbol k probes and j dimensions before the one that is guessed."""

_SYMBOLS_PER_PARAMETER = 20
_GAUSSIAN_SOURCES = (6, 12)
_RIDGE_SOURCES = 32
_LEAST_OWN_SOURCES = 6
_WINDOWS_PER_SEGMENT = 8
_SEGMENTS = 64
_LEAST_PAIRS = 20
_LEAST_EIGENVALUE = 0.05
_LEAST_VARIANCE = 0.02
_PENALTIES = 10.0 ** np.arange(-6.0, 1.5)
"""Of a ridge, as shares of the number of symbols that it learns from."""


def linear_hits(grid: BitGrid) -> dict[str, int]:
    """Return how many bits each predictor guesses right, by name; none that has too few symbols to learn from."""
    symbols = _Symbols.of(grid)
    n_dimensions = symbols.shape[1]
    every = np.arange(symbols.probe.size)
    budget = every.size // _SYMBOLS_PER_PARAMETER
    out = {}
    for count in _GAUSSIAN_SOURCES:
        if count <= budget:
            out[f"gaussian, up to {count} sources"] = _hits(symbols, every, symbols.nearest(count), _gaussian)
    sources = symbols.nearest(min(_RIDGE_SOURCES, budget // 2))  # the other half of the budget is for flags
    if sources:
        flags = [flag for k, j in sources[: (len(sources) + 1) // 2] for flag in ((k, j), (-k, -j))]
        out["ridge"] = _hits(symbols, every, sources, _ridge, flags)
    if n_dimensions > 1:
        # Not every order of dimensions is one of space or frequency: antenna pairs may relate in any way.
        own = [np.flatnonzero(symbols.dimension == d) for d in range(n_dimensions)]
        counts = [min(_RIDGE_SOURCES, rows.size // _SYMBOLS_PER_PARAMETER) for rows in own]
        if max(counts) >= _LEAST_OWN_SOURCES:
            out["ridge, each dimension"] = sum(
                _hits(symbols, rows, symbols.around(d, count), _ridge)
                for d, (rows, count) in enumerate(zip(own, counts, strict=True))
            )
    return out


@dataclass(frozen=True, slots=True)
class _Symbols:
    """The string as numbers, one a symbol."""

    probe: I64
    """(symbol,) of those with at least one bit in the string."""
    dimension: I64
    signs: F64
    """(symbol, level bit) −1 for 0, +1 for 1, 0 for no bit."""
    shape: tuple[int, int]
    """(probes, dimensions)."""
    value: F64
    """(probe · dimensions + dimension, and 0 for anywhere outside) median of the symbol's cell; 0 for no symbol."""
    known: F64
    """Likewise, 1 where the most significant bit is there, without which there is little to tell of the value."""
    kept: F64
    """Likewise, 1 for a symbol and 0 for none."""

    @classmethod
    def of(cls, grid: BitGrid) -> _Symbols:
        signs = grid.signs()
        n_probes, n_dimensions, level_bits = signs.shape
        signs = signs.reshape(-1, level_bits)
        place = np.flatnonzero(signs.any(axis=1))
        value, known, kept = np.zeros((3, n_probes * n_dimensions + 1))
        possible = _possible(signs[place])
        value[place] = possible @ _medians(level_bits) / possible.sum(axis=1)
        known[place] = signs[place, 0] != 0
        kept[place] = 1.0
        probe, dimension = np.divmod(place, n_dimensions)
        return cls(probe, dimension, signs[place], (n_probes, n_dimensions), value, known, kept)

    @property
    def _window(self) -> int:
        """The longest memory in probes of which four segments can hold 8 each."""
        return max(1, self.shape[0] // (4 * _WINDOWS_PER_SEGMENT))

    def nearest(self, count: int) -> list[Source]:
        """Return the `count` nearest sources, a step in time as far as one between dimensions."""
        longest, reach = min(self._window, count), min(self.shape[1] - 1, count)  # the nearest are no further off
        found = [(k, j) for k in range(longest + 1) for j in range(-reach, reach + 1) if k > 0 or j > 0]
        return sorted(found, key=lambda s: (s[0] + abs(s[1]), s))[:count]

    def around(self, dimension: int, count: int) -> list[Source]:
        """Return `count` sources for one dimension: lower ones of the same probe, then all of the probes before."""

        def ordered() -> Iterator[Source]:
            yield from ((0, j) for j in range(1, dimension + 1))
            steps = sorted((dimension - d for d in range(self.shape[1])), key=abs)
            yield from ((k, j) for k in range(1, self._window + 1) for j in steps)

        return list(islice(ordered(), count))

    def places(self, rows: I64, sources: Sequence[Source]) -> I64:
        """Return (row, source) where in `value` and `kept` the sources of these symbols are."""
        k, j = np.array(sources, dtype=np.int64).T
        probe, dimension = self.probe[rows, None] - k, self.dimension[rows, None] - j
        n_probes, n_dimensions = self.shape
        inside = (probe >= 0) & (probe < n_probes) & (dimension >= 0) & (dimension < n_dimensions)
        return np.where(inside, probe * n_dimensions + dimension, n_probes * n_dimensions)


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What one half of the block teaches, and the other half's sources."""

    x: F64
    """(row, source) values to learn from; 0 where unknown."""
    known: Mask
    """(row, source) the source is in the string and in the same half as its target."""
    whole: Mask
    """(row,) all of the window is in the same half."""
    y: F64
    """(row,) targets."""
    ask: F64
    """(question, source) values to predict from; 0 where unknown."""
    ask_known: Mask


_Learner = Callable[[_Lesson], tuple[F64, F64]]
"""Returns (question,) means and variances of the targets that were asked for."""


def _hits(
    symbols: _Symbols, rows: I64, sources: Sequence[Source], learn: _Learner, flags: Sequence[Source] = ()
) -> int:
    """Count the bits of these symbols that are guessed right, each half by what the other taught."""
    if not sources:
        return _right(np.zeros(rows.size), np.ones(rows.size), symbols.signs[rows])
    n_probes, n_dimensions = symbols.shape
    k = np.array([k for k, _ in sources])
    window = max(1, int(k.max()))
    odd = alternate_segments(n_probes, min(_SEGMENTS, max(2, n_probes // (_WINDOWS_PER_SEGMENT * window))))
    half = np.where(odd, 1, -1)
    own_half = half[symbols.probe[rows]]
    back = symbols.probe[rows, None] - k
    same = (back >= 0) & (half[np.maximum(back, 0)] == own_half[:, None])
    places = symbols.places(rows, sources)
    x, known = symbols.value[places], symbols.known[places] > 0
    if flags and not symbols.kept[:-1].all():
        x = np.concatenate([x, symbols.kept[symbols.places(rows, flags)]], axis=1)
    own_place = symbols.probe[rows] * n_dimensions + symbols.dimension[rows]
    y, usable = symbols.value[own_place], symbols.known[own_place] > 0
    right = 0
    for tested in (-1, 1):
        ask, teach = own_half == tested, (own_half != tested) & usable
        lesson = _Lesson(x[teach], (known & same)[teach], same.all(axis=1)[teach], y[teach], x[ask], known[ask])
        mean, variance = learn(lesson)
        right += _right(mean, variance, symbols.signs[rows[ask]])
    return right


def _gaussian(lesson: _Lesson) -> tuple[F64, F64]:
    """Condition a normal distribution on the sources that are known.

    Its covariance is estimated pair by pair from the symbols that are there, so it need not be positive definite:
    small eigenvalues are lifted, or their inverses would rule the prediction.
    """
    there = np.concatenate([lesson.known, np.ones((lesson.y.size, 1), dtype=np.bool_)], axis=1).astype(np.float64)
    z = np.concatenate([lesson.x, lesson.y[:, None]], axis=1) * there
    pairs = there.T @ there
    covariance = np.where(pairs < _LEAST_PAIRS, 0.0, z.T @ z / np.maximum(pairs, 1.0))
    eigenvalues, vectors = np.linalg.eigh(covariance)
    covariance = (vectors * np.maximum(eigenvalues, _LEAST_EIGENVALUE)) @ vectors.T
    among, across, own = covariance[:-1, :-1], covariance[:-1, -1], covariance[-1, -1]
    # one set of weights for each pattern of known sources
    codes, which = np.unique(lesson.ask_known @ (1 << np.arange(across.size)), return_inverse=True)
    pattern = (codes[:, None] >> np.arange(across.size)) & 1
    matrix = pattern[:, :, None] * pattern[:, None, :] * among
    diagonal = np.arange(across.size)
    matrix[:, diagonal, diagonal] = np.diagonal(among)
    target = pattern * across
    weights = np.linalg.solve(matrix, target[:, :, None])[:, :, 0]
    variance = own - (weights * target).sum(axis=1)
    return (weights[which] * lesson.ask).sum(axis=1), np.maximum(variance, _LEAST_VARIANCE)[which]


def _ridge(lesson: _Lesson) -> tuple[F64, F64]:
    """Regress on all sources, unknown ones being 0; the penalty is the best by generalised cross-validation.

    Golub, Heath and Wahba 1979.
    """
    x, y = lesson.x[lesson.whole], lesson.y[lesson.whole]
    n = y.size
    if n < 2:
        return np.zeros(len(lesson.ask)), np.ones(len(lesson.ask))
    x_mean, y_mean = x.mean(axis=0), y.mean()
    x = x - x_mean
    y = y - y_mean
    eigenvalues, vectors = np.linalg.eigh(x.T @ x)
    eigenvalues = np.maximum(eigenvalues, 0.0)
    onto = vectors.T @ (x.T @ y)
    shrunk = eigenvalues[None, :] + n * _PENALTIES[:, None]
    coefficients = onto / shrunk
    residual = y @ y - 2.0 * coefficients @ onto + coefficients**2 @ eigenvalues
    freedom = np.maximum(n - 1.0 - (eigenvalues / shrunk).sum(axis=1), 1.0)
    best = int((residual / freedom**2).argmin())
    mean: F64 = (lesson.ask - x_mean) @ (vectors @ coefficients[best]) + y_mean
    return mean, np.full(mean.size, max(float(residual[best] / freedom[best]), _LEAST_VARIANCE))


def _right(mean: F64, variance: F64, signs: F64) -> int:
    """Count the bits of symbols (symbol, level bit) that are the likelier ones given the bits above them."""
    from scipy.special import ndtr

    n_levels = 1 << signs.shape[1]
    edges = np.array([NormalDist().inv_cdf(i / n_levels) for i in range(1, n_levels)])
    below = np.ones((mean.size, n_levels + 1))
    below[:, 0] = 0.0
    below[:, 1:-1] = ndtr((edges - mean[:, None]) / np.sqrt(variance)[:, None])
    probability = np.diff(below, axis=1)
    right = 0
    for label, sign in zip(_labels(signs.shape[1]).T, signs.T, strict=True):
        guess = np.where(probability @ label > 0, 1.0, -1.0)
        right += int(np.count_nonzero(guess == sign))
        probability *= sign[:, None] * label >= 0
    return right


def _labels(level_bits: int) -> F64:
    """Return (level, level bit) Gray labels as −1 and +1."""
    level = np.arange(1 << level_bits)
    gray = level ^ (level >> 1)
    ones = (gray[:, None] >> np.arange(level_bits - 1, -1, -1)) & 1
    return np.where(ones == 1, 1.0, -1.0)


def _medians(level_bits: int) -> F64:
    """Return (level,) the median of each of 2**level_bits equally likely cells of a standard normal variable."""
    n = 1 << level_bits
    return np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])


def _possible(signs: F64) -> F64:
    """Return (symbol, level) 1 where a level's label agrees with the bits that are there, else 0."""
    labels = _labels(signs.shape[1])
    out = np.ones((signs.shape[0], labels.shape[0]))
    for label, sign in zip(labels.T, signs.T, strict=True):
        out *= sign[:, None] * label >= 0
    return out
