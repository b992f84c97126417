"""The data between the stages, in their order: IqBlock → CsiFrame → CsiSeries → Features → Bits → Key.

All arrays are numpy; shapes are (axis, axis, …) as written. Samples are normalised to the converter's full scale
(|I|, |Q| ≤ 1). Times named `time_s` are on the clock of the device that measured them; device clocks are not
assumed equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

C64 = NDArray[np.complex64]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

SPEED_OF_LIGHT_M_S = 299_792_458.0


@dataclass(frozen=True, slots=True)
class IqBlock:
    """Samples as they left or will enter a converter."""

    samples: C64
    """(antenna, sample), full scale = 1."""
    sample_rate_hz: float
    time_s: float
    """Device time of the first sample."""
    overflow: bool = False
    """Whether the device reported that samples are missing somewhere in this block."""


@dataclass(frozen=True, slots=True)
class SoundingFrame:
    """A known OFDM waveform and the positions of its parts; built by `chain.probing`, used by `chain.csi`.

    Layout: `[preamble: two equal halves][cp | symbol] × n_symbols`, the same symbol each time.
    """

    samples: C64
    """(sample,), what is transmitted, peak magnitude ≤ 1."""
    sample_rate_hz: float
    n_fft: int
    n_cp: int
    n_symbols: int
    preamble_len: int
    """Samples of the whole preamble (its own cyclic prefix included)."""
    preamble_half: int
    """Period of the repetition inside the preamble, in samples; CFO is unambiguous within ±rate/(2·half)."""
    bins: I64
    """(subcarrier,) signed FFT bins in use, ascending, 0 (DC) excluded."""
    pilots: C64
    """(subcarrier,) what each bin carries, scaled as transmitted (FFT of the transmitted symbol / √n_fft)."""

    @property
    def subcarrier_hz(self) -> F64:
        """(subcarrier,) offsets from the carrier."""
        return np.asarray(self.bins * (self.sample_rate_hz / self.n_fft), dtype=np.float64)

    @property
    def duration_s(self) -> float:
        return self.samples.size / self.sample_rate_hz


@dataclass(frozen=True, slots=True)
class AntennaFrame:
    """A sounding that separates the transmitter's antennas, which transmit in turn.

    The first antenna sends a `SoundingFrame`. Each further one sends the symbols only, after a silence of a frame's
    length, so that a receiver cannot mistake a later part for the first frame. At equal total power this is as good as
    orthogonal codes that all antennas send at once. It is received wherever the first antenna is received, whereas the
    sum of several antennas' signals vanishes in some directions.
    """

    frame: SoundingFrame
    samples: C64
    """(tx antenna, sample)."""

    @classmethod
    def of(cls, frame: SoundingFrame, n_antennas: int) -> AntennaFrame:
        """Return the sounding of `n_antennas` antennas with a frame."""
        symbols, stride = frame.samples[frame.preamble_len :], cls._stride(frame)
        samples = np.zeros((n_antennas, frame.samples.size + (n_antennas - 1) * stride), np.complex64)
        samples[0, : frame.samples.size] = frame.samples
        for i in range(1, n_antennas):
            first = frame.preamble_len + i * stride
            samples[i, first : first + symbols.size] = symbols
        return cls(frame, samples)

    @staticmethod
    def _stride(frame: SoundingFrame) -> int:
        return 2 * frame.samples.size - frame.preamble_len

    @property
    def stride(self) -> int:
        """Samples from one antenna's symbols to the next one's."""
        return self._stride(self.frame)

    @property
    def n_antennas(self) -> int:
        return len(self.samples)

    @property
    def duration_s(self) -> float:
        return self.samples.shape[1] / self.frame.sample_rate_hz


@dataclass(frozen=True, slots=True)
class CsiFrame:
    """One channel estimate of one probe at one receiver."""

    h: C64
    """(rx antenna, tx antenna, subcarrier)."""
    subcarrier_hz: F64
    """(subcarrier,) offsets from the carrier."""
    snr_db: F64
    """(subcarrier,) of the estimate's input, averaged over antennas."""
    cfo_hz: float
    """Transmitter's carrier minus receiver's."""
    time_s: float
    """Receiver's device time at which the frame's first sample arrived."""
    rssi_dbfs: float


@dataclass(frozen=True, slots=True)
class CsiSeries:
    """Many probes of one link at one receiver: the key chain's input."""

    h: C64
    """(probe, rx antenna, tx antenna, subcarrier); NaN where this receiver has no valid estimate of that probe."""
    rounds: I64
    """(probe,) round numbers, ascending; Alice's and Bob's series of a block hold the same rounds."""
    subcarrier_hz: F64
    """(subcarrier,)."""
    guessed: NDArray[np.bool_] | None = None
    """(rx antenna, tx antenna, subcarrier) whether all values of a bin in `h` were filled in from neighbours; None:
    none were."""


@dataclass(frozen=True, slots=True)
class Features:
    """The input of quantization: one row per probe, one column per (nearly independent) dimension."""

    values: F64
    """(probe, dimension)."""
    rounds: I64
    """(probe,)."""


@dataclass(frozen=True, slots=True)
class Bits:
    """Raw bits and where each came from, in an order both sides share."""

    values: U8
    """(bit,) of 0 and 1."""
    probe: I64
    """(bit,) row of the Features it came from."""
    dimension: I64
    """(bit,) column of the Features."""
    level_bit: I64
    """(bit,) its place in the Gray-coded label, 0 = most significant."""

    def take(self, index: NDArray[Any]) -> Bits:
        """Select bits by integer index or boolean mask."""
        return Bits(self.values[index], self.probe[index], self.dimension[index], self.level_bit[index])


@dataclass(frozen=True, slots=True)
class Key:
    """A verified, amplified key. Its bits never appear in `repr`, logs or messages."""

    block: int
    bits: U8 = field(repr=False)
    """(bit,) of 0 and 1."""


@dataclass(frozen=True, slots=True)
class SurfacePattern:
    """Phase levels of a surface: element (r, c) reflects with phase 2π·level/2^phase_bits."""

    levels: U8
    """(row, column), each < 2**phase_bits."""
    phase_bits: int

    @property
    def phases_rad(self) -> F64:
        """(row, column)."""
        return np.asarray(self.levels * (2.0 * np.pi / (1 << self.phase_bits)), dtype=np.float64)

    @property
    def digest(self) -> str:
        """Twelve hex digits that name this pattern in records and acknowledgements."""
        import hashlib

        head = f"{self.levels.shape}:{self.phase_bits}:".encode()
        return hashlib.sha256(head + np.ascontiguousarray(self.levels).tobytes()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class AppliedPattern:
    """A board's acknowledgement that its outputs hold a pattern."""

    digest: str
    time_s: float
    """Board time at which the outputs latched; from this time on the new pattern is in effect."""
