"""No enhancement: CSI as measured, averaged over a few subcarriers."""

from __future__ import annotations

from testbed.chain.enhance._features import Reduction, magnitudes
from testbed.core.stages import Enhancer
from testbed.core.types import CsiSeries, Features


class Identity(Enhancer):
    """Takes CSI as it is.

    step: subcarriers averaged into one dimension (≥ 1). scale: 'db' (20·log10 |h|), 'magnitude', or 'complex' (Re and
    Im of each frame's CSI without its delay and common phase).
    detrend: 'none', 'difference' (minus the previous probe) or 'highpass' (minus the mean of the `window` probes
    before): for channels that drift slowly, whose level Eve can know as well as anybody.
    align: with 'complex', take off each frame's delay and phase; false only where radios share clock and phase.
    """

    def __init__(
        self, step: int = 8, scale: str = "db", detrend: str = "none", window: int = 32, align: bool = True
    ) -> None:
        self._reduction = Reduction(step, scale, detrend, window, align)

    def transform(self, csi: CsiSeries, role: str) -> Features:
        """Return (probe, dimension) features; dimension = ((rx · n_tx) + tx) · n_groups + subcarrier group.

        Each antenna pair has its own dimensions. With several antennas the ends agree on the order only after
        `enhance.antennas.canonical_antennas`. Rows that are NaN stay NaN.
        """
        return self._reduction.apply(
            self._reduction.phases(csi) if self._reduction.scale == "complex" else magnitudes(csi), csi
        )
