"""The linear MMSE (Wiener) map from Alice's CSI to Bob's: on Gaussian channels no network is better."""

from __future__ import annotations

import numpy as np

from testbed.chain.enhance._trained import Learned, MappedOptions, Model, Split, Trained
from testbed.chain.enhance._wiener import predict, wiener
from testbed.core.types import F64


class LinearMmse(Trained):
    """Predicts Bob's CSI by ĥ_B = m_B + W (h_A − m_A), W = C_BA (C_AA + λI)⁻¹ from the training's covariances.

    The ridge λ accounts for the errors of covariances from a short training.
    """

    options_type = MappedOptions

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        weights, history = wiener(self._joined(alice), self._joined(bob), split)
        return Learned(private=weights, history=history)

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        return self._split(predict(model.private, self._joined(vectors)))
