"""Several antennas at one place: their positions, and one link's taps and convolutions for all pairs at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from sim_backend.farrow import DEGREE, FARROW, HALF
from testbed.core.types import C64, F64

C128 = NDArray[np.complex128]


@dataclass(frozen=True, slots=True)
class Array:
    """A uniform line of antennas; the first one is at the node's place."""

    n: int
    spacing_wavelengths: float
    axis: tuple[float, float, float]
    """Direction of the line, of any length above 0."""

    def offsets_m(self, wavelength_m: float) -> F64:
        """Return (antenna, 3)."""
        axis = np.asarray(self.axis, float)
        step = self.spacing_wavelengths * wavelength_m * axis / np.linalg.norm(axis)
        return np.asarray(np.arange(self.n)[:, None] * step)


def taps_of_pairs(amplitude: C128, delay_samples: F64) -> tuple[int, C128]:
    """Return (first, h (…, tap)) for paths (…, path): `channel.taps` of many links, all from the same lag on."""
    lead = amplitude.shape[:-1]
    amplitude, delay = amplitude.reshape(-1, amplitude.shape[-1]), delay_samples.reshape(-1, amplitude.shape[-1])
    floor = np.floor(delay)
    first = int(floor.min())
    span = int(floor.max()) - first + 1
    powers = np.empty((len(delay), DEGREE + 1, delay.shape[1]))
    powers[:, 0] = 1.0
    powers[:, 1:] = (2 * (delay - floor) - 1)[:, None]
    np.multiply.accumulate(powers[:, 1:], axis=1, out=powers[:, 1:])
    # (pair, re/im, path): real numbers throughout, as half of a product with complex ones would be zeros
    parts = np.ascontiguousarray(amplitude).view(np.float64).reshape(*amplitude.shape, 2).swapaxes(1, 2)
    h = np.zeros((len(delay), 2, span - 1 + 2 * HALF))
    step_of = floor - first
    for step in range(span):
        here = step_of == step
        if here.any():  # the moments of all paths that arrive within one sample, then their taps
            moments = np.where(here[:, None], parts, 0.0) @ powers.swapaxes(1, 2)
            h[:, :, step : step + 2 * HALF] += moments @ FARROW
    return first + 1 - HALF, (h[:, 0] + 1j * h[:, 1]).reshape(*lead, -1)


def convolve(x: C64, h: C128) -> C64:
    """Return (rx antenna, sample): the convolution of (tx antenna, sample) with (tx, rx antenna, tap), valid part only.

    Computed in the frequency domain: each antenna's samples are transformed once, for any number of other antennas.
    """
    n = x.shape[-1]
    size = scipy.fft.next_fast_len(n)
    spectrum = np.einsum(
        "tk,trk->rk", scipy.fft.fft(x, size), scipy.fft.fft(h.astype(np.complex64), size), optimize=False
    )
    # cyclic of length ≥ n, so that only the part that is not valid wraps around
    return np.asarray(scipy.fft.ifft(spectrum)[:, h.shape[-1] - 1 : n])
