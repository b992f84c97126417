"""Paper C's method: algorithm 1 for the precoders and algorithm 2 for the phases alternate until neither raises the
rate."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.papers.multicell import phases as cells_phases
from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell.general import GeneralMultiCell
from testbed.papers.multicell.model import MultiCell
from testbed.papers.multicell.rates import C128
from testbed.surface.design import Design


def design(
    model: MultiCell | GeneralMultiCell,
    phases_rad: F64,
    start: C128 | None = None,
    rounds: int = 100,
    tolerance: float = 1e-5,
    inner: int = 200,
) -> Design:
    """Return precoders and phases from `phases_rad` (…, element) and `start` (identity by default).

    The paper does not say from where it starts, but the result depends on it (the study compares starts). The history
    has the rate at the start and after each round. `inner`: iterations of either algorithm within a round.
    """
    precoders = cells_precoders.identity(model) if start is None else start
    bits = model.weighted_bound(precoders, phases_rad)
    history = [float(np.mean(bits))]
    for _ in range(rounds):
        first = cells_precoders.design(model, phases_rad, precoders, inner, tolerance / 10)
        second = cells_phases.design(model, first.precoders, phases_rad, inner, tolerance / 10)
        precoders, phases_rad = second.precoders, second.phases_rad
        now = model.weighted_bound(precoders, phases_rad)
        history.append(float(np.mean(now)))
        small = np.all(now - bits <= tolerance * now)
        bits = now
        if small:
            break
    return Design(phases_rad, precoders, history)
