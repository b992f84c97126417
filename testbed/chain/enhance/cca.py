"""Canonical correlations: the linear features that agree best if both ends transform their CSI (Hotelling, 1936)."""

from __future__ import annotations

import numpy as np

from testbed.chain.enhance._features import Count
from testbed.chain.enhance._trained import Learned, Model, Split, Trained, TrainedOptions
from testbed.core.types import F64

RIDGES = np.logspace(-5, 0, 11)
"""Ridges to choose from, relative to the mean variance of a subcarrier; the best on the validation rounds is taken."""


class CcaOptions(TrainedOptions, frozen=True):
    pairs: Count = 8
    """Number of canonical variates, each of which gives two features."""


class Cca(Trained):
    """Gives Re and Im of the `pairs` strongest canonical variates; Alice publishes Bob's transform.

    On Gaussian channels no other linear features of as many dimensions share more information.
    """

    maps_csi = False

    options_type = CcaOptions
    options: CcaOptions
    applied = ("pairs",)

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        a, b = self._joined(alice), self._joined(bob)
        if self.options.pairs > min(a.shape[1], b.shape[1]):
            raise ValueError(f"pairs = {self.options.pairs}, accepted: up to {min(a.shape[1], b.shape[1])}")
        mean_a, mean_b = a[split.train].mean(axis=0), b[split.train].mean(axis=0)
        x, y = a[split.train] - mean_a, b[split.train] - mean_b
        best = (-1.0, 0.0, x[:0], y[:0])
        spectra = [np.linalg.eigh(z.conj().T @ z / len(z)) for z in (x, y)]
        for ridge in RIDGES:
            wx, wy = (_whitener(power, basis, ridge) for power, basis in spectra)
            u, _, v = np.linalg.svd((x @ wx).conj().T @ (y @ wy))
            ta, tb = wx @ u[:, : self.options.pairs], wy @ v.conj().T[:, : self.options.pairs]
            p, q = (a[split.validate] - mean_a) @ ta, (b[split.validate] - mean_b) @ tb
            together = np.abs((p.conj() * q).sum(axis=0))
            r = together / np.sqrt((np.abs(p) ** 2).sum(axis=0) * (np.abs(q) ** 2).sum(axis=0))
            # bits shared by complex Gaussians of these correlations
            worth = float(-np.log2(1 - np.minimum(r, 0.999999) ** 2).sum())
            best = max(best, (worth, float(ridge), ta, tb), key=lambda x: x[0])
        worth, ridge, ta, tb = best
        arrays = {"alice": ta, "mean_alice": mean_a}, {"bob": tb, "mean_bob": mean_b}
        return Learned(*arrays, history={"ridge": ridge, "validation_bits": worth})

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        end, arrays = ("alice", model.private) if role == "alice" else ("bob", model.public)
        return self._split((self._joined(vectors) - arrays[f"mean_{end}"]) @ arrays[end])


def _whitener(power: np.ndarray, basis: np.ndarray, ridge: float) -> np.ndarray:
    """Return W such that x @ W is white up to the ridge, for x of covariance `basis` · `power` · `basis`ᴴ."""
    return np.asarray(basis / np.sqrt(np.maximum(power, 0.0) + ridge * max(power.mean(), 1e-300)))
