"""Phases in 2^b steps for paper C: projection, and coordinate ascent over the levels on the true objective.

A real board has 1, 2 or 3 bits per element. Rounding the continuous result ignores the objective; here each element in
turn takes the level that gives the most key, while all others are fixed. Changing one element changes each s by one
product, so a trial costs K²L numbers and K small determinants, for any number of elements.
"""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell.model import MultiCell
from testbed.papers.multicell.rates import C128, bounds_bits
from testbed.surface.design import Design
from testbed.surface.levels import levels_rad, project


def projected(model: MultiCell, precoders: C128, phases_rad: F64, bits: int) -> Design:
    """Return the rounded phases, and the precoders that algorithm 1 finds for them from the given ones."""
    return cells_precoders.design(model, project(phases_rad, bits), precoders)


def design(
    model: MultiCell,
    precoders: C128,
    phases_rad: F64,
    bits: int,
    n_turns: int = 8,
    rounds: int = 20,
    sweeps: int = 20,
) -> Design:
    """Return levels and precoders, found from roundings of `phases_rad` by alternating both until neither raises the
    rate.

    One angle that is added to all phases changes their rounding, but not the rate of the phases themselves. Therefore
    the search starts from `n_turns` such angles, 0 among them, and returns the best result, which is never below
    `projected`. The history has the mean over the starts after each round.
    """
    turns = np.arange(n_turns) * (levels_rad(bits)[1] / n_turns)
    turned = np.asarray(phases_rad)[None] + turns.reshape(-1, *[1] * np.ndim(phases_rad))
    start = projected(model, precoders, turned, bits)
    p, phases = np.asarray(start.precoders, complex), np.array(start.phases_rad)
    value = model.weighted_bound(p, phases)
    history = [float(np.mean(value))]
    for _ in range(rounds):
        phases = _sweep(model, p, phases, bits, sweeps)
        p = np.asarray(cells_precoders.design(model, phases, p, 100, 1e-6).precoders, complex)
        now = model.weighted_bound(p, phases)
        history.append(float(np.mean(now)))
        small = np.all(now - value <= 1e-6 * now)
        value = now
        if small:
            break
    best = np.argmax(value, axis=0)[None]
    phases = np.take_along_axis(phases, best[..., None], axis=0)[0]
    return Design(phases, np.take_along_axis(p, best[..., None, None, None], axis=0)[0], history)


def _sweep(model: MultiCell, p: C128, phases: F64, bits: int, sweeps: int) -> F64:
    """Return levels that no change of a single element improves, or the levels after `sweeps` sweeps."""
    levels = levels_rad(bits)
    units = np.exp(1j * levels)
    state = np.rint(phases / levels[1]).astype(int) % levels.size
    s = model.sums(levels[state])
    n = model.surface_bs.shape[-1]
    batch = state.shape[:-1]
    index = np.indices(batch)
    for _ in range(sweeps):
        changed = False
        for element in range(model.n_phases):
            surface, place = divmod(element, n)
            # (…, i, j) the contribution of this element to s at phase 0
            own = (
                model.surface_bs[..., surface, :, place][..., :, None]
                * (model.surface_ut[..., surface, :, place][..., None, :])
            )
            old = state[..., element]
            turned = units.reshape(-1, *[1] * len(batch)) - units[old]  # (level, …)
            tried = np.repeat(s[None], len(levels), axis=0)
            tried[..., surface] += turned[..., None, None] * own
            value = (model.weights * bounds_bits(p, model.covariances_of(tried))).sum(axis=-1)
            best = np.argmax(value, axis=0)
            here = np.take_along_axis(value, old[None], axis=0)[0]
            best = np.where(value.max(axis=0) > here * (1 + 1e-12), best, old)
            if (best != old).any():
                changed = True
                state[..., element] = best
                s = tried[(best, *index)]
        if not changed:
            break
    return levels[state]
