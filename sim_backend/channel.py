"""Paths between two places of a scene, and the taps that represent them in sampled signals.

A path is transmitter → scatterer → receiver with the scatterer's own complex coefficient. In scenes of TR 38.901, a
path has a second body on Alice's side, so that the angles at both ends are those of the standard. All links share the
scatterers, so that Eve's correlation with Bob follows from their positions alone, and a link and its reverse have the
same values.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable

import numpy as np
from numpy.typing import NDArray

from sim_backend import uma
from sim_backend.arrays import Array
from sim_backend.farrow import DEGREE, FARROW, HALF
from sim_backend.scatterers import Scatterers
from sim_backend.surface import cascade_amplitude
from testbed.core.config import Attacker, PlacedNode, Scene
from testbed.core.geometry import element_positions
from testbed.core.seeds import generator
from testbed.core.types import F64, SPEED_OF_LIGHT_M_S, SurfacePattern

C128 = NDArray[np.complex128]

# ---------------------------------------------------------------- fractional delays


def taps(amplitude: C128, delay_samples: F64) -> tuple[int, C128]:
    """Return (first, h): path n adds amplitude[n] at delay_samples[n]; h[i] is the tap at lag first + i samples."""
    (found,) = taps_many(amplitude[None], delay_samples[None])
    return found


def taps_many(amplitude: C128, delay_samples: F64) -> list[tuple[int, C128]]:
    """Return the result of `taps` for each row of (link, path), to the last bit."""
    at_once = max(1, _AT_ONCE // amplitude.shape[-1])
    starts = range(0, len(amplitude), at_once)
    return [x for i in starts for x in _taps(amplitude[i : i + at_once], delay_samples[i : i + at_once])]


def _taps(amplitude: C128, delay_samples: F64) -> list[tuple[int, C128]]:
    floor = np.floor(delay_samples)
    fraction = delay_samples - floor
    first = floor.min(axis=-1)
    spans = (floor.max(axis=-1) - first).astype(np.int64) + 1
    whole = (floor - first[:, None]).astype(np.intp)
    # Links of about the same span are computed together; how a link is computed depends on its own span alone.
    widths = -(-spans // _WIDTHS) * _WIDTHS
    lags = (first.astype(np.int64) + 1 - HALF).tolist()
    lengths = (spans - 1 + 2 * HALF).tolist()
    out: list[tuple[int, C128]] = [(lag, _NONE) for lag in lags]
    for width in set(widths.tolist()):
        alike = (widths == width).nonzero()[0]
        at_once = max(1, _MOST_SPREAD // width**2)
        for part in (alike[i : i + at_once] for i in range(0, alike.size, at_once)):
            found = _spread(amplitude[part], whole[part], fraction[part], width)
            for row, h in zip(part.tolist(), found, strict=True):
                out[row] = (lags[row], h[: lengths[row]])
    return out


_NONE: C128 = np.empty(0, np.complex128)
_AT_ONCE = 1 << 13
"""Paths that are processed together: larger arrays do not stay in the processor's cache."""
_WIDTHS = 8
"""Spans in samples are rounded up to a multiple of this."""
_MOST_SPREAD = 1 << 14
"""Largest number of values (links times samples times samples) that are spread at once: 256 kB."""


def _spread(amplitude: C128, whole: NDArray[np.intp], fraction: F64, width: int) -> C128:
    """Return (link, tap) of (link, path) amplitudes that are `whole` samples and a `fraction` late, below `width`."""
    n = len(amplitude)
    cell = (whole + width * np.arange(n)[:, None]).ravel()
    power = 2 * fraction.ravel() - 1
    parts = [np.array(x).ravel() for x in (amplitude.real, amplitude.imag)]
    # (link and step, re/im, degree): the moments of all paths that arrive within one sample
    moments = np.empty((n * width, 2, DEGREE + 1))
    for degree in range(DEGREE + 1):
        for i, part in enumerate(parts):
            if degree:
                part *= power
            moments[:, i, degree] = np.bincount(cell, part, n * width)
    # Row `step` must begin `step` taps later. Rows are stored one value longer than they are read, which shifts each
    # row by one more.
    length = width - 1 + 2 * HALF
    slipped = np.zeros((n, width, length + 1, 2))
    rows = moments.reshape(n, 2 * width, DEGREE + 1) @ FARROW
    slipped[:, :, : 2 * HALF] = rows.reshape(n, width, 2, -1).swapaxes(2, 3)
    h = slipped.reshape(n, -1, 2)[:, : width * length].reshape(n, width, length, 2).sum(axis=1)
    return h.view(np.complex128)[..., 0]


# ---------------------------------------------------------------- geometry


_LINKS_KEPT = 1024
"""Number of links whose paths are kept, each for one moment."""
NEAR_FIELD = 2 * np.pi
"""Distances count as at least λ/2π; nearer, free-space loss would be a gain (coupling never exceeds −6 dB)."""


class Channel:
    """The physical channel of one scene: no radios, no noise; the same in both directions."""

    def __init__(self, scene: Scene, carrier_hz: float, seed: int, scatterers: Scatterers | None = None) -> None:
        """`carrier_hz` turns the scene's wavelengths into metres; `scatterers` replaces the drawn ones."""
        self._scene = scene
        self._wavelength_m = SPEED_OF_LIGHT_M_S / carrier_hz
        self._room_m = np.asarray(scene.multipath.room_m)
        if scatterers is None:
            in_uma = scene.uma is not None
            scatterers = uma.draw(scene, carrier_hz, seed) if in_uma else Scatterers.draw(scene.multipath, seed)
        self._scatterers = scatterers
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
        far = self._scatterers.far_m
        self._far_side = set() if far is None else {name for name in self._places if self._nearer_to_alice(name)}
        """Places at which paths meet the second bodies (`Scatterers.far_m`)."""
        self._gap_m = 0.0 if far is None else np.sqrt(((far - self._scatterers.position_m) ** 2).sum(axis=1))
        direct = 10 ** (scene.multipath.direct_db / 20)
        across = direct if self._scatterers.direct is None else self._scatterers.direct
        self._coefficient = np.concatenate([[direct], self._scatterers.coefficient])
        self._coefficient_across = np.concatenate([[across], self._scatterers.coefficient])
        self._scatterers_move = bool(self._scatterers.velocity_m_s.any())
        self._still = {
            name: not self._scatterers_move and not velocity.any() for name, (_, velocity) in self._places.items()
        }
        """Whether the distances from a place are constant."""
        self._elements: F64 | None = None
        self._links: dict[tuple[str, str, float, float, Array | None, Array | None], tuple[C128, F64]] = {}
        self._legs: dict[tuple[str, float, Array | None], tuple[F64, F64 | None, bool]] = {}
        attacker = scene.attacker
        self._attacker_elements = (
            None if attacker is None
            else element_positions(attacker, (attacker.rows, attacker.columns), self._wavelength_m)
        )  # fmt: skip
        self._attacked: dict[tuple[str, str, float, float, Array | None, Array | None], tuple[C128, F64]] = {}

    @property
    def attacker(self) -> Attacker | None:
        """Return the scene's adversary's surface."""
        return self._scene.attacker

    @property
    def places(self) -> Collection[str]:
        """Return the names of the places at which a radio can be."""
        return self._places.keys()

    def position_m(self, place: str, time_s: float | F64) -> F64:
        """Return a place's position (3,), or (time, 3) for times (time, 1)."""
        start, velocity = self._places[place]
        return start + velocity * time_s

    def _antennas_m(self, place: str, time_s: float, array: Array | None) -> F64:
        """Return the antennas' positions: (3,), or (antenna, 3) of an array."""
        here = self.position_m(place, time_s)
        return here if array is None else here + array.offsets_m(self._wavelength_m)

    def _nearer_to_alice(self, name: str) -> bool:
        here = self._places[name][0]
        to_alice, to_bob = (np.linalg.norm(here - self._places[end][0]) for end in ("alice", "bob"))
        return bool(to_alice < to_bob)

    def hang_surface(self, shape: tuple[int, int] | None) -> None:
        """Give the scene's surface, if there is one, the board's shape (rows, columns); None removes the board."""
        placed = self._scene.surface
        self._elements = (
            element_positions(placed, shape, self._wavelength_m) if placed is not None and shape is not None else None
        )
        self._links.clear()
        self._legs.clear()

    @property
    def n_air(self) -> int:
        """Number of paths through the air only; those of the surface's elements come after them."""
        return int(self._coefficient.size)

    def paths(
        self, x: str, y: str, time_s: float, carrier_hz: float, at_x: Array | None = None, at_y: Array | None = None
    ) -> tuple[C128, F64]:
        """Return (amplitude, delay_s) of the paths between two places at a moment.

        The direct path comes first, then those over the scatterers, then (from `n_air` on) those over the surface's
        elements without the elements' phases; there are none of the latter if either end is behind the surface. The
        amplitude is λ/4πd · coefficient · exp(−j2πf_cτ); Doppler shifts follow from the change of τ. The arrays are
        shared between calls and read-only. If either end has several antennas, both are (antenna of x, antenna of y,
        path).
        """
        turned = x > y
        if turned:
            x, y, at_x, at_y = y, x, at_y, at_x
        key = (x, y, 0.0 if self._still[x] and self._still[y] else time_s, carrier_hz, at_x, at_y)
        found = self._links.get(key)
        if found is None:
            self._make_room(1)
            found = self._links[key] = self._trace(*key)
        return _transposed(*found) if turned and found[0].ndim > 1 else found

    def prepare(self, x: str, y: str, times_s: Iterable[float], carrier_hz: float) -> None:
        """Trace the paths between single antennas at several moments at once; `paths` then returns the same, bit for
        bit.

        Does nothing if this saves no time (nothing moves), or if a surface reflects.
        """
        x, y = min(x, y), max(x, y)
        if (self._still[x] and self._still[y]) or self._elements is not None:
            return
        new = [t for t in dict.fromkeys(times_s) if (x, y, t, carrier_hz, None, None) not in self._links]
        if len(new) < 2:
            return
        when = np.array(new)
        across = (x in self._far_side) != (y in self._far_side)
        at_x = self._bodies(x, when[:, None, None])
        at_y = self._bodies(y, when[:, None, None]) if across else at_x
        x_m, y_m = (self.position_m(place, 0.0 if self._still[place] else when[:, None]) for place in (x, y))
        step = x_m - y_m
        step *= step
        bodies = distances(at_x, x_m) + distances(at_y, y_m) + (self._gap_m if across else 0.0)
        direct = np.sqrt(step.sum(axis=-1))[..., None]
        length = np.concatenate([np.broadcast_to(direct, (when.size, 1)), bodies], axis=-1)
        amplitude, delay_s = self._along(length, across, carrier_hz)
        self._make_room(when.size)
        for i, t in enumerate(new):
            self._links[x, y, t, carrier_hz, None, None] = amplitude[i], delay_s[i]

    def _bodies(self, place: str, time_s: float | F64) -> F64:
        """Return (body, 3) positions of the bodies at which the paths of a place are reflected; for times (time, 1, 1)
        (time, body, 3), if they move."""
        far = self._scatterers.far_m
        bodies = far if far is not None and place in self._far_side else self._scatterers.position_m
        if not self._scatterers_move:
            return bodies
        # a triangle wave: motion in a straight line, reversed at the walls
        moved = (bodies + self._scatterers.velocity_m_s * time_s) % np.maximum(2 * self._room_m, 1e-9)
        return np.where(moved > self._room_m, 2 * self._room_m - moved, moved)

    def _along(self, length: F64, across: bool, carrier_hz: float) -> tuple[C128, F64]:
        """Return (amplitude, delay_s) of air paths of these lengths in metres, the direct one first."""
        wavelength_m = SPEED_OF_LIGHT_M_S / carrier_hz
        amplitude = (self._coefficient_across if across else self._coefficient) * (
            wavelength_m / (4 * np.pi) / np.maximum(length, wavelength_m / NEAR_FIELD)
        )
        delay = length / SPEED_OF_LIGHT_M_S
        return amplitude * np.exp(-2j * np.pi * carrier_hz * delay), delay

    def _make_room(self, n: int) -> None:
        if len(self._links) + n > _LINKS_KEPT:
            self._links.clear()

    def _trace(
        self, x: str, y: str, time_s: float, carrier_hz: float, at_x: Array | None, at_y: Array | None
    ) -> tuple[C128, F64]:
        (x_bodies, x_elements, x_seen), (y_bodies, y_elements, y_seen) = (
            self._leg(place, 0.0 if self._still[place] else time_s, array) for place, array in ((x, at_x), (y, at_y))
        )
        wavelength_m = SPEED_OF_LIGHT_M_S / carrier_hz
        x_m, y_m = self._antennas_m(x, time_s, at_x), self._antennas_m(y, time_s, at_y)
        if at_x is None and at_y is None:
            direct = distances(x_m[None, :], y_m)
        else:  # everything with axes (antenna of x, antenna of y, path)
            x_m, y_m = np.atleast_2d(x_m), np.atleast_2d(y_m)
            direct = np.stack([distances(x_m, here) for here in y_m], axis=1)[:, :, None]
            x_bodies, y_bodies = np.atleast_2d(x_bodies)[:, None], np.atleast_2d(y_bodies)[None]
            if x_elements is not None and y_elements is not None:
                x_elements, y_elements = np.atleast_2d(x_elements)[:, None], np.atleast_2d(y_elements)[None]
        across = (x in self._far_side) != (y in self._far_side)
        length = np.concatenate([direct, x_bodies + y_bodies + (self._gap_m if across else 0.0)], axis=-1)
        amplitude = (self._coefficient_across if across else self._coefficient) * (
            wavelength_m / (4 * np.pi) / np.maximum(length, wavelength_m / NEAR_FIELD)
        )
        if x_elements is not None and y_elements is not None and x_seen and y_seen and self._scene.surface is not None:
            strength = cascade_amplitude(x_elements, y_elements, self._scene.surface.gain_db, wavelength_m)
            length = np.concatenate([length, x_elements + y_elements], axis=-1)
            amplitude = np.concatenate([amplitude, strength], axis=-1)
        delay = length / SPEED_OF_LIGHT_M_S
        return amplitude * np.exp(-2j * np.pi * carrier_hz * delay), delay

    def attacked_paths(
        self, x: str, y: str, time_s: float, carrier_hz: float, at_x: Array | None = None, at_y: Array | None = None
    ) -> tuple[C128, F64]:
        """Return (amplitude, delay_s) over the elements of the adversary's surface, without the elements' phases.

        Empty where there is none or either end is behind it; amplitudes and axes as in `paths`. Read-only.
        """
        turned = x > y
        if turned:
            x, y, at_x, at_y = y, x, at_y, at_x
        attacker, elements = self._scene.attacker, self._attacker_elements
        if attacker is None or elements is None:
            return np.empty(0, complex), np.empty(0)
        key = (x, y, 0.0 if self._still[x] and self._still[y] else time_s, carrier_hz, at_x, at_y)
        found = self._attacked.get(key)
        if found is None:
            if len(self._attacked) >= 64:
                self._attacked.clear()
            ends = [self.position_m(place, key[2]) for place in (x, y)]
            if all(float(np.dot(end - np.asarray(attacker.position_m), attacker.normal)) > 0 for end in ends):
                d1_m, d2_m = (
                    distances(elements, self._antennas_m(place, key[2], array))
                    for place, array in ((x, at_x), (y, at_y))
                )
                if at_x is not None or at_y is not None:
                    d1_m, d2_m = np.atleast_2d(d1_m)[:, None], np.atleast_2d(d2_m)[None]
                delay = (d1_m + d2_m) / SPEED_OF_LIGHT_M_S
                strength = cascade_amplitude(d1_m, d2_m, attacker.gain_db, SPEED_OF_LIGHT_M_S / carrier_hz)
                found = strength * np.exp(-2j * np.pi * carrier_hz * delay), delay
            else:
                found = np.empty(0, complex), np.empty(0)
            self._attacked[key] = found
        return _transposed(*found) if turned and found[0].ndim > 1 else found

    def _leg(self, place: str, time_s: float, array: Array | None) -> tuple[F64, F64 | None, bool]:
        """Distances of a place to the scatterers and to the surface's elements, and whether it is in front of these.

        Shapes: (body,) and (element,); for an array (antenna, body) and (antenna, element).
        """
        found = self._legs.get((place, time_s, array))
        if found is not None:
            return found
        if len(self._legs) >= 64:
            self._legs.clear()
        here, antennas = self.position_m(place, time_s), self._antennas_m(place, time_s, array)
        surface = self._scene.surface
        leg: tuple[F64, F64 | None, bool] = distances(self._bodies(place, time_s), antennas), None, False
        if self._elements is not None and surface is not None:
            in_front = float(np.dot(here - np.asarray(surface.position_m), surface.normal)) > 0
            leg = leg[0], distances(self._elements, antennas), in_front
        self._legs[(place, time_s, array)] = leg
        return leg


def _transposed(amplitude: C128, delay_s: F64) -> tuple[C128, F64]:
    """Return a link of arrays as its reverse."""
    return amplitude.swapaxes(0, 1), delay_s.swapaxes(0, 1)


def distances(points: F64, here: F64) -> F64:
    """Return (point,) distances in metres of (point, 3) to (3,); of (antenna, 3), (antenna, point)."""
    step = points - here[..., None, :]
    step *= step
    return np.asarray(np.sqrt(step.sum(axis=-1)))


def responses(
    channel: Channel, carrier_hz: float, time_s: F64, subcarrier_hz: F64, pattern: SurfacePattern | None
) -> dict[str, C128]:
    """Return `World.responses` of a channel: (time, subcarrier) by "tx>rx" for each pair of places.

    An adversary's surface is left out, because its effect depends on who sends when.
    """
    channel.hang_surface(None if pattern is None else (pattern.levels.shape[0], pattern.levels.shape[1]))
    phasor = None if pattern is None else np.exp(1j * pattern.phases_rad.ravel())
    out = {}
    for x, y in itertools.combinations(channel.places, 2):
        rows = np.empty((time_s.size, subcarrier_hz.size), np.complex128)
        for i, t in enumerate(time_s):
            amplitude, delay_s = channel.paths(x, y, float(t), carrier_hz)
            if phasor is not None and amplitude.size > channel.n_air:
                amplitude = amplitude.copy()
                amplitude[channel.n_air :] *= phasor
            rows[i] = np.exp(-2j * np.pi * subcarrier_hz[:, None] * delay_s) @ amplitude
        out[f"{x}>{y}"] = rows
    return out
