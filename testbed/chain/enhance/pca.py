"""Principal components (paper B's peer "PCA"; Li et al., 2018): both ends project on Alice's strongest directions."""

from __future__ import annotations

import numpy as np

from testbed.chain.enhance._features import Count
from testbed.chain.enhance._trained import Learned, Model, Split, Trained, TrainedOptions
from testbed.core.types import F64


class PcaOptions(TrainedOptions, frozen=True):
    components: Count = 16
    """Number of features."""


class Pca(Trained):
    """Gives the `components` strongest principal components of Re and Im of the CSI.

    The basis is computed from Alice's training rounds; she publishes it.
    """

    maps_csi = False

    options_type = PcaOptions
    options: PcaOptions
    applied = ("components",)

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        if alice.shape != bob.shape:
            raise ValueError(f"{alice.shape[1]} elements at Alice, {bob.shape[1]} at Bob; accepted: the same")
        if self.options.components > alice.shape[1]:
            raise ValueError(f"components = {self.options.components}, accepted: up to {alice.shape[1]}")
        seen = alice[split.train]
        mean = seen.mean(axis=0)
        power, basis = np.linalg.eigh(np.atleast_2d(np.cov(seen, rowvar=False)))
        kept = basis[:, ::-1][:, : self.options.components]
        share = float(power[::-1][: self.options.components].sum() / power.sum())
        return Learned(public={"mean": mean, "basis": kept}, history={"variance_kept": share})

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        return np.asarray((vectors - model.public["mean"]) @ model.public["basis"])
