"""Min-entropy of a raw string from its own statistics: what anybody could predict without measuring anything.

Each predictor guesses every bit from bits that come before it in one fixed order (probe, dimension, level bit) and from
what is public anyway (which entries were kept). It learns on one half of the block and is judged on the other, both
ways, so that large contexts gain nothing from memorising. As in NIST SP 800-90B the estimate is −log2 of the best
predictor's success probability, taken at the upper end of a confidence interval; the predictors are ours, made for
strings that come from probes, dimensions and labels: look-ups of what followed a context (`entropy_contexts`) and
linear ones (`entropy_linear`).

The confidence level. Every predictor gets the interval of SP 800-90B 6.3.1, z = 2.576, whose upper end is too low with
probability 0.005. There is no Bonferroni correction for the number of predictors, because the estimate claims nothing
about each of them: it takes the largest bound, and that is at least the bound of whichever predictor is truly best.
So it is too optimistic about that one with probability 0.005 at most, however many others there are. Their number
costs in the other direction: of some 25 predictors of ideal bits the luckiest is about two standard deviations up,
which makes z = 4.5 in effect. The level is not raised to the 1 − 10⁻⁶ that Eve's measured error rate gets: here
the larger error is what the predictors miss, and no z covers that. For Gaussian features correlated in time and between
dimensions the estimate from 4000 bits lies above the optimal predictor's entropy in one string of seven, by up to 0.03.

Where the probability p differs from bit to bit, the mean is what counts, and −log2 of the mean is at most the mean of
−log2 p: a stretch that can be predicted is charged in full.
"""

from __future__ import annotations

from math import log2, sqrt

import numpy as np

from testbed.assess.bit_grid import BitGrid
from testbed.assess.entropy_contexts import context_hits
from testbed.assess.entropy_linear import linear_hits
from testbed.core.types import Bits

_Z = 2.5758293035489008  # as SP 800-90B 6.3.1


def source_min_entropy(bits: Bits) -> float:
    """Return the min-entropy per bit, 0 to 1, of one side's string; 0 for fewer than 2 bits.

    Bits that are published later (sacrificed) belong into it: everybody will predict the others from them.
    Near 0 for bits that repeat from probe to probe, from dimension to dimension or with a period of up to 256 probes.
    The confidence bound and the choice of the best predictor cost about 0.1 at 4000 ideal bits, 0.3 at 400.
    """
    if bits.values.size < 2:
        return 0.0
    return max(0.0, -log2(max(guess_probabilities(bits).values())))


def guess_probabilities(bits: Bits) -> dict[str, float]:
    """Return each predictor's probability of guessing a bit, upper bound, by name ("most common" is MCV).

    Raises ValueError for fewer than 2 bits.
    """
    n = bits.values.size
    if n < 2:
        raise ValueError(f"{n} bits, accepted: 2 or more")
    ones = int(np.count_nonzero(bits.values))
    grid = BitGrid.of(bits)
    hits = {"most common": max(ones, n - ones), **context_hits(grid), **linear_hits(grid)}
    return {name: _upper_bound(count, n) for name, count in hits.items()}


def _upper_bound(hits: int, n: int) -> float:
    """Upper confidence bound on a probability, SP 800-90B 6.3.1."""
    p = hits / n
    return min(1.0, p + _Z * sqrt(p * (1.0 - p) / (n - 1)))
