"""Savitzky–Golay smoothing along subcarriers (Savitzky and Golay 1964; paper B's peer "SGF")."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from testbed.chain.enhance._features import Count, Reduction, ScaleOptions, magnitudes
from testbed.core.stages import Enhancer
from testbed.core.types import F64, CsiSeries, Features


def smoothing_matrix(n: int, window: int, order: int) -> F64:
    """Return S (subcarrier, subcarrier) with smoothed = S @ magnitude; polynomial fits at the band's edges.

    A band shorter than the window gets the longest odd window that fits, and no smoothing (S = 1) where even that is
    no longer than the order. Subcarriers are treated as evenly spaced; the one-bin gap at DC is ignored.
    """
    from scipy.signal import savgol_filter

    window = min(window, n - (n + 1) % 2)
    if window <= order:
        return np.eye(n)
    out: F64 = savgol_filter(np.eye(n), window, order, axis=0, mode="interp")
    return out


class SavgolOptions(ScaleOptions, frozen=True):
    window: Count = 11
    """Number of subcarriers in a fit, odd."""
    order: Annotated[int, Meta(ge=0, le=1_000_000)] = 3
    """Degree of the polynomial, below `window`."""
    detrend_window: Count = 32
    """Number of earlier probes whose mean `detrend = "highpass"` subtracts."""

    def __post_init__(self) -> None:
        if self.window % 2 == 0 or self.order >= self.window:
            raise ValueError(
                f"window = {self.window}, order = {self.order}; accepted: an odd window longer than the order"
            )


class Savgol(Enhancer):
    """Smooths along subcarriers by local polynomials, then does as `identity` with the same options.

    |h| is smoothed, or with scale 'complex' Re h and Im h of each frame without its delay and common phase.
    """

    options_type = SavgolOptions
    options: SavgolOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        self._reduction = Reduction(o.step, o.scale, o.detrend, o.detrend_window, o.align)

    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return (probe, dimension) features in the order of `Identity.transform`; NaN rows stay NaN."""
        # With a matrix product, a NaN affects its own row only; scipy's filter fits the edges of all rows together.
        smooth = smoothing_matrix(csi.h.shape[-1], self.options.window, self.options.order)
        if self._reduction.scale == "complex":
            return self._reduction.apply(self._reduction.phases(csi) @ smooth.T, csi)
        measured = magnitudes(csi)
        # In a deep fade the polynomial may fall to zero or below; no level is lower than the lowest measured.
        smoothed = np.maximum(measured @ smooth.T, measured.min(axis=-1, keepdims=True))
        return self._reduction.apply(smoothed, csi)
