"""Wavelet denoising along subcarriers (paper B's peer "WAKG"): small details are taken for noise and shrunk."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np

from testbed.chain.enhance._features import Reduction, magnitudes, whole
from testbed.core.stages import Enhancer
from testbed.core.types import F64, CsiSeries, Features

FAMILIES = ("haar", "db2", "db4", "sym4", "coif1")


class Wavelet(Enhancer):
    """Shrinks wavelet details of |h|, or of Re h and Im h (scale 'complex'), then does as `identity`.

    Soft threshold σ·√(2 ln n), with σ from the median of each frame's finest details (Donoho and Johnstone, 1994).
    family: of wavelets. levels: of the decomposition, as many as fit. strength: factor on the threshold.
    detrend_window: as `identity`'s window. align: as `identity`'s.
    """

    def __init__(
        self,
        family: str = "sym4",
        levels: int = 3,
        strength: float = 1.0,
        step: int = 8,
        scale: str = "db",
        detrend: str = "none",
        detrend_window: int = 32,
        align: bool = True,
    ) -> None:
        if family not in FAMILIES:
            raise ValueError(f"family = {family!r}, accepted: {', '.join(FAMILIES)}")
        whole("levels", levels, 1)
        if not 0.0 <= strength < inf:
            raise ValueError(f"strength = {strength!r}, accepted: finite, from 0")
        self._family, self._levels, self._strength = family, levels, strength
        self._reduction = Reduction(step, scale, detrend, detrend_window, align)

    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return (probe, dimension) features in the order of `Identity.transform`; NaN rows stay NaN."""
        if self._reduction.scale == "complex":
            h = self._reduction.phases(csi)
            return self._reduction.apply(self.denoise(h.real) + 1j * self.denoise(h.imag), csi)
        measured = magnitudes(csi)
        smooth = np.maximum(self.denoise(measured), measured.min(axis=-1, keepdims=True))
        return self._reduction.apply(smooth, csi)

    def denoise(self, values: F64) -> F64:
        """Return real values (…, subcarrier) with small details shrunk; a band too short for a level as it is."""
        import pywt

        n = values.shape[-1]
        levels = min(self._levels, pywt.dwt_max_level(n, self._family))
        if levels < 1:
            return values
        parts: list[Any] = pywt.wavedec(values, self._family, mode="symmetric", level=levels, axis=-1)
        noise = np.median(np.abs(parts[-1]), axis=-1, keepdims=True) / 0.6745
        threshold = self._strength * noise * np.sqrt(2 * np.log(n))
        for i in range(1, len(parts)):
            parts[i] = np.sign(parts[i]) * np.maximum(np.abs(parts[i]) - threshold, 0.0)
        return np.asarray(pywt.waverec(parts, self._family, mode="symmetric", axis=-1)[..., :n])
