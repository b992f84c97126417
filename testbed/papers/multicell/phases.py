"""Paper C, algorithm 2: phases for given precoders, projected gradient ascent with backtracking (Theorem 4, eq. 32)."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.papers.multicell.general import GeneralMultiCell
from testbed.papers.multicell.model import MultiCell
from testbed.papers.multicell.rates import C128, slopes
from testbed.surface.design import Design

SUFFICIENT = 1e-4
"""A step is accepted if it raises the rate by at least this share of the rise that the gradient predicts."""


def design(
    model: MultiCell | GeneralMultiCell,
    precoders: C128,
    phases_rad: F64,
    iterations: int = 300,
    tolerance: float = 1e-7,
) -> Design:
    """Return phases (…, element) for the given precoders, from `phases_rad`.

    The model computes the gradient: `MultiCell` at linear cost, `GeneralMultiCell` by Theorem 4. The ascent ends when
    no scene gains more than `tolerance` of its rate.
    """
    v = np.exp(1j * np.asarray(phases_rad, float))
    bits = model.weighted_bound(precoders, np.angle(v))
    v = np.broadcast_to(v, (*bits.shape, v.shape[-1]))
    history = [float(np.mean(bits))]
    step: np.ndarray = np.ones(bits.shape)
    for _ in range(iterations):
        angles = np.angle(v)
        found = slopes(precoders, model.covariances(angles), model.weights)
        gradient = model.phase_slopes(found.covariances, angles)
        step = 4 * step  # the step may grow again
        for _ in range(60):
            tried = v + step[..., None] * gradient
            tried = np.exp(1j * np.angle(tried))
            now = model.weighted_bound(precoders, np.angle(tried))
            promised = 2 * np.real((gradient.conj() * (tried - v)).sum(axis=-1))
            falls = (now < bits + SUFFICIENT * promised) | (now < bits)
            if not falls.any():
                break
            step = np.where(falls, step / 2, step)
        v = np.where(falls[..., None], v, tried)
        now = np.where(falls, bits, now)
        history.append(float(np.mean(now)))
        small = np.all(now - bits <= tolerance * np.abs(now))
        bits = now
        if small:
            break
    return Design(np.angle(v), precoders, history)
