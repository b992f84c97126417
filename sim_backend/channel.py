"""Paths between two places of a scene, and the taps that stand for them in sampled signals.

Single-bounce multipath: a path is transmitter → scatterer → receiver with the scatterer's own complex coefficient.
All links share the scatterers, so Eve's correlation with Bob follows from where they stand and nothing else, and a
link and its reverse are the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim_backend.surface import cascade, element_positions
from testbed.core.config import Multipath, PlacedNode, Scene
from testbed.core.seeds import generator
from testbed.core.types import F64, SPEED_OF_LIGHT_M_S

C128 = NDArray[np.complex128]

# ---------------------------------------------------------------- fractional delays

HALF = 12
"""Half the length of the interpolation kernel in samples."""
_PHASES = 4096
_KAISER_BETA = 6.8


def _kernel_table() -> F64:
    """(phase, tap): Kaiser-windowed sinc around a delay of phase/_PHASES samples; flat to −60 dB for |f| ≤ 0.4 rate."""
    x = np.arange(1 - HALF, HALF + 1)[None, :] - np.arange(_PHASES + 1)[:, None] / _PHASES
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (x / HALF) ** 2, 0, None))) / np.i0(_KAISER_BETA)
    return np.asarray(np.sinc(x) * window)


_KERNEL = _kernel_table()


def taps(amplitude: C128, delay_samples: F64) -> tuple[int, C128]:
    """Return (first, h): path n adds amplitude[n] at delay_samples[n]; h[i] is the tap at lag first + i samples."""
    whole = np.floor(delay_samples)
    phase = np.rint((delay_samples - whole) * _PHASES).astype(np.intp)
    steps = whole.astype(np.int64)
    first, last = int(steps.min()), int(steps.max())
    parts = np.stack([amplitude.real, amplitude.imag])
    h = np.zeros((2, last - first + 2 * HALF))
    for step in np.unique(steps):
        chosen = steps == step
        h[:, step - first : step - first + 2 * HALF] += parts[:, chosen] @ _KERNEL[phase[chosen]]
    return first + 1 - HALF, h[0] + 1j * h[1]


# ---------------------------------------------------------------- geometry


@dataclass(frozen=True, slots=True)
class Scatterers:
    """Small bodies that throw some of what hits them in every direction."""

    position_m: F64
    """(scatterer, 3) at time 0."""
    velocity_m_s: F64
    """(scatterer, 3); they turn round at the walls of the room."""
    coefficient: C128
    """(scatterer,) complex reflection."""

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


NEAR_FIELD = 2 * np.pi
"""Distances count as at least λ/2π: closer, free space would hand over more than was sent (coupling stops at −6 dB)."""


class Channel:
    """The physical channel of one scene: no radios, no noise; the same in both directions."""

    def __init__(self, scene: Scene, carrier_hz: float, seed: int, scatterers: Scatterers | None = None) -> None:
        """`carrier_hz` turns the scene's wavelengths into metres; `scatterers` replaces the drawn ones."""
        self._scene = scene
        self._wavelength_m = SPEED_OF_LIGHT_M_S / carrier_hz
        self._room_m = np.asarray(scene.multipath.room_m)
        self._scatterers = Scatterers.draw(scene.multipath, seed) if scatterers is None else scatterers
        self._places: dict[str, tuple[F64, F64]] = {}
        for name in ("alice", "bob", "eve"):
            placed: PlacedNode | None = getattr(scene, name)
            if placed is not None and placed.position_m is not None:
                self._places[name] = (np.asarray(placed.position_m, float), np.asarray(placed.velocity_m_s, float))
        for name in ("alice", "bob", "eve"):
            placed = getattr(scene, name)
            if placed is not None and placed.position_m is None and placed.near in self._places:
                anchor, velocity = self._places[placed.near]
                heading = generator(seed, "near", name).uniform(0, 2 * np.pi)
                step = placed.offset_wavelengths * self._wavelength_m
                self._places[name] = (anchor + step * np.array([np.cos(heading), np.sin(heading), 0.0]), velocity)
        self._still = not self._scatterers.velocity_m_s.any() and not any(v.any() for _, v in self._places.values())
        self._elements: F64 | None = None
        self._cache: dict[tuple[str, str, float, float], tuple[C128, F64, C128, F64]] = {}

    @property
    def places(self) -> list[str]:
        """Return the names that a radio can stand at."""
        return list(self._places)

    def position_m(self, place: str, time_s: float) -> F64:
        """Return where a place is, (3,)."""
        start, velocity = self._places[place]
        return start + velocity * time_s

    def hang_surface(self, shape: tuple[int, int] | None) -> None:
        """Give the scene's surface, if it has one, the board's shape (rows, columns); None takes it down."""
        placed = self._scene.surface
        self._elements = (
            element_positions(placed, shape, self._wavelength_m) if placed is not None and shape is not None else None
        )
        self._cache.clear()

    def paths(self, x: str, y: str, time_s: float, carrier_hz: float) -> tuple[C128, F64, C128, F64]:
        """Return the paths between two places at a moment.

        (amplitude, delay_s) of direct and scattered paths, then of the surface's elements before their own phases
        (empty without a surface). Amplitude λ/4πd · coefficient · exp(−j2πf_cτ): Doppler is the phase that changes
        because τ does. Read-only arrays: they are shared between calls.
        """
        pair = (x, y) if x < y else (y, x)
        key = (*pair, 0.0 if self._still else time_s, carrier_hz)
        found = self._cache.get(key)
        if found is None:
            if len(self._cache) >= 64:
                self._cache.clear()
            found = self._cache[key] = self._trace(*pair, key[2], carrier_hz)
        return found

    def _trace(self, x: str, y: str, time_s: float, carrier_hz: float) -> tuple[C128, F64, C128, F64]:
        at_x, at_y = self.position_m(x, time_s), self.position_m(y, time_s)
        bodies = self._scatterers.position_m
        if self._scatterers.velocity_m_s.any():
            # a triangle wave: straight on, turning round at the walls
            moved = (bodies + self._scatterers.velocity_m_s * time_s) % np.maximum(2 * self._room_m, 1e-9)
            bodies = np.where(moved > self._room_m, 2 * self._room_m - moved, moved)
        wavelength_m = SPEED_OF_LIGHT_M_S / carrier_hz
        length = np.empty(1 + len(bodies))
        length[0] = np.linalg.norm(at_x - at_y)
        length[1:] = np.sqrt(((at_x - bodies) ** 2).sum(axis=1)) + np.sqrt(((at_y - bodies) ** 2).sum(axis=1))
        coefficient = np.concatenate([[10 ** (self._scene.multipath.direct_db / 20)], self._scatterers.coefficient])
        delay = length / SPEED_OF_LIGHT_M_S
        amplitude = wavelength_m / (4 * np.pi * np.maximum(length, wavelength_m / NEAR_FIELD))
        signal = amplitude * coefficient * np.exp(-2j * np.pi * carrier_hz * delay)
        if self._elements is None or self._scene.surface is None:
            return signal, delay, np.empty(0, complex), np.empty(0)
        normal = np.asarray(self._scene.surface.normal, float)
        strength, travel = cascade(self._elements, normal, self._scene.surface.gain_db, at_x, at_y, carrier_hz)
        return signal, delay, strength * np.exp(-2j * np.pi * carrier_hz * travel), travel
