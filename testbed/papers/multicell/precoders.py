"""Paper C, algorithm 1: precoders for given phases, a fixed point of the KKT conditions (eqs. 17–27).

P_i ← (λ_i I + F_i)⁻¹ a_i with F and a of the last precoders, and λ_i ≥ 0 by bisection such that ‖P_i‖² ≤ P_A. The new
point maximises a concave quadratic that has the objective's value and gradient at the old point, so the objective rises
at first on the line from the old point to the new one. If it is not higher at the end of the step, the step is halved
until it is. (It is not proved that the published step always improves; the study counts how often it did not.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from testbed.core.types import F64
from testbed.papers.multicell.general import GeneralMultiCell
from testbed.papers.multicell.model import MultiCell
from testbed.papers.multicell.rates import C128, bounds_bits, fixed_point_terms
from testbed.surface.design import Design

BISECTIONS = 60


def identity(model: MultiCell | GeneralMultiCell) -> C128:
    """Return precoders (…, cell, stream, antenna) of full power, stream m on antenna m alone."""
    shape = (*model.batch, model.n_cells, model.n_chains, model.n_antennas)
    one = np.sqrt(model.power_w / model.n_chains) * np.eye(model.n_chains, model.n_antennas)
    return np.broadcast_to(one.astype(complex), shape).copy()


def random(model: MultiCell | GeneralMultiCell, rng: np.random.Generator) -> C128:
    """Return Gaussian precoders of full power."""
    shape = (*model.batch, model.n_cells, model.n_chains, model.n_antennas)
    p = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return np.asarray(p * np.sqrt(model.power_w) / np.linalg.norm(p, axis=(-2, -1), keepdims=True))


def design(
    model: MultiCell | GeneralMultiCell,
    phases_rad: F64,
    start: C128 | None = None,
    iterations: int = 500,
    tolerance: float = 1e-7,
    halved: list[int] | None = None,
) -> Design:
    """Return precoders for the given phases (…, element), from `start` (identity by default).

    The iteration ends when no scene gains more than `tolerance` of its rate. For every iteration the number of scenes
    whose step had to be shortened is appended to `halved`.
    """
    c = model.covariances(phases_rad)
    p = identity(model) if start is None else np.asarray(start, complex)
    model.check_precoders(p)
    p = np.broadcast_to(p, (*np.broadcast_shapes(c.shape[:-4], p.shape[:-3]), *p.shape[-3:]))
    history: list[float] = []
    for _ in range(iterations):
        f, a, bits = fixed_point_terms(p, c, model.weights)
        if not history:
            history.append(float(np.mean(bits)))
        target = _spend(f, a, model.power_w)
        target = target.reshape(*p.shape[:-2], p.shape[-1], p.shape[-2]).swapaxes(-1, -2)
        step = np.ones(p.shape[:-3])
        for attempt in range(30):
            tried = p + step[..., None, None, None] * (target - p)
            found = _value(tried, c, model.weights)
            falls = found < bits - 1e-12 * np.abs(bits)
            if attempt == 0 and halved is not None:
                halved.append(int(falls.sum()))
            if not falls.any():
                break
            step = np.where(falls, step / 2, step)
        p = np.where(falls[..., None, None, None], p, tried)
        found = np.where(falls, bits, found)
        history.append(float(np.mean(found)))
        if np.all(found - bits <= tolerance * np.abs(found)):
            break
    phases = np.broadcast_to(np.asarray(phases_rad, float), (*p.shape[:-3], model.n_phases))
    return Design(phases, p, history)


def _value(p: C128, c: C128, weights: Any) -> Any:
    return (weights * bounds_bits(p, c)).sum(axis=-1)


def _spend(f: C128, a: C128, power_w: float) -> C128:
    """Return vec(P_i) = (λ_i I + F_i)⁻¹ a_i (…, cell, MM_e), λ_i = 0 or such that all power is used (eqs. 22–26)."""
    values, vectors = np.linalg.eigh(f)
    b = (vectors.conj().swapaxes(-1, -2) @ a[..., None])[..., 0]
    b2 = np.abs(b) ** 2
    values = np.maximum(values, 1e-14 * values[..., -1:] + 1e-300)
    high = np.sqrt(b2.sum(axis=-1) / power_w)
    low = np.zeros_like(high)
    free = (b2 / values**2).sum(axis=-1) <= power_w
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = (b2 / (middle[..., None] + values) ** 2).sum(axis=-1) <= power_w
        low, high = np.where(fits, low, middle), np.where(fits, middle, high)
    multiplier = np.where(free, 0.0, high)[..., None]
    return np.asarray((vectors @ (b / (multiplier + values))[..., None])[..., 0])
