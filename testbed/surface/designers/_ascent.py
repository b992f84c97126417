"""Quasi-Newton ascent of many problems at once: L-BFGS with a line search of its own for each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from testbed.core.types import F64

PATIENCE = 3
"""Iterations in a row without gain after which a problem is done."""


def maximise(
    function: Callable[[F64], tuple[F64, F64]],
    x: F64,
    iterations: int = 300,
    tolerance: float = 1e-8,
    memory: int = 10,
) -> tuple[F64, F64, list[float]]:
    """Return x (…, variable), the values there (…), and the mean value after each iteration, the start first.

    `function` gives values (…) and gradients (…, variable). No value ever falls. Ends where every problem gained less
    than `tolerance` of its value `PATIENCE` times in a row.
    """
    value, gradient = function(x)
    history = [float(np.mean(value))]
    steps: list[tuple[F64, F64, F64]] = []
    idle = np.zeros(value.shape, int)
    for _ in range(iterations):
        direction = _direction(gradient, steps)
        slope = _dot(direction, gradient)
        uphill = slope > 0
        direction = np.where(uphill[..., None], direction, gradient)
        slope = np.where(uphill, slope, _dot(gradient, gradient))
        size = np.ones(value.shape) if steps else 1 / np.sqrt(np.maximum(slope, 1e-300))
        size[idle >= PATIENCE] = 0.0
        for _ in range(25):
            tried = x + size[..., None] * direction
            now, steeper = function(tried)
            falls = now < value + 1e-4 * size * slope
            falls &= idle < PATIENCE
            if not falls.any():
                break
            size = np.where(falls, size / 2, size)
        keep = falls[..., None]
        tried, now, steeper = np.where(keep, x, tried), np.where(falls, value, now), np.where(keep, gradient, steeper)
        s, y = tried - x, gradient - steeper
        curvature = _dot(s, y)
        # a pair without curvature counts for nothing
        good = curvature > 1e-12 * np.sqrt(_dot(s, s) * _dot(y, y))
        steps.append((s, y, np.where(good, 1 / np.where(good, curvature, 1.0), 0.0)))
        del steps[:-memory]
        idle = np.where(now - value <= tolerance * np.abs(now), idle + 1, 0)
        x, value, gradient = tried, now, steeper
        history.append(float(np.mean(value)))
        if (idle >= PATIENCE).all():
            break
    return x, value, history


def _direction(gradient: F64, steps: list[tuple[F64, F64, F64]]) -> F64:
    """Return the two-loop recursion's answer (…, variable)."""
    q, weights = gradient.copy(), []
    for s, y, inverse in reversed(steps):
        weight = inverse * _dot(s, q)
        q -= weight[..., None] * y
        weights.append(weight)
    scale = np.ones(gradient.shape[:-1])
    for s, y, inverse in steps:
        scale = np.where(inverse > 0, _dot(s, y) / np.maximum(_dot(y, y), 1e-300), scale)
    q *= scale[..., None]
    for (s, y, inverse), weight in zip(steps, reversed(weights), strict=True):
        q += (weight - inverse * _dot(y, q))[..., None] * s
    return q


def _dot(a: F64, b: F64) -> F64:
    return np.asarray((a * b).sum(axis=-1))
