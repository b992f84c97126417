"""Paper D's "Optimal AP without IRS": the largest generalised eigenvector, no surface."""

from __future__ import annotations

import numpy as np

from testbed.surface.design import Design
from testbed.surface.models.secrecy import Secrecy


def design(model: Secrecy) -> Design:
    """Return the best precoder of the direct channels; phases (…, 0), there being no surface."""
    return Design(np.zeros((*model.batch, 0)), model.best_precoder(None))
