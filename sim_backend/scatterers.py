"""The scatterers of a scene: positions, velocities and reflection coefficients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from testbed.core.config import Multipath
from testbed.core.seeds import generator
from testbed.core.types import F64

C128 = NDArray[np.complex128]


@dataclass(frozen=True, slots=True)
class Scatterers:
    """Small bodies that scatter a part of the incident wave in all directions."""

    position_m: F64
    """(scatterer, 3) at time 0."""
    velocity_m_s: F64
    """(scatterer, 3); they are reflected at the walls of the room."""
    coefficient: C128
    """(scatterer,) complex reflection."""
    far_m: F64 | None = None
    """(scatterer, 3) positions of the bodies on Alice's side; for Alice they take the place of `position_m`. A path
    between the two sides leads over both bodies."""
    direct: complex | None = None
    """Coefficient of the direct path between Alice's side and the other; None: that of the scene's multipath."""

    @classmethod
    def draw(cls, plan: Multipath, seed: int) -> Scatterers:
        """Draw them uniformly in the room, coefficients circular Gaussian, directions horizontal (people walk)."""
        rng = generator(seed, "scatterers")
        n = plan.n_scatterers
        position = rng.uniform(0, 1, (n, 3)) * np.asarray(plan.room_m)
        coefficient = (
            (rng.standard_normal(n) + 1j * rng.standard_normal(n)) * np.sqrt(0.5) * 10 ** (-plan.scatter_loss_db / 20)
        )
        heading, speed = rng.uniform(0, 2 * np.pi, n), rng.uniform(0, plan.scatterer_speed_m_s, n)
        velocity = np.stack([speed * np.cos(heading), speed * np.sin(heading), np.zeros(n)], axis=1)
        return cls(position, velocity, coefficient)
