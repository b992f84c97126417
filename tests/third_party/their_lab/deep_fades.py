"""Checks that few of Alice's values are in deep fades."""

import numpy as np

from testbed.assess.health import HealthCheck
from testbed.core.stages import Verdict

DEEP_DB = 20.0


class DeepFades(HealthCheck):
    """Values 20 dB below their dimension's median are mostly noise; fails if more than a tenth of all are."""

    def verdicts(self, m):
        levels = m.alice_db[:, np.isfinite(m.alice_db).any(axis=0)]
        if not levels.size:
            return []
        measured = np.isfinite(levels)
        share = float(np.mean((levels < np.nanmedian(levels, axis=0) - DEEP_DB)[measured]))
        detail = f"{share:.1%} of Alice's values lie more than {DEEP_DB:g} dB below their median."
        return [Verdict("deep_fades", share <= 0.1, detail, {"share": share})]
