"""Wavelet denoising along subcarriers (paper B's peer "WAKG"): small details are assumed to be noise and are shrunk."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from testbed.chain.enhance._features import Count, Reduction, ScaleOptions, magnitudes
from testbed.core.stages import Enhancer
from testbed.core.types import F64, CsiSeries, Features


class WaveletOptions(ScaleOptions, frozen=True):
    family: Literal["haar", "db2", "db4", "sym4", "coif1"] = "sym4"
    """Family of wavelets."""
    levels: Count = 3
    """Levels of the decomposition; fewer where the band is too short."""
    strength: Annotated[float, Meta(ge=0)] = 1.0
    """Factor on the threshold."""
    detrend_window: Count = 32
    """Number of earlier probes whose mean `detrend = "highpass"` subtracts."""


class Wavelet(Enhancer):
    """Shrinks wavelet details of |h|, or of Re h and Im h (scale 'complex'), then computes features as `identity` does.

    Soft threshold σ·√(2 ln n), with σ from the median of each frame's finest details (Donoho and Johnstone, 1994).
    """

    options_type = WaveletOptions
    options: WaveletOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        self._reduction = Reduction(o.step, o.scale, o.detrend, o.detrend_window, o.align)

    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return (probe, dimension) features in the order of `Identity.transform`; NaN rows stay NaN."""
        if self._reduction.scale == "complex":
            h = self._reduction.phases(csi)
            return self._reduction.apply(self.denoise(h.real) + 1j * self.denoise(h.imag), csi)
        measured = magnitudes(csi)
        smooth = np.maximum(self.denoise(measured), measured.min(axis=-1, keepdims=True))
        return self._reduction.apply(smooth, csi)

    def denoise(self, values: F64) -> F64:
        """Return real values (…, subcarrier) with small details shrunk; a band too short for one level is unchanged."""
        import pywt

        n = values.shape[-1]
        levels = min(self.options.levels, pywt.dwt_max_level(n, self.options.family))
        if levels < 1:
            return values
        parts: list[Any] = pywt.wavedec(values, self.options.family, mode="symmetric", level=levels, axis=-1)
        noise = np.median(np.abs(parts[-1]), axis=-1, keepdims=True) / 0.6745
        threshold = self.options.strength * noise * np.sqrt(2 * np.log(n))
        for i in range(1, len(parts)):
            parts[i] = np.sign(parts[i]) * np.maximum(np.abs(parts[i]) - threshold, 0.0)
        return np.asarray(pywt.waverec(parts, self.options.family, mode="symmetric", axis=-1)[..., :n])
