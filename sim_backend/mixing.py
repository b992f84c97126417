"""Reception of a transmission in another band and at another rate: shifted, filtered, resampled.

Two bands have one interval of frequencies in common. One kernel therefore does all three operations: a windowed sinc
with the width and the centre of that interval, evaluated at the receiver's samples.
"""

from __future__ import annotations

import numpy as np

from testbed.core.types import C64, F64

_HALF = 16
"""Half the kernel's length in samples of the slower rate: flat up to 0.42 of that rate, −80 dB from 0.58."""
_KAISER_BETA = 8.0
_AT_ONCE = 1 << 18
"""Number of kernel values that are held at a time."""


def common_band(
    sent_hz: float, sent_rate_hz: float, heard_hz: float, heard_rate_hz: float
) -> tuple[float, float] | None:
    """Return the (lowest, highest) frequency in both bands, in Hz relative to the sender's carrier; None: none.

    A band is its carrier ± half its sample rate.
    """
    away_hz = heard_hz - sent_hz
    low_hz = max(-sent_rate_hz / 2, away_hz - heard_rate_hz / 2)
    high_hz = min(sent_rate_hz / 2, away_hz + heard_rate_hz / 2)
    return (low_hz, high_hz) if high_hz > low_hz else None


def reach(sent_rate_hz: float, heard_rate_hz: float) -> int:
    """Return how many of the sender's samples before and after an instant affect the value at it."""
    return int(np.ceil(_HALF * sent_rate_hz / min(sent_rate_hz, heard_rate_hz))) + 1


def resample(
    wave: C64, first: float, step: float, n_samples: int, sent_rate_hz: float, heard_rate_hz: float,
    band_hz: tuple[float, float],
) -> C64:  # fmt: skip
    """Return (…, n_samples): `wave` (…, sample) at the instants `first` + m · `step`, counted in its own samples.

    Only its part in `band_hz` is kept. The caller shifts it by the difference of the carriers. `wave`
    must have `reach` samples on either side of every instant.
    """
    half = reach(sent_rate_hz, heard_rate_hz)
    offsets = np.arange(1 - half, half + 1)
    out = np.empty((*wave.shape[:-1], n_samples), np.complex64)
    rows = max(1, _AT_ONCE // offsets.size)
    for begin in range(0, n_samples, rows):
        at = first + step * np.arange(begin, min(begin + rows, n_samples))
        whole = np.floor(at).astype(np.intp)
        # equal rates and simple ratios have only a few different fractions
        fractions, which = np.unique(np.round(at - whole, 7), return_inverse=True)
        kernel = _kernel(fractions[:, None] - offsets, sent_rate_hz, heard_rate_hz, band_hz)
        out[..., begin : begin + at.size] = np.einsum(
            "...mk,mk->...m", wave[..., whole[:, None] + offsets], kernel[which], optimize=False
        )
    return out


def _kernel(late: F64, sent_rate_hz: float, heard_rate_hz: float, band_hz: tuple[float, float]) -> C64:
    """Return the weights of samples that lie `late` samples before the instant."""
    low, high = (f / sent_rate_hz for f in band_hz)
    half = _HALF * sent_rate_hz / min(sent_rate_hz, heard_rate_hz)
    window = np.i0(_KAISER_BETA * np.sqrt(np.clip(1 - (late / half) ** 2, 0, None))) / np.i0(_KAISER_BETA)
    window[np.abs(late) > half] = 0.0
    shape = (high - low) * np.sinc((high - low) * late) * window
    return np.asarray(shape * np.exp(1j * np.pi * (high + low) * late), np.complex64)
