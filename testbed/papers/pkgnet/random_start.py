"""Paper A's other baseline: a random precoder of full power and random phases."""

from __future__ import annotations

import numpy as np

from testbed.papers.pkgnet.model import SingleCell
from testbed.surface.design import Design


def design(model: SingleCell, rng: np.random.Generator) -> Design:
    """Return one draw for each position: Gaussian precoders scaled to ‖P‖² = P_a·M, uniform phases."""
    batch, m = np.shape(model.beta_h), model.n_antennas
    precoders = rng.standard_normal((*batch, m, m)) + 1j * rng.standard_normal((*batch, m, m))
    precoders *= np.sqrt(model.power_a_w * m) / np.linalg.norm(precoders, axis=(-2, -1), keepdims=True)
    return Design(rng.uniform(0, 2 * np.pi, (*batch, model.n_elements)), precoders)
