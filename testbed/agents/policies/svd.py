"""The beam along the strongest mode of the channel: a closed form, and optimal while no Eve listens (paper E).

With H (own antenna, peer antenna) of each subcarrier, an end's beam maximises the power Σ‖Hᵀw‖² over the band: it is
the conjugate of the dominant eigenvector of Σ H Hᴴ. In a narrow band the two ends thus find the pair of dominant
singular vectors, each from its own sounding; a phase or delay that differs between soundings has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from testbed.core.stages import BeamPolicy, first_antenna
from testbed.core.types import C64


class Svd(BeamPolicy):
    """Uses the beam along the strongest mode of the latest sounding; before the first one, the first antenna."""

    def begin(self, n_own: int, n_peer: int, peer: str, seed: int) -> None:
        self._peer = peer
        self._beam = first_antenna(n_own)

    def hear(self, round: int, links: Mapping[str, C64]) -> None:
        h = links.get(self._peer)
        if h is None:
            return
        flat = h.reshape(h.shape[0], -1).astype(np.complex128)
        _, vectors = np.linalg.eigh(flat @ flat.conj().T)
        self._beam = vectors[:, -1].conj().astype(np.complex64)

    def beam(self, round: int) -> C64:
        return self._beam
