"""Paper C's baseline without a surface: the links over the surface are zero, and algorithm 1 finds the precoders."""

from __future__ import annotations

import numpy as np

from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell.model import MultiCell
from testbed.surface.design import Design


def design(model: MultiCell) -> Design:
    """Return precoders for `model.without_surface()`; the phases are zeros, which have no effect."""
    bare = model.without_surface()
    return cells_precoders.design(bare, np.zeros((*model.batch, model.n_phases)))
