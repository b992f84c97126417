"""The impairments of a real radio front end, drawn from seeds by name and time.

Every random draw is keyed by (seed, world seed, device, purpose, tick), so that a sample depends on its time and not on
the order in which processes request samples.
"""

from __future__ import annotations

import math
from typing import Annotated, Protocol

import numpy as np
from msgspec import Meta, Struct

from sim_backend.ticks import DeviceClock, to_seconds, to_ticks
from testbed.core.radio import RadioSettings
from testbed.core.seeds import Streams, derive, generator
from testbed.core.types import C64, F64

NonNegative = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]

THERMAL_DBM_HZ = -173.98
"""kT at 290 K."""


class OneAntenna(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Properties of a simulated radio with one antenna; an emulated device has the same."""

    place: str | None = None
    """Where in the scene it stands: alice, bob or eve. Default: the node's name."""
    timed: bool = True
    """Whether it times its samples; false: like a stock Pluto, it cannot start at a given time, and repeats its
    transmission until it is silenced."""
    noise_figure_db: NonNegative = 6.0
    tx_power_dbm: float = 0.0
    """Transmit power of a full-scale constant envelope at transmit gain 0 dB."""
    full_scale_dbm: float = -20.0
    """Received power that corresponds to full scale at receive gain 0 dB."""
    clock_ppm: float | None = None
    """Error of the sample clock; default: drawn within ±2."""
    clock_offset_s: float | None = None
    """The device clock's reading at world time 0; default: drawn within ±1 ms."""
    cfo_ppm: float | None = None
    """Error of the local oscillator; default: that of the sample clock, as both follow one crystal."""
    timing_jitter_s: NonNegative = 2e-9
    """Standard deviation of actual minus reported start times; no error exceeds four of them."""
    phase_noise_linewidth_hz: NonNegative = 10.0
    chain_ripple_db: NonNegative = 0.5
    """Rms ripple of each of the transmit and receive chains' own frequency responses."""
    gain_step_db: NonNegative = 0.0
    gain_step_probability: Probability = 0.0
    """Probability that a reception is amplified by ± gain_step_db more than reported."""
    adc_bits: Annotated[int, Meta(ge=1, le=24)] = 12
    dc_offset_dbfs: float = -60.0
    turnaround_s: NonNegative = 5e-6
    overflow_probability: Probability = 0.0
    """Probability that a reception loses samples in the middle and reports it."""
    stale_buffers: Annotated[int, Meta(ge=0)] = 0
    """Number of receptions after a retune or a transmission that return earlier samples with new times. This fault is
    off by default; a driver that behaves like this breaks the Radio contract."""


class RadioOptions(OneAntenna, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of a simulated radio; every field is a key of `options` in its lab table."""

    receive_only: bool = False
    """Whether it can only receive, like an RTL-SDR; for Eve."""
    n_antennas: Annotated[int, Meta(ge=1, le=64)] = 1
    """Number of antennas in a line, each with its own chains, all on one oscillator; the first one is at the node's
    position in the scene."""
    antenna_spacing_wavelengths: Annotated[float, Meta(gt=0)] = 0.5
    antenna_axis: tuple[float, float, float] = (1.0, 0.0, 0.0)
    """Direction of that line."""


class Oscillator:
    """A free-running local oscillator: offset, random start, Wiener phase noise; a function of world time alone.

    Phase noise of linewidth Δν is Brownian motion of variance 2πΔν·t. So that it can be computed at any time without
    all the steps before, it is built from coarse to fine: a random walk over blocks of 2²⁴ µs, three levels of Brownian
    bridges of 256 steps each (the finest has steps of 1 µs), and straight lines in between.
    """

    _FINE = to_ticks(1e-6)
    _STEPS = 256
    _LEVELS = 3
    _KEPT = 8
    """Number of bridges of one level that are cached."""

    def __init__(self, seed: int, name: str, offset_hz: float, linewidth_hz: float) -> None:
        self.offset_hz = offset_hz
        sigma = math.sqrt(2 * math.pi * linewidth_hz * 1e-6)
        self._sigmas = [sigma * self._STEPS ** (level / 2) for level in range(self._LEVELS + 1)]
        """Standard deviation of one step at each level of bridges, finest first; the last one is that of the walk."""
        self._start = float(generator(seed, name, "oscillator", "start").uniform(0, 2 * np.pi))
        self._walk_rng = generator(seed, name, "oscillator", "walk")
        self._walk = [0.0]
        self._streams = Streams(seed, name, "oscillator")
        self._bridges: list[dict[int, F64]] = [{} for _ in range(self._LEVELS)]
        self._ramp = np.arange(self._STEPS + 1) / self._STEPS
        self._grids: dict[tuple[int, float], F64] = {}

    def phase_rad(self, start: int, n_samples: int, sample_rate_hz: float) -> F64:
        """Return (sample,) phases; sample m is at tick start + m / rate."""
        if (n_samples, sample_rate_hz) not in self._grids:
            if len(self._grids) >= self._KEPT:
                self._grids.clear()
            self._grids[n_samples, sample_rate_hz] = np.arange(n_samples) * np.float64(1e6 / sample_rate_hz)
        since_us = self._grids[n_samples, sample_rate_hz]
        at_start = self._start + 2 * math.pi * ((self.offset_hz * to_seconds(start)) % 1.0)
        slope = 2e-6 * math.pi * self.offset_hz
        if self._sigmas[0] == 0:
            return np.asarray(at_start + slope * since_us)
        first = start // self._FINE
        skip_us = (start - first * self._FINE) / self._FINE
        points: F64 = since_us + skip_us
        # jitter may reach back before the world's start: the walk begins one block earlier
        noise = self._fine(first + self._STEPS**self._LEVELS, int(points[-1]) + 2)
        # Offset and noise are both linear between the knots.
        knots = noise + (at_start + slope * (np.arange(noise.size) - skip_us))
        whole = points.astype(np.intp)
        points -= whole
        points *= np.diff(knots)[whole]
        points += knots[whole]
        return points

    def turn(self, start: int, n_samples: int, sample_rate_hz: float) -> C64:
        """Return (sample,) exp(j·phase)."""
        phase = self.phase_rad(start, n_samples, sample_rate_hz)
        # near zero, single precision suffices and is four times faster
        phase -= 2 * math.pi * round(float(phase[0]) / (2 * math.pi))
        short = phase.astype(np.float32)
        out = np.empty(n_samples, np.complex64)
        np.cos(short, out=out.real)
        np.sin(short, out=out.imag)
        return out

    def _fine(self, first: int, steps: int) -> F64:
        """Return (steps + 1,) noise at the ends of 1 µs steps from the one numbered `first`."""
        cell, skip = divmod(first, self._STEPS)
        path = self._bridge(0, cell)
        if skip + steps <= self._STEPS:
            return path[skip : skip + steps + 1]
        last = (first + steps) // self._STEPS
        parts = [path[:-1], *(self._bridge(0, c)[:-1] for c in range(cell + 1, last + 1)), self._bridge(0, last)[-1:]]
        return np.concatenate(parts)[skip : skip + steps + 1]

    def _bridge(self, level: int, cell: int) -> F64:
        """Return (step + 1,) Brownian path through a cell of a level."""
        known = self._bridges[level]
        path = known.get(cell)
        if path is not None:
            return path
        if level == self._LEVELS - 1:
            while len(self._walk) <= cell + 1:
                self._walk.append(self._walk[-1] + float(self._walk_rng.standard_normal()) * self._sigmas[-1])
            a, b = self._walk[cell], self._walk[cell + 1]
        else:
            above, i = divmod(cell, self._STEPS)
            coarse = self._bridge(level + 1, above)
            a, b = float(coarse[i]), float(coarse[i + 1])
        path = np.zeros(self._STEPS + 1)
        np.cumsum(self._streams.at(cell, level).standard_normal(self._STEPS), out=path[1:])
        path *= self._sigmas[level]
        path += a + self._ramp * (b - a - float(path[-1]))
        if len(known) >= self._KEPT:
            known.clear()
        known[cell] = path
        return path


class FrontEnd:
    """One radio's analogue parts and converters at one setting, in one world."""

    def __init__(self, name: str, options: RadioOptions, seed: int, world_seed: int, settings: RadioSettings) -> None:
        """`seed` determines the device (chains, clock), `world_seed` the randomness of this run (noise, jitter)."""
        self._name, self._options, self._settings = name, options, settings
        self._run = (seed, world_seed, name)
        rows = range(options.n_antennas)
        # the first antenna has the parts and the noise of a radio with one antenna
        self._noises = [Streams(*self._run, "noise", *([i] if i else [])) for i in rows]
        ppm = oscillator_ppm(name, options, seed)
        self.oscillator = Oscillator(
            seed,
            f"{name}/{world_seed}/{settings.carrier_hz:.0f}",
            settings.carrier_hz * ppm * 1e-6,
            options.phase_noise_linewidth_hz,
        )
        self._tx_chains, self._rx_chains = ([self._chain(seed, side, i) for i in rows] for side in ("tx", "rx"))
        turns = [generator(seed, name, "dc", *([i] if i else [])).uniform(0, 2 * np.pi) for i in rows]
        self._dc = [complex(10 ** (options.dc_offset_dbfs / 20) * np.exp(1j * turn)) for turn in turns]

    def _chain(self, seed: int, side: str, antenna: int) -> list[complex]:
        """Return three small echoes, one to three samples late, whose ripple over the band has the given rms."""
        rng = generator(seed, self._name, "chain", side, *([antenna] if antenna else []))
        echoes = rng.standard_normal(3) + 1j * rng.standard_normal(3)
        rms = 10 ** (self._options.chain_ripple_db / 20) - 1
        # an echo of amplitude e ripples |H| by e/√2 rms
        return [complex(e) for e in echoes / np.linalg.norm(echoes) * np.sqrt(2) * rms]

    def jitter(self, side: str, start: int) -> int:
        """Return actual minus nominal start in ticks."""
        # Box–Muller from one hash is used, because a Generator takes ten times as long and this runs for every frame.
        bits = derive(*self._run, "jitter", side, start)
        radius = math.sqrt(-2 * math.log(((bits & 0x7FFFFFFF) + 1) / 2**31))
        normal = radius * math.cos(2 * math.pi * (bits >> 31) / 2**32)
        return to_ticks(self._options.timing_jitter_s * max(-4.0, min(4.0, normal)))

    def send(self, samples: C64, start: int) -> C64:
        """Turn full-scale units into √mW on air, from the actual tick `start` on; (antenna, sample), or (sample,)."""
        amplitude = 10 ** ((self._options.tx_power_dbm + self._settings.tx_gain_db) / 20)
        rows = np.atleast_2d(samples)
        out = np.stack([_echoed(row, chain) for row, chain in zip(rows, self._tx_chains, strict=True)])
        out *= amplitude
        out *= self.oscillator.turn(start, samples.shape[-1], self._settings.sample_rate_hz)
        return out if samples.ndim == 2 else out[0]

    def hear(self, field: C64, start: int) -> tuple[C64, bool]:
        """Return the converters' samples for a field in √mW at the antennas, and whether samples were lost.

        (antenna, sample), or (sample,) of a single one.
        """
        options, rate = self._options, self._settings.sample_rate_hz
        n = field.shape[-1]
        noise_mw = 10 ** ((THERMAL_DBM_HZ + options.noise_figure_db) / 10) * rate
        rows = np.atleast_2d(field)
        out = np.empty_like(rows)
        rngs = [noise.at(start & (1 << 64) - 1) for noise in self._noises]
        for row, heard, chain, own in zip(out, rows, self._rx_chains, rngs, strict=True):
            noise = own.standard_normal(2 * n, dtype=np.float32)
            noise *= math.sqrt(noise_mw / 2)
            row[:] = _echoed(heard, chain)
            row += noise.view(np.complex64)
        rng = rngs[0]
        gain_db = self._settings.rx_gain_db - options.full_scale_dbm
        # Faults are drawn after the noise, so that switching a fault on does not change the noise.
        steps, loses = rng.random() < options.gain_step_probability, rng.random() < options.overflow_probability
        if steps:
            gain_db += options.gain_step_db * (1.0 if rng.random() < 0.5 else -1.0)
        out *= 10 ** (gain_db / 20)
        out *= np.conj(self.oscillator.turn(start, n, rate))
        out += np.array(self._dc, np.complex64)[:, None]
        if loses:
            at = int(rng.integers(0, n))
            lost = min(64, n - at)
            gap = np.zeros((len(out), lost), np.complex64)
            out = np.concatenate([out[:, :at], out[:, at + lost :], gap], axis=1)
        said = self._convert(out)
        return said if field.ndim == 2 else said[0], loses

    def _convert(self, analogue: C64) -> C64:
        """Round (antenna, sample) in place to the converter's steps and clip at its ends, I and Q apart."""
        half = 1 << (self._options.adc_bits - 1)
        levels = analogue.view(np.float32)
        levels *= half
        np.rint(levels, out=levels)
        np.clip(levels, -half, half - 1, out=levels)
        levels /= half
        return analogue


def _echoed(samples: C64, echoes: list[complex]) -> C64:
    """Return a copy of (sample,) with the k-th echo added k + 1 samples late, of the same length."""
    out = samples.copy()
    for late, echo in enumerate(echoes, 1):
        out[late:] += samples[:-late] * echo
    return out


class Crystal(Protocol):
    """The options that describe a radio's clock; None: drawn from the seed."""

    @property
    def clock_ppm(self) -> float | None: ...
    @property
    def clock_offset_s(self) -> float | None: ...


def device_clock(name: str, options: Crystal, seed: int) -> DeviceClock:
    """Return the radio's clock, drawn where the options leave it open."""
    rng = generator(seed, name, "clock")
    ppm, offset_s = float(rng.uniform(-2, 2)), float(rng.uniform(-1e-3, 1e-3))
    return DeviceClock(
        ppm if options.clock_ppm is None else options.clock_ppm,
        offset_s if options.clock_offset_s is None else options.clock_offset_s,
    )


def oscillator_ppm(name: str, options: RadioOptions, seed: int) -> float:
    """Return the local oscillator's error."""
    return device_clock(name, options, seed).ppm if options.cfo_ppm is None else options.cfo_ppm
