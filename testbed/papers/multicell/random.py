"""Paper C's baseline of random phases (RandPhase): the precoders are algorithm 1's."""

from __future__ import annotations

import numpy as np

from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell.model import MultiCell
from testbed.surface.design import Design


def design(model: MultiCell, rng: np.random.Generator) -> Design:
    """Return one draw of uniform phases for each scene, and precoders for it from a random start."""
    phases_rad = rng.uniform(0, 2 * np.pi, (*model.batch, model.n_phases))
    return cells_precoders.design(model, phases_rad, cells_precoders.random(model, rng))
