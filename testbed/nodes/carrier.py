"""Follows Alice's carrier during a run: crystals drift with temperature, and frames are found within a range. Pure."""

from __future__ import annotations

from collections import deque

import numpy as np

_LOOKED_AT = 8
"""Frames whose median says where the carrier is: one wrong estimate must not tune a radio."""
_SHARE = 0.5
"""Of the estimator's range, beyond which the radio is tuned anew."""
MOST_PPM = 200.0
"""No crystal is further off: larger offsets are wrong estimates, or another device's signal."""


class CarrierTracker:
    """Offsets of Alice's carrier as this node hears it. Everybody follows her, and she follows nobody: two radios that
    followed one another would chase each other.
    """

    def __init__(self, carrier_hz: float, range_hz: float, correction_ppm: float) -> None:
        """`range_hz`: within which frames are found, either way; `correction_ppm`: what the radio takes out now."""
        self._carrier_hz, self._range_hz = carrier_hz, range_hz
        self.correction_ppm = correction_ppm
        self._offsets_hz: deque[float] = deque(maxlen=_LOOKED_AT)

    def hear(self, cfo_hz: float) -> None:
        """Take the carrier offset of one of Alice's frames (hers minus this radio's), of rejected frames, too."""
        self._offsets_hz.append(cfo_hz)

    def wanted_ppm(self) -> float | None:
        """Return the correction that the radio should have, once; None while the present one serves."""
        if len(self._offsets_hz) < _LOOKED_AT:
            return None
        off_hz = float(np.median(self._offsets_hz))
        if abs(off_hz) <= _SHARE * self._range_hz:
            return None
        # hers is above this radio's by so much: this crystal is slower than was assumed
        wanted = self.correction_ppm - 1e6 * off_hz / self._carrier_hz
        self._offsets_hz.clear()
        if abs(wanted) > MOST_PPM:
            return None
        self.correction_ppm = wanted
        return wanted
