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

From `sp800_90b.LEAST_BITS` on, the standard's own ten estimators are asked too, and the least of all counts: they can
only lower the estimate. On fewer bits their bounds would rule it, not the string: see `general_estimate`.

Where the probability p differs from bit to bit, the mean is what counts, and −log2 of the mean is at most the mean of
−log2 p: a stretch that can be predicted is charged in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, sqrt

import numpy as np

from testbed.core.stages import Verdict
from testbed.core.types import Bits
from testbed.entropy import sp800_90b
from testbed.entropy.bit_grid import BitGrid
from testbed.entropy.context_predictors import context_hits
from testbed.entropy.linear_predictors import linear_hits

_Z = 2.5758293035489008  # as SP 800-90B 6.3.1


def source_min_entropy(bits: Bits) -> float:
    """Return the min-entropy per bit, 0 to 1, of one side's string; 0 for fewer than 2 bits.

    Bits that are published later (sacrificed) belong into it: everybody will predict the others from them.
    Near 0 for bits that repeat from probe to probe, from dimension to dimension or with a period of up to 256 probes.
    The confidence bound and the choice of the best predictor cost about 0.1 at 4000 ideal bits, 0.3 at 400.
    """
    predicted = predicted_min_entropy(bits)
    if bits.values.size < 2:
        return 0.0
    general = sp800_90b.min_entropy_90b(bits.values)
    return predicted if general is None else min(predicted, general)


def predicted_min_entropy(bits: Bits) -> float:
    """Return what our predictors alone leave, without the estimators of SP 800-90B; 0 for fewer than 2 bits."""
    return max(0.0, -log2(max(guess_probabilities(bits).values()))) if bits.values.size >= 2 else 0.0


def general_estimate(raw_bits: Sequence[int]) -> Verdict:
    """Say on how many blocks of so many raw bits the estimators of SP 800-90B had a say, and why not on the others."""
    least = sp800_90b.LEAST_BITS
    long = sum(n >= least for n in raw_bits)
    detail = f"The estimators of SP 800-90B had a say in {long} of {len(raw_bits)} blocks"
    if long < len(raw_bits):
        short = [n for n in raw_bits if n < least]
        lengths = f"{min(short)}" if min(short) == max(short) else f"{min(short)} to {max(short)}"
        detail += f"; others have {lengths} raw bits, and below {least} those bounds would rule, not the string"
    return Verdict("min_entropy_90b", True, detail + ".")


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
