"""OFDM sounding: a preamble of two equal halves, then the same known symbol several times."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import numpy as np
from msgspec import Meta

from testbed.core import seeds
from testbed.core.options import StageOptions
from testbed.core.stages import Sounder
from testbed.core.types import C64, I64, SoundingFrame

PEAK = 0.9
"""Peak magnitude of the frame; full scale is 1. The transmitter's interpolation filters need the rest."""
_PHASE_STEPS = 256
_PAPR_ITERATIONS = 100


class OfdmOptions(StageOptions, frozen=True):
    n_subcarriers: Annotated[int, Meta(ge=16, le=8190)] = 64
    """Number of subcarriers, even; at most n_fft − 2."""
    n_fft: Annotated[int, Meta(ge=32, le=8192, multiple_of=4)] = 128
    """Number of samples of a symbol."""
    n_cp: Annotated[int, Meta(ge=4, le=4096)] = 32
    """Number of samples of the cyclic prefix, at most n_fft/2."""
    n_symbols: Annotated[int, Meta(ge=2, le=256)] = 4
    """Number of repetitions of the symbol, between which the noise is measured."""
    seed: Annotated[int, Meta(ge=0)] = 1
    """Seed of the subcarriers' phases."""

    def __post_init__(self) -> None:
        most = self.n_fft - 2
        if self.n_subcarriers % 2 or self.n_subcarriers > most:
            raise ValueError(f"n_subcarriers = {self.n_subcarriers}, accepted: even, from 16 to n_fft − 2 = {most}")
        if self.n_cp > self.n_fft // 2:
            raise ValueError(f"n_cp = {self.n_cp}, accepted: 4 to n_fft/2 = {self.n_fft // 2}")


class Ofdm(Sounder):
    """OFDM sounding frame with a Schmidl–Cox preamble.

    Bins ±1 … ±n_subcarriers/2 are used, DC is not. The preamble uses every second of them, which makes its two halves
    equal (Schmidl and Cox, IEEE Trans. Commun. 45(12), 1997); it has the band and the power of the symbols. All bins
    have the same magnitude. Their phases are drawn from `seed` and optimised for a low crest factor. They do not form a
    chirp (Zadoff–Chu, Newman): a chirp that is shifted in frequency equals one that is shifted in time, so that a
    receiver could mistake a carrier offset for a delay.

    Both ends must use the same options.
    """

    options_type = OfdmOptions
    options: OfdmOptions

    def frame(self, sample_rate_hz: float) -> SoundingFrame:
        """Return the frame at a sample rate in Hz; its peak magnitude is 0.9 of full scale. Raises ValueError."""
        if not (np.isfinite(sample_rate_hz) and sample_rate_hz > 0):
            raise ValueError(f"sample_rate_hz = {sample_rate_hz}, accepted: > 0")
        o = self.options
        side = np.arange(1, o.n_subcarriers // 2 + 1)
        bins: I64 = np.concatenate([-side[::-1], side]).astype(np.int64)
        even = bins[bins % 2 == 0]

        spectrum = np.zeros((2, o.n_fft), dtype=np.complex128)
        spectrum[0, even] = _low_crest(tuple(even.tolist()), o.n_fft, o.seed, "preamble")
        spectrum[0, even] *= np.sqrt(bins.size / even.size)  # as strong as a symbol
        spectrum[1, bins] = _low_crest(tuple(bins.tolist()), o.n_fft, o.seed, "symbol")
        preamble, symbol = np.fft.ifft(spectrum, axis=1) * np.sqrt(o.n_fft)

        samples = np.concatenate(
            [preamble[-o.n_cp :], preamble, np.tile(np.concatenate([symbol[-o.n_cp :], symbol]), o.n_symbols)]
        )
        scale = PEAK / np.abs(samples).max()
        return SoundingFrame(
            samples=(samples * scale).astype(np.complex64),
            sample_rate_hz=float(sample_rate_hz),
            n_fft=o.n_fft,
            n_cp=o.n_cp,
            n_symbols=o.n_symbols,
            preamble_len=o.n_cp + o.n_fft,
            preamble_half=o.n_fft // 2,
            bins=bins,
            pilots=(spectrum[1, bins] * scale).astype(np.complex64),
        )


@lru_cache(maxsize=8)
def _low_crest(used: tuple[int, ...], n_fft: int, seed: int, part: str) -> C64:
    """Return (bin,) unit values, to be read only, whose waveform has a low crest factor.

    Iterated clipping (Van der Ouderaa et al., IEEE Trans. Instrum. Meas. 37(1), 1988): clip the waveform's magnitude,
    keep the phases of its spectrum, restore the spectrum's flat magnitude. The phases end on a grid, so that rounding
    differences between machines cannot reach the waveform.
    """
    bins = np.array(used)
    values = np.exp(2j * np.pi * seeds.generator(seed, "ofdm", part).random(bins.size))
    spectrum = np.zeros(n_fft, dtype=np.complex128)
    for _ in range(_PAPR_ITERATIONS):
        spectrum[bins] = values
        wave = np.fft.ifft(spectrum)
        magnitude = np.abs(wave)
        limit = np.sqrt(np.mean(magnitude**2))
        values = np.fft.fft(wave * np.minimum(1.0, limit / np.maximum(magnitude, 1e-300)))[bins]
        values /= np.abs(values)
    steps = np.round(np.angle(values) * (_PHASE_STEPS / (2 * np.pi)))
    found: C64 = np.exp(2j * np.pi * steps / _PHASE_STEPS).astype(np.complex64)
    found.setflags(write=False)
    return found
