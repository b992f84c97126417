"""Follows Alice's carrier during a run: crystals drift with temperature, and frames are found only within a range of
carrier offsets. Pure."""

from __future__ import annotations

from collections import deque

import numpy as np

_LOOKED_AT = 8
"""Number of frames whose median gives the carrier offset: one wrong estimate must not retune a radio."""
_SHARE = 0.5
"""Share of the estimator's range beyond which the radio is retuned."""
MOST_PPM = 200.0
"""Largest offset of any crystal: a larger one is a wrong estimate, or belongs to another device's signal."""


class CarrierTracker:
    """Offsets of Alice's carrier at this node. Every node follows Alice and she follows none: two radios that followed
    each other would not converge.
    """

    def __init__(self, carrier_hz: float, range_hz: float, correction_ppm: float) -> None:
        """`range_hz`: largest offset, either way, at which frames are found; `correction_ppm`: the radio's present
        correction.
        """
        self._carrier_hz, self._range_hz = carrier_hz, range_hz
        self.correction_ppm = correction_ppm
        self._offsets_hz: deque[float] = deque(maxlen=_LOOKED_AT)

    def hear(self, cfo_hz: float) -> None:
        """Take the carrier offset (Alice's minus this radio's) of one of Alice's frames, also of a rejected one."""
        self._offsets_hz.append(cfo_hz)

    def wanted_ppm(self) -> float | None:
        """Return a new correction for the radio, once; None as long as the present one suffices."""
        if len(self._offsets_hz) < _LOOKED_AT:
            return None
        off_hz = float(np.median(self._offsets_hz))
        if abs(off_hz) <= _SHARE * self._range_hz:
            return None
        # Alice's carrier is higher by this offset, so this radio's crystal is slower than was assumed.
        wanted = self.correction_ppm - 1e6 * off_hz / self._carrier_hz
        self._offsets_hz.clear()
        if abs(wanted) > MOST_PPM:
            return None
        self.correction_ppm = wanted
        return wanted
