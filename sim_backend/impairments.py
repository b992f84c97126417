"""The impairments of a real radio front end, drawn from seeds by name and time.

Every random draw is keyed by (seed, world seed, device, purpose, tick), so that a sample depends on its time and not on
the order in which processes request samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Protocol

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from sim_backend.normals import normals
from sim_backend.ticks import DeviceClock, to_seconds, to_ticks
from testbed.core.radio import RadioSettings
from testbed.core.seeds import Streams, deriver, generator
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
    _KEPT = 64
    """Number of bridges of one level that are cached, and of sample rates whose times are."""
    _MOST_KEPT = 1 << 16
    """Largest number of samples of which the times are cached."""

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
        self._grids: dict[float, F64] = {}

    def phase_rad(self, start: int, n_samples: int, sample_rate_hz: float) -> F64:
        """Return (sample,) phases; sample m is at tick start + m / rate."""
        return np.asarray(self.phases_rad([start], n_samples, sample_rate_hz)[0])

    def phases_rad(self, starts: Sequence[int], n_samples: int, sample_rate_hz: float) -> F64:
        """Return (start, sample) phases, each row what `phase_rad` gives for one start."""
        since_us = self._since_us(n_samples, sample_rate_hz)
        at_start = np.array([
            self._start + 2 * math.pi * ((self.offset_hz * to_seconds(start)) % 1.0) for start in starts
        ])[:, None]  # fmt: skip
        slope = 2e-6 * math.pi * self.offset_hz
        if self._sigmas[0] == 0:
            return np.asarray(at_start + slope * since_us)
        firsts = [start // self._FINE for start in starts]
        skip_us = np.array([
            (start - first * self._FINE) / self._FINE for start, first in zip(starts, firsts, strict=True)
        ])[:, None]  # fmt: skip
        points: F64 = since_us + skip_us
        steps = int(points[:, -1].max()) + 2
        # jitter may reach back before the world's start: the walk begins one block earlier
        noise = self._fine([first + self._STEPS**self._LEVELS for first in firsts], steps)
        # Offset and noise are both linear between the knots.
        knots = noise + (at_start + slope * (np.arange(steps + 1) - skip_us))
        rises = np.empty_like(knots)
        np.subtract(knots[:, 1:], knots[:, :-1], out=rises[:, :-1])
        whole = points.astype(np.intp)
        points -= whole
        whole += np.arange(0, knots.size, steps + 1)[:, None]
        points *= rises.ravel().take(whole)
        points += knots.ravel().take(whole)
        return points

    def _since_us(self, n_samples: int, sample_rate_hz: float) -> F64:
        """Return (sample,) times since the first sample.

        One array a rate is kept, the beginning of which serves shorter windows; those of very wide windows, of which no
        two may have the same length, are not kept.
        """
        known = self._grids.get(sample_rate_hz)
        if known is None or known.size < n_samples:
            known = np.arange(n_samples) * np.float64(1e6 / sample_rate_hz)
            if n_samples <= self._MOST_KEPT:
                if len(self._grids) >= self._KEPT:
                    self._grids.clear()
                self._grids[sample_rate_hz] = known
        return known[:n_samples]

    def turn(self, start: int, n_samples: int, sample_rate_hz: float) -> C64:
        """Return (sample,) exp(j·phase)."""
        return np.asarray(self.turns([start], n_samples, sample_rate_hz)[0])

    def turns(self, starts: Sequence[int], n_samples: int, sample_rate_hz: float) -> C64:
        """Return (start, sample) exp(j·phase)."""
        phase = self.phases_rad(starts, n_samples, sample_rate_hz)
        # near zero, single precision suffices and is four times faster
        phase -= 2 * math.pi * np.rint(phase[:, :1] / (2 * math.pi))
        short = phase.astype(np.float32)
        out = np.empty(phase.shape, np.complex64)
        np.cos(short, out=out.real)
        np.sin(short, out=out.imag)
        return out

    def _fine(self, firsts: Sequence[int], steps: int) -> F64:
        """Return (first, steps + 1) noise at the ends of 1 µs steps from the ones numbered `firsts`."""
        reach = [(first // self._STEPS, (first + steps) // self._STEPS) for first in firsts]
        paths = self._paths(0, {cell for low, high in reach for cell in range(low, high + 1)})
        out = np.empty((len(firsts), steps + 1))
        for row, first, (low, high) in zip(out, firsts, reach, strict=True):
            skip = first - low * self._STEPS
            if low == high:
                row[:] = paths[low][skip : skip + steps + 1]
                continue
            parts = [*(paths[cell][:-1] for cell in range(low, high + 1)), paths[high][-1:]]
            row[:] = np.concatenate(parts)[skip : skip + steps + 1]
        return out

    def _paths(self, level: int, cells: set[int]) -> dict[int, F64]:
        """Return (step + 1,) Brownian paths through cells of a level."""
        known = self._bridges[level]
        missing = sorted(cells - known.keys())
        if missing:
            if len(known) + len(missing) > self._KEPT:
                known = self._bridges[level] = {cell: known[cell] for cell in cells - set(missing)}
            known |= zip(missing, self._bridge(level, missing), strict=True)
        return known

    def _bridge(self, level: int, cells: Sequence[int]) -> F64:
        """Return (cell, step + 1) Brownian paths through cells of a level."""
        ends = np.array(list(self._ends(level, cells)))
        words = np.array([self._streams.words(self._STEPS, cell, level) for cell in cells])
        path = np.zeros((len(cells), self._STEPS + 1))
        np.cumsum(normals(words), axis=1, dtype=np.float64, out=path[:, 1:])
        path *= self._sigmas[level]
        path += ends[:, :1] + self._ramp * (ends[:, 1:] - ends[:, :1] - path[:, -1:])
        return path

    def _ends(self, level: int, cells: Sequence[int]) -> Iterator[tuple[float, float]]:
        """Yield the phases at both ends of each cell."""
        if level < self._LEVELS - 1:
            above = self._paths(level + 1, {cell // self._STEPS for cell in cells})
            for cell in cells:
                path, i = above[cell // self._STEPS], cell % self._STEPS
                yield float(path[i]), float(path[i + 1])
            return
        while len(self._walk) <= max(cells) + 1:
            self._walk.append(self._walk[-1] + float(self._walk_rng.standard_normal()) * self._sigmas[-1])
        for cell in cells:
            yield self._walk[cell], self._walk[cell + 1]


class FrontEnd:
    """One radio's analogue parts and converters at one setting, in one world."""

    def __init__(self, name: str, options: RadioOptions, seed: int, world_seed: int, settings: RadioSettings) -> None:
        """`seed` determines the device (chains, clock), `world_seed` the randomness of this run (noise, jitter)."""
        self._name, self._options, self._settings = name, options, settings
        self._run = (seed, world_seed, name)
        self._jitters = {side: deriver(*self._run, "jitter", side) for side in ("tx", "rx")}
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
        bits = self._jitters[side](start)
        radius = math.sqrt(-2 * math.log(((bits & 0x7FFFFFFF) + 1) / 2**31))
        normal = radius * math.cos(2 * math.pi * (bits >> 31) / 2**32)
        return to_ticks(self._options.timing_jitter_s * max(-4.0, min(4.0, normal)))

    def send(self, samples: C64, start: int) -> C64:
        """Turn full-scale units into √mW on air, from the actual tick `start` on; (antenna, sample), or (sample,)."""
        (out,) = self.send_many([samples], [start])
        return out

    def send_many(self, blocks: Sequence[C64], starts: Sequence[int]) -> list[C64]:
        """Return what `send` gives for each block."""
        amplitude = 10 ** ((self._options.tx_power_dbm + self._settings.tx_gain_db) / 20)
        return [x for part in _alike(blocks, starts) for x in self._send(*part, amplitude)]

    def _send(self, blocks: Sequence[C64], starts: Sequence[int], amplitude: float) -> list[C64]:
        out = self._through(np.array([np.atleast_2d(x) for x in blocks]), self._tx_chains)
        out *= amplitude
        out *= self.oscillator.turns(starts, out.shape[-1], self._settings.sample_rate_hz)[:, None, :]
        return [x if block.ndim == 2 else x[0] for x, block in zip(out, blocks, strict=True)]

    @staticmethod
    def _through(blocks: C64, chains: list[list[complex]]) -> C64:
        """Return (block, antenna, sample) with each antenna's echoes added, the k-th one k + 1 samples late."""
        out = blocks.copy()
        for antenna, chain in enumerate(chains):
            for late, echo in enumerate(chain, 1):
                out[:, antenna, late:] += blocks[:, antenna, :-late] * echo
        return out

    def hear(self, field: C64, start: int) -> tuple[C64, bool]:
        """Return the converters' samples for a field in √mW at the antennas, and whether samples were lost.

        (antenna, sample), or (sample,) of a single one.
        """
        (out,) = self.hear_many([field], [start])
        return out

    def hear_many(self, fields: Sequence[C64], starts: Sequence[int]) -> list[tuple[C64, bool]]:
        """Return what `hear` gives for each field."""
        return [x for part in _alike(fields, starts) for x in self._hear(*part)]

    def _hear(self, fields: Sequence[C64], starts: Sequence[int]) -> list[tuple[C64, bool]]:
        options, rate = self._options, self._settings.sample_rate_hz
        rows = np.array([np.atleast_2d(x) for x in fields])
        noise, steps, lost = self._draw(starts, rows.shape)
        noise *= math.sqrt(10 ** ((THERMAL_DBM_HZ + options.noise_figure_db) / 10) * rate / 2)
        out = self._through(rows, self._rx_chains)
        out += noise.view(np.complex64)
        gain_db = self._settings.rx_gain_db - options.full_scale_dbm
        if any(steps):
            gains = [10 ** ((gain_db + step * options.gain_step_db) / 20) for step in steps]
            out *= np.array(gains, np.complex64)[:, None, None]
        else:
            out *= 10 ** (gain_db / 20)
        turns = self.oscillator.turns(starts, out.shape[-1], rate)
        np.negative(turns.imag, out=turns.imag)
        out *= turns[:, None, :]
        out += np.array(self._dc, np.complex64)[:, None]
        for x, (at, n) in zip(out, lost, strict=True):
            if n:
                x[:] = np.concatenate([x[:, :at], x[:, at + n :], np.zeros((len(x), n), np.complex64)], axis=1)
        said = self._convert(out)
        return [
            (x if field.ndim == 2 else x[0], n > 0) for x, field, (_, n) in zip(said, fields, lost, strict=True)
        ]  # fmt: skip

    def _draw(
        self, starts: Sequence[int], shape: tuple[int, ...]
    ) -> tuple[NDArray[np.float32], list[float], list[tuple[int, int]]]:
        """Return what is random in receptions of (reception, antenna, sample): (…, 2 · sample) noise, by how many steps
        each is amplified, and (from which sample on, how many) samples each has lost.
        """
        options, n = self._options, shape[-1]
        words = np.empty((*shape[:-1], 2 * n), np.uint32)
        may_fail = options.gain_step_probability > 0 or options.overflow_probability > 0
        steps, lost = [0.0] * len(starts), [(0, 0)] * len(starts)
        for i, (rows, start) in enumerate(zip(words, starts, strict=True)):
            for row, stream in zip(rows, self._noises, strict=True):
                row[:] = stream.words(2 * n, start & (1 << 64) - 1)
            if not may_fail:
                continue
            # faults are drawn by other numbers than the noise, so that a fault that is switched on does not change it
            rng = self._noises[0].at(start & (1 << 64) - 1, _FAULTS)
            is_step, loses = rng.random() < options.gain_step_probability, rng.random() < options.overflow_probability
            if is_step:
                steps[i] = 1.0 if rng.random() < 0.5 else -1.0
            if loses:
                at = int(rng.integers(0, n))
                lost[i] = (at, min(64, n - at))
        return normals(words), steps, lost

    def _convert(self, analogue: C64) -> C64:
        """Round (…, sample) in place to the converter's steps and clip at its ends, I and Q apart."""
        half = 1 << (self._options.adc_bits - 1)
        levels = analogue.view(np.float32)
        levels *= half
        np.rint(levels, out=levels)
        np.clip(levels, -half, half - 1, out=levels)
        levels /= half
        return analogue


_FAULTS = 1
"""Group of the streams from which faults are drawn; the noise is drawn from group 0."""
_AT_ONCE = 1 << 15
"""Samples that are computed together: more do not stay in the processor's cache."""


def _alike(blocks: Sequence[C64], starts: Sequence[int]) -> Iterator[tuple[Sequence[C64], Sequence[int]]]:
    """Yield the blocks, with their starts, in parts of the same shape and not too many samples."""
    i = 0
    while i < len(blocks):
        shape, most = blocks[i].shape, max(1, _AT_ONCE // blocks[i].size)
        n = next((k for k, x in enumerate(blocks[i : i + most]) if x.shape != shape), min(most, len(blocks) - i))
        yield blocks[i : i + n], starts[i : i + n]
        i += n


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
