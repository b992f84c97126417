"""Channels from the scene's geometry alone: the direct path and one path an element, in line of sight, exact distances.

h(φ) = h₀ + Σ gₙ exp(jφₙ),  gₙ = (λ/4πd₁ₙ)(λ/4πd₂ₙ)·10^(gain/20)·exp(−j2π(d₁ₙ + d₂ₙ)/λ) at the carrier; near field, no
plane waves. Walls and bodies are left out. Their part of the channel does not change with the pattern, so that in a
real room the gₙ are still valid, but h₀ is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from testbed.core.config import Scene
from testbed.core.errors import InputError
from testbed.core.geometry import element_positions
from testbed.core.types import C64, F64, SPEED_OF_LIGHT_M_S, SurfacePattern


@dataclass(frozen=True)
class LineOfSight:
    """One link of a scene, for one board."""

    shape: tuple[int, int]
    """Rows and columns of the board."""
    elements: C64
    """(element,) gₙ, row by row."""
    direct: complex
    """h₀ in free space."""

    @classmethod
    def of(
        cls, scene: Scene, carrier_hz: float, shape: tuple[int, int], tx: str = "alice", rx: str = "bob"
    ) -> LineOfSight:
        """Return the link between two places of a scene, at their positions at time 0.

        Raises InputError where there is no surface, a place is not known by coordinates, two things are at one point,
        or the surface does not face both ends.
        """
        placed = scene.surface
        if placed is None:
            raise InputError("no surface to model: accepted: a table [scene.surface] (position_m, normal)")
        wavelength_m = SPEED_OF_LIGHT_M_S / carrier_hz
        grid = element_positions(placed, shape, wavelength_m)
        ends, legs = [], []
        for name in (tx, rx):
            node = getattr(scene, name)
            if node is None or node.position_m is None:
                raise InputError(f"table [scene.{name}]: a model needs coordinates, accepted: position_m = [x, y, z]")
            end = np.asarray(node.position_m, float)
            legs.append(np.linalg.norm(grid - end, axis=1))
            if legs[-1].min() <= 0 or np.array_equal(end, placed.position_m):
                raise InputError(f"table [scene.{name}]: at the surface's own point; accepted: a distance above 0 m")
            if not np.dot(end - np.asarray(placed.position_m), placed.normal) > 0:
                raise InputError(
                    f"table [scene.{name}]: the position is behind the surface, which reflects nothing there; "
                    "accepted: a place in "
                    "front of it, or another normal"
                )
            ends.append(end)
        apart_m = float(np.linalg.norm(ends[0] - ends[1]))
        if apart_m <= 0:
            raise InputError(
                f"tables [scene.{tx}] and [scene.{rx}]: both are at the same point; accepted: a distance above 0 m"
            )
        spread = wavelength_m / (4 * np.pi)
        strength = spread**2 * 10 ** (placed.gain_db / 20) / (legs[0] * legs[1])
        turns = np.exp(-2j * np.pi / wavelength_m * (legs[0] + legs[1]))
        return cls(shape, strength * turns, complex(spread / apart_m * np.exp(-2j * np.pi / wavelength_m * apart_m)))

    def response(self, pattern: SurfacePattern, direct: complex | None = None) -> complex:
        """Return h under a pattern; `direct` replaces h₀. Raises InputError for a pattern of another board."""
        if pattern.levels.shape != self.shape:
            given, accepted = ("×".join(map(str, s)) for s in (pattern.levels.shape, self.shape))
            raise InputError(f"a pattern of {given} elements on a model of {accepted}; accepted: the board's own shape")
        by_surface = complex(self.elements @ np.exp(1j * pattern.phases_rad.ravel()))
        return by_surface + (self.direct if direct is None else direct)

    def alignment(self, direct_phase_rad: float) -> F64:
        """Return (element,) phases that bring every element's path in line with a direct one of this phase."""
        return np.asarray(np.mod(direct_phase_rad - np.angle(self.elements), 2 * np.pi))
