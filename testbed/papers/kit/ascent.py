"""Quasi-Newton ascent for many problems at once: L-BFGS with a separate line search for each problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from testbed.core.types import F64

PATIENCE = 3
"""A problem ends after this number of successive iterations without gain."""


def maximise(
    function: Callable[[F64], tuple[F64, F64]],
    x: F64,
    iterations: int = 300,
    tolerance: float = 1e-8,
    memory: int = 10,
) -> tuple[F64, F64, list[float]]:
    """Return x (…, variable), the values there (…), and the mean value after each iteration, the start first.

    `function` gives values (…) and gradients (…, variable). No value ever falls. The ascent ends where every problem
    gained less than `tolerance` of its value in each of the last `PATIENCE` iterations.
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
        # without a pair (step, change of gradient) the scale is unknown: take a step of length one
        known = np.any([inverse > 0 for _, _, inverse in steps], axis=0) if steps else np.zeros(value.shape, bool)
        size = np.where(known, 1.0, 1 / np.sqrt(np.maximum(_dot(direction, direction), 1e-300)))
        active = idle < PATIENCE
        size = np.where(active, size, 0.0)
        tried, now, steeper, falls = _search(function, x, value, direction, slope, size, active)
        keep = falls[..., None]
        tried, now, steeper = np.where(keep, x, tried), np.where(falls, value, now), np.where(keep, gradient, steeper)
        s, y = tried - x, gradient - steeper
        curvature = _dot(s, y)
        # a pair without curvature gets weight 0, which leaves it out of the two-loop recursion
        good = curvature > 1e-12 * np.sqrt(_dot(s, s) * _dot(y, y))
        steps.append((s, y, np.where(good, 1 / np.where(good, curvature, 1.0), 0.0)))
        del steps[:-memory]
        idle = np.where(now - value <= tolerance * np.abs(now), idle + 1, 0)
        x, value, gradient = tried, now, steeper
        history.append(float(np.mean(value)))
        if (idle >= PATIENCE).all():
            break
    return x, value, history


def _search(
    function: Callable[[F64], tuple[F64, F64]], x: F64, value: F64, direction: F64, slope: F64, size: F64, active: Any
) -> tuple[F64, F64, F64, Any]:
    """Return a point, its value and gradient, and which problems found no step with enough gain.

    A step that gains too little is halved. A step that gains enough, but at whose end the slope is as steep as at its
    start, is doubled: the function is convex there, and short steps would give L-BFGS no pair with usable curvature.
    """
    for _ in range(25):
        tried = x + size[..., None] * direction
        now, steeper = function(tried)
        falls = active & (now < value + 1e-4 * size * slope)
        if not falls.any():
            break
        size = np.where(falls, size / 2, size)
    grows = active & ~falls
    for _ in range(20):
        grows = grows & (_dot(steeper, direction) > 0.9 * slope)
        if not grows.any():
            break
        longer = np.where(grows, 2 * size, size)
        further = x + longer[..., None] * direction
        then, slopes = function(further)
        grows &= then > now
        size, now = np.where(grows, longer, size), np.where(grows, then, now)
        tried = np.where(grows[..., None], further, tried)
        steeper = np.where(grows[..., None], slopes, steeper)
    return tried, now, steeper, falls


def _direction(gradient: F64, steps: list[tuple[F64, F64, F64]]) -> F64:
    """Return the direction of ascent (…, variable) by L-BFGS's two-loop recursion."""
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
