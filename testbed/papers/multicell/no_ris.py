"""Paper C's baseline without a surface: its links are zero, the precoders are algorithm 1's."""

from __future__ import annotations

import numpy as np

from testbed.papers.multicell import precoders as cells_precoders
from testbed.papers.multicell.model import MultiCell
from testbed.surface.design import Design


def design(model: MultiCell) -> Design:
    """Return precoders for `model.without_surface()`; the phases (zeros) mean nothing."""
    bare = model.without_surface()
    return cells_precoders.design(bare, np.zeros((*model.batch, model.n_phases)))
