"""The linear MMSE (Wiener) map from Alice's CSI to Bob's: on Gaussian channels no network can pass it."""

from __future__ import annotations

import numpy as np

from testbed.chain.enhance._features import C128, Reduction
from testbed.chain.enhance._trained import Learned, Model, Split, Trained, as_complex, stacked
from testbed.core.types import F64

RIDGES = np.logspace(-6, 2, 25)
"""Relative to the mean variance of a subcarrier; which one is best is judged on the validation stretch."""


class LinearMmse(Trained):
    """Predicts Bob's CSI by ĥ_B = m_B + W (h_A − m_A), W = C_BA (C_AA + λI)⁻¹ from the training's covariances.

    The ridge λ stands for what a short training does not tell. step, scale: as `identity`'s. model: a saved model
    instead of a training. validation: last share of the training rounds, which judges; gap: rounds left out before it.
    """

    def __init__(
        self, step: int = 8, scale: str = "complex", model: str = "", validation: float = 0.2, gap: int = 8
    ) -> None:
        super().__init__(Reduction(step, scale, "none", 1), model, validation, gap, {})

    def _learn(self, alice: F64, bob: F64, split: Split, rng: np.random.Generator) -> Learned:
        weights, history = wiener(as_complex(alice), as_complex(bob), split)
        return Learned(private=weights, history=history)

    def _apply(self, model: Model, role: str, vectors: F64) -> F64:
        return stacked(predict(model.private, as_complex(vectors)))


def wiener(a: C128, b: C128, split: Split) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the map of complex vectors (probe, element) and how it was chosen."""
    mean_a, mean_b = a[split.train].mean(axis=0), b[split.train].mean(axis=0)
    x, y = a[split.train] - mean_a, b[split.train] - mean_b
    power, basis = np.linalg.eigh(x.T @ x.conj() / len(x))  # C_AA[i, j] = E a_i a_j*
    power = np.maximum(power, 0.0)
    cross = (y.T @ x.conj() / len(x)) @ basis
    test = (a[split.validate] - mean_a) @ basis.conj()
    wanted = b[split.validate] - mean_b
    unit = power.mean()
    errors = [float((np.abs((test / (power + r * unit)) @ cross.T - wanted) ** 2).mean()) for r in RIDGES]
    ridge = float(RIDGES[int(np.argmin(errors))])
    matrix = (cross / (power + ridge * unit)) @ basis.conj().T
    history = {"ridge": ridge, "validation_mse": min(errors)}
    return {"matrix": matrix, "mean_alice": mean_a, "mean_bob": mean_b}, history


def predict(weights: dict[str, np.ndarray], a: C128) -> C128:
    """Return Bob's complex vectors (probe, element) as the map gives them."""
    return np.asarray((a - weights["mean_alice"]) @ weights["matrix"].T + weights["mean_bob"])
