"""CSI of both ends along a walk through a TR 38.901 urban macrocell, as paper B's receivers would have it.

The channel is the world driver's (bodies that stand still, so it is spatially consistent); receivers add what paper B,
section 2, lists: noise, synchronisation offsets, mismatched hardware. Its parameter table is lost: these are ours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from testbed.chain.enhance._features import C128
from testbed.core import registry, seeds
from testbed.core.config import Scene
from testbed.core.types import F64, CsiSeries


@dataclass(frozen=True)
class Track:
    """One drop and walk: Alice 25 m high and fixed, Bob 1.5 m high at 0.5 m/s on a straight line."""

    seed: int
    probes: int = 4000
    interval_s: float = 0.0625
    """A quarter of a wavelength of Bob's way."""
    speed_m_s: float = 0.5
    carrier_hz: float = 2.4e9
    bandwidth_hz: float = 10e6
    """64 subcarriers over this: an urban channel then has about eight taps, as many as the paper speaks of."""
    subcarriers: int = 64

    @property
    def subcarrier_hz(self) -> F64:
        return np.arange(0.5 - self.subcarriers / 2, self.subcarriers / 2) * (self.bandwidth_hz / self.subcarriers)

    @property
    def step_m(self) -> float:
        return self.speed_m_s * self.interval_s

    def scene(self) -> Scene:
        """Return the drop: Bob at 35 to 200 m from Alice, walking across or along."""
        rng = seeds.generator(self.seed, "crcnet", "drop")
        distance_m, angle, heading = rng.uniform(35, 200), *rng.uniform(0, 2 * np.pi, 2)
        return msgspec.convert(
            {
                "alice": {"position_m": [0.0, 0.0, 25.0]},
                "bob": {
                    "position_m": [float(distance_m * np.cos(angle)), float(distance_m * np.sin(angle)), 1.5],
                    "velocity_m_s": [float(self.speed_m_s * x) for x in (np.cos(heading), np.sin(heading))] + [0.0],
                },
                "uma": {"gain_db": 0.0},
            },
            Scene,
        )

    def channel(self) -> C128:
        """Return the noiseless responses (probe, subcarrier), of mean power 1 over the track."""
        world = registry.load_driver("worlds", "sim")
        time_s = np.arange(self.probes) * self.interval_s
        h = world.responses(self.scene(), self.carrier_hz, self.seed, time_s, self.subcarrier_hz, None)["alice>bob"]
        return np.asarray(h / np.sqrt((np.abs(h) ** 2).mean()))


@dataclass(frozen=True)
class Receivers:
    """What the two ends' hardware does to an estimate."""

    timing_samples: float = 0.5
    """A frame's delay error at each end, uniform within ± this many samples of the bandwidth."""
    phase: bool = True
    """Whether each frame has an oscillator phase of its own at each end."""
    ripple_db: float = 1.0
    """Rms ripple over frequency of each of the four chains (two ends, transmit and receive), three echoes each."""
    drift: float = 0.1
    """How much of the ripple has changed by the end of the track."""

    def csi(self, h: C128, track: Track, snr_db: float, seed: int) -> tuple[CsiSeries, CsiSeries]:
        """Return Alice's and Bob's least-squares estimates of channels (probe, subcarrier), noise over mean power."""
        rng = seeds.generator(track.seed, "crcnet", "receivers", seed)
        chains = {name: self._chain(len(h), track.subcarriers, rng) for name in ("ta", "ra", "tb", "rb")}
        noise = 10 ** (-snr_db / 20)
        ends = []
        for tx, rx in (("tb", "ra"), ("ta", "rb")):
            seen = h * chains[tx] * chains[rx]
            late = rng.uniform(-1, 1, (len(h), 1)) * self.timing_samples / track.bandwidth_hz
            turn = rng.uniform(0, 2 * np.pi, (len(h), 1)) if self.phase else 0.0
            seen = seen * np.exp(1j * (turn - 2 * np.pi * late * track.subcarrier_hz))
            seen += noise * (rng.normal(size=h.shape) + 1j * rng.normal(size=h.shape)) / np.sqrt(2)
            rows = np.arange(len(h), dtype=np.int64)
            ends.append(CsiSeries(seen[:, None, None, :].astype(np.complex64), rows, track.subcarrier_hz))
        return ends[0], ends[1]

    def _chain(self, probes: int, subcarriers: int, rng: np.random.Generator) -> C128:
        """Return a chain's response (probe, subcarrier): 1 plus three echoes, one to three samples late."""
        rms = 10 ** (self.ripple_db / 20) - 1
        first, other = (rng.normal(size=3) + 1j * rng.normal(size=3) for _ in range(2))
        share = self.drift * np.linspace(0, 1, probes)[:, None]
        echoes = np.sqrt(1 - share**2) * first + share * other
        late = np.exp(-2j * np.pi * np.outer(np.arange(1, 4), np.arange(subcarriers)) / subcarriers)
        return 1 + rms * np.sqrt(2 / 6) * (echoes @ late)


def tracks(wanted: list[Track], study: Any, cache: Path | None) -> dict[int, C128]:
    """Return channels by seed: from the cache where it holds these tracks, otherwise computed and put there."""
    if cache is not None and cache.is_file():
        with np.load(cache, allow_pickle=False) as kept:
            if str(kept["about"]) == _about(wanted):
                return {t.seed: kept[f"h{t.seed}"].astype(np.complex128) for t in wanted}
    found = study.map(Track.channel, wanted)
    if cache is not None:
        arrays = {f"h{t.seed}": h.astype(np.complex64) for t, h in zip(wanted, found, strict=True)}
        np.savez(cache, about=_about(wanted), **arrays)
    return {t.seed: h for t, h in zip(wanted, found, strict=True)}


def _about(wanted: list[Track]) -> str:
    return repr([asdict(t) for t in wanted])
