"""Paper D by exact coordinate ascent: sets each phase in turn to its best value, then the precoder; many channels at
once.

With the precoder and all other phases held, 1 + SNR of Bob and of Eve are A + 2Re(cp) and B + 2Re(dp), p = exp(jφ), and

    max over |p| = 1 of (A + 2Re(cp)) / (B + 2Re(dp)) = λ, the larger root of (λB − A)² = 4|c − λd|²; p ∝ conj(c − λd).

Every update is exactly optimal, so the rate never falls. A board of few levels gets the same ascent over its levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from testbed.core.errors import InputError
from testbed.core.types import F64
from testbed.papers.secrecy.model import C128, Secrecy, best_beam
from testbed.surface.design import Design
from testbed.surface.levels import levels_rad

MAX_ROUNDS = 2000
"""A round is a sweep over the phases and the precoder. Only channels that converge slowly reach this number."""


def design(
    model: Secrecy,
    start_rad: F64 | None = None,
    rounds: int = MAX_ROUNDS,
    tolerance_bits: float = 1e-6,
    phase_bits: int | None = None,
    hold_precoder: bool = False,
    more_starts: int = 0,
    rng: np.random.Generator | None = None,
) -> Design:
    """Ascend from `start_rad` (…, element) until a round adds less than `tolerance_bits` to each channel.

    The default start are the phases with which all paths add in phase at Bob for the precoder that is best without a
    surface. They are first improved while that precoder is held, so that the result is never below MEV + RIS phases;
    with `hold_precoder` the ascent ends there. With `phase_bits` it is over a board's levels, and begins at those
    nearest to the start or to the result without levels. `more_starts`: ascend again from this many random phases,
    drawn from `rng`, and keep each channel's best. History: the mean rate at the start, after each round, and once more
    after the further starts.
    """
    if rounds < 1 or not tolerance_bits >= 0 or more_starts < 0:
        raise InputError(
            f"{rounds} rounds to {tolerance_bits:g} bits, {more_starts} more starts; accepted: 1 or more, 0 or more, "
            "0 or more"
        )
    if more_starts and rng is None:
        raise InputError(f"{more_starts} more starts without a generator to draw them from")
    if start_rad is not None:
        start_rad = model.checked_phases(start_rad).reshape(-1, model.n_elements)
    grid = None if phase_bits is None else np.exp(1j * levels_rad(phase_bits))[:, None]
    flat = model.flat()
    history: list[float] = []
    goal = _Goal(grid, rounds, tolerance_bits, hold_precoder)
    phi, beam = _from(flat, start_rad, goal, history)
    for _ in range(more_starts):
        assert rng is not None
        other_phi, other_beam = _from(flat, rng.uniform(0, 2 * np.pi, phi.shape), goal, [])
        better = _Work(flat, other_phi, other_beam).bits() > _Work(flat, phi, beam).bits()
        phi[better], beam[better] = other_phi[better], other_beam[better]
    if more_starts:
        history.append(float(_Work(flat, phi, beam).bits().mean()))
    f = np.sqrt(flat.power_w)[:, None] * beam
    phases = np.angle(phi).reshape(*model.batch, -1) % (2 * np.pi)
    return Design(phases, f.reshape(*model.batch, -1, 1), history)


def aligned(model: Secrecy) -> F64:
    """Return phases (…, element) with which paths add in phase at Bob, for the best precoder without a surface."""
    a_u, a_e, k_u, _ = model.cascades()
    f = best_beam(a_u, a_e)
    paths = np.angle(np.einsum("...nm,...m->...n", k_u, f))
    return np.asarray((np.angle((a_u * f).sum(-1))[..., None] - paths) % (2 * np.pi))


@dataclass(frozen=True)
class _Goal:
    grid: C128 | None
    """(level, 1) phasors of a board; None: any phase."""
    rounds: int
    tolerance_bits: float
    hold: bool
    """Whether the precoder that is best without a surface is held."""


def _from(model: Secrecy, start_rad: F64 | None, goal: _Goal, history: list[float]) -> tuple[C128, C128]:
    """Return phasors (channel, element) and beams (channel, antenna), found from a start (channel, element)."""
    direct = best_beam(*model.cascades()[:2])
    if start_rad is None:
        phi, beam = _climb(model, np.exp(1j * aligned(model)), direct, replace(goal, grid=None, hold=True), history)
        if not goal.hold:
            phi, beam = _climb(model, phi, None, replace(goal, grid=None), history)
        if goal.grid is None:
            return phi, beam
        history.clear()
        start_rad = np.angle(phi)
    phi = np.exp(1j * start_rad)
    if goal.grid is not None:
        # the nearest level of each phase
        phi = goal.grid[np.abs(phi - goal.grid[..., None]).argmin(axis=0), 0]
    return _climb(model, phi, direct if goal.hold else None, goal, history)


def _climb(model: Secrecy, phi: C128, beam: C128 | None, goal: _Goal, history: list[float]) -> tuple[C128, C128]:
    """Return phasors (channel, element) and beams (channel, antenna); channels that no longer gain are not computed."""
    work = _Work(model, phi, beam)
    phi, beams, bits = phi.copy(), work.beam.T.copy(), work.bits()
    live, moving = np.arange(len(bits)), np.ones(len(bits), dtype=bool)
    history.append(float(bits.mean()))
    course = [work.phi.copy()]
    for _ in range(goal.rounds):
        work.sweep(goal.grid)
        if not goal.hold:
            work.update_beam()
        if goal.grid is None and not goal.hold:
            course.append(work.phi.copy())
            if len(course) == 3:
                work.leap(*course)
                course = [work.phi.copy()]
        now, at = work.bits(), live[moving]
        gained = now > bits[live] + goal.tolerance_bits
        bits[at], phi[at], beams[at] = now[moving], work.phi.T[moving], work.beam.T[moving]
        history.append(float(bits.mean()))
        # a channel that no longer gains keeps its result, so that no result depends on the other channels of the batch
        moving &= gained
        if not moving.any():
            break
        if moving.mean() < 0.7:
            live, course = live[moving], [c[:, moving] for c in course]
            work, moving = _Work(model.take(live), phi[live], beams[live]), moving[moving]
    return phi, beams


class _Work:
    """Channels during the ascent; the last axis is the channel, so that one update is one vector operation over all."""

    def __init__(self, model: Secrecy, phi: C128, beam: C128 | None) -> None:
        a_u, a_e, k_u, k_e = model.cascades()
        self._a = np.ascontiguousarray(np.stack([a_u, a_e]).transpose(0, 2, 1))
        self._k = np.ascontiguousarray(np.stack([k_u, k_e]).transpose(0, 2, 3, 1))
        self.phi = np.ascontiguousarray(phi.T)
        if beam is None:
            self.update_beam()
        else:
            self._set_beam(np.ascontiguousarray(beam.T))

    def bits(self) -> F64:
        u, e = 1 + self._sum.real**2 + self._sum.imag**2
        return np.asarray(np.log2(u / e))

    def update_beam(self) -> None:
        u, e = self._a + np.einsum("nb,knmb->kmb", self.phi, self._k)
        self._set_beam(np.ascontiguousarray(best_beam(u.T, e.T).T))

    def _set_beam(self, beam: C128) -> None:
        self.beam = beam
        # contribution of each element at Bob and at Eve (receiver, element, channel), and their sum
        self._each = np.einsum("knmb,mb->knb", self._k, beam)
        self._sum = np.einsum("kmb,mb->kb", self._a, beam) + np.einsum("knb,nb->kb", self._each, self.phi)

    def leap(self, before: C128, between: C128, now: C128) -> None:
        """Extrapolate the last two rounds, on those channels where that is better.

        Where precoder and phases depend on each other, every round changes them only a little; squared extrapolation
        (Varadhan & Roland 2008) of the angles replaces many such rounds.
        """
        first, second = np.angle(between * before.conj()), np.angle(now * between.conj())
        bend = second - first
        length = np.maximum(np.linalg.norm(first, axis=0) / np.maximum(np.linalg.norm(bend, axis=0), 1e-300), 1.0)
        further = before * np.exp(1j * (2 * length * first + length**2 * bend))
        held = self.phi, self.beam, self._each, self._sum
        bits = self.bits()
        self.phi = further
        self.update_beam()
        worse = self.bits() <= bits
        for ours, theirs in zip((self.phi, self.beam, self._each, self._sum), held, strict=True):
            ours[..., worse] = theirs[..., worse]

    def sweep(self, grid: C128 | None) -> None:
        """Set every phase in turn to its best value: any value, or one of `grid` (level, 1)."""
        for n in range(len(self.phi)):
            each = self._each[:, n]
            others = self._sum - each * self.phi[n]
            slope = each * others.conj()
            base = 1 + others.real**2 + others.imag**2 + each.real**2 + each.imag**2
            self.phi[n] = p = _best(base, slope, self.phi[n]) if grid is None else _best_of(base, slope, grid)
            self._sum = others + each * p


def _best(base: F64, slope: C128, now: C128) -> C128:
    """Return p (channel,), the exact optimum; `now` where all values are equally good."""
    (a, b), (c, d) = base, slope
    cross = c * d.conj()
    apart = a * d - b * c
    root = np.sqrt(np.maximum(apart.real**2 + apart.imag**2 - 4 * cross.imag**2, 0.0))
    gain = (a * b - 4 * cross.real + 2 * root) / (b * b - 4 * (d.real**2 + d.imag**2))
    to = (c - gain * d).conj()
    size = np.abs(to)
    return np.where(size > 0, to / np.where(size > 0, size, 1.0), now)


def _best_of(base: F64, slope: C128, grid: C128) -> C128:
    """Return the best level (channel,)."""
    (a, b), (c, d) = base, slope
    ratio = (a + 2 * (c * grid).real) / (b + 2 * (d * grid).real)
    return np.asarray(grid[ratio.argmax(axis=0), 0])
