"""What is left of labels given Eve's analogue observation, if all are jointly Gaussian: the "modelled" accounting.

The model: labels are numbers of equally likely cells (`gaussian_labels`); the normal scores of Alice's and of Eve's
features of one dimension are jointly normal; probes are independent, and what Eve's features of other dimensions tell
of a dimension is nothing beyond her own features of it. Her correlation is measured on the sacrificed symbols, link by
link, and taken at the upper end of a confidence interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import cos, pi
from statistics import NormalDist

import numpy as np

from testbed.core.outcomes import Dependence
from testbed.core.types import F64, Bits
from testbed.entropy.gaussian_labels import Symbols, cell_scores, normal_scores, renyi_entropy

CONFIDENCE = 1.0 - 1e-6
_ORDERS = 1.0 + np.geomspace(1e-4, 1.0, 25)
_LEAST_SAMPLES = 8


def dependence(published: Bits, links: Sequence[F64]) -> tuple[Dependence, ...]:
    """Return by dimension how far Eve's features (probe, dimension), one array a link, explain Alice's published cells.

    R² is that of the best linear combination of her scores, scaled to Alice's own score before it was cut. Dimensions
    of which she has fewer than 8 complete samples are left out.
    """
    symbols = Symbols.of(published)
    scores = [normal_scores(values) for values in links]
    out = []
    for d in np.unique(symbols.dimension).tolist():
        rows = symbols.dimension == d
        seen = [z[symbols.probe[rows], d] for z in scores if d < z.shape[1] and np.isfinite(z[:, d]).any()]
        if not seen:
            continue
        x = np.stack(seen, axis=1)
        heard = np.isfinite(x).all(axis=1)
        m = int(symbols.bits[rows][0])
        y, x = cell_scores(m)[symbols.value[rows][heard]], x[heard]
        if y.size < _LEAST_SAMPLES + x.shape[1]:
            continue
        fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
        share = float((fitted**2).sum() / max(float((y**2).sum()), 1e-12))
        power = float(np.mean(cell_scores(m) ** 2))  # of a score that only the cell is known of
        # the noise of what is left is not larger by more than what cutting took, hence fewer samples in effect
        samples = max(1, int(y.size * power**2))
        out.append(Dependence(dimension=d, samples=samples, links=x.shape[1], r2=min(share / power, 0.999999)))
    return tuple(out)


def usable(found: Sequence[Dependence], raw: Bits) -> bool:
    """Return whether every dimension of the string was measured; a report may be wrong or broken."""
    known = {f.dimension for f in found}
    return known >= set(np.unique(raw.dimension).tolist()) and all(
        0.0 <= f.r2 < 1.0 and f.samples >= 1 and 1 <= f.links <= 8 for f in found
    )


def assumed_correlation(error_rate: float) -> float:
    """Return the correlation at which the signs of two jointly normal variables differ at this rate, 0 to 0.5."""
    return cos(pi * min(max(error_rate, 0.0), 0.5))


def eve_correlations(found: Sequence[Dependence], counts: Mapping[int, int]) -> dict[int, float]:
    """Return by dimension the correlation to reckon with, given `counts` of symbols a dimension.

    I = −½ ln(1 − R²) of each dimension is estimated too high by (links)/(2n) on average, which stays. On top comes
    the confidence bound on the total over all symbols, from the estimates' variance R²/n + links/(2n²), shared out
    evenly: the total is what the key's length goes by, and it is known far better than each dimension's part.
    """
    z = NormalDist().inv_cdf(CONFIDENCE)
    own = [f for f in found if counts.get(f.dimension)]
    nats = {f.dimension: -0.5 * np.log1p(-f.r2) for f in own}
    n_all = sum(counts[f.dimension] for f in own)
    extra = 0.0
    for _ in range(20):  # the variance grows with what it bounds
        up = {d: 1.0 - np.exp(-2.0 * (value + extra)) for d, value in nats.items()}
        variance = sum(
            counts[f.dimension] ** 2 * (up[f.dimension] / f.samples + f.links / (2.0 * f.samples**2)) for f in own
        )
        extra = float(z * np.sqrt(variance)) / max(n_all, 1)
    return {d: float(np.sqrt(1.0 - np.exp(-2.0 * (value + extra)))) for d, value in nats.items()}


def smooth_min_entropy(raw: Bits, correlations: Mapping[int, float], epsilon_log2: int) -> float:
    """Return the ε′-smooth min-entropy in bits of a string given Eve, ε′ = 2**−(epsilon_log2 + 2).

    Smoothing costs 2·ε′ = ε/2 and the hash the other half (`amplify.accounting`), so that the key stays within ε. The
    bound is that by Rényi entropies, at the best of several orders.
    """
    symbols = Symbols.of(raw)
    counts = np.bincount(symbols.dimension)
    depth = np.zeros(counts.size, np.int64)
    depth[symbols.dimension] = symbols.bits
    own = np.flatnonzero(counts).tolist()
    if all(correlations[d] == 0.0 for d in own):
        return float(symbols.bits.sum())  # nothing is known, and the cells are equally likely: no smoothing
    bits = [
        sum(int(counts[d]) * renyi_entropy(round(correlations[d], 6), int(depth[d]), float(a)) for d in own)
        - (epsilon_log2 + 2) / (float(a) - 1.0)
        for a in _ORDERS
    ]
    return max(0.0, *bits)
