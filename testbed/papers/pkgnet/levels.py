"""Phases in 2^b levels for paper A: a method's phases rounded to a board's levels, or optimised over the levels.

Every board can set the optimum (equal phases, see `exact`); this module is for phases that a board cannot set, for
example those of a net. An angle that is added to all phases changes no rate, but it changes how they are rounded.
"""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.papers.pkgnet import exact as pkg_exact
from testbed.papers.pkgnet.model import SingleCell
from testbed.surface.design import Design
from testbed.surface.levels import levels_rad, project


def projected(model: SingleCell, phases_rad: F64, bits: int) -> Design:
    """Return the nearest levels of phases (…, element), with the best precoder for them."""
    nearest = project(model.checked_phases(phases_rad), bits)
    return Design(nearest, pkg_exact.precoders(model, nearest))


def design(model: SingleCell, phases_rad: F64, bits: int, n_turns: int = 8, sweeps: int = 50) -> Design:
    """Return levels that no change of a single element improves, and which are at least as good as those of
    `projected`.

    Maximises δ² from roundings of `phases_rad` plus each of `n_turns` angles (0 among them), and returns the best
    result. The history is the mean rate over the starts, before the first sweep and after each.
    """
    phases = model.checked_phases(phases_rad)
    turns = np.arange(n_turns) * (levels_rad(bits)[1] / n_turns)
    grid = np.exp(1j * levels_rad(bits))
    v = np.exp(1j * project(phases + turns.reshape(-1, *[1] * phases.ndim), bits))
    others = model.coupling - np.diag(np.diag(model.coupling))
    history = [_mean_rate(model, v)]
    for _ in range(sweeps):
        before = v.copy()
        for n in range(model.n_elements):
            # δ² = constant + 2 Re(vₙ* pull): the level nearest to the phase of `pull` is best; of equal ones the old
            # stays
            pull = v @ others[:, n]
            worth, now = (pull[..., None] * grid.conj()).real, (pull * v[..., n].conj()).real
            v[..., n] = np.where(worth.max(axis=-1) > now + 1e-12, grid[worth.argmax(axis=-1)], v[..., n])
        history.append(_mean_rate(model, v))
        if np.array_equal(before, v):
            break
    angles = project(np.angle(v), bits)
    best = np.argmax(model.gain(angles), axis=0)
    angles = np.take_along_axis(angles, best[None, ..., None], axis=0)[0]
    return Design(angles, pkg_exact.precoders(model, angles), history)


def _mean_rate(model: SingleCell, v: np.ndarray) -> float:
    return float(np.mean(pkg_exact.rate(model, np.angle(v))))
