"""Paper D's "Optimal AP without IRS": the largest generalised eigenvector, no surface."""

from __future__ import annotations

import numpy as np

from testbed.papers.secrecy.model import Secrecy
from testbed.surface.design import Design


def design(model: Secrecy) -> Design:
    """Return the best precoder for `model.without_surface()`; the phases are zeros, which have no effect."""
    phases_rad = np.zeros((*model.batch, model.n_elements))
    return Design(phases_rad, model.without_surface().best_precoder(phases_rad))
