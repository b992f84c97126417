"""Signal-to-noise ratio and carrier offset over rounds."""

from __future__ import annotations

import numpy as np

from testbed.report.pieces import missing, picture
from testbed.report.section import Section
from testbed.report.view import View, no_eve


class RadioOverTime(Section):
    """Signal-to-noise ratio and carrier offset over rounds."""

    order = 110
    short = "SNR and CFO"
    title = "SNR and carrier offset"

    def html(self, v: View) -> str:
        if not v.links:
            return missing("No node received a probe.")
        if not any(np.isfinite([link.snr_db, link.cfo_hz]).any() for link in v.links.values()):
            return missing("Neither SNR nor carrier offset was recorded.") + no_eve(v)
        svg = v.draw.over_time(
            list(v.links.values())[:6],
            "Signal-to-noise ratio and carrier frequency offset of every link over rounds",
        )
        times = v.run.rounds.t0_s[np.isfinite(v.run.rounds.t0_s)]
        lasted = f" The rounds span {times[-1] - times[0]:.4g} s." if times.size > 1 else ""
        return picture(
            svg, f"Mean over subcarriers, as each receiver measured it.{lasted} Gaps: no estimate."
        ) + no_eve(v)
