"""No enhancement: CSI as measured, averaged over a few subcarriers."""

from __future__ import annotations

from typing import Any

from testbed.chain.enhance._features import Count, Reduction, ScaleOptions, magnitudes
from testbed.core.stages import Enhancer
from testbed.core.types import CsiSeries, Features


class IdentityOptions(ScaleOptions, frozen=True):
    window: Count = 32
    """Number of earlier probes whose mean `detrend = "highpass"` subtracts."""


class Identity(Enhancer):
    """Uses CSI without enhancement."""

    options_type = IdentityOptions
    options: IdentityOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        self._reduction = Reduction(o.step, o.scale, o.detrend, o.window, o.align)

    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return (probe, dimension) features; dimension = ((rx · n_tx) + tx) · n_groups + subcarrier group.

        Each antenna pair has its own dimensions. With several antennas the ends agree on the order only after
        `enhance.antennas.canonical_antennas`. Rows that are NaN stay NaN.
        """
        return self._reduction.apply(
            self._reduction.phases(csi) if self._reduction.scale == "complex" else magnitudes(csi), csi
        )
