"""The World's time: whole picoseconds since its last reset, and how a device's own clock reads it.

Times are integers, so that "the same instant" means the same number in every process; 2^63 ps are 106 days.
"""

from __future__ import annotations

from dataclasses import dataclass

TICKS_PER_S = 10**12


def to_ticks(seconds: float) -> int:
    """Return the nearest tick."""
    return round(seconds * TICKS_PER_S)


def to_seconds(ticks: int) -> float:
    return ticks / TICKS_PER_S


def duration(n_samples: int, sample_rate_hz: float) -> int:
    """Return how many ticks `n_samples` last."""
    return round(n_samples * TICKS_PER_S / sample_rate_hz)


@dataclass(frozen=True, slots=True)
class DeviceClock:
    """A free-running clock: device time = world time · (1 + ppm·1e-6) + offset."""

    ppm: float = 0.0
    offset_s: float = 0.0

    def world_ticks(self, device_s: float) -> int:
        """Return the world's tick at which this clock reads `device_s`."""
        return to_ticks((device_s - self.offset_s) / (1.0 + self.ppm * 1e-6))

    def reading_s(self, world_ticks: int) -> float:
        """Return this clock's reading at a tick of the world."""
        return to_seconds(world_ticks) * (1.0 + self.ppm * 1e-6) + self.offset_s
