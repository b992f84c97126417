"""Focusing by geometry: conjugate phases, quantized; one candidate for each phase that the other paths may have.

The phases are chosen so that all paths over the surface add up in phase. The common phase that aligns their sum with
the other paths, over walls and bodies, does not follow from the geometry and must be tried. A common phase that is
larger by a whole level (2π/2^bits) turns every element by one level; in between, some elements are rounded to another
level. So `n` phases over the whole circle are tried: with 8 of them the best one is at most π/8 off, which costs 0.3 dB
of the surface's part.
"""

from __future__ import annotations

import numpy as np

from testbed.core import patterns
from testbed.core.errors import InputError
from testbed.core.types import SurfacePattern
from testbed.surface.design import Design
from testbed.surface.line_of_sight import LineOfSight


def design(model: LineOfSight, direct_phase_rad: float | None = None) -> Design:
    """Return the phases that focus on the link, in line with a direct path of this phase (default: in free space)."""
    phase_rad = float(np.angle(model.direct)) if direct_phase_rad is None else direct_phase_rad
    return Design(model.alignment(phase_rad), np.ones((1, 1), complex))


def candidates(model: LineOfSight, phase_bits: int, n: int = 8) -> list[SurfacePattern]:
    """Return the different patterns among `n` designs, whose direct phases lie evenly over the circle."""
    if n < 1:
        raise InputError(f"{n} candidates, accepted from 1")
    found: dict[str, SurfacePattern] = {}
    for phase_rad in np.arange(n) * (2 * np.pi / n):
        levels = patterns.quantize(design(model, phase_rad).phases_rad.reshape(model.shape), phase_bits)
        pattern = SurfacePattern(levels, phase_bits)
        found.setdefault(pattern.digest, pattern)
    return list(found.values())
