"""The reflecting surface: where its elements are and what each adds between two points."""

from __future__ import annotations

import numpy as np

from testbed.core.config import PlacedSurface
from testbed.core.types import F64, SPEED_OF_LIGHT_M_S


def element_positions(placed: PlacedSurface, shape: tuple[int, int], wavelength_m: float) -> F64:
    """Return (element, 3) in metres, element r·columns + c at (row r, column c).

    Seen by somebody facing the surface, row 0 is at the top and column 0 at the left; for a surface that looks
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


def cascade(elements: F64, normal: F64, gain_db: float, x: F64, y: F64, carrier_hz: float) -> tuple[F64, F64]:
    """Return amplitude and delay in seconds of each element's path x → element → y, both (element,).

    Amplitude (λ/4πd₁)(λ/4πd₂)·10^(gain/20): an isotropic element that receives and radiates without loss. Elements
    reflect in the half space that `normal` points into only; behind it the amplitude is 0.
    """
    to_x, to_y = x - elements, y - elements
    d1, d2 = np.sqrt((to_x**2).sum(axis=1)), np.sqrt((to_y**2).sum(axis=1))
    in_front = (to_x @ normal > 0) & (to_y @ normal > 0)
    spread = SPEED_OF_LIGHT_M_S / carrier_hz / (4 * np.pi)
    amplitude = np.where(in_front, spread**2 / np.maximum(d1 * d2, 1e-6) * 10 ** (gain_db / 20), 0.0)
    return amplitude, (d1 + d2) / SPEED_OF_LIGHT_M_S
