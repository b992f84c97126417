"""A table of how strong every link was."""

import numpy as np

from testbed.report.pieces import Cell, Code, missing, table
from testbed.report.section import Section


class Levels(Section):
    """Mean SNR and its spread, link by link."""

    short = "Levels"
    title = "How strong every link was"

    def html(self, v):
        rows = []
        for link, record in sorted(v.run.links.items()):
            snr = record.snr_db[np.isfinite(record.snr_db)]
            if snr.size:
                rows.append((Code(link), Cell(f"{snr.mean():.1f}", "n"), Cell(f"{snr.std():.1f}", "n")))
        if not rows:
            return missing("No probe was received by anybody.")
        return table(("link", Cell("mean SNR, dB", "n"), Cell("std, dB", "n")), rows)
