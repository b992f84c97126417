"""A table of the SNR of every link."""

import numpy as np

from testbed.report.pieces import Cell, Code, missing, table
from testbed.report.section import Section


class Levels(Section):
    """Mean and standard deviation of each link's SNR."""

    short = "Levels"
    title = "SNR of every link"

    def html(self, v):
        rows = []
        for link, record in sorted(v.run.links.items()):
            snr = record.snr_db[np.isfinite(record.snr_db)]
            if snr.size:
                rows.append((Code(link), Cell(f"{snr.mean():.1f}", "n"), Cell(f"{snr.std():.1f}", "n")))
        if not rows:
            return missing("No node received a probe.")
        return table(("link", Cell("mean SNR, dB", "n"), Cell("std, dB", "n")), rows)
