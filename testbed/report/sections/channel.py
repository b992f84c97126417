"""Heat maps of the channel's magnitude."""

from __future__ import annotations

from testbed.report import pictures
from testbed.report.pieces import missing, picture
from testbed.report.section import Section
from testbed.report.view import View, no_csi, no_eve


class Channel(Section):
    """Heat maps of the channel's magnitude."""

    order = 30
    short = "Channel"
    title = "The channel as measured by each node"

    def html(self, v: View) -> str:
        axis = v.run.subcarrier_hz
        if (why := no_csi(v)) is not None or axis is None:
            return missing(why or "The frequency axis was not recorded.")
        shown = [link for link in v.links.values() if link.magnitude_db is not None][:4]
        svg = v.draw.heat_maps(
            shown,
            axis,
            "Heat maps of channel magnitude over rounds and frequency: " + "; ".join(link.title for link in shown),
        )
        antennas = any(r.csi is not None and r.csi.shape[1] * r.csi.shape[2] > 1 for r in v.run.links.values())
        caption = (
            "Magnitude of every channel estimate, each link relative to its own median, all on the same scale. "
            "Where the channel is reciprocal, Alice’s and Bob’s pictures look alike; "
            "gaps are rounds without an estimate. "
            "Frequency is the offset from the carrier."
        )
        if antennas:
            caption += " First antenna of each radio."
        if pictures.decimated(shown):
            caption += f" Of a run this long, {pictures.MAX_COLUMNS} evenly spaced rounds are shown."
        return picture(svg, caption) + no_eve(v)
