"""What follows from a sounding frame's design alone: the positions of its parts, and tables for the estimation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from testbed.core.types import F64, I64, SoundingFrame

C128 = NDArray[np.complex128]


class Plan:
    """Derived once from a frame; `preamble` and `symbol` below are its two waveforms."""

    def __init__(self, frame: SoundingFrame) -> None:
        """Raises ValueError where the frame's parts do not add up or its cyclic prefix exceeds half a symbol."""
        self.frame = frame
        self.n_fft, self.n_cp, self.n_symbols = frame.n_fft, frame.n_cp, frame.n_symbols
        self.half, self.preamble_len = frame.preamble_half, frame.preamble_len
        self.step = frame.n_cp + frame.n_fft
        self.symbols_len = frame.n_symbols * self.step
        self.frame_len = frame.samples.size
        self.bins: I64 = frame.bins
        self.subcarrier_hz: F64 = frame.subcarrier_hz
        if self.frame_len != self.preamble_len + self.symbols_len or self.preamble_len < self.n_fft:
            raise ValueError("the frame's parts do not add up to its length")
        if not 0 < 2 * self.n_cp <= self.n_fft:
            raise ValueError(
                f"cyclic prefix of {self.n_cp} samples, accepted: up to half the symbol, {self.n_fft // 2}"
            )

        samples = frame.samples.astype(np.complex128)
        # Windows begin where the earliest path's cyclic prefix ends; every path that arrives up to n_cp later is then
        # still within its own prefix. The preamble's last n_fft samples are a further window, one step before those of
        # the symbols.
        self.first = self.preamble_len - self.n_fft
        self.parts = self.first + self.step * np.arange(self.n_symbols + 1)
        self.samples = np.arange(self.n_fft)
        self.span = self.frame_len + self.n_cp
        """Number of samples, from a frame's start on, that contain all windows and the gaps after them."""
        self.detection_share = self._detection_share()

        # Range of the fine search around the coarse start; the preamble repeats itself after one half.
        self.reach = self.n_cp + self.half // 4
        self.fine_span = 2 * self.reach + self.preamble_len
        self.fine_len = _good_length(self.fine_span)
        self.preamble_conj = np.conj(np.fft.fft(samples[: self.preamble_len], self.fine_len))
        self.before = self.reach
        """Zeros before a block's samples, so that every window begins inside."""
        self.after = max(self.frame_len - self.preamble_len + self.n_cp, self.reach)
        """Zeros after a block's samples, so that a frame that exceeds the block is recognised as such."""

        preamble, symbol = np.fft.fft(samples[self.parts[:2, None] + self.samples], axis=1)
        self.used: I64 = self.bins % self.n_fft
        self.cycles: F64 = self.bins / self.n_fft
        self.symbol: C128 = symbol[self.used]
        self.inverse_power = float(np.mean(1 / power(self.symbol)))
        carried = np.abs(preamble[self.used]) > 0.1 * np.abs(preamble[self.used]).max()
        self.even: I64 = self.used[carried]
        self.preamble_over_symbol: C128 = preamble[self.even] / symbol[self.even]

        # The energy of a channel lies within a cyclic prefix; that of a pure carrier, or of another waveform, is spread
        # over all delays.
        delays = np.arange(self.n_cp + 1)
        self.to_delays = np.exp(2j * np.pi / self.n_fft * np.outer(self.bins, delays)) / np.sqrt(self.n_fft)
        one_path = np.exp(-2j * np.pi / self.n_fft * self.bins * (self.n_cp // 2))
        one_path_share = float(power(one_path @ self.to_delays).sum()) / self.bins.size
        self.min_delay_share = (one_path_share + delays.size / self.n_fft) / 2
        self.neighbours = np.diff(self.bins) == 1

    @property
    def max_cfo(self) -> float:
        """Cycles per sample within which a carrier offset is accepted: the frame's band stays inside the sampled one.

        Never less than the preamble's halves can resolve. Beyond it, a receiver's filters have removed part of the
        band.
        """
        spare = self.n_fft // 2 - int(np.abs(self.bins).max())
        return max(spare / self.n_fft if self.searchable else 0.0, 1 / (2 * self.half))

    @property
    def searchable(self) -> bool:
        """Whether carrier offsets that the preamble's halves cannot distinguish are a whole number of bins apart."""
        return self.n_fft % self.half == 0 and not np.any(self.even % (self.n_fft // self.half))

    def _detection_share(self) -> F64:
        """Return (sample,) how often each is used in the detection's products, halved: Σ|a||b| ≤ Σ(|a|² + |b|²)/2."""
        share = np.zeros(self.frame_len)
        for first, stop, lag in ((0, self.preamble_len, self.half), (self.preamble_len, self.frame_len, self.step)):
            share[first : stop - lag] += 0.5
            share[first + lag : stop] += 0.5
        return share


def power(a: C128) -> F64:
    return a.real**2 + a.imag**2


def _good_length(n: int) -> int:
    return 1 << (n - 1).bit_length()
