"""Positions of a surface's elements: the convention that patterns, models and the simulated air share."""

from __future__ import annotations

import numpy as np

from testbed.core.config import PlacedSurface
from testbed.core.types import F64


def element_positions(placed: PlacedSurface, shape: tuple[int, int], wavelength_m: float) -> F64:
    """Return (element, 3) in metres, element r·columns + c at (row r, column c).

    Seen by an observer facing the surface, row 0 is at the top and column 0 at the left; for a surface that looks
    straight up or down, "top" is +y.
    """
    normal = np.asarray(placed.normal, dtype=float)
    length = float(np.linalg.norm(normal))
    if length == 0.0:
        raise ValueError("scene.surface.normal has length 0")
    normal = normal / length
    up = np.array([0.0, 0.0, 1.0]) if abs(normal[2]) < 0.999 else np.array([0.0, 1.0, 0.0])
    right = np.cross(up, normal)
    right /= np.linalg.norm(right)
    top = np.cross(normal, right)
    rows, columns = shape
    spacing_m = placed.spacing_wavelengths * wavelength_m
    r = ((rows - 1) / 2 - np.arange(rows)) * spacing_m
    c = (np.arange(columns) - (columns - 1) / 2) * spacing_m
    offsets = r[:, None, None] * top + c[None, :, None] * right
    grid: F64 = np.asarray(placed.position_m, dtype=float) + offsets.reshape(-1, 3)
    return grid
