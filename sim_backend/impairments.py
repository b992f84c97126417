"""What a real front end does to samples, drawn from seeds by name and time.

Every random draw is keyed by (seed, world seed, device, purpose, tick), so a sample depends on when it was taken and
never on the order in which processes asked for it.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta, Struct

from sim_backend.ticks import DeviceClock, to_seconds, to_ticks
from testbed.core.errors import InputError
from testbed.core.radio import RadioSettings
from testbed.core.seeds import derive, generator
from testbed.core.types import C64, F64

NonNegative = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, le=1)]

THERMAL_DBM_HZ = -173.98
"""kT at 290 K."""


class RadioOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a simulated radio is like; every field is a key of `options` in its lab table."""

    place: str | None = None
    """Where in the scene it stands: alice, bob or eve. Default: the node's name."""
    timed: bool = True
    """False: like a stock Pluto, it cannot start at a given time and repeats what it sends until silenced."""
    noise_figure_db: NonNegative = 6.0
    tx_power_dbm: float = 0.0
    """Of a full-scale constant envelope at transmit gain 0 dB."""
    full_scale_dbm: float = -20.0
    """Received power that just fills the converter at receive gain 0 dB."""
    clock_ppm: float | None = None
    """Error of the sample clock; default: drawn within ±2."""
    clock_offset_s: float | None = None
    """What the device clock reads at world time 0; default: drawn within ±1 ms."""
    cfo_ppm: float | None = None
    """Error of the local oscillator; default: the sample clock's, both hang on one crystal."""
    timing_jitter_s: NonNegative = 2e-9
    """Standard deviation of actual minus reported start times, cut at four of them."""
    phase_noise_linewidth_hz: NonNegative = 10.0
    chain_ripple_db: NonNegative = 0.5
    """Rms ripple of each of the transmit and receive chains' own frequency responses."""
    gain_step_db: NonNegative = 0.0
    gain_step_probability: Probability = 0.0
    """Chance that a reception is amplified by ± gain_step_db more than reported."""
    adc_bits: Annotated[int, Meta(ge=1, le=24)] = 12
    dc_offset_dbfs: float = -60.0
    turnaround_s: NonNegative = 5e-6
    overflow_probability: Probability = 0.0
    """Chance that a reception loses samples in the middle and says so."""
    stale_buffers: Annotated[int, Meta(ge=0)] = 0
    """Fault, off by default: after a retune or a transmission so many receptions return samples from before it, under
    new times. A driver that does this breaks the Radio contract."""


def options_from(values: dict[str, object], kind: type[RadioOptions], device: str) -> RadioOptions:
    """Check a lab table's options; raises InputError naming the key and what is accepted."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as exc:
        accepted = ", ".join(f.name for f in msgspec.structs.fields(kind))
        raise InputError(f"node {device!r}: options: {exc}; accepted keys: {accepted}") from exc


class Oscillator:
    """A free-running local oscillator: offset, random start, Wiener phase noise; a function of world time alone.

    Phase noise of linewidth Δν is Brownian motion of variance 2πΔν·t. To look it up anywhere without walking there, it
    is built coarse to fine: a walk over blocks of 2²⁰ µs, Brownian bridges of 1024 cells in each, bridges of 1024 µs in
    each of those, straight lines below 1 µs.
    """

    _FINE = to_ticks(1e-6)
    _STEPS = 1024

    def __init__(self, seed: int, name: str, offset_hz: float, linewidth_hz: float) -> None:
        self.offset_hz = offset_hz
        self._key = (seed, name, "oscillator")
        self._sigma = np.sqrt(2 * np.pi * linewidth_hz * 1e-6)
        self._start = float(generator(*self._key, "start").uniform(0, 2 * np.pi))
        self._walk_rng = generator(*self._key, "walk")
        self._walk = [0.0]
        self._cells: dict[int, F64] = {}
        self._fines: dict[int, F64] = {}

    def phase_rad(self, start: int, n_samples: int, sample_rate_hz: float) -> F64:
        """Return (sample,) phases; sample m is at tick start + m / rate."""
        m = np.arange(n_samples) / sample_rate_hz
        phase = self._start + 2 * np.pi * ((self.offset_hz * to_seconds(start)) % 1.0 + self.offset_hz * m)
        return phase + self._noise(start, n_samples, sample_rate_hz) if self._sigma > 0 else phase

    def _noise(self, start: int, n_samples: int, sample_rate_hz: float) -> F64:
        first = start // self._FINE
        points = (start - first * self._FINE) / self._FINE + np.arange(n_samples) * (1e6 / sample_rate_hz)
        n_fine = int(points[-1]) + 2
        cells = range(first // self._STEPS, (first + n_fine) // self._STEPS + 1)
        fine = np.concatenate([self._fine(c)[:-1] for c in cells])
        skip = first - cells.start * self._STEPS
        return np.interp(points, np.arange(n_fine + 1), fine[skip : skip + n_fine + 1])

    def _bridge(self, a: float, b: float, sigma: float, *key: str | int) -> F64:
        """(step + 1,) Brownian path from a to b with steps of deviation sigma."""
        steps = generator(*self._key, *key).standard_normal(self._STEPS) * sigma
        path = np.concatenate([[0.0], np.cumsum(steps)])
        return np.asarray(a + path + np.linspace(0, 1, self._STEPS + 1) * (b - a - path[-1]))

    def _cell(self, block: int) -> F64:
        while len(self._walk) <= block + 1:
            self._walk.append(self._walk[-1] + float(self._walk_rng.standard_normal()) * self._sigma * self._STEPS)
        if block not in self._cells:
            self._cells = {k: v for k, v in self._cells.items() if k == block - 1}
            sigma = self._sigma * np.sqrt(self._STEPS)
            self._cells[block] = self._bridge(self._walk[block], self._walk[block + 1], sigma, "cell", block)
        return self._cells[block]

    def _fine(self, cell: int) -> F64:
        if cell not in self._fines:
            if len(self._fines) >= 8:
                self._fines.clear()
            coarse = self._cell(cell // self._STEPS)
            i = cell % self._STEPS
            self._fines[cell] = self._bridge(float(coarse[i]), float(coarse[i + 1]), self._sigma, "fine", cell)
        return self._fines[cell]


class FrontEnd:
    """One radio's analogue parts and converters at one setting, in one world."""

    def __init__(self, name: str, options: RadioOptions, seed: int, world_seed: int, settings: RadioSettings) -> None:
        """`seed` makes the device (chains, clock), `world_seed` what happens to it in this run (noise, jitter)."""
        self._name, self._options, self._settings = name, options, settings
        self._run = (seed, world_seed, name)
        ppm = oscillator_ppm(name, options, seed)
        self.oscillator = Oscillator(
            seed,
            f"{name}/{world_seed}/{settings.carrier_hz:.0f}",
            settings.carrier_hz * ppm * 1e-6,
            options.phase_noise_linewidth_hz,
        )
        self._tx_chain, self._rx_chain = (self._chain(seed, side) for side in ("tx", "rx"))
        turn = generator(seed, name, "dc").uniform(0, 2 * np.pi)
        self._dc = 10 ** (options.dc_offset_dbfs / 20) * np.exp(1j * turn)

    def _chain(self, seed: int, side: str) -> F64:
        """(tap,) impulse response 1, then three small echoes: a ripple of the given rms over the band."""
        rng = generator(seed, self._name, "chain", side)
        echoes = rng.standard_normal(3) + 1j * rng.standard_normal(3)
        rms = 10 ** (self._options.chain_ripple_db / 20) - 1
        # an echo of amplitude e ripples |H| by e/√2 rms
        return np.concatenate([[1.0], echoes / np.linalg.norm(echoes) * np.sqrt(2) * rms])

    def jitter(self, side: str, start: int) -> int:
        """Return actual minus nominal start in ticks."""
        # Box–Muller from one hash: a Generator costs ten times as much, and this runs for every frame
        bits = derive(*self._run, "jitter", side, start)
        radius = math.sqrt(-2 * math.log(((bits & 0x7FFFFFFF) + 1) / 2**31))
        normal = radius * math.cos(2 * math.pi * (bits >> 31) / 2**32)
        return to_ticks(self._options.timing_jitter_s * max(-4.0, min(4.0, normal)))

    def send(self, samples: C64, start: int) -> C64:
        """Turn (sample,) full-scale units into (sample,) √mW on air; `start` is the actual tick of the first."""
        amplitude = 10 ** ((self._options.tx_power_dbm + self._settings.tx_gain_db) / 20)
        phase = self.oscillator.phase_rad(start, len(samples), self._settings.sample_rate_hz)
        shaped = np.convolve(samples, self._tx_chain)[: len(samples)]
        return np.asarray(amplitude * shaped * np.exp(1j * phase)).astype(np.complex64)

    def hear(self, field: C64, start: int) -> tuple[C64, bool]:
        """Turn (sample,) √mW at the antenna into what the converter says, and whether samples were lost."""
        options, rate = self._options, self._settings.sample_rate_hz
        n = len(field)
        rng = generator(*self._run, "noise", start)
        noise_mw = 10 ** ((THERMAL_DBM_HZ + options.noise_figure_db) / 10) * rate
        noise = rng.standard_normal(2 * n, dtype=np.float32).view(np.complex64) * np.float32(np.sqrt(noise_mw / 2))
        heard = np.convolve(field, self._rx_chain)[:n] + noise
        gain_db = self._settings.rx_gain_db - options.full_scale_dbm
        # what goes wrong is drawn after the noise, so that turning it on leaves the noise alone
        steps, loses = rng.uniform(size=2) < (options.gain_step_probability, options.overflow_probability)
        if steps:
            gain_db += options.gain_step_db * rng.choice([-1.0, 1.0])
        phase = self.oscillator.phase_rad(start, n, rate)
        out = 10 ** (gain_db / 20) * heard * np.exp(-1j * phase) + self._dc
        if loses:
            at = int(rng.integers(0, n))
            lost = min(64, n - at)
            out = np.concatenate([out[:at], out[at + lost :], np.zeros(lost)])
        return self._convert(out), bool(loses)

    def _convert(self, analogue: np.ndarray) -> C64:
        """Round to the converter's steps and clip at its ends, I and Q apart."""
        half = 1 << (self._options.adc_bits - 1)
        steps = np.ascontiguousarray(analogue, dtype=np.complex128).view(np.float64)
        levels = np.clip(np.rint(steps * half), -half, half - 1)
        return np.ascontiguousarray(levels / half).view(np.complex128).astype(np.complex64)


def device_clock(name: str, options: RadioOptions, seed: int) -> DeviceClock:
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
