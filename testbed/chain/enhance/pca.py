"""Principal components (paper B's peer "PCA"; Li et al., 2018): both ends project on Alice's strongest directions."""

from __future__ import annotations

import numpy as np

from testbed.chain.enhance._features import Reduction, whole
from testbed.chain.enhance._trained import Learned, Model, Split, Trained
from testbed.core.types import F64


class Pca(Trained):
    """Gives the `components` strongest principal components of Re and Im of the CSI.

    The basis is of Alice's training rounds; she publishes it. align, model, validation, gap: as `linear_mmse`'s.
    """

    maps_csi = False

    def __init__(
        self, components: int = 16, align: bool = True, model: str = "", validation: float = 0.2, gap: int = 8
    ) -> None:
        whole("components", components, 1)
        self._components = components
        super().__init__(Reduction(1, "complex", "none", 1, align), model, validation, gap, {"components": components})

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        if alice.shape != bob.shape:
            raise ValueError(f"{alice.shape[1]} elements at Alice, {bob.shape[1]} at Bob; accepted: the same")
        if self._components > alice.shape[1]:
            raise ValueError(f"components = {self._components}, accepted: up to {alice.shape[1]}")
        seen = alice[split.train]
        mean = seen.mean(axis=0)
        power, basis = np.linalg.eigh(np.atleast_2d(np.cov(seen, rowvar=False)))
        kept = basis[:, ::-1][:, : self._components]
        share = float(power[::-1][: self._components].sum() / power.sum())
        return Learned(public={"mean": mean, "basis": kept}, history={"variance_kept": share})

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        return np.asarray((vectors - model.public["mean"]) @ model.public["basis"])
